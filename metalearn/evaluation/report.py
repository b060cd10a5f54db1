"""Results for people and for programs: a table, `result.json`, the per-episode file."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from metalearn.evaluation.statistics import SHARES, measure_of
from metalearn.runtime.files import encode_floats, write_atomic

LABELS = {
    "accuracy": "accuracy",
    "ap50": "nAP50",
    "miou": "mean IoU",
    "loss": "mean squared error",
}
"""The main metric of a result, for people."""
_SETTINGS = (
    ("dataset", "data set"),
    ("task", "task"),
    ("split", "split"),
    ("sampling", "sampling"),
    ("corruption", "corruption"),
    ("algorithm", "algorithm"),
    ("gradient", "gradient"),
    ("backbone", "backbone"),
    ("starting_weights", "from weights"),
    ("adaptation", "adaptation"),
    ("head", "head"),
    ("loss_function", "loss"),
    ("norm_policy", "norm policy"),
)
_IDENTITY = (
    ("seed", "seed"),
    ("manifest_hash", "manifest"),
    ("config_hash", "config"),
    ("commit", "commit"),
    ("weights_sha256", "weights sha256"),
)
_HASH_SHOWN = 12  # characters of a hash in the table; result.json has all


def result_table(result: Mapping[str, Any]) -> Table:
    """Table of one result, from the content of `result.json`.

    result: `accuracy`, `untrained_accuracy` and their `_half_width` are fractions; a
        regression has `loss` and `loss_half_width` instead, a mean squared error. `seconds`
        and `peak_memory_bytes` are in their units; `accuracy_by_step` (or `loss_by_step`) has
        a [mean, half-width] for 0..k inner steps. Keys that are absent or None give no row.
    """
    table = _empty()
    measure = measure_of([name for name, value in result.items() if value is not None])
    label = LABELS[measure]
    _row(table, f"[bold]{label}", _interval(result, measure, measure), style="bold green")
    _row(table, "boxes alone", _interval(result, "box_ap50", measure))
    _row(table, "fg-bg IoU", _interval(result, "fb_iou", measure))
    _row(table, "under attack", _interval(result, f"robust_{measure}", measure))
    _row(table, "untrained", _interval(result, f"untrained_{measure}", measure))
    by_step = result.get(f"{measure}_by_step")
    if by_step and len(by_step) > 1:
        lines = (
            f"{step}: {_format(mean, half, measure)}" for step, (mean, half) in enumerate(by_step)
        )
        _row(table, "by inner step", "\n".join(lines))
    _row(table, "episodes", _episodes(result))
    if lost := result.get("not_finite_episodes"):
        _row(table, "not finite", not_finite(lost, result["episodes"]), style="bold red")
    for key, name in _SETTINGS:
        _row(table, name, result.get(key))
    if result.get("sparsity") is not None:
        _row(table, "pruned", f"{result['sparsity']:.1%} of what may be pruned")
    if result.get("transductive"):
        _row(table, "transductive", "yes: a task's queries are seen together, without labels")
    _row(table, "time", _time(result))
    _identity(table, result)
    return table


def not_finite(lost: int, episodes: int) -> str:
    """What is said of episodes whose queries have no finite loss."""
    return f"{lost} of {episodes} episodes; their queries without a finite loss count as wrong"


def pretraining_table(result: Mapping[str, Any]) -> Table:
    """Table of one run of pre-training, of a backbone or of a detector, from the content of its
    `result.json`."""
    table = _empty()
    if (ap50 := result.get("base_ap50")) is not None:
        told = f"{ap50:.2%} on {result['pictures']} pictures of held-out images"
        _row(table, "[bold]AP50 of base classes", told, style="bold green")
    for prefix, name in (("", "[bold]accuracy"), ("val_", "on validation"), ("train_", "training")):
        told = _interval(result, f"{prefix}accuracy", "accuracy")
        if told is not None:
            images = f"{told} on {result[f'{prefix}images']} images"
            _row(table, name, images, style=None if prefix else "bold green")
    for one in result.get("few_shot", ()):
        told = _interval(one, "accuracy", "accuracy")
        counts = f"{one['episodes']} episodes, {one['queries']} queries a class"
        told = f"{told} over {counts}, manifest {one['manifest_hash'][:_HASH_SHOWN]}"
        _row(table, f"{one['ways']}-way {one['shots']}-shot", told)
    chosen = f"step {result['selected_step']} of {result['steps']}"
    by = f", by {result['select']}" if "select" in result else ""  # as earlier versions left it out
    _row(table, "selected", chosen + by)
    for key, name in (("dataset", "data set"), ("classes", "base classes"), ("backbone",) * 2):
        _row(table, name, result.get(key))
    _row(table, "epochs", f"{result['epochs']:g}")
    unit = "pictures" if "pictures_per_second" in result else "images"
    rate = f"{result[f'{unit}_per_second']:.1f} {unit}/s"
    _row(table, "time", f"{result['seconds']:.1f} s, {rate}, {result.get('precision', 'fp32')}")
    _identity(table, result)
    _row(table, "weights", result["weights"])
    _row(table, "use them", result["command"])
    return table


def write_json(path: Path | str, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically; NaN and the infinities become strings.

    Strings ("nan", "inf", "-inf"), as in `metrics.jsonl`: JSON has no such numbers.
    """
    write_atomic(path, json.dumps(encode_floats(obj), indent=2, allow_nan=False) + "\n")


