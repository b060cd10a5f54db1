"""Methods of a comparison on pruned networks and on corrupted or attacked queries, each beside what
it reaches as it is, on the same episodes of images.

Weights are pruned after training, and nothing is trained after that but what a task adapts: a
method that is to be trained sparse is a run of its own (`pruning=` among its overrides). Masks hold
while a task adapts. Milliseconds are those of adapting to a task, as the comparison measures them;
multiply-accumulates are those of one image through the convolutions and linear layers, weights of 0
left out.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms import Metric
from metalearn.algorithms.adversarial import PGD, adversarial
from metalearn.backbones.channels import Channels
from metalearn.backbones.heads import head_name
from metalearn.classifiers import Classifier
from metalearn.episodes import Manifest, TransformedEpisodes
from metalearn.episodes.corruptions import CORRUPTIONS, Corruption, corrupted
from metalearn.errors import UsageError, check_whole, nearest
from metalearn.evaluation.comparison.setting import Network, Setting
from metalearn.evaluation.protocol import evaluate
from metalearn.functional.masks import (
    applied,
    kept_highest,
    magnitudes,
    masks_of,
    prunable,
    with_masks,
)
from metalearn.inner.loop import adapt, detached_gradient
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Given, Meta, Params

PGD_ATTACK, ALL = "pgd", "all"
PRUNINGS = ("magnitude", "per_layer", "channels")


class Subject(NamedTuple):
    """A method as an algorithm on images, with the weights that it starts from."""

    algo: MetaAlgorithm
    meta: Meta
    steps: int


def of_features(
    setting: Setting, network: Network, classifier: Classifier, width: int | None = None
) -> Subject:
    """A classifier on the features of a network, `width` numbers."""
    algo = Metric(network.net.module, classifier, features=width)
    init = {n: network.weights[n] for n in algo.net.params}
    buffers = {n: network.weights[n] for n in algo.net.buffers}
    hyper = tree.map(lambda t: t.to(setting.device), algo.init()["hyper"])
    return Subject(algo, Meta(init=init, hyper=hyper, buffers=buffers), 0)


def check_curves(config: Mapping[str, Any]) -> None:
    """Raise UsageError for what no curve can be drawn of."""
    how = config["curves"]
    for share in config["sparsity"] or ():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 <= share < 1:
            raise UsageError(f"sparsity={share} must be 0 or more, and below 1")
    for name in config["robustness"] or ():
        if name not in (*CORRUPTIONS, PGD_ATTACK, ALL):
            near = nearest(str(name), (*CORRUPTIONS, PGD_ATTACK, ALL))
            use = f"use {PGD_ATTACK}, {ALL}, or some of {', '.join(CORRUPTIONS)}"
            raise UsageError(f"robustness={name} is not known{near}; {use}")
    if how["pruning"] not in PRUNINGS:
        told = f"curves.pruning={how['pruning']} is not known{nearest(how['pruning'], PRUNINGS)}"
        raise UsageError(f"{told}; use {', '.join(PRUNINGS[:-1])} or {PRUNINGS[-1]}")
    check_whole("curves.episodes", how["episodes"], 1)
    if not how["severities"]:
        raise UsageError("curves.severities=[] is empty; give it one of 1 to 5, or more")
    for severity in how["severities"]:
        Corruption("fog", severity, how["on"])
    PGD(how["epsilon"], how["steps"])


def curves(setting: Setting, subject: Subject) -> dict[str, list[dict[str, Any]]]:
    """`sparsity` and `robustness` of a method: a row for each number of shots and each place of the
    curve, with `accuracies` of the episodes."""
    config, found = setting.plan.config, dict[str, list[dict[str, Any]]]()
    if config["sparsity"]:
        found["sparsity"] = [
            row for shots in setting.shots for row in _of_sparsity(setting, subject, shots)
        ]
    if config["robustness"]:
        found["robustness"] = [
            row for shots in setting.shots for row in _of_robustness(setting, subject, shots)
        ]
    return found


def _measured(setting: Setting, subject: Subject, manifest: Manifest) -> dict[str, np.ndarray]:
    algo, meta, steps = subject
    report = evaluate(algo, meta, manifest, device=setting.device, at=(steps,), together=4)
    return {name: rows[:, -1] for name, rows in report.by_step.items()}


def _manifest(setting: Setting, shots: int, how: Corruption | None = None) -> Manifest:
    """The first episodes of the comparison's manifest, corrupted."""
    source, count = corrupted(setting.source(shots), how), setting.plan.config["curves"]["episodes"]
    transform = setting.transform
    prepared = source if transform.is_identity else TransformedEpisodes(source, transform)
    return Manifest(prepared, setting.split, count)


