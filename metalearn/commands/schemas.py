"""What the configuration of each command holds: the types that Hydra composes into."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from metalearn.training.settings import (
    DivisionSettings,
    EpisodeSettings,
    EvaluationSettings,
    FewShotSettings,
    ImageSettings,
    MeasuringSettings,
    PretrainingSettings,
    TrainingSettings,
)


@dataclass
class TrackerSettings:
    """Weights & Biases; the run folder keeps every record whatever stands here."""

    mode: str = "offline"
    project: str = "metalearn"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class RunSettings:
    """A whole run. What is Any here is a config group, checked against its `_target_`."""

    algorithm: Any = MISSING
    gradient: Any = MISSING
    inner: Any = MISSING
    backbone: Any = MISSING
    head: Any = field(default_factory=dict)
    adaptation: Any = field(default_factory=dict)
    loss: Any = field(default_factory=dict)
    dataset: Any = MISSING
    sampling: Any = field(default_factory=dict)
    augmentation: Any = MISSING
    images: ImageSettings = field(default_factory=ImageSettings)
    outer: Any = MISSING
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    episodes: EpisodeSettings = field(default_factory=EpisodeSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    name: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    batching: Any = "auto"
    capture: str = "none"
    run_dir: str | None = None
    resume: str = "auto"
    outputs: int | None = None


@dataclass
class PretrainSettings:
    """A whole run of pre-training; Any as in `RunSettings`."""

    backbone: Any = MISSING
    dataset: Any = MISSING
    augmentation: Any = MISSING
    images: ImageSettings = field(default_factory=ImageSettings)
    optimizer: Any = MISSING
    schedule: Any = MISSING
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    division: DivisionSettings = field(default_factory=DivisionSettings)
    training: PretrainingSettings = field(default_factory=PretrainingSettings)
    episodes: FewShotSettings = field(default_factory=FewShotSettings)
    evaluation: MeasuringSettings = field(default_factory=MeasuringSettings)
    name: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    run_dir: str | None = None
    resume: str = "auto"
    outputs: int | None = None


@dataclass
class ComparedEpisodes:
    """The shape of the episodes: N ways, each of `shots` in turn, `queries` a class."""

    ways: int = 5
    shots: list[int] = field(default_factory=lambda: [1, 5])
    queries: int = 15


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
class TuningSettings:
    """The grids of fine-tuning, and how many episodes of the val split choose in them."""

    episodes: int = 200
    network_episodes: int = 20
    head_rates: list[float] = field(default_factory=list)
    head_steps: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


@dataclass
class MetaSettings:
    """The `metalearn train` runs of a comparison: their seconds, shots and overrides."""

    seconds: float = 150.0
    shots: int = 5
    scratch: list[str] = field(default_factory=list)
    common: list[str] = field(default_factory=list)
    overrides: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class ComparisonSettings:
    """Methods beside one another, on one backbone and the same episodes."""

    backbone: Any = MISSING
    dataset: Any = MISSING
    images: ImageSettings = field(default_factory=ImageSettings)
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    episodes: ComparedEpisodes = field(default_factory=ComparedEpisodes)
    evaluation: ComparedEvaluation = field(default_factory=ComparedEvaluation)
    logistic_regression: RegressionSettings = field(default_factory=RegressionSettings)
    linear_probe: ProbeSettings = field(default_factory=ProbeSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    meta: MetaSettings = field(default_factory=MetaSettings)
    methods: list[str] | None = None
    name: str | None = None
    seed: int = 0
    device: str = "auto"
    norm: str = "frozen"
    scratch_norm: str = "group"
    run_dir: str | None = None
    resume: str = "auto"
    isolate: bool = True
    outputs: int | None = None


SCHEMAS: dict[str, type] = {
    "train": RunSettings,
    "pretrain": PretrainSettings,
    "compare": ComparisonSettings,
}
"""By the name of a file in `conf/`: what it composes into."""
