"""`metalearn reproduce`: the runs of a table of published figures, and the table with ours."""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from metalearn.commands import pretrain, train
from metalearn.commands.building import searchpath, words
from metalearn.commands.building.config import conf_files
from metalearn.commands.parts.ledger_jobs import Job, jobs, shown_time, told_of
from metalearn.errors import UsageError, nearest
from metalearn.runtime.files import write_atomic
from metalearn.sweeps import ledger_page
from metalearn.sweeps.ledger import Ledger, read_ledger
from metalearn.sweeps.records import keep, record
from metalearn.training.process import Chain, Failed, Stopped, apart, guarded
from metalearn.training.stage import teller

_OPTIONS = ("cells", "seeds", "out", "tracker", "isolate")
_ACTS = ("--dry-run", "--write")
_PROJECT = Path("README.md")


def main(arguments: list[str], console: Console) -> None:
    """`metalearn reproduce <table> [--dry-run] [--write] [cells=...] [seeds=0,1,2]
    [out=experiments] [tracker=disabled] [isolate=true] [hydra.searchpath=[...]]`.

    --dry-run: list the cells alone. --write: write the page of what is there, and run nothing.
    """
    rest, override = searchpath.split(arguments)
    acts = [word for word in rest if word in _ACTS]
    places, options = words.split([w for w in rest if w not in acts], "reproduce", _OPTIONS)
    ledger = read_ledger(_file([str(place) for place in places], override))
    cells = ledger.chosen(_listed(options.get("cells")))
    seeds = _seeds(options.get("seeds"), ledger)
    out = Path(options.get("out", "experiments"))
    folder = out / ledger.name
    shared = [f"tracker={options.get('tracker', 'disabled')}", *([override] if override else [])]
    isolate = words.flag(options, "isolate", True)
    planned = jobs(ledger, cells, seeds, out, shared)
    if "--dry-run" in acts:
        sys.exit(_dry_run(ledger, planned, folder, console))
    if "--write" in acts:
        planned = [job for job in planned if job.record is not None]
    if code := _reproduce(ledger, planned, folder, isolate, console):
        sys.exit(code)


def _file(names: Sequence[str], override: str | None) -> Path:
    """Of the one table that is named: one of ours, of a config folder, or a file."""
    known = {path.stem: path for path in conf_files("table", override)}
    if len(names) != 1:
        told = ", ".join(known)
        raise UsageError(
            f"reproduce needs one table of {told}, or a file: metalearn reproduce sinusoid"
        )
    if names[0] in known:
        return known[names[0]]
    if (path := Path(names[0])).suffix in (".yaml", ".yml"):
        return path
    raise UsageError(f"no table {names[0]}{nearest(names[0], known)}; use {', '.join(known)}")


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [one for one in text.strip("[]").split(",") if one]


def _seeds(text: str | None, ledger: Ledger) -> Sequence[int]:
    try:
        seeds = ledger.seeds if text is None else [int(one) for one in _listed(text) or []]
    except ValueError:
        seeds = []
    if not seeds:
        raise UsageError(f"seeds={text} must be whole numbers, as seeds=0,1,2")
    return list(dict.fromkeys(seeds))


