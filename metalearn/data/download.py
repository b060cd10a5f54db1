"""Downloads from mirrors: resumed, compared with checksums, renamed only when complete."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import lock_descriptor
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from metalearn.errors import DataError

CHUNK = 1 << 16
# One broken connection is bad luck; several that gain less than a chunk are a bad server.
ATTEMPTS = 3
PAUSE = 0.5  # seconds before the second attempt, twice that before the third


class _Failure(Exception):
    """One request failed, for the reason in the message."""

    def __init__(self, reason: object, again: bool = True) -> None:
        super().__init__(" ".join(str(reason).split()))
        self.again = again


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A redirection to a malformed address, such as `http://[`, is an error of the server."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:
            fp.close()
            raise urllib.error.URLError(f"redirected to no address, {error}") from None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def download(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    timeout: float = 30.0,
    max_bytes: int = 4 << 30,
    by_hand: str = "put it by hand in a folder named by METALEARN_DATA",
) -> Path:
    """Fetch `target` from the first of `urls` (http or https mirrors of one file) that gives it.

    The bytes go to `<target>.part` beside it, are compared with the checksums and renamed.
    With a checksum an interrupted part is continued, by a later call too; without one it is
    begun anew, since parts of two versions could be joined unseen. `timeout` is the longest
    silence in seconds. Of two processes that download to one folder one waits.

    Raises DataError, in one line with `by_hand` as the way out, where no mirror gives the file.
    """
    reasons = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            if target.is_file():
                return target
            part = target.with_name(target.name + ".part")
            sums = {"sha256": sha256, "md5": md5}
            wanted = {kind: value.lower() for kind, value in sums.items() if value}
            if not wanted:
                part.unlink(missing_ok=True)
            for url in urls:
                try:
                    _from_one(url, part, wanted, timeout, max_bytes)
                except _Failure as failure:
                    reasons.append(f"{url}: {failure}")
                    continue
                os.replace(part, target)
                return target
            if not _size(part):
                part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot write {target} ({error.strerror or error}); set METALEARN_CACHE elsewhere"
        ) from None
    raise DataError(f"cannot download {target.name} ({'; '.join(reasons)}); {by_hand}")


def _from_one(url: str, part: Path, wanted: dict[str, str], timeout: float, limit: int) -> None:
    """Fill `part` from `url` until its checksums fit; raises _Failure where they never will."""
    if not re.match("https?://", url):
        raise _Failure("it is no http or https address")
    if wanted and _size(part) and not _wrong(part, wanted):
        return  # whole already: an earlier call was killed before the renaming
    fruitless = 0
    while True:
        before = _size(part)
        failure: _Failure | None = None
        try:
            _attempt(url, part, timeout, limit)
        except _Failure as error:
            failure = error
        wrong = _wrong(part, wanted)
        if not wrong and (wanted or failure is None):
            return
        if failure is None:
            part.unlink(missing_ok=True)
            if before == 0:
                raise _Failure(wrong)
            continue  # the part continued may have been the bad one: once more, from nothing
        if not wanted:
            part.unlink(missing_ok=True)
        if not failure.again:
            raise failure
        gained = wanted and _size(part) >= before + CHUNK
        fruitless = 0 if gained else fruitless + 1
        if fruitless >= ATTEMPTS:
            raise failure
        time.sleep(PAUSE * fruitless)


def _attempt(url: str, part: Path, timeout: float, limit: int) -> None:
    """One request, continuing `part`; raises _Failure where the answer is not the whole rest."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "metalearn"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with _network(part, timeout):
        answer = urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    with answer:
        start, total = _range(answer, start, part)
        _copy(answer, part, start, total, timeout, limit)


@contextmanager
def _network(part: Path, timeout: float) -> Iterator[None]:
    """Turn every error of the network into a _Failure; errors of the disk pass through."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is not the start of what is there
            part.unlink(missing_ok=True)
        again = error.code in (408, 416, 429) or error.code >= 500
        raise _Failure(f"HTTP {error.code} {error.reason}", again) from None
    except urllib.error.URLError as error:
        raise _Failure(f"no connection: {error.reason}", again=False) from None
    except TimeoutError:
        raise _Failure(f"silent for {timeout:g} s") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Failure(f"connection broke: {type(error).__name__}") from None


def _range(answer: Any, start: int, part: Path) -> tuple[int, int | None]:
    """At which byte this answer starts, and the size of the whole file where it says so."""
    length = answer.headers.get("Content-Length", "")
    rest = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    if answer.status != 206:  # Range ignored: the whole file, from its start
        return 0, rest
    span = re.match(r"bytes (\d{1,18})-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != start:
        part.unlink(missing_ok=True)
        raise _Failure("the server continued at another place than asked for")
    return start, None if rest is None else start + rest


def _copy(
    answer: Any, part: Path, start: int, total: int | None, timeout: float, limit: int
) -> None:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=(console := Console(stderr=True, emoji=False)),
        disable=not console.is_terminal,
    )
    with bar, open(part, "r+b" if start else "wb") as file:
        file.seek(start)
        task = bar.add_task(part.stem, total=total, completed=start)
        while True:
            with _network(part, timeout):
                chunk = answer.read1(CHUNK)  # not `read`: what came before a stall is kept
            if not chunk:
                break
            if file.tell() + len(chunk) > limit:
                file.truncate(0)
                raise _Failure(f"it sends more than {limit} bytes", again=False)
            file.write(chunk)
            bar.update(task, advance=len(chunk))
        end = file.tell()
        file.flush()
        os.fsync(file.fileno())
    if total is not None and end != total:
        raise _Failure(f"cut short at {end} of {total} bytes")


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _wrong(part: Path, wanted: dict[str, str]) -> str | None:
    """Which checksum does not fit, or None."""
    for kind, value in wanted.items():
        if not part.is_file():
            return "nothing came"
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, lambda k=kind: hashlib.new(k, usedforsecurity=False))
        if found.hexdigest() != value:
            return f"wrong {kind} {found.hexdigest()}, expected {value}"
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which vanishes with the process and leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: the checksum is still there
            lock_descriptor(handle)
        yield
    finally:
        os.close(handle)
