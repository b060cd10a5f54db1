"""Errors that are the user's to mend: one line each, saying what to change."""

import errno
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path, PurePath

import metalearn

# Another project's package of this name may have written over ours: better here than by missing
# names.
if not hasattr(metalearn, "__distribution__"):
    from metalearn_start import overwritten

    raise ImportError(overwritten(), name="metalearn")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_PLACE = (errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)


class UsageError(ValueError):
    """A combination, name or value that cannot work. The command line prints its one line."""


class Diverged(UsageError):
    """A run whose numbers are no longer finite: it fails, and what it has written stays."""


class RankLost(UsageError):
    """A rank has ended, or no longer answers, and so the others end too.

    midway: whether what is trained had begun to change, and is no whole step. speaks: whether this
    process tells of it, though it is not the first. reason: as torch has it.
    """

    midway = speaks = False

    def __init__(self, line: str, reason: str = "") -> None:
        super().__init__(line)
        self.reason = reason


class Busy(UsageError):
    """A run that another process is working on."""


class DataError(Exception):
    """Data that is missing, damaged or asked for wrongly. The command line prints its one line."""


def check_whole(name: str, value: object, low: int = 0) -> None:
    """Raise UsageError for a value that is not a whole number, or less than `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name}={value} must be a whole number, {low} or more")
    if int(value) < low:
        raise UsageError(f"{name}={value} must be {low} or more")


def disk_mistake(error: BaseException) -> str | None:
    """The line for an error of a disk or a folder, which the user can mend; None for others."""
    if not isinstance(error, OSError):
        return None
    reason = error.strerror or type(error).__name__
    where = f" {error.filename}" if isinstance(error.filename, str | Path) else ""
    if error.errno in _FULL:
        told = f"cannot write{where} ({reason}): make room"
    elif error.errno in _REFUSED:
        told = f"cannot read or write{where} ({reason}): change its permissions, or another place"
    elif error.errno in _PLACE and where:
        told = f"cannot read or write{where} ({reason}): put it right"
    else:
        return None
    return f"{told}; then the same command goes on from what is written, or starts again"


def disk_full(error: BaseException) -> bool:
    """Whether there is no room left where something was written."""
    return isinstance(error, OSError) and error.errno in _FULL


def one_line(error: BaseException) -> str | None:
    """The line for an error that is the user's to mend; None for a bug."""
    if isinstance(error, UsageError | DataError):
        return " ".join(str(error).split())
    return disk_mistake(error)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a message: " (did you mean ...?)", or "" where no name is near."""
    found = get_close_matches(name, list(known), 1, 0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line; where it says nothing, what failed and where."""
    text = str(error).strip()
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        return f"not enough memory: {text}" if text else "not enough memory"
    if isinstance(error, KeyError):
        return f"{kind} {text}"
    if text:
        return " ".join(text.splitlines()[0].split()).rstrip(".:")
    places = traceback.extract_tb(error.__traceback__)
    # Not where torch's own `_assert` raises what a network asks of it.
    theirs = [p for p in places if "torch" not in PurePath(p.filename).parts] or places
    if not theirs:
        return kind
    return f"{kind} at `{theirs[-1].line}` in {PurePath(theirs[-1].filename).name}"
