"""Give the data side what it must refuse, and write down what came of it.

    uv run python -m scripts.bad_inputs

Every case of `tests/inputs` happens in a folder of its own, with the user's files beside an empty
cache. It must end in one line, change or lose no file, write nowhere but in the cache, and leave
nothing half made there. Writes `experiments/episodes/bad_inputs.md`; exits with 1 and the names of
the cases where one did not.
"""

import contextlib
import hashlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from metalearn.data import DataError
from metalearn.data.store import verify
from metalearn.errors import UsageError
from metalearn.runtime.files import write_atomic
from tests.command import Outcome
from tests.inputs.backbones import BACKBONES
from tests.inputs.case import Case, Place
from tests.inputs.commands import COMMANDS
from tests.inputs.dense import DENSE
from tests.inputs.runs import RUNS
from tests.inputs.sources import SOURCES

TABLE = Path("experiments/episodes/bad_inputs.md")
CASES: tuple[Case, ...] = (*SOURCES, *DENSE, *COMMANDS, *RUNS, *BACKBONES)
HEAD = """# Bad inputs

What {count} wrong things come to, each tried in a fresh folder with an empty cache. Written by
`uv run python -m scripts.bad_inputs`, which fails where a case gives more than one line, or
changes a file of the user's, or leaves anything in the cache that the last column does not name.

| given | the line that came back | ended with | left in the cache |
|---|---|---|---|
"""


class Refusal(NamedTuple):
    """What came of a case. ended: the exit code, or the error that a call raised."""

    line: str
    ended: str
    left: str


def tried(case: Case, folder: Path) -> Refusal:
    """Let `case` happen in the empty `folder`. Raises AssertionError where it went wrong."""
    place = Place(folder)
    with place.entered():
        case.ready(place)
        before = snapshot(folder)
        line, ended = _answer(case, place)
        after = snapshot(folder)
    harmed = [name for name in before if after.get(name) != before[name]]
    assert not harmed, f"changed or lost {harmed}"
    new = sorted(after.keys() - before.keys())
    outside = [name for name in new if name.split("/")[0] != "cache"]
    assert not outside, f"written outside of the cache: {outside}"
    return Refusal(line, ended, _left(case, place, new))


def snapshot(folder: Path) -> Mapping[str, str]:
    """Everything below `folder` by name: where a link goes, the sha256 of a file."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            content = f"link to {path.readlink()}"
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = "folder"
        found[path.relative_to(folder).as_posix()] = content
    return found


def _answer(case: Case, place: Place) -> tuple[str, str]:
    out, err, outcome = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            outcome = case.act(place)
            assert isinstance(outcome, Outcome), "it was accepted"
            told, ended = outcome.err.removeprefix("metalearn: "), str(outcome.code)
        except (DataError, UsageError) as error:
            told, ended = str(error) + "\n", type(error).__name__
    if isinstance(outcome, Outcome) and case.code == 0:
        rows = (row.replace("│", "").strip() for row in outcome.out.splitlines())
        told = next((f"{row}\n" for row in rows if case.said in row), told)
    noise = out.getvalue() + err.getvalue()
    assert not noise, f"printed besides: {noise}"
    assert ended in (str(case.code), "DataError", "UsageError"), f"exit code {ended}: {told}"
    assert told.count("\n") == 1 and told.strip(), f"not one line: {told!r}"
    assert case.said in told, f"no {case.said!r} in {told!r}"
    told = " ".join(told.replace(str(place.folder), "<tmp>").split())
    told = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:<port>", told)
    return re.sub(r"0x[0-9a-f]{8,}", "0x...", told), ended


def _left(case: Case, place: Place, new: list[str]) -> str:
    """What `new` files are, in words. Raises AssertionError for what `case` does not expect."""
    stores = {Path(name).parent for name in new if name.endswith("/store.json")}
    stores = {store for store in stores if not store.name.startswith(".")}
    for store in stores:
        verify(place.folder / store)
    # What a folder of pictures becomes is named by their dates too.
    told = [re.sub(r"-[0-9a-f]{16}$", "-*", s.name) + ", whole" for s in sorted(stores)]
    for name in map(Path, new):
        path = place.folder / name
        if stores & {name, *name.parents} or path.is_dir():
            hidden = [part for part in name.parts if part.startswith(".")]
            assert not hidden or case.left, f"left {name}"
            continue
        assert case.left and fnmatch(str(name), case.left), f"left {name}"
        told.append(f"{name.name}, {case.why}")
    return "; ".join(told) or "nothing"


def row(case: Case, refusal: Refusal) -> str:
    """A line of the table."""
    cells = (case.given, refusal.line, refusal.ended, refusal.left)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def main() -> None:
    """Try every case and write the table."""
    rows, wrong, started = [], [], time.monotonic()
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(row(case, tried(case, Path(folder).resolve())))
            except Exception as error:
                wrong.append(f"{case.given}: {type(error).__name__}: {error}")
                print(wrong[-1], file=sys.stderr)
    if wrong:
        sys.exit(f"{len(wrong)} of {len(CASES)} cases went wrong")
    write_atomic(TABLE, HEAD.format(count=len(CASES)) + "\n".join(rows) + "\n")
    print(f"{TABLE}: {len(rows)} cases in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
