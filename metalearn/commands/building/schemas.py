"""What the configuration of each command holds: the types that Hydra composes into."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from metalearn.evaluation.comparison import settings as compared
from metalearn.evaluation.comparison.settings import LearningSettings, RegressionSettings
from metalearn.evaluation.selection.settings import ReachedSettings, SampleSettings
from metalearn.training import settings
from metalearn.training.settings import DistillationSettings, ManifoldMixupSettings


@dataclass
class TrackerSettings:
    """Weights & Biases; the run folder keeps every record whatever stands here.

    plots: draw the learning curve, the measure by inner step and, of scenes, the answers to an
        episode at the end of a run, in a quarter of a second or more; many short runs do without.
    """

    mode: str = "offline"
    project: str = "metalearn"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    plots: bool = True


@dataclass
class SharedSettings:
    """What every run has. What is Any, here and below, is a config group, checked against its
    `_target_`.

    sources: filled in, the sha256 of each file of the user's own code (`training/sources.py`).
    """

    backbone: Any = MISSING
    dataset: Any = MISSING
    augmentation: Any = MISSING
    images: settings.ImageSettings = field(default_factory=settings.ImageSettings)
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
    task: str = "classification"
    sampling: Any = field(default_factory=dict)
    outer: Any = MISSING
    adversarial: Any = None
    pruning: Any = None
    corruption: settings.CorruptionSettings = field(default_factory=settings.CorruptionSettings)
    episodes: settings.EpisodeSettings = field(default_factory=settings.EpisodeSettings)
    training: settings.TrainingSettings = field(default_factory=settings.TrainingSettings)
    evaluation: settings.EvaluationSettings = field(default_factory=settings.EvaluationSettings)
    precision: str = "fp32"
    batching: Any = "auto"
    capture: str = "none"
    lite: Any = None
    check: str = "none"


@dataclass
class PretrainSettings(SharedSettings):
    """A whole run of pre-training."""

    optimizer: Any = MISSING
    schedule: Any = MISSING
    head: Any = field(default_factory=dict)
    loss: Any = field(default_factory=dict)
    task: str = "classification"
    held_out: settings.HeldOutSettings = field(default_factory=settings.HeldOutSettings)
    training: settings.PretrainingSettings = field(default_factory=settings.PretrainingSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    manifold_mixup: ManifoldMixupSettings = field(default_factory=ManifoldMixupSettings)
    episodes: settings.FewShotSettings = field(default_factory=settings.FewShotSettings)
    evaluation: settings.MeasuringSettings = field(default_factory=settings.MeasuringSettings)
    precision: str = "fp32"


@dataclass
class ComparisonSettings(SharedSettings):
    """Methods beside one another, on one backbone and the same episodes."""

    episodes: settings.FewShotSettings = field(default_factory=settings.FewShotSettings)
    sampling: compared.ComparedSampling = field(default_factory=compared.ComparedSampling)
    classifiers: dict[str, Any] = field(default_factory=dict)
    evaluation: compared.ComparedEvaluation = field(default_factory=compared.ComparedEvaluation)
    logistic_regression: RegressionSettings = field(default_factory=RegressionSettings)
    classifier_training: LearningSettings = field(default_factory=LearningSettings)
    linear_probe: compared.ProbeSettings = field(default_factory=compared.ProbeSettings)
    tuning: compared.TuningSettings = field(default_factory=compared.TuningSettings)
    meta: compared.MetaSettings = field(default_factory=compared.MetaSettings)
    curves: compared.CurveSettings = field(default_factory=compared.CurveSettings)
    sparsity: list[float] | None = None
    robustness: list[str] | None = None
    methods: list[str] | None = None
    norm: str = "frozen"
    scratch_norm: str = "group"
    isolate: bool = True
    jobs: int = 1


@dataclass
class SelectionSettings(SharedSettings):
    """Backbones in the order of what they promise for a data set."""

    augmentation: Any = field(default_factory=dict)
    backbones: list[str] | None = None
    candidates: dict[str, list[str]] = field(default_factory=dict)
    scores: list[str] | None = None
    sample: SampleSettings = field(default_factory=SampleSettings)
    accuracy: bool = False
    compared: dict[str, str] = field(default_factory=dict)
    episodes: settings.FewShotSettings = field(default_factory=settings.FewShotSettings)
    evaluation: ReachedSettings = field(default_factory=ReachedSettings)
    norm: str = "frozen"


SCHEMAS: dict[str, type] = {
    "train": RunSettings,
    "pretrain": PretrainSettings,
    "compare": ComparisonSettings,
    "select": SelectionSettings,
}
"""By the name of a file in `conf/`: what it composes into."""
