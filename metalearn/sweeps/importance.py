"""What a search found: every run as a line over its settings, and how much each setting matters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from metalearn.evaluation.statistics import SHARES
from metalearn.sweeps.cells import Arranged
from metalearn.sweeps.runs import FinishedRun

FEWEST = 8  # settings that were tried: fewer are no search
_MOST = 10  # axes of the picture
_WIDE = 20.0  # a range of positive numbers as wide as this is shown, and cut, by logarithms


def drawn(arranged: Arranged) -> dict[str, Figure | None]:
    """A picture, by its title, for each condition in which enough settings were tried."""
    made: dict[str, Figure | None] = {}
    for condition in arranged.conditions:
        runs = [run for row in arranged.rows for run in row.cells.get(condition, [])]
        tried = {tuple(map(str, run.settings.values())) for run in runs}
        names = searched(runs) if len(tried) >= FEWEST else []
        if len(names) > 1:
            several = len(arranged.conditions) > 1
            made["The search" + (f": {condition}" if several else "")] = _figure(runs, names)
    return made


def searched(runs: Sequence[FinishedRun]) -> list[str]:
    """The settings that differ between the runs and that all have; of those that always have the
    same value the first alone."""
    columns: dict[tuple[str, ...], str] = {}
    for name in runs[0].settings if runs else ():
        values = [run.settings.get(name, run) for run in runs]
        if any(value is run for value, run in zip(values, runs, strict=True)):
            continue
        column = tuple(map(str, values))
        if len(set(column)) > 1:
            columns.setdefault(column, name)
    return list(columns.values())


def score(run: FinishedRun) -> float:
    """What a search maximises: the score on validation. Of the test where that is not known."""
    told = run.result.get("validation_score")
    sign = 1 if run.measure in SHARES else -1
    return float(sign * run.result[run.measure] if told is None else told)


def importances(runs: Sequence[FinishedRun], names: Sequence[str]) -> dict[str, float]:
    """The share of the scores' variance that each setting explains, the largest first, by Optuna's
    fANOVA over a forest of seed 0. Hutter, Hoos, Leyton-Brown 2014. {} where all scores are one.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    values = {name: _numbers([run.settings[name] for run in runs]) for name in names}
    kinds = {name: _distribution(column) for name, column in values.items()}
    for place, run in enumerate(runs):
        params = {name: column[place] for name, column in values.items()}
        if np.isfinite(score(run)):
            study.add_trial(
                optuna.create_trial(params=params, distributions=kinds, value=score(run))
            )
    if len({trial.value for trial in study.trials}) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def _numbers(column: Sequence[Any]) -> list[Any]:
    """Numbers as they are, anything else as text."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in column):
        return [float(value) for value in column]
    return [str(value) for value in column]


def _distribution(column: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(column[0], str):
        return CategoricalDistribution(sorted(set(column)))
    return FloatDistribution(min(column), max(column), log=_by_logarithms(column))


def _by_logarithms(column: Sequence[Any]) -> bool:
    return not isinstance(column[0], str) and min(column) > 0 and max(column) >= _WIDE * min(column)


def _figure(runs: Sequence[FinishedRun], names: Sequence[str]) -> Figure:
    shares = importances(runs, names)
    ordered = (list(shares) or list(names))[:_MOST]
    figure = Figure((11, 3.2 + 0.25 * len(ordered)), layout="constrained")
    lines, bars = figure.subplots(1, 2, width_ratios=(3, 1))
    _lines(lines, figure, runs, ordered)
    short = [name.rpartition(".")[2] for name in ordered]
    told = [n if short.count(s) > 1 else s for n, s in zip(ordered, short, strict=True)]
    lines.set_xticks(range(len(ordered) + 1), [*told, "score"], rotation=20, fontsize=8)
    bars.barh(told[::-1], [shares.get(name, 0.0) for name in ordered[::-1]], color="C0")
    bars.tick_params(labelsize=8)
    bars.set_xlim(0, 1)
    bars.set_title("importance (fANOVA)", fontsize=10)
    return figure


def _lines(axes: Axes, figure: Figure, runs: Sequence[FinishedRun], names: Sequence[str]) -> None:
    """A line for each run over its settings and its score, each axis from its lowest to its
    highest, the best runs on top."""
    scores = np.array([score(run) for run in runs])
    columns = [_numbers([run.settings[name] for run in runs]) for name in names]
    heights = np.array([*(_height(column) for column in columns), _height(scores.tolist())])
    finite = scores[np.isfinite(scores)]
    colours = Normalize(float(finite.min()), float(finite.max())) if finite.size else Normalize()
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    for place in np.argsort(np.nan_to_num(scores, nan=-np.inf)):
        axes.plot(
            heights[:, place], color=colormaps["viridis"](colours(scores[place])), lw=1.2, alpha=0.7
        )
    for at, column in enumerate([*columns, scores.tolist()]):
        axes.axvline(at, color="#444", lw=0.8)
        for text, height in _ticks(column):
            axes.annotate(text, (at, height), (3, 0), textcoords="offset points", fontsize=7)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) + 0.4)
    figure.colorbar(ScalarMappable(colours, "viridis"), ax=axes, label="score on validation")


def _height(column: Sequence[Any]) -> np.ndarray:
    """Each value between 0 and 1."""
    if isinstance(column[0], str):
        known = sorted(set(column))
        return np.array([known.index(value) / max(len(known) - 1, 1) for value in column])
    values = np.log(column) if _by_logarithms(column) else np.asarray(column, float)
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) / (high - low) if high > low else np.full(len(column), 0.5)


def _ticks(column: Sequence[Any]) -> list[tuple[str, float]]:
    """The lowest and the highest of numbers, every text."""
    values = sorted(set(column)) if isinstance(column[0], str) else [min(column), max(column)]
    heights = _height([*values])
    told = (value if isinstance(value, str) else f"{value:.3g}" for value in values)
    return list(dict(zip(told, map(float, heights), strict=True)).items())
