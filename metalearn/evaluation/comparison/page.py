"""A comparison as one HTML file that needs nothing beside it: no script, no other file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from metalearn.evaluation.comparison import curve_report, report
from metalearn.evaluation.comparison.tables import Titled

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: right; padding: .2rem .6rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #444; }
th.family { text-align: left; font-weight: normal; color: #555; padding-top: .6rem;
  border-bottom: 1px solid #ddd; }
tr.best td { font-weight: bold; color: #1d6b3c; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .92rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; } p, li { font-size: .92rem; }
code { font-size: .88rem; }
"""


def page(comparison: Mapping[str, Any], picture: Path, curves: Sequence[Path] = ()) -> str:
    """The whole report, with the PNG `picture`, and those of `curves`, inside."""
    source = _inside(picture)
    told = escape(report.title(comparison))
    parts = [
        f"<h1>{told}</h1>",
        f'<img alt="Accuracy by shots; the tables have its numbers" src="{source}">',
        *(_table(table) for table in [*report.overview(comparison), *report.tables(comparison)]),
        *(f"<p>{escape(line)}</p>" for line in report.LEGEND),
        *(f'<img alt="Accuracy by {path.stem}" src="{_inside(path)}">' for path in curves),
        *(_table(table) for table in curve_report.tables(comparison)),
        *(f"<p>{escape(line)}</p>" for line in curve_report.legends(comparison)),
        "<h2>Methods</h2>",
        "<ul>",
        *(f"<li>{escape(line)}</li>" for line in report.notes(comparison)),
        "</ul>",
        "<h2>What the figures hold for</h2>",
        _facts(report.facts(comparison)),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{told}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _inside(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


def _table(table: Titled) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    lines, told = [], None
    for cells, family, best in zip(table.rows, table.families, table.best, strict=True):
        if family != told:
            span = len(table.head)
            lines.append(f'<tr><th class="family" colspan="{span}">{escape(family)}</th></tr>')
            told = family
        inside = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr class="best">{inside}</tr>' if best else f"<tr>{inside}</tr>")
    body = "\n".join(lines)
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _facts(pairs: Sequence[tuple[str, str]]) -> str:
    items = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{_code(name, value)}</dd>" for name, value in pairs
    )
    return f"<dl>\n{items}\n</dl>"


def _code(name: str, value: str) -> str:
    text = escape(value)
    return f"<code>{text}</code>" if name == "command" or "sha256" in name else text
