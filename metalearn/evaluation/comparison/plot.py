"""A picture of a comparison: accuracy by shots, a line a method."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from metalearn.evaluation.plots import _figure, _save, _style

# Okabe and Ito's, told apart by people who see two kinds of cones; darkest first.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vPX"
_LETTERS = 8.5  # of a title, an inch
_DASHES: dict[str, Any] = {
    "untrained": (0, (1, 2)),
    "pre-training": (0, (5, 2)),
    "transfer": (0, (5, 1.5, 1, 1.5)),
    "meta-learning": "-",
    "from scratch": (0, (1, 1)),
}


def plot_comparison(
    rows: Sequence[Mapping[str, Any]], path: Path | str, title: str, chance: float
) -> None:
    """Draw `rows`, as `comparison.compared` gives them, to a PNG.

    Over several shots lines with interval bars, a style for each family, named beside the
    picture; at a single number of shots a point with its bar for each method, named on its line.

    Raises ValueError where there is nothing to draw.
    """
    if not rows:
        raise ValueError("no method was measured: nothing to draw")
    shots = sorted({row["shots"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    looks = _looks(rows)
    if len(shots) == 1:
        figure = _figure(7.2, 1.4 + 0.3 * len(methods), layout="constrained")
        _draw_points(figure.add_subplot(), rows, looks, shots[0], chance)
    else:
        figure = _figure(9.2, max(4.2, 1.2 + 0.27 * len(methods)), layout="constrained")
        _draw_lines(figure.add_subplot(), rows, methods, shots, looks, chance)
    title = textwrap.fill(title, int(_LETTERS * figure.get_figwidth()))
    figure.axes[0].set_title(title, loc="left", fontweight="bold", fontsize=11)
    _save(figure, path)


def _looks(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method: a colour and a marker that differ within a family, and the family's dashes.
    A method from scratch has the colour of the same method that starts from given weights."""
    looks: dict[str, dict[str, Any]] = {}
    members: dict[str, int] = {}
    for row in rows:
        method, family = row["method"], row["family"]
        if method in looks:
            continue
        origin = looks.get(method.removesuffix("_scratch")) if family == "from scratch" else None
        number = members[family] = members.get(family, -1) + 1
        place = number + (1 if family != "untrained" else 0)
        own = {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}
        looks[method] = {
            **{name: (origin or own)[name] for name in own},
            "ls": _DASHES.get(family, "-"),
        }
        if family in ("untrained", "from scratch"):  # nothing was learned before, or from nothing
            looks[method]["mfc"] = "white"
    return looks


def _draw_lines(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    shots: Sequence[int],
    looks: Mapping[str, Mapping[str, Any]],
    chance: float,
) -> None:
    _style(axes)
    handles: list[Line2D] = []
    last = {row["method"]: row["accuracy"] for row in rows if row["shots"] == shots[-1]}
    families = {row["method"]: row["family"] for row in rows}
    for place, method in enumerate(methods):
        own = {row["shots"]: row for row in rows if row["method"] == method}
        # Beside one another, so that no bar hides another.
        aside = 0.18 * (place / max(len(methods) - 1, 1) - 0.5)
        at = np.array([shots.index(number) for number in own]) + aside
        mean = np.array([row["accuracy"] for row in own.values()])
        half = np.nan_to_num([row["half_width"] for row in own.values()])
        axes.errorbar(at, mean, half, lw=1.6, ms=5, capsize=2.5, elinewidth=1.2, **looks[method])
    axes.axhline(chance, color="#777777", lw=1.0, ls=":")
    axes.annotate("chance", (len(shots) - 1, chance), xytext=(0, 3), fontsize=8, ha="right",
                  textcoords="offset points", color="#555555")  # fmt: skip
    for family in dict.fromkeys(families.values()):
        handles.append(Line2D([], [], lw=0, label=family))
        inside = [m for m in methods if families[m] == family]
        inside.sort(key=lambda m: -last.get(m, 0.0))
        handles += [Line2D([], [], lw=1.6, ms=5, label=f"  {m}", **looks[m]) for m in inside]
    legend = axes.legend(
        handles=handles, frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5),
        handlelength=3.2,
    )  # fmt: skip
    for text in legend.get_texts():
        if not text.get_text().startswith(" "):
            text.set_color("#555555")
    axes.set_xticks(range(len(shots)), [str(number) for number in shots])
    axes.set_xlabel("shots (support examples a class)")
    axes.set_ylabel("query accuracy, 95% interval")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="x", visible=False)


def _draw_points(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    looks: Mapping[str, Mapping[str, Any]],
    shots: int,
    chance: float,
) -> None:
    _style(axes)
    for place, row in enumerate(rows):
        look = {n: v for n, v in looks[row["method"]].items() if n != "ls"}
        half = np.nan_to_num(row["half_width"])
        axes.errorbar(
            row["accuracy"], place, xerr=half, lw=0, elinewidth=1.4, capsize=3, ms=6, **look
        )
        axes.annotate(
            f"{row['accuracy']:.1%}", (row["accuracy"] + half, place), xytext=(6, 0), va="center",
            textcoords="offset points", fontsize=8.5, color="#333333",
        )  # fmt: skip
        if place and rows[place - 1]["family"] != row["family"]:
            axes.axhline(place - 0.5, color="#bbbbbb", lw=0.8)
    axes.axvline(chance, color="#777777", lw=1.0, ls=":")
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(
        f"query accuracy at {shots} shot{'s' if shots > 1 else ''}, 95% interval; dotted: chance"
    )
