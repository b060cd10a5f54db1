"""The methods of a comparison that learn nothing across tasks, each measured at every shot."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from metalearn import tree
from metalearn.algorithms import MAML, MetaAlgorithm
from metalearn.backbones.norms import describe
from metalearn.evaluation import heads
from metalearn.evaluation.comparison.setting import Cost, Network, Setting
from metalearn.evaluation.features import Change, standardised, unit_length
from metalearn.evaluation.heads import Choice, Head
from metalearn.evaluation.protocol import EvalReport, evaluate
from metalearn.inner.adaptive import adamw
from metalearn.inner.loop import adapt, without_history
from metalearn.inner.rules import sgd
from metalearn.types import Batch, Episodes, Meta


class Shot(NamedTuple):
    """A method at one number of shots. accuracies: of the first episodes of the manifest."""

    accuracies: list[float]
    cost: Cost
    choice: Choice | None = None


@dataclass
class Measured:
    """What is kept of a method. adapted: numbers that descend in each task. learned: that the
    outer loop learns. training: seconds and memory of it, and the run's hashes."""

    norm_policy: str
    adapted: int = 0
    learned: int = 0
    shots: dict[int, Shot] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
        return {**vars(self), "shots": shots}


class Fitted(NamedTuple):
    """A head for one number of shots, the inner steps that it takes, and how they were chosen."""

    head: Head
    steps: int
    choice: Choice | None = None


def on_features(
    setting: Setting,
    network: Network,
    make: Callable[[int, int], Fitted],
    change: Change | None = None,
) -> Measured:
    """Measure a head on the features of `network`. make: from shots and the number of features."""
    measured = Measured(describe(network.net.module))
    for shots in setting.shots:
        manifest = _test_features(setting, network, shots, change)
        support = manifest.source.batch(setting.split, [0]).support.map(lambda t: t[0])
        head, steps, choice = make(shots, support.x.shape[-1])
        report = heads.measure(head, manifest, at=(steps,))

        def fit(images: Batch, head: Head = head, steps: int = steps) -> object:
            features = features_of(setting, network, images, change)
            return adapt(*head, features, steps, gradient=without_history)

        measured.adapted = adapting(*head, support)
        measured.shots[shots] = Shot(report.accuracies.tolist(), setting.cost(shots, fit), choice)
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
        algo, steps, choice = steps_of(shots)
        manifest = setting.images(shots, setting.split, setting.plan.network_episodes(shots))
        report = evaluate(algo, meta, manifest.batches(4), device=setting.device, at=(steps,))

        def fit(images: Batch, algo: MetaAlgorithm = algo, steps: int = steps) -> object:
            with torch.no_grad(), algo.net.evaluating():
                fast = adapt(algo, meta, images, steps, gradient=without_history)
                return algo.finish(meta, fast, images)

        support = manifest.source.batch(setting.split, [0]).support.map(lambda t: t[0])
        measured.adapted = adapting(algo, meta, support)
        measured.shots[shots] = Shot(report.accuracies.tolist(), setting.cost(shots, fit), choice)
    return measured


def adapting(algo: MetaAlgorithm, meta: Meta, support: Batch) -> int:
    """How many numbers the inner loop moves."""
    return sum(t.numel() for t in algo.begin(meta, support).values()) if algo.steps else 0


def features_of(
    setting: Setting, network: Network, images: Batch, change: Change | None = None
) -> Batch:
    """The support set of one task, from images `[S, C, H, W]` to features `[S, D]`."""
    support = Batch(setting.extracted(network, iter([images.x])), images.y.cpu())
    return change(Episodes(support, support)).support if change else support


def _test_features(setting: Setting, network: Network, shots: int, change: Change | None) -> Any:
    episodes = setting.plan.config["evaluation"]["episodes"]
    return setting.features(network, shots, setting.split, episodes, change)


def untrained(setting: Setting) -> Measured:
    """Nearest centroid on the features of random weights."""
    node = {**setting.plan.bare, "weights": None, "sha256": None}
    measured = on_features(setting, setting.network(node), lambda *_: Fitted(_centroid(), 0))
    measured.notes.append("nearest centroid by cosine on the features of random weights")
    return measured


def nearest_centroid(setting: Setting) -> Measured:
    """The nearest class mean, by cosine, on the features of the given weights."""
    measured = on_features(setting, setting.bare(), lambda *_: Fitted(_centroid(), 0))
    measured.notes.append("cosine of features of unit length and their class means")
    return measured


def _centroid() -> Head:
    return heads.nearest_centroid()


