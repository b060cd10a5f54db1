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
TUNED = ("fine_tune_head", "fine_tune_all", "pmf", "tsa", "film")
"""Those that choose on the val split."""
PROTOTYPES = ("pmf", "tsa", "film")
"""Methods that fine-tune a network in every task by the prototypes of its support set: by name
alone, for each of their steps is a pass through all of it."""
BALANCED, DIRICHLET = "balanced", "dirichlet"
"""How the queries of an episode are drawn."""


class ComparisonPlan(NamedTuple):
    """A comparison as plain values, so that a process of its own can be told it.

    config: `conf/compare.yaml`, composed. headed, bare: the backbone with an output for each way,
    and without a head. runs: by method, the configuration of its `metalearn train`. transductive:
    those of `config["classifiers"]` that are.
    """

    config: dict[str, Any]
    headed: dict[str, Any]
    bare: dict[str, Any]
    methods: list[str]
    runs: dict[str, dict[str, Any]]
    transductive: frozenset[str] = frozenset()

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

    def family(self, method: str) -> str:
        """Of a method, a classifier among them."""
        if method in self.config["classifiers"]:
            return "transductive" if method in self.transductive else "pre-training"
        return family(method)


class Case(NamedTuple):
    """What a method is measured at: a number of shots, and how the queries are drawn."""

    shots: int
    queries: str = BALANCED

    @property
    def key(self) -> str:
        """In JSON: "5", "5 dirichlet"."""
        return str(self.shots) if self.queries == BALANCED else f"{self.shots} {self.queries}"

    @classmethod
    def of(cls, key: str | int) -> "Case":
        """The inverse of `key`."""
        shots, _, queries = str(key).partition(" ")
        return cls(int(shots), queries or BALANCED)

    def __str__(self) -> str:
        return f"{self.shots}-shot{', Dirichlet queries' if self.queries != BALANCED else ''}"


def family(method: str) -> str:
    """Of a method that is no classifier."""
    if method == "fine_tune_all" or method in PROTOTYPES:
        return "transfer"
    return FEATURES.get(method) or ("from scratch" if method.endswith(SCRATCH) else "meta-learning")