def _dry_run(ledger: Ledger, planned: Sequence[Job], folder: Path, console: Console) -> int:
    """List the cells, what is there and what the others would take; 1 where a record is not what
    it says."""
    view = Table("cell", "conditions", "paper", "ours", "there", "to run", title=ledger.title)
    wrong, hours = list[str](), 0.0
    for cell in dict.fromkeys(job.cell for job in planned):
        own = [job for job in planned if job.cell is cell]
        there = [job for job in own if job.record is not None]
        wrong += [line for job in own for line in job.complaints]
        left = [job for job in own if job.record is None]
        known = [job.hours for job in left if job.hours is not None]
        hours += sum(known)
        ours = "-"
        if runs := [job.record for job in there if job.record is not None]:
            try:
                ours = str(ledger_page.figure(runs))
            except UsageError as error:
                wrong.append(str(error))
        view.add_row(
            cell.name, cell.conditions, ledger_page.published(cell), ours,
            ", ".join(f"seed {job.seed}" for job in there) or "-",
            f"{len(left)} x {shown_time(left[0])}" if left else "-",
        )  # fmt: skip
    console.print(view)
    for line in dict.fromkeys(line for job in planned for line in told_of(job)):
        console.print(line, soft_wrap=True, highlight=False)
    left = [job for job in planned if job.record is None]
    count = len({job.cell.name for job in planned})
    unknown = sum(job.hours is None for job in left)
    told = f"{count} cell{'s' if count > 1 else ''}, {len(planned) - len(left)} runs there, "
    told += f"{len(left)} to run"
    if left:
        told += f": {hours:.1f} hours of training" if unknown < len(left) else ""
        told += f"{' and ' if unknown < len(left) else ': '}{unknown} not known" if unknown else ""
    console.print(told, highlight=False)
    if not wrong and (line := _readme_is_old(ledger, folder)):
        wrong.append(line)
    for line in wrong:
        print(f"metalearn: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _readme_is_old(ledger: Ledger, folder: Path) -> str | None:
    """What is said where a README is not what the records give."""
    path, found = folder / "README.md", _recorded(ledger, folder)
    if not found and not path.is_file():
        return None
    held = path.read_text(encoding="utf-8") if path.is_file() else ""
    made = ledger_page.between(held, ledger_page.BEGIN, ledger_page.page(ledger, found))
    if made == held:
        path = _PROJECT
        held, made = _of_the_project(ledger, folder, found)
    if made == held:
        return None
    use = f"metalearn reproduce {ledger.name} --write does it anew"
    return f"{path} is not what the records give; {use}"


def _of_the_project(
    ledger: Ledger, folder: Path, found: ledger_page.Recorded
) -> tuple[str, str | None]:
    """The README of the project as it is, and with the table as it should be, where it has a place
    for it."""
    if not _PROJECT.is_file() or folder.parent != Path("experiments"):
        return "", ""
    held = _PROJECT.read_text(encoding="utf-8")
    mark = f"<!-- metalearn reproduce {ledger.name} -->"
    made = ledger_page.between(held, mark, ledger_page.short(ledger, found))
    return held, held if made is None else made


def _recorded(ledger: Ledger, folder: Path) -> ledger_page.Recorded:
    """Every record that is there, whichever cells were asked for."""
    found = {}
    for cell in ledger.cells:
        places = sorted((folder / cell.name).glob("seed*"))
        if runs := [run for place in places if (run := record(place)) is not None]:
            found[cell.name] = sorted(runs, key=lambda run: run.seed)
    return found


def _write(ledger: Ledger, folder: Path, say: Any) -> None:
    found = _recorded(ledger, folder)
    path = folder / "README.md"
    if ledger_page.write_page(path, ledger, ledger_page.page(ledger, found)):
        say(f"{path} is written")
    held, made = _of_the_project(ledger, folder, found)
    if made and made != held:
        write_atomic(_PROJECT, made)
        say(f"{_PROJECT} is written")


def _reproduce(
    ledger: Ledger, planned: Sequence[Job], folder: Path, isolate: bool, console: Console
) -> int:
    """Run what is missing, the longest first, and write the page after each; the exit code."""
    say, failed = teller(console), dict[str, str]()
    for job in planned:
        for line in job.complaints:
            raise UsageError(f"{line}; move {job.place} away, or correct the table")
    left = [job for job in planned if job.record is None]
    if all(job.hours is not None for job in left):
        left.sort(key=lambda job: -(job.hours or 0))
    else:
        left.sort(key=lambda job: -job.work)
    _write(ledger, folder, say)
    for number, job in enumerate(left, 1):
        say(f"{job.name} ({number} of {len(left)}): {job.run_dir}")
        try:
            with _one_thread():
                _perform(job, isolate, console)
            _write(ledger, folder, say)
        except Failed as error:
            failed[job.name] = str(error)
            say(f"{job.name} failed: {error}")
        except Stopped as stopped:
            say(f"stopped in {job.name}; the same command goes on from there")
            return stopped.code
    if failed:
        say(f"failed: {', '.join(failed)}; the same command tries them again")
    say(f"{len(planned) - len(failed)} of {len(planned)} runs are there: {folder}/README.md")
    return 1 if failed else 0


def _perform(job: Job, isolate: bool, console: Console) -> None:
    """Train, or go on, and keep the record. Raises Failed or Stopped."""
    told = None if isolate else console  # a console cannot be sent to another process
    runs = [(pretrain.run, job.pretraining)] if job.pretraining else []
    runs.append((train.run, job.config))
    acts = [functools.partial(_run, run, config, told) for run, config in runs]
    if isolate:
        ends = dict(apart({job.name: Chain(acts, Path(f"{job.run_dir}.failed"))}))
        if failure := ends[job.name]:  # not where a signal came, which has been raised by then
            raise failure
    else:
        for act in acts:
            guarded(act)
    if job.pretraining:
        guarded(functools.partial(keep, Path(job.pretraining["run_dir"]), job.place / "pretrain"))
    guarded(functools.partial(keep, Path(job.run_dir), job.place))


def _run(run: Any, config: dict[str, Any], console: Console | None) -> None:
    run(config, console or Console(emoji=False))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Each run on one, so that several side by side are as fast, and a machine with more gives the
    same bits."""
    threads, held = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if held is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = held
