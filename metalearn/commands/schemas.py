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


SCHEMAS: dict[str, type] = {"train": RunSettings, "pretrain": PretrainSettings}
"""By the name of a file in `conf/`: what it composes into."""
