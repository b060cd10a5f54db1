"""Methods beside one another on the same episodes: rows, tables, Markdown."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalearn.evaluation.comparison.plan import BALANCED, Case
from metalearn.evaluation.comparison.tables import Titled, interval, mebibytes, section, short
from metalearn.evaluation.statistics import mean_interval, paired_interval


def compared(
    results: Sequence[Mapping[str, Any]], cases: Sequence[str | int]
) -> list[dict[str, Any]]:
    """A row for each case and each method, accuracies as fractions.

    results: of each method `method`, `family`, `transductive` and `shots`: by the case's key,
        `accuracies` of the first episodes of one manifest, and `milliseconds`.

    best: the method with the highest mean of those that are transductive, or of those that are not.
    difference: the mean of (its accuracy - the best's) over the episodes that both were measured
    on, and its interval. differs: that leaves out 0.
    """
    rows = []
    for key, transductive in itertools.product(map(str, cases), (False, True)):
        found = [
            (result, np.asarray(result["shots"][key]["accuracies"]))
            for result in results
            if result.get("transductive", False) == transductive
        ]
        if not found:
            continue
        best, top = max(found, key=lambda one: one[1].mean())
        case = Case.of(key)
        for result, values in found:
            mean, half, count = mean_interval(values)
            shared = min(count, len(top))
            pair = paired_interval(values[:shared], top[:shared])
            rows.append(
                {
                    **case._asdict(),
                    "method": result["method"],
                    "family": result["family"],
                    "transductive": transductive,
                    "accuracy": mean,
                    "half_width": half,
                    "episodes": count,
                    "best": result is best,
                    "difference": pair.mean,
                    "difference_half_width": pair.half_width,
                    "shared_episodes": shared,
                    "differs": result is not best and abs(pair.mean) > pair.half_width,
                    "milliseconds": result["shots"][key]["milliseconds"],
                }
            )
    return rows


def episode_rows(
    results: Sequence[Mapping[str, Any]], cases: Sequence[str | int]
) -> list[dict[str, Any]]:
    """A row an episode of each case: `shots`, `queries` where they are not always balanced, `index`
    and each method's accuracy, None where it was not measured."""
    rows = []
    several = any(Case.of(key).queries != BALANCED for key in cases)
    for key in map(str, cases):
        columns = {r["method"]: r["shots"][key]["accuracies"] for r in results}
        case = Case.of(key)._asdict() if several else {"shots": Case.of(key).shots}
        for index in range(max(map(len, columns.values()), default=0)):
            values = {m: v[index] if index < len(v) else None for m, v in columns.items()}
            rows.append({**case, "index": index, **values})
    return rows


MARK = " †"
"""Behind the name of a transductive method."""

ACCURACY = ("method", "accuracy %", "episodes", "to the best", "ms a task")
COSTS = ("method", "adapted", "learned", "training s", "tasks/s", "MiB", "training MiB")

LEGEND = (
    "Accuracy: mean over episodes with its 95% interval. To the best: the mean difference of "
    "pairs, in points, over the episodes that both were measured on; * where its 95% interval, "
    "not corrected for the number of methods, leaves out 0.",
    "ms a task: median, one task at a time, from the support images on the device to a fitted "
    "classifier; features of the support set count, loading images and predicting queries do not.",
    "Adapted: numbers that descend in each task. Learned: numbers that the outer loop learned. "
    "Training, tasks/s: of the outer loop, its validation included; tuning on validation episodes "
    "where a method has a grid. MiB: peak memory of the process while it adapts to one task, and "
    "in meta-training.",
)


def tables(comparison: Mapping[str, Any]) -> list[Titled]:
    """The accuracies at each number of shots, and what the methods cost."""
    found = []
    for key, transductive in itertools.product(comparison["manifests"], (False, True)):
        rows = [row for row in _at(comparison, Case.of(key)) if row["transductive"] == transductive]
        if not rows:
            continue
        kind = "transductive, " if transductive else ""
        digest = comparison["manifests"][key][:12]
        title = f"{comparison['ways']}-way {Case.of(key)}, {kind}manifest {digest}"
        lines = [
            (
                row["method"] + (MARK if row.get("transductive") else ""),
                interval(row["accuracy"], row["half_width"]),
                str(row["episodes"]),
                _to_the_best(row),
                short(row["milliseconds"]),
            )
            for row in rows
        ]
        found.append(_titled(title, ACCURACY, lines, rows))
    marked = _transductive(comparison)
    costs = sorted(comparison["costs"], key=lambda cost: cost["method"] in marked)
    lines = [
        (
            cost["method"] + (MARK if cost["method"] in marked else ""),
            f"{cost['adapted']:,}",
            f"{cost['learned']:,}",
            short(cost["seconds"]),
            short(cost.get("tasks_per_second")),
            mebibytes(cost["peak_memory_bytes"]),
            mebibytes(cost["training_peak_memory_bytes"]),
        )
        for cost in costs
    ]
    found.append(_titled("What it costs", COSTS, lines, costs))
    return found


def _transductive(comparison: Mapping[str, Any]) -> set[str]:
    return {row["method"] for row in comparison["rows"] if row["transductive"]}


def _at(comparison: Mapping[str, Any], case: Case) -> list[Mapping[str, Any]]:
    return [row for row in comparison["rows"] if Case(row["shots"], row["queries"]) == case]


def overview(comparison: Mapping[str, Any]) -> list[Titled]:
    """All accuracies in one table, a column for each case, the transductive methods last; none for
    a single case."""
    cases = [Case.of(key) for key in comparison["manifests"]]
    rows = {case: {row["method"]: row for row in _at(comparison, case)} for case in cases}
    first = sorted(rows[cases[0]].values(), key=lambda row: row["transductive"])
    if len(cases) < 2 or not first:
        return []
    lines = [
        (
            row["method"] + (MARK if row["transductive"] else ""),
            *(interval(one["accuracy"], one["half_width"]) for one in own),
        )
        for row in first
        for own in [[rows[case][row["method"]] for case in cases]]
    ]
    kinds = ["transductive" if row["transductive"] else row["family"] for row in first]
    title = f"Accuracy %, {comparison['ways']}-way"
    head = ("method", *map(str, cases))
    return [Titled(title, head, lines, kinds, [False] * len(lines))]


def _titled(
    title: str,
    head: tuple[str, ...],
    lines: list[tuple[str, ...]],
    rows: Sequence[Mapping[str, Any]],
) -> Titled:
    best = [bool(row.get("best")) for row in rows]
    return Titled(title, head, lines, [row["family"] for row in rows], best)


def _to_the_best(row: Mapping[str, Any]) -> str:
    if row["best"]:
        return "best"
    half = 100 * row["difference_half_width"]
    return f"{100 * row['difference']:+.2f} ± {half:.2f}{' *' if row['differs'] else ''}"


def markdown(comparison: Mapping[str, Any], curves: Sequence[str] = ()) -> str:
    """The whole report. curves: further parts."""
    parts = [f"# {title(comparison)}"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts(comparison)))
    parts += map(section, [*overview(comparison), *tables(comparison)])
    parts.append("![Accuracy by shots](accuracy.png)")
    parts += [*LEGEND, *curves]
    parts.append("\n".join(f"- {line}" for line in notes(comparison)))
    return "\n\n".join(parts) + "\n"


