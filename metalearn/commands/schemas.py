"""What the configuration of each command holds: the types that Hydra composes into."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from metalearn.evaluation.comparison.settings import (
    ComparedEvaluation,
    ComparedSampling,
    LearningSettings,
    MetaSettings,
    ProbeSettings,
    RegressionSettings,
    TuningSettings,
)
from metalearn.training.settings import (
    DistillationSettings,
    EpisodeSettings,
    EvaluationSettings,
    FewShotSettings,
    HeldOutSettings,
    ImageSettings,
    ManifoldMixupSettings,
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
class SharedSettings:
    """What every run has. What is Any, here and below, is a config group, checked against its
    `_target_`.

    sources: filled in, the sha256 of each file of the user's own code (`training/sources.py`).
    """

    backbone: Any = MISSING
    dataset: Any = MISSING
    augmentation: Any = MISSING
    images: ImageSettings = field(default_factory=ImageSettings)
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    name: str | None = None
    seed: int = 0
    device: str = "auto"
    run_dir: str | None = None
    resume: str = "auto"
    outputs: int | None = None
    sources: dict[str, str] = field(default_factory=dict)


@dataclass
class RunSettings(SharedSettings):
    """A whole run of meta-training."""

    algorithm: Any = MISSING
    classifier: Any = None
    gradient: Any = MISSING
    inner: Any = MISSING
    head: Any = field(default_factory=dict)
    adaptation: Any = field(default_factory=dict)
    loss: Any = field(default_factory=dict)
    sampling: Any = field(default_factory=dict)
    outer: Any = MISSING
    episodes: EpisodeSettings = field(default_factory=EpisodeSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    precision: str = "fp32"
    batching: Any = "auto"
    capture: str = "none"
    lite: Any = None


@dataclass
class PretrainSettings(SharedSettings):
    """A whole run of pre-training."""

    optimizer: Any = MISSING
    schedule: Any = MISSING
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    training: PretrainingSettings = field(default_factory=PretrainingSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    manifold_mixup: ManifoldMixupSettings = field(default_factory=ManifoldMixupSettings)
    episodes: FewShotSettings = field(default_factory=FewShotSettings)
    evaluation: MeasuringSettings = field(default_factory=MeasuringSettings)
    precision: str = "fp32"


@dataclass
class ComparisonSettings(SharedSettings):
    """Methods beside one another, on one backbone and the same episodes."""

    episodes: FewShotSettings = field(default_factory=FewShotSettings)
    sampling: ComparedSampling = field(default_factory=ComparedSampling)
    classifiers: dict[str, Any] = field(default_factory=dict)
    evaluation: ComparedEvaluation = field(default_factory=ComparedEvaluation)
    logistic_regression: RegressionSettings = field(default_factory=RegressionSettings)
    classifier_training: LearningSettings = field(default_factory=LearningSettings)
    linear_probe: ProbeSettings = field(default_factory=ProbeSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    meta: MetaSettings = field(default_factory=MetaSettings)
    methods: list[str] | None = None
    norm: str = "frozen"
    scratch_norm: str = "group"
    isolate: bool = True


SCHEMAS: dict[str, type] = {
    "train": RunSettings,
    "pretrain": PretrainSettings,
    "compare": ComparisonSettings,
}
"""By the name of a file in `conf/`: what it composes into."""
