"""The curves of a comparison, over sparsity and over corruptions, as rows, tables and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from metalearn.evaluation.comparison.plot import _COLOURS, _MARKERS, _looks
from metalearn.evaluation.comparison.tables import Titled, interval, section, short
from metalearn.evaluation.plots import _figure, _save, _style
from metalearn.evaluation.statistics import mean_interval, paired_interval

KINDS = ("sparsity", "robustness")
_HEADS = {
    "sparsity": ("method", "sparsity", "accuracy %", "to unpruned", "weights", "MAC", "ms a task"),
    "robustness": ("method", "queries", "severity", "accuracy %", "to natural"),
}
_LEGENDS = {
    "sparsity": "Sparsity: the share of the weights that were taken away, {pruning}, after "
    "training; nothing was trained after that but what a task adapts. To the first of a method's "
    "rows: the mean difference of pairs, in points. MAC: multiply-accumulates of one image, "
    "weights of 0 left out; a mask alone saves no time here, fewer channels do.",
    "robustness": "The same episodes with other queries{support}: natural, corrupted (Hendrycks, "
    "Dietterich 2019), or attacked (PGD in the maximum norm, epsilon {epsilon:.4f}, through the "
    "adapted network). To natural: the mean difference of pairs, in points.",
}


def rows(results: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """A row for each place of each method's curve, accuracies as fractions, with the difference to
    the first place of the same shots over the same episodes."""
    found = []
    for result in results:
        first: dict[int, np.ndarray] = {}
        for row in result.get("curves", {}).get(kind, ()):
            values = np.asarray(row["accuracies"])
            start = first.setdefault(row["shots"], values)
            mean, half, count = mean_interval(values)
            pair = paired_interval(values, start)
            found.append(
                {
                    "method": result["method"],
                    "family": result["family"],
                    **{name: value for name, value in row.items() if name != "accuracies"},
                    "accuracy": mean,
                    "half_width": half,
                    "episodes": count,
                    "difference": pair.mean,
                    "difference_half_width": 0.0 if values is start else pair.half_width,
                }
            )
    return found


def episode_rows(results: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """A row an episode and place of a curve: `shots`, the place, `index`, each accuracy."""
    places: dict[tuple, dict[str, list[float]]] = {}
    names = ("sparsity",) if kind == "sparsity" else ("name", "severity")
    for result in results:
        for row in result.get("curves", {}).get(kind, ()):
            key = (row["shots"], *(row[name] for name in names))
            places.setdefault(key, {})[result["method"]] = row["accuracies"]
    methods = list(dict.fromkeys(method for own in places.values() for method in own))
    return [
        {
            "shots": key[0],
            **dict(zip(names, key[1:], strict=True)),
            "index": index,
            **{method: own[method][index] if method in own else None for method in methods},
        }
        for key, own in places.items()
        for index in range(max(map(len, own.values())))
    ]


def tables(comparison: Mapping[str, Any]) -> list[Titled]:
    """One for each curve and number of shots."""
    found = []
    for kind in KINDS:
        every = comparison.get(kind) or []
        for shots in dict.fromkeys(row["shots"] for row in every):
            own = [row for row in every if row["shots"] == shots]
            lines = [_line(row, kind) for row in own]
            count = own[0]["episodes"]
            title = f"{kind.capitalize()}, {comparison['ways']}-way {shots}-shot, {count} episodes"
            families = [row["family"] for row in own]
            found.append(Titled(title, _HEADS[kind], lines, families, [False] * len(own)))
    return found


def _line(row: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    accuracy = interval(row["accuracy"], row["half_width"])
    half = row["difference_half_width"]
    change = f"{100 * row['difference']:+.2f} ± {100 * half:.2f}" if half else ""
    if kind == "sparsity":
        numbers = f"{row['parameters']:,}", f"{row['multiply_accumulates']:,}"
        share = f"{100 * row['sparsity']:g}%"
        return row["method"], share, accuracy, change, *numbers, short(row["milliseconds"])
    severity = "" if row["severity"] is None else str(row["severity"])
    return row["method"], row["name"], severity, accuracy, change


def legends(comparison: Mapping[str, Any]) -> list[str]:
    """What the curves are, in words."""
    how = comparison.get("config", {}).get("curves") or {}
    found = []
    if comparison.get("sparsity"):
        told = {"magnitude": "the smallest of all together", "per_layer": "the smallest of each "
                "layer", "channels": "as channels, the smallest of each convolution"}  # fmt: skip
        found.append(_LEGENDS["sparsity"].format(pruning=told[how["pruning"]]))
    if comparison.get("robustness"):
        support = " and support sets" if how["on"] == "both" else ""
        found.append(_LEGENDS["robustness"].format(support=support, epsilon=how["epsilon"]))
    return found


def sections(comparison: Mapping[str, Any]) -> list[str]:
    """The curves' part of a report in Markdown."""
    pictures = [f"![Accuracy by {kind}]({kind}.png)" for kind in KINDS if comparison.get(kind)]
    return [*map(section, tables(comparison)), *pictures, *legends(comparison)]


