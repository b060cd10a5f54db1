"""Pictures of a run: its learning curve, and accuracy by inner step."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from metalearn.evaluation.statistics import Interval, mean_interval

_TRAIN, _VALIDATION, _BEST = "#3b6fb6", "#d1602f", "#1d7a46"
_KINDS = (_VALIDATION, "#7a4fa3")
_LABELS = {"accuracy": "accuracy", "loss": "outer loss"}


def plot_learning_curve(
    records: Iterable[Mapping[str, Any]], path: Path | str, title: str = "Learning curve"
) -> None:
    """Draw training and validation over meta-steps to a PNG.

    records: as `read_records` gives them. Training `loss` and `accuracy` (fraction) come from
        the scalars of each step, faint as they are and bold as a moving average; validation
        is the mean over the episodes of a step with its 95% interval, the best one marked.
        Without accuracies (regression) only the loss is drawn.

    Raises ValueError where there is nothing to draw.
    """
    records = list(records)
    drawn = []
    for name in ("accuracy", "loss"):
        training, validation = _training(records, name), _validation(records, name)
        if training[0] or validation[0]:
            drawn.append((name, training, validation))
    if not drawn:
        raise ValueError("no record with a loss or an accuracy: nothing to draw")
    figure = _figure(7.2, 2.0 + 2.5 * len(drawn))
    for place, (name, training, validation) in enumerate(drawn):
        axes = figure.add_subplot(len(drawn), 1, place + 1)
        _style(axes)
        _draw_training(axes, *training)
        # The checkpoint is chosen by the first measure that there is, so only there is a best.
        _draw_validation(axes, name, *validation, mark=place == 0)
        _scale(axes, name, training[1], [interval.mean for interval in validation[1]])
        axes.set_ylabel(_LABELS[name])
        if axes.get_legend_handles_labels()[0]:
            place_of_legend = "lower right" if name == "accuracy" else "upper right"
            axes.legend(frameon=False, fontsize=9, loc=place_of_legend)
    figure.axes[0].set_title(title, loc="left", fontweight="bold")
    figure.axes[-1].set_xlabel("meta-steps")
    _save(figure, path)


def plot_pretraining(records: Iterable[Mapping[str, Any]], path: Path | str) -> None:
    """Draw a pre-training over its steps to a PNG: accuracy on base classes, few-shot accuracy of
    validation classes, loss.

    records: as `read_records` gives them. Training is drawn as in `plot_learning_curve`, with
        `held_out_accuracy` and `held_out_loss` of the validations beside it; every kind of
        few-shot episode (a split "val ...") is a line of means with 95% intervals, its best marked.

    Raises ValueError where there is nothing to draw.
    """
    records = list(records)
    kinds = {r["split"]: None for r in records if r.get("kind") == "episodes"}
    kinds = [split for split in kinds if split.startswith("val ")]
    names = ["accuracy", *(["few-shot"] if kinds else []), "loss"]
    if not any(_training(records, name)[0] for name in names):
        raise ValueError("no record with a loss or an accuracy: nothing to draw")
    figure = _figure(7.2, 2.0 + 2.5 * len(names))
    axes = None
    for place, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, place + 1, sharex=axes)
        _style(axes)
        if name == "few-shot":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            for split, color in zip(kinds, _KINDS * len(kinds), strict=False):
                steps, intervals = _validation(records, "accuracy", split)
                _draw_validation(axes, "accuracy", steps, intervals, True, split, color)
        else:
            training, held_out = _training(records, name), _training(records, f"held_out_{name}")
            _draw_training(axes, *training)
            axes.plot(*held_out, color=_VALIDATION, lw=1.2, marker="o", ms=4, label="held out")
            _scale(axes, name, training[1], held_out[1])
        axes.set_ylabel("few-shot accuracy" if name == "few-shot" else name)
        axes.legend(frameon=False, fontsize=9, loc="best")
    figure.axes[0].set_title("Pre-training", loc="left", fontweight="bold")
    figure.axes[-1].set_xlabel("steps")
    _save(figure, path)


def plot_accuracy_by_step(
    by_step: Sequence[Interval],
    path: Path | str,
    title: str = "Accuracy by inner step",
    label: str = "query accuracy",
    chance: float | None = None,
    percent: bool = True,
) -> None:
    """Draw accuracy after 0..k inner steps, with its 95% interval as a band, to a PNG.

    by_step: one interval a step, the first before any step; [mean, half-width, count] will do.
    chance: accuracy of guessing, drawn as a dotted line.
    percent: False where the values are no fractions (a regression's error; set `label` too).

    Raises ValueError for an empty `by_step`.
    """
    if not by_step:
        raise ValueError("no inner steps: nothing to draw")
    mean = np.array([interval[0] for interval in by_step], dtype=np.float64)
    half = np.nan_to_num(np.array([interval[1] for interval in by_step], dtype=np.float64))
    steps = np.arange(len(mean))
    figure = _figure(5.6, 3.8)
    axes = figure.add_subplot()
    _style(axes)
    axes.fill_between(
        steps, mean - half, mean + half, color=_TRAIN, alpha=0.22, lw=0, label="95% interval"
    )
    axes.plot(steps, mean, color=_TRAIN, lw=2, marker="o", ms=5, label="mean")
    if chance is not None:
        axes.axhline(chance, color="#777777", lw=1.2, ls=":", label="chance")
    form = "{:.1%}" if percent else "{:.3g}"
    for step in {0, len(mean) - 1}:
        # To the inner side, so that the figures stay clear of the frame.
        aside = "left" if step == 0 and len(mean) > 1 else "right"
        axes.annotate(
            form.format(mean[step]),
            (step, mean[step]),
            xytext=(6 if aside == "left" else 0, -16),
            textcoords="offset points",
            ha=aside,
            fontsize=9,
            color="#333333",
        )
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.06, y=0.18)
    if percent:  # no room for accuracies that cannot be
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.03))
    axes.set_xlabel("inner steps")
    axes.set_ylabel(label)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=9, loc="best")
    _save(figure, path)


def smooth(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
    """Centred moving average of `window` values, fewer at the ends; NaN and inf are left out."""
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, array, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    low = np.arange(len(array)) - (window - 1) // 2
    low, high = np.maximum(low, 0), np.minimum(low + window, len(array))
    number = count[high] - count[low]
    return np.where(number > 0, (total[high] - total[low]) / np.maximum(number, 1), np.nan)


def _training(records: list[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    chosen = [r for r in records if r.get("kind") == "scalars" and name in r]
    return [r["step"] for r in chosen], [r[name] for r in chosen]


def _validation(
    records: list[Mapping[str, Any]], name: str, split: str = "val"
) -> tuple[list[int], list[Interval]]:
    known = [r for r in records if r.get("kind") == "episodes" and r.get("split") == split]
    chosen = [r for r in known if r.get(name)]
    return [r["step"] for r in chosen], [mean_interval(r[name]) for r in chosen]


def _draw_training(axes: Axes, steps: list[int], values: list[float]) -> None:
    if not steps:
        return
    window = max(1, len(steps) // 40)
    axes.plot(steps, values, color=_TRAIN, alpha=0.25, lw=0.8)
    label = "training" if window == 1 else f"training, mean of {window} steps"
    axes.plot(steps, smooth(values, window), color=_TRAIN, lw=1.8, label=label)


def _draw_validation(
    axes: Axes,
    name: str,
    steps: list[int],
    intervals: list[Interval],
    mark: bool,
    told: str = "validation",
    color: str = _VALIDATION,
) -> None:
    if not steps:
        return
    mean = np.array([interval.mean for interval in intervals])
    half = np.nan_to_num(np.array([interval.half_width for interval in intervals]))
    axes.errorbar(
        steps, mean, half, color=color, lw=1.2, marker="o", ms=4, capsize=2.5,
        label=f"{told}, 95% interval",
    )  # fmt: skip
    if not mark or not np.isfinite(mean).any():
        return
    best = int(np.nanargmax(mean) if name == "accuracy" else np.nanargmin(mean))
    value = f"{mean[best]:.1%}" if name == "accuracy" else f"{mean[best]:.3g}"
    axes.plot(
        steps[best], mean[best], color=_BEST, marker="*", ms=14, lw=0, zorder=5,
        label=f"best: {value} at step {steps[best]}",
    )  # fmt: skip


def _scale(axes: Axes, name: str, training: list[float], validation: list[float]) -> None:
    if name == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return
    values = np.array([*training, *validation], dtype=np.float64)
    values = values[np.isfinite(values)]
    # A loss that falls by orders of magnitude is a flat line on a linear axis.
    if values.size and values.min() > 0 and values.max() > 50 * np.median(values):
        axes.set_yscale("log")


def _figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """layout: where something stands beside the axes; it takes as long as the picture itself."""
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    FigureCanvasAgg(figure)  # no pyplot: nothing global to collect figures or need a display
    return figure


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path | str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if figure.get_layout_engine() is None:  # fixed margins, in inches
        width, height = figure.get_size_inches()
        rows = len(figure.axes)
        figure.subplots_adjust(
            left=0.8 / width, right=1 - 0.15 / width, bottom=0.5 / height, top=1 - 0.35 / height,
            hspace=0.3 * rows / (height - 0.85 - 0.3 * (rows - 1)),
        )  # fmt: skip
    figure.savefig(path, format="png")
