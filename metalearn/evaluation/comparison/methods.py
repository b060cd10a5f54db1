"""The methods of a comparison that learn nothing across tasks, each measured at every shot."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn import tree
from metalearn.algorithms import MAML, MetaAlgorithm
from metalearn.backbones import heads
from metalearn.backbones.norms import describe
from metalearn.classifiers import Cosine, LinearProbe, LogisticRegression
from metalearn.engine.task import tasks_of
from metalearn.evaluation.comparison.curves import Subject, of_features
from metalearn.evaluation.comparison.setting import Cost, Network, Setting
from metalearn.evaluation.features import Change, standardised, unit_length
from metalearn.evaluation.on_features import Choice, Head, choose, classifying, measure
from metalearn.evaluation.protocol import EvalReport, evaluate
from metalearn.evaluation.report import not_finite
from metalearn.inner.adaptive import adamw
from metalearn.inner.loop import adapt, detached_gradient
from metalearn.inner.rules import sgd
from metalearn.types import Batch, Episodes, Given, Meta, map_tensors


class Shot(NamedTuple):
    """A method at one number of shots. accuracies: of the first episodes of the manifest."""

    accuracies: list[float]
    cost: Cost
    choice: Choice | None = None


@dataclass
class Measured:
    """What is kept of a method. transductive: whether it sees the queries of a task before it
    answers. adapted: numbers that descend in each task. learned: that the outer loop learns.
    training: seconds and memory of it, and the run's hashes. subject: the method on images, where
    curves can be drawn of it."""

    norm_policy: str
    transductive: bool = False
    adapted: int = 0
    learned: int = 0
    shots: dict[int, Shot] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    subject: Subject | None = None

    def chose(self, choice: Choice | None, started: float) -> None:
        """The seconds since `started` go to the tuning, where there was a choice."""
        if choice:
            spent = self.training.get("tuning_seconds", 0.0) + time.monotonic() - started
            self.training["tuning_seconds"] = spent

    def add(self, shots: int, report: EvalReport, cost: Cost, choice: Choice | None) -> None:
        """One number of shots, with a note where episodes are not finite."""
        self.shots[shots] = Shot(report.accuracies.tolist(), cost, choice)
        if lost := report.not_finite:
            self.notes.append(f"{shots}-shot, not finite: {not_finite(lost, len(report.losses))}")

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        shots = {
            str(shots): {
                "accuracies": one.accuracies,
                "choice": one.choice._asdict() if one.choice else None,
                **one.cost._asdict(),
            }
            for shots, one in self.shots.items()
        }
        return {**{k: v for k, v in vars(self).items() if k != "subject"}, "shots": shots}


class Fitted(NamedTuple):
    """A head for one number of shots, the inner steps that it takes, and how they were chosen.

    adapted: numbers that descend in a task; None for those that the inner loop moves.
    """

    head: Head
    steps: int = 0
    choice: Choice | None = None
    adapted: int | None = None


def on_features(
    setting: Setting,
    network: Network,
    make: Callable[[int, int], Fitted],
    change: Change | None = None,
) -> Measured:
    """Measure a head on the features of `network`. make: from shots and the number of features."""
    measured = Measured(describe(network.net.module))
    episodes = setting.plan.config["evaluation"]["episodes"]
    for shots in setting.shots:
        manifest = setting.features(network, shots, setting.split, episodes, change)
        first = manifest.source.batch(setting.split, [0])
        started = time.monotonic()
        head, steps, choice, adapted = make(shots, first.support.shape[-1])
        measured.chose(choice, started)
        report = measure(head, manifest, at=(steps,))

        def fit(images: Given, head: Head = head, steps: int = steps) -> object:
            features = features_of(setting, network, images, change)
            return adapt(*head, features, steps, gradient=detached_gradient)

        measured.transductive = head.algo.transductive
        measured.adapted = adapting(*head, first) if adapted is None else adapted
        cost = setting.cost(shots, head.algo, fit)
        measured.add(shots, report, cost, choice)
    return measured


def on_images(
    setting: Setting,
    algo: MetaAlgorithm,
    meta: Meta,
    steps_of: Callable[[int], tuple[MetaAlgorithm, int, Choice | None]],
) -> Measured:
    """Measure what adapts the network itself, on the first `network_episodes` of each manifest.

    steps_of: from shots to the algorithm, with its rate, the inner steps, and the choice.
    """
    measured = Measured(describe(algo.net.module))
    for shots in setting.shots:
        started = time.monotonic()
        algo, steps, choice = steps_of(shots)
        measured.chose(choice, started)
        manifest = setting.images(shots, setting.split, setting.plan.network_episodes(shots))
        report = evaluate(algo, meta, manifest, device=setting.device, at=(steps,), together=4)

        def fit(images: Given, algo: MetaAlgorithm = algo, steps: int = steps) -> object:
            with torch.no_grad(), algo.net.evaluating():
                return adapt(algo, meta, images, steps, gradient=detached_gradient)

        measured.transductive = algo.transductive
        first = manifest.source.batch(setting.split, [0]).map(lambda t: t.to(setting.device))
        measured.adapted = adapting(algo, meta, first)
        cost = setting.cost(shots, algo, fit)
        measured.add(shots, report, cost, choice)
    return measured


def adapting(algo: MetaAlgorithm, meta: Meta, episodes: Episodes) -> int:
    """How many numbers the inner loop moves."""
    if not algo.steps:
        return 0
    given = tasks_of(algo, episodes).at(0).given
    return sum(t.numel() for t in algo.begin(meta, given).values())


def features_of(
    setting: Setting, network: Network, images: Given, change: Change | None = None
) -> Given:
    """What is given of one task, from images `[B, C, H, W]` to features `[B, D]`."""

    def taken(batch: Batch) -> Batch:
        return Batch(setting.extracted(network, iter([batch.x])), map_tensors(Tensor.cpu, batch.y))

    support = taken(images.support)
    rest = None if images.unlabelled is None else taken(images.unlabelled)
    if change is None:
        return Given(support, rest)
    changed = change(Episodes(support, rest or support))
    return Given(changed.support, changed.query if rest else None)


def untrained(setting: Setting) -> Measured:
    """Nearest centroid on the features of random weights."""
    node = {**setting.plan.bare, "weights": None, "sha256": None}
    measured = on_features(setting, network := setting.network(node), lambda *_: _centroid())
    measured.subject = of_features(setting, network, Cosine())
    measured.notes.append("nearest centroid by cosine on the features of random weights")
    return measured


def nearest_centroid(setting: Setting) -> Measured:
    """The nearest class mean, by cosine, on the features of the given weights."""
    measured = on_features(setting, network := setting.bare(), lambda *_: _centroid())
    measured.subject = of_features(setting, network, Cosine())
    measured.notes.append("cosine of features of unit length and their class means")
    return measured


def _centroid() -> Fitted:
    return Fitted(classifying(Cosine()))


def linear_probe(setting: Setting) -> Measured:
    """A linear layer on standardised features, by a fixed recipe."""
    how, ways = setting.plan.config["linear_probe"], setting.plan.config["episodes"]["ways"]
    rule = adamw(how["rate"], weight_decay=how["weight_decay"])

    def make(shots: int, size: int) -> Fitted:
        probe = LinearProbe(rule, how["steps"], ways)
        return Fitted(classifying(probe), adapted=(size + 1) * ways)

    measured = on_features(setting, setting.bare(), make, standardised)
    measured.notes.append(
        f"from zero, AdamW with rate {how['rate']:g} and decay {how['weight_decay']:g}, "
        f"{how['steps']} steps on the whole support set; features standardised by its moments"
    )
    return measured


def logistic_regression(setting: Setting) -> Measured:
    """The multinomial one on features of unit length, as RFS."""
    strength = setting.plan.config["logistic_regression"]["strength"]
    ways = setting.plan.config["episodes"]["ways"]
    # Of two classes scikit-learn, whose C this is, learns one vector, their difference: its
    # |w|^2 / 2 is twice what the two weigh here.
    fitted = classifying(LogisticRegression(strength / 2 if ways == 2 else strength, ways=ways))

    def make(shots: int, size: int) -> Fitted:
        return Fitted(fitted, adapted=(size + 1) * ways)

    measured = on_features(setting, setting.bare(), make, _unit_length_in_double)
    measured.notes.append(f"features of unit length, C = {strength:g} (RFS, Tian et al. 2020)")
    return measured


def _unit_length_in_double(episodes: Episodes) -> Episodes:
    def double(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    return unit_length(episodes).map(double)


def fine_tune_head(setting: Setting) -> Measured:
    """SGD of a linear layer from zero on frozen features, tuned on the val split."""
    grid, ways = setting.plan.config["tuning"], setting.plan.config["episodes"]["ways"]
    network = setting.bare()

    def make(shots: int, size: int) -> Fitted:
        manifest = setting.features(network, shots, "val", grid["episodes"])
        at = sorted(grid["head_steps"])

        def tried(rate: float) -> np.ndarray:
            probes = [classifying(LinearProbe(sgd(rate), steps, ways)) for steps in at]
            return np.array([measure(probe, manifest).accuracies.mean() for probe in probes])

        choice = tuned(tried, grid["head_rates"], at)
        probe = classifying(LinearProbe(sgd(choice.rate), choice.steps, ways))
        return Fitted(probe, choice=choice, adapted=(size + 1) * ways)

    measured = on_features(setting, network, make)
    measured.notes.append(
        "full-batch SGD of a head from zero, features frozen (Chen et al. 2019, Baseline)"
    )
    return measured


def fine_tune_all(setting: Setting) -> Measured:
    """SGD of all weights with a head from zero: MAML without meta-training, tuned on val."""
    grid, plan = setting.plan.config["tuning"], setting.plan
    module = setting.network(plan.headed).net.module
    module = heads.zero(module, heads.head_name(module))
    first = MAML(module)
    meta = tree.map_meta(lambda t: t.to(setting.device), first.init())

    def steps_of(shots: int) -> tuple[MetaAlgorithm, int, Choice]:
        manifest = setting.images(shots, "val", grid["network_episodes"])
        at = sorted(grid["steps"])

        def tried(rate: float) -> np.ndarray:
            algo = MAML(module, max(at), sgd(rate))
            report = evaluate(algo, meta, manifest, device=setting.device, at=at, together=4)
            return report.by_step["accuracy"].mean(0)

        choice = tuned(tried, grid["rates"], at)
        return MAML(module, max(choice.steps, 1), sgd(choice.rate)), choice.steps, choice

    measured = on_images(setting, first, meta, steps_of)
    measured.notes.append("full-batch SGD of all weights with a head from zero")
    return measured


def tuned(
    tried: Callable[[float], np.ndarray], rates: Sequence[float], steps: Sequence[int]
) -> Choice:
    """The best on validation, of every rate and of each of `steps`, ascending. tried: from a rate
    to the accuracy after each."""
    return choose({rate: dict(zip(steps, map(float, tried(rate)), strict=True)) for rate in rates})


METHODS: Mapping[str, Callable[[Setting], Measured]] = {
    "untrained": untrained,
    "nearest_centroid": nearest_centroid,
    "logistic_regression": logistic_regression,
    "linear_probe": linear_probe,
    "fine_tune_head": fine_tune_head,
    "fine_tune_all": fine_tune_all,
}