def linear_probe(setting: Setting) -> Measured:
    """A linear layer on standardised features, by a fixed recipe."""
    how, ways = setting.plan.config["linear_probe"], setting.plan.config["episodes"]["ways"]
    rule = adamw(how["rate"], weight_decay=how["weight_decay"])

    def make(shots: int, size: int) -> Fitted:
        return Fitted(heads.linear(size, ways, rule, how["steps"]), how["steps"])

    measured = on_features(setting, setting.bare(), make, standardised)
    measured.notes.append(
        f"from zero, AdamW with rate {how['rate']:g} and decay {how['weight_decay']:g}, "
        f"{how['steps']} steps on the whole support set; features standardised by its moments"
    )
    return measured


def logistic_regression(setting: Setting) -> Measured:
    """scikit-learn's on features of unit length, as RFS."""
    strength = setting.plan.config["logistic_regression"]["strength"]
    network = setting.bare()
    measured = Measured(describe(network.net.module))
    for shots in setting.shots:
        manifest = _test_features(setting, network, shots, unit_length)

        def fit(images: Batch) -> object:
            support = features_of(setting, network, images, unit_length)
            return heads.logistic_regression(support, support.x[:1], strength)

        found = heads.logistic_regression_accuracies(manifest, strength)
        measured.shots[shots] = Shot(found.tolist(), setting.cost(shots, fit))
        size = manifest.source.batch(setting.split, [0]).support.x.shape[-1]
        measured.adapted = (size + 1) * setting.plan.config["episodes"]["ways"]
    measured.notes.append(f"features of unit length, C = {strength:g} (RFS, Tian et al. 2020)")
    return measured


def fine_tune_head(setting: Setting) -> Measured:
    """SGD of a linear layer from zero on frozen features, tuned on the val split."""
    grid, ways = setting.plan.config["tuning"], setting.plan.config["episodes"]["ways"]
    network, spent = setting.bare(), 0.0

    def make(shots: int, size: int) -> Fitted:
        nonlocal spent
        started = time.monotonic()
        manifest = setting.features(network, shots, "val", grid["episodes"])
        most = max(grid["head_steps"])

        def tried(rate: float) -> EvalReport:
            head = heads.linear(size, ways, sgd(rate), most)
            return heads.measure(head, manifest, at=sorted(grid["head_steps"]))

        choice = _tuned(tried, grid["head_rates"], grid["head_steps"])
        spent += time.monotonic() - started
        head = heads.linear(size, ways, sgd(choice.rate), max(choice.steps, 1))
        return Fitted(head, choice.steps, choice)

    measured = on_features(setting, network, make)
    measured.training["tuning_seconds"] = spent
    measured.notes.append(
        "full-batch SGD of a head from zero, features frozen (Chen et al. 2019, Baseline)"
    )
    return measured


def fine_tune_all(setting: Setting) -> Measured:
    """SGD of all weights with a head from zero: MAML without meta-training, tuned on val."""
    grid, plan = setting.plan.config["tuning"], setting.plan
    net = setting.network(plan.headed).net
    first = MAML(net.module)
    meta = tree.map_meta(lambda t: t.to(setting.device), first.init())
    head = list(meta["init"])[-1].rpartition(".")[0]
    for name in meta["init"]:
        if name.rpartition(".")[0] == head:
            meta["init"][name] = torch.zeros_like(meta["init"][name])
    spent = 0.0

    def steps_of(shots: int) -> tuple[MetaAlgorithm, int, Choice]:
        nonlocal spent
        started = time.monotonic()
        manifest = setting.images(shots, "val", grid["network_episodes"])
        at = sorted(grid["steps"])

        def tried(rate: float) -> EvalReport:
            algo = MAML(net.module, max(at), sgd(rate))
            return evaluate(algo, meta, manifest.batches(4), device=setting.device, at=at)

        choice = _tuned(tried, grid["rates"], at)
        spent += time.monotonic() - started
        return MAML(net.module, max(choice.steps, 1), sgd(choice.rate)), choice.steps, choice

    measured = on_images(setting, first, meta, steps_of)
    measured.training["tuning_seconds"] = spent
    measured.notes.append("full-batch SGD of all weights with a head from zero")
    return measured


def _tuned(
    tried: Callable[[float], EvalReport], rates: Sequence[float], steps: Sequence[int]
) -> Choice:
    """The best on validation, of every rate and of `steps` on the way of each."""
    found = {}
    for rate in rates:
        means = tried(rate).by_step["accuracy"].mean(0)
        found[rate] = dict(zip(sorted(steps), map(float, means), strict=True))
    return heads.choose(found)


METHODS: Mapping[str, Callable[[Setting], Measured]] = {
    "untrained": untrained,
    "nearest_centroid": nearest_centroid,
    "logistic_regression": logistic_regression,
    "linear_probe": linear_probe,
    "fine_tune_head": fine_tune_head,
    "fine_tune_all": fine_tune_all,
}
