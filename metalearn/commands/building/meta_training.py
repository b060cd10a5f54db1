"""From a composed configuration to a stage of meta-training, with every mistake one line."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from metalearn import tree
from metalearn.algorithms.adversarial import adversarial
from metalearn.backbones.channels import Channels
from metalearn.backbones.heads import head_name
from metalearn.backbones.weights import Report, Weights
from metalearn.classifiers import Classifier
from metalearn.classifiers.protocol import UsesMembers
from metalearn.commands.building.admission import check_worth
from metalearn.commands.building.arguments import corner, explained, factory, make, option, target
from metalearn.commands.building.episodes import Data, read_data
from metalearn.commands.building.hardening import attack_of, check_pruning, pruning_of
from metalearn.commands.building.network import (
    build_module,
    check_backbone,
    check_width,
    features,
    with_weights,
    without_weights,
)
from metalearn.commands.building.task_choices import TaskChoices, task_choices
from metalearn.commands.building.texts import check_texts, check_tokenizer
from metalearn.commands.building.trial import check_logits, check_memory, check_norms, check_outputs
from metalearn.engine import Engine
from metalearn.engine.checks import order
from metalearn.engine.cuda_graph import check_capture
from metalearn.engine.lite import check_lite
from metalearn.engine.ranks import Ranks
from metalearn.engine.strategy import STRATEGIES, ForeignStrategy, Strategy, lacks_proximal_term
from metalearn.episodes import ImageTransform, Manifest, augmented
from metalearn.errors import UsageError
from metalearn.evaluation.average_precision import check_torchmetrics
from metalearn.evaluation.protocol import check_evaluation_steps
from metalearn.functional.double_backward import check_network, check_takes
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.inner.rules import InnerRule, check_minimum
from metalearn.runtime.device import torch_device
from metalearn.training.episodic import Episodic
from metalearn.training.outer import Outer, rehearse
from metalearn.training.pruning import Pruning, begun
from metalearn.training.settings import TrainingSettings
from metalearn.types import Episodes, Inputs, Meta, map_tensors


@dataclass(frozen=True)
class Method:
    """What a configuration names that needs no data, each object made once.

    algorithm: makes it from a network and what else it takes; `parameters` are their names.
    classifier: None where the algorithm has its own, or none.
    """

    config: Mapping[str, Any]
    data: Data
    algorithm: Callable[..., MetaAlgorithm]
    parameters: Collection[str]
    rule: InnerRule
    classifier: Classifier | None
    task: TaskChoices
    gradient: Strategy | ForeignStrategy
    pruning: Pruning | Channels | None
    optimizer: Callable[..., Any]
    schedule: Callable[..., Any] | None

    def algo(
        self,
        module: nn.Module,
        adapting: Collection[str] | None = None,
        features: int | None = None,
    ) -> MetaAlgorithm:
        """The algorithm on a network, of which the weights `adapting` adapt, None for all, and
        which returns `features` numbers, where that is known."""
        given = {"module": module, "loss": self.task.loss, "adapting": adapting, "rule": self.rule}
        given["features"] = features
        if self.classifier is not None:
            given["classifier"] = self.classifier
        return self.algorithm(**{n: value for n, value in given.items() if n in self.parameters})

    def check_fit(self, algo: MetaAlgorithm) -> None:
        """Raise UsageError where algorithm, strategy and inner rule do not go together."""
        name = option(self.config["algorithm"])
        strategy = option({"_target_": type(self.gradient).__name__})
        kind = getattr(self.gradient, "kind", None)  # a user's own strategy may not say
        if kind is not None and kind not in algo.kinds:
            if lacks_proximal_term(kind, algo):
                need = f"gradient={strategy} needs a proximal term"
                raise UsageError(f"{need}; set algorithm.proximal=2")
            strategies = (option({"_target_": s}) for k in algo.kinds for s in STRATEGIES[k])
            use = " or ".join(f"gradient={fitting}" for fitting in strategies)
            raise UsageError(f"algorithm={name} cannot use gradient={strategy}; use {use}")
        check_minimum(algo.rule, kind)
        check_evaluation_steps(algo, self.config["evaluation"]["steps"])
        if self.data.sampling["sizes"] and algo.steps and algo.rule.batch_size is not None:
            raise UsageError(
                "inner.batch_size leaves classes out of an inner step, which sampling.sizes cannot "
                "tell from classes that the task lacks; use inner.batch_size=null"
            )
        check_pruning(self.pruning, self.gradient, strategy)
        if kind == "displacement" and algo.init()["hyper"]:
            rule = f"inner={option(self.config['inner'])}"
            raise UsageError(f"algorithm={name} learns no rates, as {rule} does; use inner=sgd")

    def outer(self, meta: Meta) -> Outer:
        """The outer loop's optimizer and schedule over `meta`."""
        config = self.config
        if not (meta["init"] or meta["hyper"]):
            raise UsageError(
                f"nothing is learned: the network of backbone={option(config['backbone'])} has no "
                "weights; give it layers, or use another backbone"
            )

        def made(meta: Meta) -> Outer:
            return Outer(
                meta,
                self.optimizer(),
                self.schedule() if self.schedule else None,
                config["training"]["clip_norm"],
                skip_overflow=config["precision"] == "fp16",
                sharpness=config["outer"].get("sharpness", 0.0),
            )

        correct = "outer.optimizer, which takes a step from a gradient alone, or outer.schedule"
        with explained("outer", correct):
            rehearsed = made(tree.map_meta(corner, meta))
            if isinstance(rehearsed.schedule, ReduceLROnPlateau):
                raise UsageError("outer.schedule follows steps, not a metric; see metalearn list")
            rehearse(rehearsed, config["training"]["steps"])
            return made(meta)