def draw(comparison: Mapping[str, Any], folder: Path) -> list[str]:
    """The pictures, `sparsity.png` and `robustness.png`; the names of those that were drawn."""
    made = []
    for kind in KINDS:
        if every := comparison.get(kind):
            path = folder / f"{kind}.png"
            (_draw_sparsity if kind == "sparsity" else _draw_robustness)(comparison, every, path)
            made.append(path.name)
    return made


def _panels(every: Sequence[Mapping[str, Any]], width: float, height: float):
    shots = list(dict.fromkeys(row["shots"] for row in every))
    figure = _figure(width * len(shots) + 1.6, height, layout="constrained")
    axes = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    return figure, list(zip(axes, shots, strict=True))


def looks_apart(every: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method: those of a comparison, with a colour and a marker that no other family has."""
    return {
        method: {
            **look,
            "color": _COLOURS[place % len(_COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
        }
        for place, (method, look) in enumerate(_looks(every).items())
    }


def _finish(axes: Axes, comparison: Mapping[str, Any], shots: int, first: bool) -> None:
    axes.axhline(1 / comparison["ways"], color="#777777", lw=1.0, ls=":")
    axes.set_title(f"{comparison['ways']}-way {shots}-shot", loc="left", fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if first:
        axes.set_ylabel("query accuracy, 95% interval; dotted: chance")


def _draw_sparsity(comparison: Mapping[str, Any], every: list[dict[str, Any]], path: Path) -> None:
    looks = looks_apart(every)
    figure, panels = _panels(every, 3.9, 4.2)
    for number, (axes, shots) in enumerate(panels):
        _style(axes)
        for method, look in looks.items():
            own = [r for r in every if (r["method"], r["shots"]) == (method, shots)]
            x, y = ([row[name] for row in own] for name in ("sparsity", "accuracy"))
            half = np.nan_to_num([row["half_width"] for row in own])
            axes.errorbar(x, y, half, lw=1.6, ms=5, capsize=2.5, label=method, **look)
        _finish(axes, comparison, shots, number == 0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(f"weights pruned ({comparison['config']['curves']['pruning']})")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center",
                  frameon=False, fontsize=8.5)  # fmt: skip
    _save(figure, path)


def _draw_robustness(
    comparison: Mapping[str, Any], every: list[dict[str, Any]], path: Path
) -> None:
    looks = looks_apart(every)
    names = list(dict.fromkeys(row["name"] for row in every))
    figure, panels = _panels(every, 1.6 + 0.34 * len(names), 4.8)
    for number, (axes, shots) in enumerate(panels):
        _style(axes)
        for place, (method, look) in enumerate(looks.items()):
            aside = 0.5 * ((place + 0.5) / len(looks) - 0.5)
            own = {k: v for k, v in look.items() if k != "ls"}
            for at, name in enumerate(names):
                wanted = method, shots, name
                found = [r for r in every if (r["method"], r["shots"], r["name"]) == wanted]
                y = [row["accuracy"] for row in found]
                x = np.full(len(y), at + aside)
                axes.plot(x, y, lw=1.0, color=look["color"], alpha=0.5)
                half = np.nan_to_num([row["half_width"] for row in found])
                label = method if at == 0 else None
                axes.errorbar(x, y, half, lw=0, elinewidth=0.9, ms=3.5, label=label, **own)
        _finish(axes, comparison, shots, number == 0)
        shown = [name.replace("_", " ") for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=60, ha="right", fontsize=8)
        axes.grid(axis="x", visible=False)
    severities = comparison["config"]["curves"]["severities"]
    figure.supxlabel(f"corruptions at severity {', '.join(map(str, severities))}", fontsize=9)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center",
                  frameon=False, fontsize=8.5)  # fmt: skip
    _save(figure, path)