def write_episode_file(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one CSV line an episode, atomically.

    rows: `index`, `accuracy` (fraction), `loss`; a list under a name that ends in `_by_step`
        is spread over columns, `accuracy_by_step` over `accuracy_after_0`, `accuracy_after_1`
        and so on. Names that a problem does not have are left out of every row.

    Raises ValueError where a row has other columns than the first, or there is no row.
    """
    flat = [_flatten(row) for row in rows]
    if not flat:
        raise ValueError(f"{path}: no episodes to write")
    columns = list(flat[0])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for number, row in enumerate(flat):
        if row.keys() != flat[0].keys():
            raise ValueError(f"{path}: row {number} has columns {list(row)}, not {columns}")
        writer.writerow(row)
    write_atomic(path, text.getvalue())


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith("_by_step"):
            stem = name.removesuffix("_by_step")
            flat |= {f"{stem}_after_{step}": item for step, item in enumerate(value)}
        else:
            flat[name] = value
    return flat


def _empty() -> Table:
    table = Table(title="Result", show_header=False, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    # Every value is on one line and copied from there, so it folds only where it must.
    table.add_column(overflow="fold")
    return table


def _identity(table: Table, result: Mapping[str, Any]) -> None:
    """Peak memory, and what tells this result from others."""
    if result.get("peak_memory_bytes") is not None:
        _row(table, "peak memory", f"{result['peak_memory_bytes'] / 2**20:.0f} MiB")
    for key, name in _IDENTITY:
        value = result.get(key)
        _row(table, name, value[:_HASH_SHOWN] if isinstance(value, str) else value)


def _row(table: Table, name: str, value: Any, style: str | None = None) -> None:
    if value is not None:
        table.add_row(name, str(value), style=style)


def _interval(result: Mapping[str, Any], name: str, measure: str) -> str | None:
    if result.get(name) is None:
        return None
    return _format(result[name], result.get(f"{name}_half_width"), measure)


def _format(mean: Any, half: Any, measure: str) -> str:
    # Read back from JSON, a value that is not finite is a string.
    mean, half = float(mean), math.nan if half is None else float(half)
    if measure in SHARES:
        return f"{mean:.2%}" if math.isnan(half) else f"{mean:.2%} ± {half:.2%}"
    return f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}"


def _episodes(result: Mapping[str, Any]) -> str | None:
    parts = [] if result.get("episodes") is None else [f"{result['episodes']}"]
    # Without shots, they are drawn for each episode, and the other two are the most.
    most = "" if result.get("shots") or not result.get("ways") else "at most "
    if result.get("ways") is not None:
        parts.append(f"{most}{result['ways']}-way")
    if result.get("shots") is not None:
        parts.append(f"{result['shots']}-shot")
    if result.get("queries") is not None:
        each = " a class" if result.get("ways") else ""
        parts.append(f"{most}{result['queries']} queries{each}")
    return ", ".join(parts) or None


def _time(result: Mapping[str, Any]) -> str | None:
    units = {"seconds": "s", "tasks_per_second": "tasks/s"}
    parts = [f"{result[k]:.1f} {unit}" for k, unit in units.items() if result.get(k) is not None]
    return ", ".join(parts) or None