def build(config: Mapping[str, Any], trained: bool = False) -> tuple[dict[str, Any], Episodic]:
    """The stage that a configuration names, and the configuration with what its starting weights
    say of themselves. Raises UsageError, or DataError where a data set is missing or damaged.

    trained: its weights are there, and those that it started from are not read.
    """
    device = torch_device(config["device"])
    options = (config[key] for key in ("batching", "precision", "capture", "lite"))
    engine = Engine(*options, ranks=Ranks.joined(), check=config["check"])
    check_capture(engine.capture, device)
    if trained and (config.get("head") or {}).get("weights"):
        config = {**config, "head": {**config["head"], "weights": None}}
    method = read_method(config)
    if trained:
        config = {**config, "backbone": without_weights(config["backbone"])}
    config, weights = with_weights(config)
    images = ImageTransform(**(config.get("images") or {}))
    data = replace(method.data, config=config, transform=images)
    train = data.prepared(augmented(data.source("train"), **data.augmentation))
    check_memory(data.shape, train, config["training"]["meta_batch"], "training")
    one = train.batch("train", [0]).map(lambda t: t.cpu())
    method.task.check_loss(one.support)
    if hasattr(method.task.loss, "answers"):
        check_torchmetrics()
    test = data.test()
    evaluation = config["evaluation"]
    validation = data.prepared(data.source("val"))
    check_memory(data.shape, validation, 1, "validation")
    if not trained:
        check_width(config["backbone"], config["outputs"])
    module, report = _module(method, data, weights, one)
    if isinstance(method.pruning, Channels):
        module = method.pruning(module)
    if data.classes and data.images:
        check_worth(
            config["backbone"],
            weights,
            lambda node, given: build_module(node, data.shape, config["seed"], given)[0],
            lambda count: Manifest(validation, "val", count),
            device,
        )
    check_norms(module, _first(one), (one, validation.batch("val", [0])))
    if isinstance(method.classifier, UsesMembers) and (widths := getattr(module, "widths", None)):
        method = replace(method, classifier=method.classifier.with_members(widths))
    module, adapting = method.task.network(module, _first(one))
    method.task.check_answers(module, _first(one))
    wanted = "features" in method.parameters
    size = features(module, one.support.map(lambda t: t[0]).x) if wanted else None
    algo = method.algo(module, adapting, size)
    method.check_fit(algo)
    meta = tree.map_meta(lambda t: t.to(device), algo.init())
    schedule = None if isinstance(method.pruning, Channels) else method.pruning
    if schedule is not None:
        meta = begun(meta, None if config["outputs"] is None else head_name(module))
    one = one.map(lambda t: t.to(device))
    if data.classes and config["outputs"] is None:
        check_logits(algo, meta, one, option(config["algorithm"]))
    _check_network(method.gradient, algo, meta, one.support.x, device)
    check_lite(engine.lite, method.gradient, algo, meta, one)
    algo = adversarial(algo, attack_of(config, data))
    return config, Episodic(
        algo,
        method.gradient,
        engine,
        train,
        Manifest(validation, "val", evaluation["validation_episodes"]),
        test,
        meta,
        method.outer(meta),
        TrainingSettings(**config["training"]),
        device,
        evaluation["steps"],
        evaluation["untrained"],
        report,
        schedule,
    )


