"""The settings of a comparison, with their types and defaults."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ComparedSampling:
    """How the queries of an episode are drawn, each of `queries` in turn: "balanced", as many of
    every class, or "dirichlet", in proportions of that distribution. One needs no list."""

    queries: Any = field(default_factory=lambda: ["balanced"])
    concentration: float = 2.0


@dataclass
class ComparedEvaluation:
    """What the methods of a comparison are measured on. network_episodes: a number, or one for
    each of the shots. timed: tasks, in at most `timed_seconds` after the first."""

    split: str = "test"
    seed: int = 0
    episodes: int = 1000
    network_episodes: Any = 200
    timed: int = 20
    timed_seconds: float = 5.0


@dataclass
class RegressionSettings:
    """Of logistic regression on features."""

    strength: float = 1.0


@dataclass
class ProbeSettings:
    """Of the linear probe: AdamW on the whole support set."""

    rate: float = 0.01
    weight_decay: float = 0.01
    steps: int = 100


@dataclass
class LearningSettings:
    """How a classifier that draws weights is meta-trained on features of the base classes: steps of
    Adam, each on so many tasks. 0 steps: it is compared as it is drawn."""

    steps: int = 200
    tasks: int = 8
    rate: float = 1e-3


@dataclass
class TuningSettings:
    """The grids of fine-tuning, and how many episodes of the val split choose in them.

    prototype_rates, prototype_steps: of pmf, tsa and film; copies: augmented ones of the support
    images, of which each step takes the next."""

    episodes: int = 200
    network_episodes: int = 20
    head_rates: list[float] = field(default_factory=list)
    head_steps: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    prototype_rates: list[float] = field(default_factory=list)
    prototype_steps: int = 50
    copies: int = 10


@dataclass
class CurveSettings:
    """How `sparsity` and `robustness` are measured: on the first `episodes` of each manifest.

    pruning: "magnitude", the smallest weights of all together, "per_layer", or "channels", a
    smaller network. severities, on: of corruptions, as `episodes.corruptions.Corruption` has them.
    epsilon, steps: of the attack, `algorithms.adversarial.PGD`.
    """

    episodes: int = 100
    pruning: str = "magnitude"
    severities: list[int] = field(default_factory=lambda: [1, 3, 5])
    on: str = "query"
    epsilon: float = 8 / 255
    steps: int = 20


@dataclass
class MetaSettings:
    """The `metalearn train` runs of a comparison: their seconds by which clock, shots,
    overrides."""

    seconds: float = 150.0
    clock: str = "wall"
    shots: int = 5
    scratch: list[str] = field(default_factory=list)
    common: list[str] = field(default_factory=list)
    overrides: dict[str, list[str]] = field(default_factory=dict)
