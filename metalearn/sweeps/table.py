"""A report's table as Markdown, LaTeX (booktabs), CSV and JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metalearn.evaluation.statistics import SHARES
from metalearn.sweeps.cells import Arranged, Row, Scored, matrix
from metalearn.sweeps.uncertainty import interquartile_mean, probability_of_improvement

LEVEL = 0.05  # of a difference that is marked
_FEW = 5  # seeds: below, a bootstrap of them is too narrow (85% in the place of 95% for two)


class Table(NamedTuple):
    """The text of a report's cells. best: of each row and cell, whether it is the best of its kind.
    families: of each row, `inductive` or `transductive`."""

    head: list[str]
    body: list[list[str]]
    best: list[list[bool]]
    families: list[str]
    notes: list[str]


def table(
    arranged: Arranged, found: Sequence[Mapping[str, Scored]], confidence: float = 0.95
) -> Table:
    """What `arranged` shows: settings, seeds, each condition's mean with half of its interval, and
    the costs. A dagger: less than the best, by Holm's correction. found: its `scores`."""
    names = [_short(key, arranged.keys) for key in arranged.keys]
    several = len(arranged.conditions) > 1
    head = [*names, "seeds", *arranged.conditions]
    head += ["IQM", "better than best"] if several else []
    head += ["tasks/s", "memory MiB", "hours"]
    body, best = [], []
    for row, cells in zip(arranged.rows, found, strict=True):
        told = [_cell(cells.get(c), arranged.measure) for c in arranged.conditions]
        over = _over_tasks(arranged, row) if several else []
        body.append(
            [*map(setting, row.settings.values()), _seeds(cells), *told, *over, *_costs(row)]
        )
        own = [c in cells and cells[c].best for c in arranged.conditions]
        after = len(head) - len(names) - 1 - len(own)
        best.append([False] * (len(names) + 1) + own + [False] * after)
    families = ["transductive" if row.transductive else "inductive" for row in arranged.rows]
    return Table(head, body, best, families, _notes(arranged, confidence))


def rows(arranged: Arranged, found: Sequence[Mapping[str, Scored]]) -> list[dict[str, Any]]:
    """A row for each cell, with every number, for a program to read. found: its `scores`."""
    made = []
    for row, cells in zip(arranged.rows, found, strict=True):
        for condition, cell in cells.items():
            first = row.cells[condition][0].result
            made.append(
                {
                    **row.settings,
                    **{key: row.cells[condition][0].settings.get(key) for key in arranged.more},
                    "transductive": row.transductive,
                    "condition": condition,
                    "measure": arranged.measure,
                    **cell.estimate._asdict(),
                    "seeds": cell.seeds,
                    "episodes": cell.episodes,
                    "best": cell.best,
                    "gap": cell.gap.mean if cell.gap else None,
                    "gap_low": cell.gap.low if cell.gap else None,
                    "gap_high": cell.gap.high if cell.gap else None,
                    "p": cell.p,
                    **{n: first[n] for n in ("queries", "norm_policy", "manifest_hash", "split")},
                    "seconds": sum(run.result["seconds"] for run in row.cells[condition]),
                    "folders": " ".join(str(run.folder) for run in row.cells[condition]),
                }
            )
    return made


def _short(key: str, keys: Sequence[str]) -> str:
    """The last word of a setting's path, where no other ends so."""
    last = key.rpartition(".")[2]
    return last if [k.rpartition(".")[2] for k in keys].count(last) == 1 else key


