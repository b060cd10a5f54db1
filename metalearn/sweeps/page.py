"""A report as one HTML file that needs nothing beside it: sorted by a click, pictures inside."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.sweeps.cells import Arranged, Row
from metalearn.sweeps.runs import validation
from metalearn.sweeps.table import Table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: right; padding: .2rem .7rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #444; cursor: pointer; } th:hover { color: #1d6b3c; }
td.best { font-weight: bold; } tr.transductive td { color: #555; font-style: italic; }
img { max-width: 100%; } li { font-size: .92rem; }
"""
_SORT = """
for (const head of document.querySelectorAll('th')) head.onclick = () => {
  const body = head.closest('table').tBodies[0], at = head.cellIndex;
  const up = head.dataset.up = head.dataset.up === '1' ? '' : '1';
  const value = row => { const text = row.cells[at].textContent, number = parseFloat(text);
    return isNaN(number) ? text : number; };
  const order = (a, b) => { const x = value(a), y = value(b);
    return (typeof x === typeof y ? (x > y) - (x < y) : typeof x === 'string' ? 1 : -1); };
  [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)).forEach(row => body.append(row));
};
"""


def page(arranged: Arranged, shown: Table) -> str:
    """The table of `shown`, learning curves, accuracy by inner step and costs."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in shown.head)
    body = []
    for row, best, family in zip(shown.body, shown.best, shown.families, strict=True):
        cells = (
            f'<td class="best">{escape(t)}</td>' if b else f"<td>{escape(t)}</td>"
            for t, b in zip(row, best, strict=True)
        )
        body.append(f'<tr class="{family}">{"".join(cells)}</tr>')
    notes = "\n".join(f"<li>{escape(note)}</li>" for note in shown.notes)
    told = "Transductive methods in italics." if "transductive" in shown.families else ""
    pictures = [
        _picture("Validation while training", *_curves(arranged)),
        _picture("By inner step", *_by_step(arranged)),
        _picture("Time, memory and result", *_costs(arranged)),
    ]
    count = sum(len(cell) for row in arranged.rows for cell in row.cells.values())
    title = f"{count} runs: {', '.join(arranged.conditions)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>A click on a column's name sorts by it. {told}</p>\n"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(body)
        + f"\n</tbody>\n</table></div>\n<ul>\n{notes}\n</ul>\n"
        + "\n".join(picture for picture in pictures if picture)
        + f"\n<script>{_SORT}</script>\n</body>\n</html>\n"
    )


def _picture(title: str, figure: Figure, drawn: bool) -> str:
    if not drawn:
        return ""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    source = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<h2>{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{source}">'


def _label(row: Row) -> str:
    return " ".join(str(value) for value in row.settings.values())


def _panels(arranged: Arranged) -> tuple[Figure, Sequence[Axes]]:
    """A panel for each condition, and colours that mean the same row in all of them."""
    count = len(arranged.conditions)
    figure = Figure((min(4.5 * count + 2.5, 14), 3.6), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, condition in zip(panels, arranged.conditions, strict=True):
        axes.set_title(condition, fontsize=10)
        axes.grid(alpha=0.25)
    return figure, panels


def _legend(figure: Figure, panels: Sequence[Axes]) -> bool:
    named = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    if named:
        figure.legend(named.values(), named, loc="outside right upper", fontsize=8, frameon=False)
    return bool(named)


def _curves(arranged: Arranged) -> tuple[Figure, bool]:
    """The mean of the seeds' validation at each step, between the lowest and the highest."""
    figure, panels = _panels(arranged)
    for number, row in enumerate(arranged.rows):
        for axes, condition in zip(panels, arranged.conditions, strict=True):
            each = [validation(run.folder) for run in row.cells.get(condition, [])]
            steps = sorted(set.intersection(*map(set, each))) if each else []
            if not steps:
                continue
            values = np.array([[one[step] for step in steps] for one in each])
            axes.plot(steps, values.mean(0), color=f"C{number % 10}", label=_label(row))
            axes.fill_between(
                steps, values.min(0), values.max(0), color=f"C{number % 10}", alpha=0.15, lw=0
            )
            axes.set_xlabel("meta-step")
            axes.set_ylabel(f"validation {arranged.measure}")
    return figure, _legend(figure, panels)


def _by_step(arranged: Arranged) -> tuple[Figure, bool]:
    figure, panels = _panels(arranged)
    name = f"{arranged.measure}_by_step"
    for number, row in enumerate(arranged.rows):
        for axes, condition in zip(panels, arranged.conditions, strict=True):
            each = [run.result.get(name) or [] for run in row.cells.get(condition, [])]
            if len({len(one) for one in each}) != 1 or len(each[0]) < 2:
                continue
            values = np.array([[mean for mean, _ in one] for one in each])
            axes.plot(values.mean(0), "o-", ms=3, color=f"C{number % 10}", label=_label(row))
            axes.set_xlabel("inner step")
            axes.set_ylabel(f"test {arranged.measure}")
    return figure, _legend(figure, panels)


def _costs(arranged: Arranged) -> tuple[Figure, bool]:
    figure = Figure((11, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, row in enumerate(arranged.rows):
        runs = [run for cell in row.cells.values() for run in cell]
        looks = {"color": f"C{number % 10}", "label": _label(row), "s": 18}
        values = [run.result[run.measure] for run in runs]
        panels[0].scatter([run.result["seconds"] for run in runs], values, **looks)
        memory = [run.result["peak_memory_bytes"] / 2**20 for run in runs]
        panels[1].scatter(memory, values, **looks)
    for axes, name in zip(panels, ("seconds of training", "peak memory, MiB"), strict=True):
        axes.set_xlabel(name)
        axes.set_ylabel(f"test {arranged.measure}")
        axes.grid(alpha=0.25)
    return figure, _legend(figure, panels)