def check(config: Mapping[str, Any]) -> None:
    """Raise UsageError, or DataError, for every mistake that shows without data or a device."""
    read_method(config)


def _check_network(
    gradient: Strategy | ForeignStrategy,
    algo: MetaAlgorithm,
    meta: Meta,
    support: Inputs,
    device: torch.device,
) -> None:
    """Raise UsageError where the network cannot take the examples, or what is asked of it."""
    x = map_tensors(lambda t: t[0].to(device), support)
    weights = {**meta["buffers"], **meta["init"]}
    check_takes(algo.net, weights, x)
    times = order(gradient, algo) or (2 if algo.steps else 1)
    check_network(algo.net, weights, x, times, adapting=getattr(algo, "adapting", None))


def read_method(config: Mapping[str, Any]) -> Method:
    """Every check that needs no data, so that no data is decoded before a mistake is told."""
    data = read_data(config)
    rule = make(config["inner"], "inner")
    algorithm = factory(config["algorithm"], "algorithm")
    parameters = inspect.signature(target(config["algorithm"]["_target_"])).parameters
    check_backbone(config["backbone"])
    check_tokenizer(config)
    node = config.get("classifier")
    if node and "classifier" not in parameters:
        name, other = option(node), option(config["algorithm"])
        raise UsageError(f"classifier={name} is for algorithm=metric, not {other}")
    classifier = None
    if node:
        if node.get("ways", 0) is None:  # known here, and less work where it is
            most = max(config["training"]["ways"] or 0, config["episodes"]["ways"])
            node = {**node, "ways": most}
        ruled = "rule" in inspect.signature(target(node["_target_"])).parameters
        classifier = factory(node, "classifier")(**({"rule": rule} if ruled else {}))
    outer = config["outer"]
    method = Method(
        config,
        data,
        algorithm,
        parameters,
        rule,
        classifier,
        task_choices(config, parameters, data.missing_classes),
        make(config["gradient"], "gradient"),
        pruning_of(config),
        factory(outer.get("optimizer"), "outer.optimizer"),
        factory(outer["schedule"], "outer.schedule") if outer.get("schedule") else None,
    )
    try:
        rehearsed = method.algo(nn.Linear(1, 1))
    except UsageError:
        return method  # it needs to see the network: told once that is built
    method.check_fit(rehearsed)
    return method


def _module(
    method: Method, data: Data, weights: Weights | None, episodes: Episodes
) -> tuple[nn.Module, Report | None]:
    config, node = data.config, data.config["backbone"]
    if not data.classes and (config["outputs"] is None or "rule" not in method.parameters):
        name = option(config["algorithm"])
        raise UsageError(f"algorithm={name} classifies; use algorithm=maml or anil for regression")
    if not data.images and "channels" in node and len(data.shape) != 3:
        images = f"backbone={option(node)} needs images, not {option(config['dataset'])}"
        raise UsageError(f"{images}; use backbone=mlp")
    x = _first(episodes)
    module, report = build_module(node, data.shape, config["seed"], weights, x)
    check_texts(module, data.dataset)
    if data.classes:
        check_outputs(module, x, config["outputs"])
    return module, report


def _first(episodes: Episodes) -> Inputs:
    """Two inputs of the first task."""
    return map_tensors(lambda t: t[0, :2], episodes.support.x)
