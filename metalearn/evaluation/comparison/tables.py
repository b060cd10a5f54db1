"""Tables of a comparison: their cells, for a terminal and in Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table


class Titled(NamedTuple):
    """A table of text. families: of each row, in runs."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    families: list[str]
    best: list[bool]


def interval(mean: float, half: float) -> str:
    """In percent."""
    return f"{100 * mean:.2f} ± {100 * half:.2f}"


def short(value: float | None) -> str:
    """Three digits; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def mebibytes(value: float | None) -> str:
    """Of bytes; "" for None."""
    return "" if value is None else f"{value / 2**20:,.0f}"


def terminal(table: Titled) -> Table:
    """For a terminal of 80 columns: a line for each family, then its methods."""
    shown = Table(box=None, pad_edge=False, title=table.title, title_justify="left")
    for name in table.head:
        shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    told = None
    for line, family, best in zip(table.rows, table.families, table.best, strict=True):
        if family != told:
            shown.add_row(f"[dim]{escape(family)}")
            told = family
        cells = [escape(cell) for cell in line]
        shown.add_row(f"  {cells[0]}", *cells[1:], style="bold green" if best else None)
    return shown


def section(table: Titled) -> str:
    """A table of a report in Markdown."""
    body = [(f, *line) for f, line in zip(table.families, table.rows, strict=True)]
    return f"## {table.title}\n\n{_markdown_table(('family', *table.head), body)}"


def _markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Numbers to the right."""
    rule = ["---" if name in ("family", "method") else "---:" for name in head]
    lines = [head, rule, *body]
    return "\n".join(
        "| " + " | ".join(c.replace("|", r"\|") for c in line) + " |" for line in lines
    )
