"""The candidates of a selection in order, and how well each score foretold it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from metalearn.evaluation.selection.agreement import agreement


def summarised(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`rows`, a candidate each, and `tau`: by what was reached, by score, the weighted tau over the
    candidates that have both and their number.

    results: of each `candidate`, `scores`, by name `value` and `seconds`, and `reached`, by name
    `accuracy` and `half_width`.
    """
    scores = list(dict.fromkeys(name for one in results for name in one["scores"]))
    reached = list(dict.fromkeys(name for one in results for name in one["reached"]))
    tau: dict[str, dict[str, Any]] = {}
    for goal in reached:
        tau[goal] = {}
        for name in scores:
            both = [
                (one["scores"][name]["value"], one["reached"][goal]["accuracy"])
                for one in results
                if goal in one["reached"] and one["scores"][name]["value"] is not None
            ]
            found = agreement(*zip(*both, strict=True)) if both else None
            tau[goal][name] = {"tau": found, "candidates": len(both)}
    return {"rows": list(results), "tau": tau}


def _cells(made: Mapping[str, Any], mean: bool) -> tuple[list[str], list[list[str]]]:
    """A column for each candidate, and one for the tau against each thing that was reached, or for
    the mean of these."""
    rows: Sequence[Mapping[str, Any]] = made["rows"]
    goals = list(made["tau"])
    taus = ["tau"] * bool(goals) if mean else [f"tau: {goal}" for goal in goals]

    def foretold(name: str) -> list[str]:
        found = [made["tau"][goal][name]["tau"] for goal in goals]
        if not mean:
            return list(map(_number, found))
        known = [tau for tau in found if tau is not None]
        return [_number(sum(known) / len(known) if known else None)] * bool(goals)

    cells = [
        ["features", *(str(one["features"]) for one in rows)],
        ["ms an example", *(f"{1e3 * one['seconds'] / one['examples']:.2f}" for one in rows)],
        ["seconds in all", *(f"{_seconds(one):.1f}" for one in rows)],
    ]
    cells = [row + [""] * len(taus) for row in cells]
    for name in dict.fromkeys(name for one in rows for name in one["scores"]):
        values = [_number(one["scores"][name]["value"]) for one in rows]
        cells.append([name, *values, *foretold(name)])
    for goal in goals:
        found = [one["reached"].get(goal) for one in rows]
        told = ["-" if f is None else _percent(f) for f in found]
        cells.append([f"reached: {goal}", *told, *("" for _ in taus)])
    return ["", *(one["candidate"] for one in rows), *taus], cells


def _seconds(one: Mapping[str, Any]) -> float:
    """Of one look and all scores."""
    return one["seconds"] + sum(score["seconds"] for score in one["scores"].values())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(found: Mapping[str, Any]) -> str:
    half = found.get("half_width")
    return f"{100 * found['accuracy']:.1f}" + (f" ± {100 * half:.1f}" if half else "")


def table(made: Mapping[str, Any]) -> Table:
    """For the terminal, with the mean tau."""
    head, cells = _cells(made, mean=True)
    shown = Table(*head, box=None, pad_edge=False)
    for row in cells:
        shown.add_row(*map(escape, row))
    return shown


def markdown(made: Mapping[str, Any]) -> str:
    """In Markdown, with every tau."""
    head, cells = _cells(made, mean=False)
    lines = [head, ["---"] * len(head), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
