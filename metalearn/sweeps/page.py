"""A report as one HTML file that needs nothing beside it: sorted by a click, pictures inside."""

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from metalearn.sweeps import importance, pictures
from metalearn.sweeps.cells import Arranged, Scored
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
for (const head of document.querySelectorAll('th')) {
  const sort = () => {
    const body = head.closest('table').tBodies[0], at = head.cellIndex;
    const up = head.getAttribute('aria-sort') !== 'ascending';
    head.parentNode.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const value = row => row.cells[at].textContent, none = text => text === '-' || text === '';
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (none(x) || none(y)) return none(x) - none(y);  // what is missing comes last
      const p = parseFloat(x), q = parseFloat(y), numbers = !isNaN(p) && !isNaN(q);
      const sign = numbers ? p - q : x.localeCompare(y);
      return up ? sign : -sign; };
    [...body.rows].sort(order).forEach(row => body.append(row)); };
  head.tabIndex = 0;
  head.onclick = sort;
  head.onkeydown = event => { if (event.key === 'Enter') sort(); };
}
"""


def page(arranged: Arranged, found: Sequence[dict[str, Scored]], shown: Table) -> str:
    """The table of `shown`, learning curves, the result by inner step and by shots, the settings of
    a search, and costs. found: the rows' cells in numbers."""
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
    drawn = {
        "Validation while training": pictures.curves(arranged),
        "By inner step": pictures.by_step(arranged),
        "By shots": pictures.by_shots(arranged, found),
        **importance.drawn(arranged),
        "Time, memory and result": pictures.costs(arranged),
    }
    shown_pictures = [_picture(title, figure) for title, figure in drawn.items() if figure]
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
        + "\n".join(shown_pictures)
        + f"\n<script>{_SORT}</script>\n</body>\n</html>\n"
    )


def _picture(title: str, figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    source = base64.b64encode(file.getvalue()).decode("ascii")
    title = escape(title)
    return f'<h2>{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{source}">'