def _of_sparsity(setting: Setting, subject: Subject, shots: int) -> Iterator[dict[str, Any]]:
    manifest = _manifest(setting, shots)
    image = (
        setting.images(shots, setting.split, 1).source.batch(setting.split, [0]).support.x[0, :1]
    )
    for share in setting.plan.config["sparsity"]:
        small = pruned(subject, share, setting.plan.config["curves"]["pruning"])
        algo, meta, steps = small

        def fit(given: Given, algo=algo, meta=meta, steps=steps) -> object:
            with torch.no_grad(), algo.net.evaluating():
                return adapt(algo, meta, given, steps, gradient=detached_gradient)

        values = _measured(setting, small, manifest)
        cost = setting.cost(shots, algo, fit)
        yield {
            "shots": shots,
            "sparsity": share,
            "parameters": parameters(meta),
            "multiply_accumulates": multiply_accumulates(algo, meta, image.to(setting.device)),
            "milliseconds": cost.milliseconds,
            "accuracies": values["accuracy"].tolist(),
        }


def _of_robustness(setting: Setting, subject: Subject, shots: int) -> Iterator[dict[str, Any]]:
    config, how = setting.plan.config, setting.plan.config["curves"]
    asked: Sequence[str] = config["robustness"]
    corruptions = [n for n in CORRUPTIONS if n in asked or ALL in asked]

    def row(name: str, severity: int | None, accuracies: np.ndarray) -> dict[str, Any]:
        told = {"shots": shots, "name": name, "severity": severity}
        return {**told, "accuracies": accuracies.tolist()}

    if PGD_ATTACK in asked:
        images = config["images"]
        attack = PGD(how["epsilon"], how["steps"], mean=images["mean"], std=images["std"])
        attacked = subject._replace(algo=adversarial(subject.algo, attack))
        values = _measured(setting, attacked, _manifest(setting, shots))
        yield row("natural", None, values["accuracy"])
        yield row(f"{PGD_ATTACK}-{how['steps']}", None, values["robust_accuracy"])
    else:
        yield row(
            "natural", None, _measured(setting, subject, _manifest(setting, shots))["accuracy"]
        )
    for name in corruptions:
        for severity in how["severities"]:
            manifest = _manifest(setting, shots, Corruption(name, severity, how["on"]))
            yield row(name, severity, _measured(setting, subject, manifest)["accuracy"])


def pruned(subject: Subject, share: float, how: str) -> Subject:
    """`subject` without a share of its weights ("magnitude", of all together, or "per_layer") or of
    its channels. Raises UsageError where they cannot go."""
    algo, meta, steps = subject
    if how == "channels":
        return _narrowed(subject, share)
    head = head_name(algo.net.module) if algo.steps else None
    names = prunable(meta, head)
    masks = kept_highest(magnitudes(meta, names), share, how == "per_layer")
    before = masks_of(meta["buffers"])  # of a method that was trained sparse
    masks = {n: mask * before[n] if n in before else mask for n, mask in masks.items()}
    return Subject(algo, with_masks(meta, masks), steps)


def _narrowed(subject: Subject, share: float) -> Subject:
    """With fewer channels: the algorithm anew, on a smaller network."""
    algo, meta, steps = subject
    module: Any = algo.net.module
    held = {**meta["buffers"], **meta["init"]}
    filled = _filled(module, held)
    small = Channels(share)(filled)
    try:
        new = replace(algo, module=small)  # type: ignore[type-var]
    except TypeError:
        raise UsageError(
            f"curves.pruning=channels cannot make {type(algo).__name__} anew; use magnitude"
        ) from None
    fresh = new.init()
    if any(t.shape != meta["hyper"][n].shape for n, t in fresh["hyper"].items()):
        raise UsageError(
            "curves.pruning=channels: this method learns a number for each weight, which a smaller "
            "network has not; use curves.pruning=magnitude"
        )
    device = next(iter(held.values())).device
    moved = tree.map_meta(lambda t: t.to(device), fresh)
    return Subject(
        new, Meta(init=moved["init"], hyper=meta["hyper"], buffers=moved["buffers"]), steps
    )


def _filled(module: nn.Module, tensors: Params) -> nn.Module:
    """A copy of `module` with `tensors` in it."""
    new = copy.deepcopy(module)
    with torch.no_grad():
        for name, tensor in (*new.named_parameters(), *new.named_buffers()):
            if name in tensors:
                tensor.copy_(tensors[name])
    return new


def parameters(meta: Meta) -> int:
    """How many starting weights are not 0."""
    return sum(int(torch.count_nonzero(t)) for t in meta["init"].values())


def multiply_accumulates(algo: MetaAlgorithm, meta: Meta, x: Tensor) -> int:
    """Of one example `[1, *X]` through the network: those of convolutions and linear layers, of
    weights that are not 0."""
    weights = applied({**meta["buffers"], **meta["init"]})
    total, handles = 0, []

    def count(name: str):
        def hook(part: nn.Module, given: Any, output: Tensor) -> None:
            nonlocal total
            kept = int(torch.count_nonzero(weights[f"{name}.weight"]))
            places = output[0, 0].numel() if isinstance(part, nn.Conv2d) else output[0].numel()
            width = 1 if isinstance(part, nn.Conv2d) else output.shape[-1]
            total += kept * places // width

        return hook

    for name, part in algo.net.module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and f"{name}.weight" in weights:
            handles.append(part.register_forward_hook(count(name)))
    try:
        with torch.no_grad(), algo.net.evaluating():
            algo.net.apply({**meta["buffers"], **meta["init"]}, x)
    finally:
        for handle in handles:
            handle.remove()
    return total
