"""What a comparison is to do, as plain values."""

from pathlib import Path
from typing import Any, NamedTuple

SCRATCH = "_scratch"
FEATURES = {
    "untrained": "untrained",
    "nearest_centroid": "pre-training",
    "logistic_regression": "pre-training",
    "linear_probe": "pre-training",
    "fine_tune_head": "transfer",
}
"""Methods that look at features alone, and their families."""
TUNED = ("fine_tune_head", "fine_tune_all")
FAMILIES = ("untrained", "pre-training", "transfer", "meta-learning", "from scratch")


class ComparisonPlan(NamedTuple):
    """A comparison as plain values, so that a process of its own can be told it.

    config: `conf/compare.yaml`, composed. headed, bare: the backbone with an output for each way,
    and without a head. runs: by method, the configuration of its `metalearn train`.
    """

    config: dict[str, Any]
    headed: dict[str, Any]
    bare: dict[str, Any]
    methods: list[str]
    runs: dict[str, dict[str, Any]]

    @property
    def folder(self) -> Path:
        """Of the comparison."""
        return Path(self.config["run_dir"])

    def within(self, folder: Path) -> "ComparisonPlan":
        """The same in another folder."""
        runs = {n: {**run, "run_dir": str(folder / n)} for n, run in self.runs.items()}
        return self._replace(config={**self.config, "run_dir": str(folder)}, runs=runs)

    def network_episodes(self, shots: int) -> int:
        """How many episodes of `shots` are for methods that adapt the network."""
        asked, all_shots = self.config["evaluation"], self.config["episodes"]["shots"]
        given = asked["network_episodes"]
        count = given if isinstance(given, int) else given[all_shots.index(shots)]
        return min(count, asked["episodes"])


def family(method: str) -> str:
    """One of `FAMILIES`."""
    if method == "fine_tune_all":
        return "transfer"
    return FEATURES.get(method) or ("from scratch" if method.endswith(SCRATCH) else "meta-learning")
