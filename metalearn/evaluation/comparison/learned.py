"""Classifiers on features. Those that draw weights of their own, as a relation network, are
meta-trained before they are compared, on features of the base classes."""

import time
from collections.abc import Iterable

import torch

from metalearn import tree
from metalearn.algorithms import Metric
from metalearn.algorithms.losses import cross_entropy, mean_squared
from metalearn.classifiers import Classifier, Relation
from metalearn.engine import Engine
from metalearn.evaluation.comparison.base import knowing_base
from metalearn.evaluation.comparison.curves import of_features
from metalearn.evaluation.comparison.methods import Fitted, Measured, on_features
from metalearn.evaluation.comparison.plan import BALANCED
from metalearn.evaluation.comparison.setting import Network, Setting
from metalearn.evaluation.on_features import Head, classifying
from metalearn.gradients import Unroll
from metalearn.types import Episodes, Meta


def draws_weights(head: Head) -> bool:
    """Whether it starts from matrices, which are of no use as they are drawn."""
    return any(t.ndim > 1 for t in head.meta["hyper"].values())


def trained(head: Head, batches: Iterable[Episodes], rate: float) -> Head:
    """After a step of Adam on each batch of episodes of features."""
    algo, engine, meta = head.algo, Engine("vmap"), head.meta
    hyper = {name: t.clone() for name, t in meta["hyper"].items()}
    optimizer = torch.optim.Adam(hyper.values(), rate)
    for episodes in batches:
        at = Meta(init=meta["init"], hyper=tree.detach(hyper), buffers=meta["buffers"])
        gradients, _ = engine(Unroll(), algo, at, episodes)
        for name, t in hyper.items():
            t.grad = gradients["hyper"][name]
        optimizer.step()
    return Head(algo, Meta(init=meta["init"], hyper=tree.detach(hyper), buffers=meta["buffers"]))


def learned(
    classifier: Classifier, setting: Setting, network: Network, shots: int, size: int
) -> tuple[Head, float]:
    """`classifier` on `size` features, and the seconds that it was meta-trained, 0 where it draws
    no weights or the data set has too few base classes.

    The same episodes of split train for every classifier, with balanced queries.
    """
    head, how = classifying(classifier, size), setting.plan.config["classifier_training"]
    ways = setting.plan.config["episodes"]["ways"]
    if not draws_weights(head) or len(setting.dataset.sizes["train"]) < ways or not how["steps"]:
        return head, 0.0

    def made() -> tuple[Head, float]:
        loss = mean_squared if isinstance(classifier, Relation) else cross_entropy
        algo = Metric(head.algo.net.module, classifier, loss, size)
        episodes = setting.plan.config["evaluation"]["episodes"]
        drawing = setting.drawing(BALANCED)
        manifest = drawing.features(network, shots, "train", episodes)
        tasks, started = min(how["tasks"], episodes), time.monotonic()
        whole = episodes // tasks
        parts = (
            manifest.source.batch("train", range(n * tasks, (n + 1) * tasks))
            for n in (step % whole for step in range(how["steps"]))
        )
        found = trained(Head(algo, head.meta), parts, how["rate"])
        return Head(head.algo, found.meta), time.monotonic() - started

    return setting.once(("learned", repr(classifier), shots, size), made)


def of_classifier(setting: Setting, classifier: Classifier, told: str) -> Measured:
    """A classifier on the features as they are; one that draws weights is meta-trained before."""
    knowing = knowing_base(classifier, setting, network := setting.bare())
    spent, numbers, width = 0.0, 0, 0

    def make(shots: int, size: int) -> Fitted:
        nonlocal spent, numbers, width
        width = size
        head, seconds = learned(knowing, setting, network, shots, size)
        if seconds:
            spent, numbers = spent + seconds, sum(t.numel() for t in head.meta["hyper"].values())
        return Fitted(head)

    measured = on_features(setting, network, make)
    measured.notes.append(told)
    if not numbers and knowing is classifier:
        measured.subject = of_features(setting, network, classifier, width)
    if numbers:
        how = setting.plan.config["classifier_training"]
        measured.learned, measured.training["seconds"] = numbers, spent
        measured.notes.append(
            f"meta-trained on features of split train: {how['steps']} steps of {how['tasks']} tasks"
        )
    return measured