def setting(value: Any) -> str:
    """The text of a value: of a number that a search drew, four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value)


def _seeds(cells: Mapping[str, Scored]) -> str:
    counts = sorted({cell.seeds for cell in cells.values()})
    return "-".join(map(str, (counts[0], counts[-1])[: len(counts)]))


def _cell(cell: Scored | None, measure: str) -> str:
    if cell is None:
        return "-"
    scale, digits = (100, 2) if measure in SHARES else (1, 4)
    mean, half = scale * cell.estimate.mean, scale * cell.estimate.half_width
    mark = "†" if cell.p is not None and cell.p < LEVEL else ""
    return f"{mean:.{digits}f} ± {half:.{digits}f}{mark}"


def _over_tasks(arranged: Arranged, row: Row) -> list[str]:
    """The interquartile mean over seeds of all conditions, and how often a run is better than one
    of the row of the highest; dashes where a condition is missing."""
    full = [
        r
        for r in arranged.rows
        if r.transductive == row.transductive and set(r.cells) == set(arranged.conditions)
    ]
    if row not in full:
        return ["-", "-"]
    sign = 1 if arranged.measure in SHARES else -1
    each = {id(r): [sign * matrix(r.cells[c]).mean(1) for c in arranged.conditions] for r in full}
    middle = {place: interquartile_mean(np.concatenate(s)) for place, s in each.items()}
    top = max(middle, key=lambda place: middle[place])
    scale, digits = (100, 2) if sign > 0 else (-1, 4)
    chance = probability_of_improvement(each[id(row)], each[top])
    return [f"{scale * middle[id(row)]:.{digits}f}", "-" if id(row) == top else f"{chance:.2f}"]


def _costs(row: Row) -> list[str]:
    runs = [run.result for cell in row.cells.values() for run in cell]
    rates = [run["tasks_per_second"] for run in runs if run.get("tasks_per_second")]
    memory = [run["peak_memory_bytes"] for run in runs if run.get("peak_memory_bytes")]
    return [
        f"{np.median(rates):.1f}" if rates else "-",
        f"{max(memory) / 2**20:.0f}" if memory else "-",
        f"{sum(run['seconds'] for run in runs) / 3600:.2f}",
    ]


def _notes(arranged: Arranged, confidence: float) -> list[str]:
    told = [
        f"Mean over seeds and episodes, and half of its {confidence:.0%} interval by a bootstrap "
        "that draws seeds and episodes anew; of one seed it is over episodes alone.",
        "Bold: the best of its kind. †: less than that on the same episodes, p < 0.05 after "
        "Holm's correction.",
    ]
    if any(1 < len(runs) < _FEW for row in arranged.rows for runs in row.cells.values()):
        told[0] += f" Of fewer than {_FEW} seeds it is too narrow."
    if arranged.more:
        told.append(f"The rows differ in more: {', '.join(arranged.more)} (report.csv).")
    if arranged.measure == "loss":
        told[1] = told[1].replace("less", "worse")
    for condition in arranged.conditions:
        cells = [row.cells[condition] for row in arranged.rows if condition in row.cells]
        first = [cell[0].result for cell in cells]
        episodes = sorted({len(cell[0].values) for cell in cells})
        hashes = list(dict.fromkeys(result["manifest_hash"][:12] for result in first))
        a_class = " a class" if arranged.measure in SHARES else ""
        apart = ": what saw other episodes than the best is not compared" if hashes[1:] else ""
        told.append(
            f"{condition}: {' or '.join(map(str, episodes))} episodes, "
            f"{_every(first, 'queries')} queries{a_class}, norm {_every(first, 'norm_policy')}, "
            f"manifest {' and '.join(hashes)}{apart}"
        )
    return told


def _every(results: Sequence[Mapping[str, Any]], name: str) -> str:
    return " or ".join(dict.fromkeys(str(result[name]) for result in results))


def markdown(shown: Table) -> str:
    """The table, the transductive methods apart from the others, and its notes."""
    rule = ["---"] * len(shown.head)
    lines = [shown.head, rule]
    parts = []
    for family in dict.fromkeys(shown.families):
        body = [
            [f"**{text}**" if bold else text for text, bold in zip(row, best, strict=True)]
            for row, best, own in zip(shown.body, shown.best, shown.families, strict=True)
            if own == family
        ]
        title = f"{family.capitalize()} methods\n\n" if len(set(shown.families)) > 1 else ""
        parts.append(title + "\n".join("| " + " | ".join(row) + " |" for row in [*lines, *body]))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in shown.notes)]) + "\n"


_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"}
_SPECIAL |= {"±": "$\\pm$", "†": "$^\\dagger$", "<": "$<$", ">": "$>$"}
_SPECIAL |= {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}"}


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


def latex(shown: Table) -> str:
    """A `tabular` for `\\usepackage{booktabs}`."""
    settings = shown.head.index("seeds")
    places = "l" * settings + "r" * (len(shown.head) - settings)
    lines = [f"\\begin{{tabular}}{{{places}}}", "\\toprule"]
    lines += [" & ".join(map(_tex, shown.head)) + " \\\\"]
    told = None
    for row, best, family in zip(shown.body, shown.best, shown.families, strict=True):
        if family != told:
            lines.append("\\midrule")
            if len(set(shown.families)) > 1:
                lines.append(f"\\multicolumn{{{len(row)}}}{{l}}{{\\emph{{{family}}}}} \\\\")
            told = family
        cells = [f"\\textbf{{{_tex(t)}}}" if b else _tex(t) for t, b in zip(row, best, strict=True)]
        lines.append(" & ".join(cells) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", *(f"% {note}" for note in shown.notes)]
    return "\n".join(lines) + "\n"


def comma_separated(made: Sequence[Mapping[str, Any]]) -> str:
    """`rows` as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in made for key in row)))
    writer.writeheader()
    writer.writerows(made)
    return text.getvalue()
