"""The page of a table: what was reproduced beside what the papers print, and how they differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.errors import UsageError
from metalearn.evaluation.statistics import SHARES, mean_interval
from metalearn.runtime.files import write_atomic
from metalearn.sweeps.ledger import Cell, Ledger
from metalearn.sweeps.records import after
from metalearn.sweeps.runs import FinishedRun
from metalearn.sweeps.uncertainty import mean_over_seeds

BEGIN, END = "<!-- results -->", "<!-- end -->"
_HEAD = ("cell", "conditions", "ours", "paper", "difference", "verdict", "seeds", "episodes")
_HEAD += ("queries", "norm policy", "transductive", "hours", "manifest", "commit")
_SHORT = ("cell", "conditions", "ours", "paper", "difference", "verdict", "seeds")
_ALIKE = ("manifest_hash", "norm_policy", "queries", "transductive", "episodes")

_NOTES = """\
Ours: mean over seeds and test episodes, with half of its 95% interval by a bootstrap that draws
both anew; of one seed Student's t over its episodes. Accuracies are in percent. Difference: ours
less the paper's. Verdict: inside the paper's interval, or by how much above or below it; where the
paper gives none, our interval takes its place."""

Recorded = Mapping[str, Sequence[FinishedRun]]
"""By the name of a cell, its records in the order of their seeds."""


class Figure(NamedTuple):
    """Ours, in the unit of the table: percent, or a loss as it is. half_width: of 95%, of seeds
    and episodes; of the episodes alone where there is one seed."""

    mean: float
    half_width: float
    digits: int

    def __str__(self) -> str:
        return f"{self.mean:.{self.digits}f} ± {self.half_width:.{self.digits}f}"


def figure(runs: Sequence[FinishedRun], step: int | None = None) -> Figure:
    """Of the records of one cell, after `step` inner steps, None for all. Raises UsageError where
    they are not measured alike."""
    for run, name in ((run, name) for run in runs for name in _ALIKE):
        if run.result[name] != runs[0].result[name]:
            raise UsageError(
                f"{runs[0].folder} and {run.folder} are no seeds of one cell: {name} is "
                f"{runs[0].result[name]} and {run.result[name]}"
            )
    each = [run.values if step is None else after(run, step) for run in runs]
    scale, digits = (100, 2) if runs[0].measure in SHARES else (1, 4)
    if len(each) == 1:
        mean, half, _ = mean_interval(each[0])
    else:
        found = mean_over_seeds(np.stack(each))
        mean, half = found.mean, found.half_width
    return Figure(scale * mean, scale * half, digits)


def verdict(ours: Figure, cell: Cell) -> tuple[str, str]:
    """The difference to the paper's figure, and where ours lies: in the paper's interval, or, where
    it gives none, whether its figure lies in ours."""
    if cell.figure is None:
        return "-", "the paper gives no figure"
    gap = ours.mean - cell.figure
    room = ours.half_width if cell.interval is None else cell.interval
    told = f"{gap:+.{ours.digits}f}"
    if abs(gap) <= room:
        return told, "inside" if cell.interval is not None else "inside our interval"
    word = "above" if gap > 0 else "below"
    more = "" if cell.interval is not None else " more than our interval"
    return told, f"{word} by {abs(gap) - room:.{ours.digits}f}{more}"


def published(cell: Cell) -> str:
    """The paper's figure as it prints it."""
    if cell.figure is None:
        return "-"
    return f"{cell.figure}" + (f" ± {cell.interval}" if cell.interval is not None else "")


def page(ledger: Ledger, recorded: Recorded) -> str:
    """What stands between the markers of a table's README."""
    parts = [_table(_HEAD, [_row(cell, recorded.get(cell.name, ())) for cell in ledger.cells])]
    if ledger.after:
        parts.append(_by_step(ledger, recorded))
    parts.append(_NOTES)
    same = [f"- every cell: {told}" for told in ledger.differs]
    groups: dict[tuple[str, ...], list[str]] = {}
    for cell in ledger.cells:
        groups.setdefault(cell.differs, []).append(cell.name)
    own = [f"- {', '.join(names)}: {'; '.join(told)}" for told, names in groups.items() if told]
    if same or own:
        parts.append("What differs from the papers' settings:\n\n" + "\n".join([*same, *own]))
    return "\n\n".join(parts) + "\n"


def short(ledger: Ledger, recorded: Recorded) -> str:
    """The cells that are there, with fewer columns, for the project's README."""
    rows = [_row(cell, recorded[cell.name]) for cell in ledger.cells if recorded.get(cell.name)]
    places = [_HEAD.index(name) for name in _SHORT]
    body = [[f"`{row[0].partition(']')[0][1:]}`", *(row[p] for p in places[1:])] for row in rows]
    return _table(_SHORT, body) + "\n"


def _row(cell: Cell, runs: Sequence[FinishedRun]) -> list[str]:
    if not runs:
        mine = ["-", published(cell), "-", "not run", *["-"] * 8]
        return [cell.name, f"{cell.conditions} ({cell.paper})", *mine]
    ours, first = figure(runs), runs[0].result
    gap, told = verdict(ours, cell)
    commits = dict.fromkeys(_commit(run.result) for run in runs)
    return [
        f"[{cell.name}]({cell.name})",
        f"{cell.conditions} ({cell.paper})",
        f"**{ours}**",
        published(cell),
        gap,
        told,
        ", ".join(str(run.seed) for run in runs),
        str(first["episodes"]),
        f"{first['queries']} a class" if first.get("ways") else str(first["queries"]),
        str(first["norm_policy"]),
        "yes" if first["transductive"] else "no",
        f"{sum(run.result['seconds'] for run in runs) / 3600:.2f}",
        f"`{first['manifest_hash'][:8]}`",
        " ".join(f"`{commit}`" for commit in commits),
    ]


def _commit(result: Mapping[str, Any]) -> str:
    name, dirty, _ = (result.get("commit") or "none").partition("-dirty")
    return name[:8] + dirty


def _by_step(ledger: Ledger, recorded: Recorded) -> str:
    head, body = ["after", *(f"{n} inner steps" for n in ledger.after)], []
    for cell in ledger.cells:
        if runs := recorded.get(cell.name):
            taken = len(runs[0].result.get(f"{runs[0].measure}_by_step") or [0])
            figures = [str(figure(runs, n)) if n < taken else "-" for n in ledger.after]
            body.append([cell.name, *figures])
    return "By inner step:\n\n" + _table(head, body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in lines)


def between(text: str, begin: str, made: str) -> str | None:
    """`text` with `made` between `begin` and the end marker after it; None where they are not
    there."""
    before, found, rest = text.partition(begin + "\n")
    _, end, following = rest.partition(END)
    return f"{before}{begin}\n{made}{END}{following}" if found and end else None


def write_page(path: Path, ledger: Ledger, made: str) -> bool:
    """Put `made` between the markers of the README at `path`, what stands around them kept, or make
    it; whether anything changed."""
    begun = f"# {ledger.title}\n\n    metalearn reproduce {ledger.name}\n\n{BEGIN}\n{END}\n"
    held = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = between(held or begun, BEGIN, made)
    if text is None:
        raise UsageError(f"{path} has no {BEGIN} and {END}; put them where the table goes")
    if text == held:
        return False
    write_atomic(path, text)
    return True
