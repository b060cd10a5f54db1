"""`metalearn compare`: every method in turn, then the report."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metalearn.commands.compare_plan import TUNED, Plan, family, plan
from metalearn.commands.compare_worker import Failed, Stopped, perform, result_file
from metalearn.evaluation.comparison import report
from metalearn.evaluation.comparison.page import page
from metalearn.evaluation.comparison.plot import plot_comparison
from metalearn.evaluation.comparison.setting import Setting
from metalearn.evaluation.report import write_episode_file, write_json
from metalearn.runtime.files import decode_floats, write_atomic
from metalearn.tracking import JsonLines, RunInfo, Tracker, WandB
from metalearn.training.folder import check_writable, claim, commit, locked

FILE = "comparison.json"


def run(overrides: Sequence[str], console: Console) -> int:
    """Compare, or go on, in the folder of the comparison; the exit code.

    1 where a method failed, after all others. Raises UsageError or DataError before anything is
    measured.
    """
    asked = plan(overrides)
    setting = Setting(asked)
    check_writable(asked.folder)
    facts = _facts(setting, overrides)
    folder = asked.folder
    if asked.config["resume"] == "never":
        folder = claim(folder, asked.config, "never")
        asked = asked.within(folder)
    with locked(folder):
        claim(folder, asked.config, "auto")
        failed: dict[str, str] = {}
        left = [m for m in asked.methods if not result_file(folder, m).exists()]
        if not left and (folder / FILE).exists():
            _say(console, f"{folder} has finished before; resume=never compares anew")
            show(_read(folder / FILE), console)
            return 0
        for method in left:
            _say(console, f"{method} ({asked.methods.index(method) + 1} of {len(asked.methods)})")
            try:
                perform(asked, method, console)
            except Failed as error:
                failed[method] = str(error)
                _say(console, f"{method} failed: {error}")
            except Stopped:
                _say(console, f"stopped in {method}; the same command goes on from there")
                return 0
        results = [_read(result_file(folder, m)) for m in asked.methods if m not in failed]
        made = compared(asked, facts, results, failed)
        write(made, results, folder, asked.config)
    show(made, console)
    _say(console, f"comparison folder: {folder}")
    if failed:
        _say(console, f"failed: {', '.join(failed)}; the same command tries them again")
    return 1 if failed else 0


def _facts(setting: Setting, overrides: Sequence[str]) -> dict[str, Any]:
    """What the figures hold for. Raises UsageError where data or backbone do not fit."""
    config, shape = setting.plan.config, setting.plan.config["episodes"]
    setting.check(setting.split)
    if set(TUNED) & set(setting.plan.methods):
        setting.check("val")
    if setting.plan.runs:
        for split in ("train", "val"):
            setting.source(config["meta"]["shots"]).check(split)
    bare = setting.bare()
    measured = config["evaluation"]["episodes"]
    device = setting.device
    return {
        "command": shlex.join(["metalearn", "compare", *overrides]),
        "dataset": setting.dataset.name,
        "split": setting.split,
        "ways": shape["ways"],
        "queries": shape["queries"],
        "shots": setting.shots,
        "evaluation_seed": config["evaluation"]["seed"],
        "manifests": {
            str(k): setting.images(k, setting.split, measured).hash for k in setting.shots
        },
        "backbone": _told(setting.plan.bare),
        "weights": bare.report.source if bare.report else None,
        "weights_sha256": bare.report.sha256 if bare.report else None,
        "seed": config["seed"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _told(node: Mapping[str, Any]) -> str:
    """A backbone in words: its class, or its name in a library, and what makes it larger."""
    name = str(node.get("name") or node["_target_"].rpartition(".")[2])
    kept = ("depth", "width", "widths", "filters", "downsample", "hidden", "options")
    sizes = [f"{key} {node[key]}" for key in kept if node.get(key)]
    return ", ".join([name, *sizes])


def compared(
    asked: Plan,
    facts: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `comparison.json`."""
    policies: dict[str, list[str]] = {}
    for result in results:
        policies.setdefault(result["norm_policy"], []).append(result["method"])
    usual = max(policies, key=lambda policy: len(policies[policy]), default="")
    others = [f"{policy} for {', '.join(m)}" for policy, m in policies.items() if policy != usual]
    commits = sorted({result["commit"] or "none" for result in results})
    return {
        **facts,
        "norm_policy": "; ".join([usual, *others]),
        "commit": ", ".join(commits) or commit(),
        "config": asked.config,
        "rows": report.compared(results, facts["shots"]),
        "costs": [_cost(result) for result in results],
        "chosen": {r["method"]: _chosen(r) for r in results if _chosen(r)},
        "notes": {r["method"]: r["notes"] for r in results},
        "training": {r["method"]: r["training"] for r in results if r["training"]},
        "failed": dict(failed),
    }


def _cost(result: Mapping[str, Any]) -> dict[str, Any]:
    training = result["training"]
    return {
        "method": result["method"],
        "family": family(result["method"]),
        "adapted": result["adapted"],
        "learned": result["learned"],
        "seconds": training.get("seconds", training.get("tuning_seconds")),
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in result["shots"].values()),
        "training_peak_memory_bytes": training.get("peak_memory_bytes"),
        "measuring_seconds": result["seconds"],
    }


def _chosen(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: one["choice"] for k, one in result["shots"].items() if one["choice"]}


def write(
    made: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    folder: Path,
    config: Mapping[str, Any],
) -> None:
    """Everything that a comparison leaves behind; `comparison.json` comes last."""
    if results:
        write_episode_file(folder / "episodes.csv", report.episode_rows(results, made["shots"]))
        title = f"{report.title(made)}, {made['ways']} ways"
        plot_comparison(made["rows"], folder / "accuracy.png", title, 1 / made["ways"])
        write_atomic(folder / "comparison.md", report.markdown(made))
        write_atomic(folder / "comparison.html", page(made, folder / "accuracy.png"))
        _track(made, folder, config)
    write_json(folder / FILE, made)


def _track(made: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    columns = [name for name in made["rows"][0] if name != "shared_episodes"]
    with Tracker([JsonLines(), WandB(**config["tracker"])]) as tracker:
        tracker.start(RunInfo(folder.name, folder, dict(config), made["commit"], made["seed"], 0))
        rows = [[row[name] for name in columns] for row in made["rows"]]
        tracker.table("comparison", columns, rows)
        tracker.summary(
            {
                f"{row['method']}/accuracy_{row['shots']}shot": row["accuracy"]
                for row in made["rows"]
            }
        )


def show(made: Mapping[str, Any], console: Console) -> None:
    """The tables, and what was chosen on validation, for a terminal of 80 columns."""
    for table in report.tables(made):
        console.print()
        console.print(report.terminal(table))
    console.print()
    console.print(
        "to the best: mean of pairs, in points; * its 95% interval leaves out 0",
        style="dim", highlight=False,
    )  # fmt: skip
    for line in report.notes(made):
        _say(console, line)


def _read(path: Path) -> dict[str, Any]:
    return decode_floats(json.loads(path.read_text(encoding="utf-8")))


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
