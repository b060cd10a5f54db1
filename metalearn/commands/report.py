"""`metalearn report`: one table of any runs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as Shown

from metalearn.commands.building import words
from metalearn.errors import UsageError
from metalearn.evaluation.report import write_json
from metalearn.runtime.files import write_atomic
from metalearn.sweeps import page, table
from metalearn.sweeps.cells import arrange, scores
from metalearn.sweeps.runs import read_runs
from metalearn.tracking.wandb_report import log_report
from metalearn.training.stage import teller

_OPTIONS = ("out", "by", "confidence", "to", "project", "entity", "mode")


def main(arguments: list[str], console: Console) -> None:
    """`metalearn report <runs> ... [out=report] [by=algorithm,inner.rate] [confidence=0.95]
    [--to wandb [project=metalearn] [entity=...] [mode=online]]`."""
    paths, options = words.split(_joined(arguments), "report", _OPTIONS)
    if not paths:
        raise UsageError("report needs runs: metalearn report runs/* [out=report]")
    if missing := [path for path in paths if not path.exists()]:
        raise UsageError(f"{missing[0]} is not there; name folders of runs")
    confidence = _confidence(options.get("confidence", "0.95"))
    to, mode = _check_to(options)
    runs, left = read_runs(paths)
    by = [key for key in options["by"].split(",") if key] if "by" in options else None
    arranged = arrange(runs, by)
    found = scores(arranged, confidence)
    shown, made = table.table(arranged, found, confidence), table.rows(arranged, found)
    out = Path(options.get("out", "report"))
    write_atomic(out / "report.md", table.markdown(shown))
    write_atomic(out / "report.tex", table.latex(shown))
    write_atomic(out / "report.csv", table.comma_separated(made))
    write_json(out / "report.json", made)
    write_atomic(out / "report.html", page.page(arranged, found, shown))
    view = Shown(*shown.head)
    for row, best, family in zip(shown.body, shown.best, shown.families, strict=True):
        cells = [f"[bold]{text}[/]" if bold else text for text, bold in zip(row, best, strict=True)]
        view.add_row(*cells, style="dim" if family == "transductive" else None)
    console.print(view)
    for line in shown.notes:
        console.print(line, soft_wrap=True, highlight=False)
    for line in left:
        console.print(f"left out: {line}", soft_wrap=True, highlight=False)
    console.print(f"{len(runs)} runs: {out}/report.html, .md, .tex, .csv, .json", highlight=False)
    if to:
        files = [out / f"report.{kind}" for kind in ("html", "md", "tex", "csv", "json")]
        given = options.get("project", "metalearn"), options.get("entity")
        say = teller(console)
        say(f"W&B: {log_report(out, files, made, *given, mode, say)}")


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--to wandb` as `to=wandb`."""
    words = list(arguments)
    while "--to" in words:
        at = words.index("--to")
        words[at : at + 2] = [f"to={''.join(words[at + 1 : at + 2])}"]
    return [word.removeprefix("--") if word.startswith("--to=") else word for word in words]


def _check_to(options: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the report goes to W&B, and how."""
    to, mode = options.get("to"), options.get("mode", os.environ.get("WANDB_MODE", "online"))
    if to not in (None, "wandb"):
        raise UsageError(f"to={to} is not known; use --to wandb")
    if to is None and (left := [n for n in ("project", "entity", "mode") if n in options]):
        raise UsageError(f"{left[0]}= goes with --to wandb")
    if to and mode not in ("online", "offline"):
        raise UsageError(f"mode={mode} must be online or offline")
    return to is not None, mode


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UsageError(f"confidence={text} must lie between 0 and 1")
    return value
