"""What a comparison found: the content of `comparison.json`, and its pages for people."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metalearn.evaluation.comparison import curve_report, report
from metalearn.evaluation.comparison.page import page
from metalearn.evaluation.comparison.plan import DIRICHLET, PROTOTYPES, TUNED, ComparisonPlan
from metalearn.evaluation.comparison.plot import plot_comparison
from metalearn.evaluation.comparison.setting import Setting
from metalearn.evaluation.comparison.tables import terminal
from metalearn.evaluation.report import write_episode_file
from metalearn.runtime.files import write_atomic


def conditions(setting: Setting, command: str) -> dict[str, Any]:
    """What the figures hold for. Raises UsageError where data or backbone do not fit."""
    config, shape = setting.plan.config, setting.plan.config["episodes"]
    setting.check(setting.split)
    sampling = config["sampling"]
    if set(TUNED) & set(setting.plan.methods):
        setting.check("val")
    if set(PROTOTYPES) & set(setting.plan.methods):
        replace(setting, copies=1).images(setting.shots[0], "val", 1)
    if setting.plan.runs:
        for split in ("train", "val"):
            setting.source(config["meta"]["shots"]).check(split)
    asked = setting.plan
    meta_trained = set(asked.methods) <= set(asked.runs)  # and so without features of the backbone
    bare = setting.network(asked.bare) if meta_trained else setting.bare()
    measured = config["evaluation"]["episodes"]
    device = setting.device
    return {
        "command": command,
        "dataset": setting.dataset.name,
        "split": setting.split,
        "ways": shape["ways"],
        "queries": shape["queries"],
        "shots": setting.shots,
        "concentration": sampling["concentration"] if DIRICHLET in sampling["queries"] else None,
        "evaluation_seed": config["evaluation"]["seed"],
        "manifests": {
            case.key: setting.drawing(case.queries).images(case.shots, setting.split, measured).hash
            for case in setting.cases
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


def summarised(
    asked: ComparisonPlan,
    facts: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
    commit: str | None,
) -> dict[str, Any]:
    """The content of `comparison.json`. commit: of the code, where no method has told its own."""
    policies: dict[str, list[str]] = {}
    for result in results:
        policies.setdefault(result["norm_policy"], []).append(result["method"])
    usual = max(policies, key=lambda policy: len(policies[policy]), default="")
    others = [f"{policy} for {', '.join(m)}" for policy, m in policies.items() if policy != usual]
    commits = sorted({result["commit"] or "none" for result in results})
    return {
        **facts,
        "norm_policy": "; ".join([usual, *others]),
        "commit": ", ".join(commits) or commit,
        "config": asked.config,
        **{kind: curve_report.rows(results, kind) for kind in curve_report.KINDS},
        "rows": report.compared(results, list(facts["manifests"])),
        "costs": [_cost(result, asked.family(result["method"])) for result in results],
        "chosen": {r["method"]: _chosen(r) for r in results if _chosen(r)},
        "notes": {r["method"]: r["notes"] for r in results},
        "training": {r["method"]: r["training"] for r in results if r["training"]},
        "failed": dict(failed),
    }


def _cost(result: Mapping[str, Any], family: str) -> dict[str, Any]:
    training = result["training"]
    return {
        **{name: result[name] for name in ("method", "adapted", "learned")},
        "family": family,
        "seconds": training.get("seconds", training.get("tuning_seconds")),
        "tasks_per_second": training.get("tasks_per_second"),
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in result["shots"].values()),
        "training_peak_memory_bytes": training.get("peak_memory_bytes"),
        "measuring_seconds": result["seconds"],
    }


def _chosen(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: one["choice"] for k, one in result["shots"].items() if one["choice"]}


def write(made: Mapping[str, Any], results: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """All files of a comparison but `comparison.json`, which comes last."""
    if results:
        write_episode_file(
            folder / "episodes.csv", report.episode_rows(results, list(made["manifests"]))
        )
        title = f"{report.title(made)}, {made['ways']} ways"
        first = [
            {**row, "family": "transductive"} if row["transductive"] else row
            for row in made["rows"]
            if row["queries"] == made["rows"][0]["queries"]
        ]
        first.sort(key=lambda row: row["transductive"])
        plot_comparison(first, folder / "accuracy.png", title, 1 / made["ways"])
        for kind in curve_report.KINDS:
            if lines := curve_report.episode_rows(results, kind):
                write_episode_file(folder / f"{kind}.csv", lines)
        drawn = [folder / name for name in curve_report.draw(made, folder)]
        write_atomic(folder / "comparison.md", report.markdown(made, curve_report.sections(made)))
        write_atomic(folder / "comparison.html", page(made, folder / "accuracy.png", drawn))


def show(made: Mapping[str, Any], console: Console) -> None:
    """The tables, and what was chosen on validation, for a terminal of 80 columns."""
    for table in [*report.tables(made), *curve_report.tables(made)]:
        console.print()
        console.print(terminal(table))
    console.print()
    console.print(
        "to the best: mean of pairs, in points; * its 95% interval leaves out 0",
        style="dim", highlight=False,
    )  # fmt: skip
    for line in report.notes(made):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
