"""Pictures of an estimate: how far confidence can be trusted, and which classes are mistaken."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

from metalearn.evaluation.own_images.calibration import binned, calibration_error, wilson
from metalearn.evaluation.plots import _figure, _save, _style

_BLUE, _RED = "#3b6fb6", "#d1602f"


def reliability_diagram(
    confidence: np.ndarray, right: np.ndarray, path: Path, repeats: int = 1
) -> None:
    """Accuracy against confidence, in steps of a tenth, with Wilson's intervals and the answers of
    each step. DeGroot, Fienberg 1983; Niculescu-Mizil, Caruana 2005.

    repeats: how often each image is among the answers, which count as one.
    """
    found = binned(confidence, right)
    bins = len(found.count)
    there = found.count > 0
    centres = (np.arange(bins) + 0.5) / bins
    figure = _figure(5.2, 5.4)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    _style(axes)
    axes.plot([0, 1], [0, 1], color="#777777", lw=1.2, ls=":", label="perfectly calibrated")
    axes.bar(centres[there], found.accuracy[there], 0.92 / bins, color=_BLUE, alpha=0.55,
             label="accuracy")  # fmt: skip
    for place in np.flatnonzero(there):
        images = max(1, round(found.count[place] / repeats))
        _, low, high, _ = wilson(float(found.accuracy[place]), images)
        axes.plot([centres[place]] * 2, [low, high], color=_BLUE, lw=1.3)
    axes.plot(found.confidence[there], found.accuracy[there], color=_RED, marker="o", ms=5, lw=0,
              label="at its mean confidence")  # fmt: skip
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("accuracy, 95% interval")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(
        frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=3,
        columnspacing=1.0, handlelength=1.4,
    )  # fmt: skip
    error = calibration_error(confidence, right)
    axes.set_title(
        f"Calibration error {error:.3f}, held-out images", loc="left", fontweight="bold", pad=22
    )
    _style(below)
    below.bar(centres, found.count / repeats, 0.92 / bins, color="#999999")
    below.set_ylabel("images")
    below.set_xlabel("confidence")
    below.set_xlim(0, 1)
    below.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.subplots_adjust(left=0.15, right=0.95, bottom=0.1, top=0.9, hspace=0.12)
    figure.savefig(path, format="png")


def confusion_matrix(
    labels: np.ndarray, shares: np.ndarray, classes: Sequence[str], path: Path
) -> None:
    """Of the images of a class (a row) the share that is answered as each (a column).

    labels: `[n]`. shares: `[n, N]`, how often each image was answered as each class.
    """
    ways = len(classes)
    table = np.stack([
        shares[labels == c].mean(0) if (labels == c).any() else np.full(ways, np.nan)
        for c in range(ways)
    ])  # fmt: skip
    side = 2.6 + 0.5 * ways
    figure = _figure(side + 0.6, side, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1)
    names = [" ".join(name.split())[:18] for name in classes]
    axes.set_xticks(range(ways), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(ways), names, fontsize=8)
    if ways <= 25:
        for row, column in np.argwhere(np.nan_to_num(table) > 0.005):
            value = table[row, column]
            axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=7,
                      color="white" if value > 0.55 else "#333333")  # fmt: skip
    axes.set_xlabel("answered")
    axes.set_ylabel("is")
    axes.set_title("Held-out images of each class", loc="left", fontweight="bold", fontsize=10)
    _save(figure, path)
