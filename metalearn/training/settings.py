"""The settings of the two loops around the engine, with their types and defaults."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EpisodeSettings:
    """The shape of an episode: N ways, K shots, `queries` query examples a class.

    For regression, `shots` and `queries` are points of one curve and `ways` has no meaning.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15


@dataclass
class ImageSettings:
    """What every image of every split becomes before the network sees it; see `ImageTransform`."""

    size: int | None = None
    channels: int | None = None
    mean: Any = None  # a number, or a list of numbers
    std: Any = None


@dataclass
class CorruptionSettings:
    """A common corruption of the test episodes' images; see `episodes.corruptions.Corruption`."""

    name: str | None = None
    severity: int = 3
    on: str = "query"
    sizes: str = "auto"
    seed: int = 0


@dataclass
class TrainingSettings:
    """The outer loop.

    steps: meta-steps. meta_batch: T tasks in each.
    seconds: of training, validation included, after which it stops as if `steps` had been reached;
    a resumed run keeps what it has used. Such a run repeats only up to where the clock stopped it.
    clock: that counts them, wall, or processor: the time of all threads of this process together,
    whatever else the machine does.
    ways, shots, queries: of the training episodes, where they differ from `episodes`.
    clip_norm: largest norm of the meta-gradient.
    validate_every: meta-steps between validations. patience: validations without a new best
    after which training stops. checkpoint_every: meta-steps between checkpoints; every
    validation writes one too. keep: newest checkpoints kept, beside the best. workers: threads
    that make the coming episodes in the background, by default 1 beside a GPU and 0 on a CPU, whose
    cores are busy; what the episodes hold is the same for any number.
    """

    steps: int = 1000
    meta_batch: int = 16
    seconds: float | None = None
    clock: str = "wall"
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    clip_norm: float | None = None
    validate_every: int = 200
    patience: int | None = None
    checkpoint_every: int = 100
    keep: int = 2
    workers: int | None = None


@dataclass
class EvaluationSettings:
    """Evaluation.

    episodes, validation_episodes: in the test and the validation manifest. split: what
    `metalearn evaluate` measures. seed: of the manifests; runs of different seeds share them.
    steps: inner steps, where they differ from training's. untrained: also measure the weights
    before training. manifest: a file of `metalearn data manifest`, whose episodes take the place
    of those that episodes, split and seed name.
    """

    episodes: int = 600
    validation_episodes: int = 100
    split: str = "test"
    seed: int = 0
    steps: int | None = None
    untrained: bool = True
    manifest: str | None = None


@dataclass
class HeldOutSettings:
    """The shares of the base classes' images that are held out, to select by and to test on; by
    a seed of their own, so that runs of different seeds share them."""

    val: float = 0.05
    test: float = 0.05
    seed: int = 0


@dataclass
class PretrainingSettings:
    """Supervised training of a backbone.

    epochs: over the images that train. steps: where training ends before that; its schedule too.
    label_smoothing, mixup, cutmix, rotation: see `loss_and_accuracy` and `Mixing`; 0 is without.
    ema: what an average of the weights keeps of itself in a step; above 0 the average is what is
    validated and kept. decay_norms: whether the weight decay reaches norms and biases.
    validate_every: epochs between validations. select: the weights that are kept: few_shot and
    accuracy, those of the best validation; last. checkpoint_every: steps between checkpoints;
    every validation writes one too. record_every: steps between records.
    """

    epochs: int = 30
    steps: int | None = None
    batch_size: int = 64
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    rotation: float = 0.0
    clip_norm: float | None = None
    ema: float = 0.0
    decay_norms: bool = True
    channels_last: bool = False
    validate_every: int = 1
    select: str = "few_shot"
    checkpoint_every: int = 1000
    record_every: int = 10
    keep: int = 2
    workers: int | None = None


@dataclass
class DistillationSettings:
    """A teacher whose answers are learned beside the labels: see `training/distillation.py`.

    teacher: the folder of a finished run of `pretrain` on the same classes; null for none.
    sha256: filled in, of its weights. weight: of its part of the loss, the labels having the rest.
    trust: packages beside this one, torch and those that this run names, that its backbone may come
    from, with commas between; "true" for all.
    """

    teacher: str | None = None
    sha256: str | None = None
    weight: float = 0.5
    temperature: float = 4.0
    trust: str | None = None


@dataclass
class ManifoldMixupSettings:
    """Mixing inside the network: see `training/manifold.py`.

    alpha: of the shares, Beta(alpha, alpha), 2 in S2M2; 0 for none. layers: submodules of the
    backbone whose input may be mixed; null for its first layer and its blocks.
    """

    alpha: float = 0.0
    layers: list[str] | None = None


@dataclass
class FewShotSettings:
    """Episodes of classes that are not trained on. shots: one measurement each; [] for none, which
    a comparison refuses."""

    ways: int = 5
    shots: list[int] = field(default_factory=lambda: [1, 5])
    queries: int = 15


@dataclass
class MeasuringSettings:
    """How a pre-trained backbone is measured.

    episodes: of the test classes, at the end. validation_episodes: of the validation classes. seed:
    of both; runs of different seeds share them. train_images: how many of the images that train are
    measured at the end; null for all.
    """

    episodes: int = 600
    validation_episodes: int = 200
    seed: int = 0
    train_images: int | None = 2000