def title(comparison: Mapping[str, Any]) -> str:
    """Of the report."""
    return f"{comparison['backbone']} on {comparison['dataset']}: methods compared"


def facts(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the figures hold for, by name."""
    hashes = "; ".join(f"{k}-shot {v}" for k, v in comparison["manifests"].items())
    known = [
        ("command", comparison["command"]),
        ("data set", f"{comparison['dataset']}, {comparison['split']} split"),
        (
            "episodes",
            f"{comparison['ways']} ways, {comparison['queries']} queries a class, "
            f"manifests of seed {comparison['evaluation_seed']}{_proportions(comparison)}",
        ),
        ("manifest sha256", hashes),
        ("backbone", comparison["backbone"]),
        ("weights", comparison["weights"] or "random"),
        ("weights sha256", comparison["weights_sha256"]),
        ("norm policy", comparison["norm_policy"]),
        ("seed", str(comparison["seed"])),
        ("device", f"{comparison['device']}, {comparison['threads']} threads{_parted(comparison)}"),
        ("seconds of training", _clock(comparison)),
        ("torch", comparison["torch"]),
        ("commit", comparison["commit"]),
    ]
    return [(name, value) for name, value in known if value]


def _parted(comparison: Mapping[str, Any]) -> str:
    jobs = comparison.get("config", {}).get("jobs", 1)
    return f" parted among {jobs} methods at a time" if jobs > 1 else ""


def _clock(comparison: Mapping[str, Any]) -> str:
    """Where it is not the time that passed."""
    processor = comparison.get("config", {}).get("meta", {}).get("clock") == "processor"
    return "processor time, all threads together" if processor else ""


def _proportions(comparison: Mapping[str, Any]) -> str:
    """Of Dirichlet queries, where there are any."""
    if (concentration := comparison.get("concentration")) is None:
        return ""
    total = comparison["ways"] * comparison["queries"]
    return f"; Dirichlet queries: {total} in proportions of Dirichlet({concentration:g})"


def notes(comparison: Mapping[str, Any]) -> list[str]:
    """What each method is, what was chosen for it on validation, and what failed."""
    lines = []
    marked = _transductive(comparison)
    if marked:
        names = ", ".join(sorted(marked))
        lines.append(f"{MARK.strip()} {names}: transductive, a task's queries are seen together")
    for method, told in comparison["notes"].items():
        lines.append(f"{method}: {'; '.join(told)}")
        for key, choice in comparison["chosen"].get(method, {}).items():
            edge = f"; at the edge of the grid: {choice['edge']}" if choice["edge"] else ""
            lines.append(
                f"{method}, {Case.of(key)}: rate {choice['rate']:g} and {choice['steps']} steps, "
                f"chosen on the val split ({choice['accuracy']:.2%} there{edge})"
            )
    lines += [f"{method} failed: {why}" for method, why in comparison["failed"].items()]
    return lines
