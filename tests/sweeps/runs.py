"""Run folders with figures that are given."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def write_run(
    folder: Path, algorithm: str, seed: int, values: np.ndarray, *, config: Any = (), **result: Any
) -> Path:
    """A finished run with `values` `[E]`; `config` and `result` over what is usual."""
    folder.mkdir(parents=True)
    settings = {
        "algorithm": {"_target_": f"metalearn.algorithms.{algorithm}", "steps": 1},
        "inner": {"_target_": "metalearn.inner.sgd", "rate": 0.4},
        "outputs": 5, "seed": seed, "run_dir": str(folder), "tracker": {"mode": "disabled"},
        **dict(config),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    told = {
        "accuracy": float(values.mean()), "seed": seed, "dataset": "omniglot", "ways": 5,
        "shots": 1, "queries": 15, "norm_policy": "transductive", "transductive": False,
        "manifest_hash": "a" * 64, "split": "test", "seconds": 3600.0, "tasks_per_second": 10.0,
        "peak_memory_bytes": 2**30, "accuracy_by_step": [[0.2, 0.1], [float(values.mean()), 0.1]],
        **result,
    }  # fmt: skip
    measure = "accuracy" if told["accuracy"] is not None else "loss"
    told = {key: value for key, value in told.items() if value is not None}
    (folder / "result.json").write_text(json.dumps(told))
    with (folder / "episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", measure])
        writer.writerows(enumerate(values.tolist()))
    lines = [
        {"kind": "episodes", "split": "val", "step": step, measure: [0.1 * step, 0.2 * step]}
        for step in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
