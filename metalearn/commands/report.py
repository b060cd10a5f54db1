"""`metalearn report`: one table of any runs."""

from pathlib import Path

from rich.console import Console
from rich.table import Table as Shown

from metalearn.errors import UsageError, nearest
from metalearn.evaluation.report import write_json
from metalearn.runtime.files import write_atomic
from metalearn.sweeps import page, table
from metalearn.sweeps.cells import arrange
from metalearn.sweeps.runs import read_runs

_OPTIONS = ("out", "by", "confidence")


def main(arguments: list[str], console: Console) -> None:
    """`metalearn report <runs> ... [out=report] [by=algorithm,inner.rate] [confidence=0.95]`."""
    options, paths = {}, []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            paths.append(Path(argument))
        elif name in _OPTIONS:
            options[name] = value
        else:
            raise UsageError(f"no option {name}{nearest(name, _OPTIONS)} of report")
    if not paths:
        raise UsageError("report needs runs: metalearn report runs/* [out=report]")
    if missing := [path for path in paths if not path.exists()]:
        raise UsageError(f"{missing[0]} is not there; name folders of runs")
    confidence = _confidence(options.get("confidence", "0.95"))
    runs, left = read_runs(paths)
    by = [key for key in options["by"].split(",") if key] if "by" in options else None
    arranged = arrange(runs, by)
    shown, made = table.table(arranged, confidence), table.rows(arranged, confidence)
    out = Path(options.get("out", "report"))
    write_atomic(out / "report.md", table.markdown(shown))
    write_atomic(out / "report.tex", table.latex(shown))
    write_atomic(out / "report.csv", table.comma_separated(made))
    write_json(out / "report.json", made)
    write_atomic(out / "report.html", page.page(arranged, shown))
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


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UsageError(f"confidence={text} must lie between 0 and 1")
    return value
