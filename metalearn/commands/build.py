"""From a composed configuration to the objects it names, with every mistake one line."""

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from metalearn import tree
from metalearn.backbones.weights import Report
from metalearn.commands.arguments import check_choice, check_node, check_numbers, make, target
from metalearn.commands.backbone import build_module, check_backbone, settled
from metalearn.commands.episodes import (
    Curves,
    Images,
    build_dataset,
    changes,
    episodes,
    preparation,
    prepared,
    sampling,
    test_manifest,
)
from metalearn.commands.network import build_loss, check_loss, check_task, task_network
from metalearn.engine.cuda_graph import check_capture
from metalearn.engine.plan import parse
from metalearn.engine.strategy import STRATEGIES, MetaGradient, lacks_proximal_term
from metalearn.episodes import Manifest, augmented
from metalearn.errors import UsageError
from metalearn.functional.double_backward import check_twice_differentiable
from metalearn.functional.precision import check_precision
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.device import torch_device
from metalearn.training.episodic import Problem
from metalearn.training.outer import Outer
from metalearn.types import Meta


@dataclass(frozen=True)
class Built:
    """Everything that a configuration names.

    config: with what the weights that the network starts from say of themselves. test: the
    manifest of `evaluation.split`. weights: what became of them.
    """

    config: dict[str, Any]
    problem: Problem
    test: Manifest
    meta: Meta
    outer: Outer
    weights: Report | None = None


def build(config: Mapping[str, Any], trained: bool = False) -> Built:
    """Build a run. Raises UsageError, or DataError where a data set is missing or damaged.

    trained: its weights are there, and those that it started from are not read.
    """
    device = torch_device(config["device"])
    check_capture(config["capture"], device)
    gradient = _check(config)
    if trained:
        config = {**config, "backbone": {**config["backbone"], "weights": None}}
    config = settled(config)
    dataset = build_dataset(config)
    check_loss(config, isinstance(dataset, Images))
    training, evaluation = config["training"], config["evaluation"]
    train = episodes(config, dataset, config["seed"], training, "train")
    train = prepared(config, dataset, augmented(train, **changes(config)))
    test = test_manifest(config, dataset)
    test = replace(test, source=prepared(config, dataset, test.source))
    validation = episodes(config, dataset, evaluation["seed"], {}, "val")
    validation = prepared(config, dataset, validation)
    module, weights = _module(config, dataset)
    module, adapting = task_network(config, module)
    algo = _algorithm(config, module, isinstance(dataset, Images), adapting)
    _check_fit(config, gradient, algo)
    meta = algo.init(torch.Generator().manual_seed(config["seed"]))
    meta = tree.map_meta(lambda t: t.to(device), meta)
    if algo.steps and getattr(gradient, "kind", "exact") in ("exact", "implicit"):
        one = train.batch("train", [0]).support.x[0].to(device)
        check_twice_differentiable(algo.net, one)
    problem = Problem(
        algo,
        gradient,
        train,
        Manifest(validation, "val", evaluation["validation_episodes"]),
        device,
        config["batching"],
        evaluation["steps"],
    )
    outer = _outer(config, meta)
    return Built(config, problem, test, meta, outer, weights)


def _check(config: Mapping[str, Any]) -> MetaGradient:
    """Every check that needs no data, so that no data is decoded before a mistake is told."""
    check_precision(config["precision"])
    parse(config["batching"])
    check_choice("resume", config["resume"], ("auto", "never"))
    check_choice("tracker.mode", config["tracker"]["mode"], ("online", "offline", "disabled"))
    check_numbers(config)
    changes(config)
    sampling(config)
    preparation(config)
    for name in ("dataset", "inner", "algorithm"):
        check_node(config[name], name)
    check_backbone(config["backbone"])
    check_task(config, _parameters(config))
    gradient: MetaGradient = make(config["gradient"], "gradient")
    check_node(config["outer"].get("optimizer"), "outer.optimizer")
    if config["outer"]["schedule"]:
        check_node(config["outer"]["schedule"], "outer.schedule")
    try:
        stand_in = _algorithm(config, nn.Linear(1, 1), images=True)
    except UsageError:
        return gradient  # it needs to see the network: told once that is built
    _check_fit(config, gradient, stand_in)
    return gradient


def _check_fit(config: Mapping[str, Any], gradient: MetaGradient, algo: MetaAlgorithm) -> None:
    """Raise UsageError where algorithm, strategy and inner rule do not go together."""
    name = option(config["algorithm"])
    strategy = option({"_target_": type(gradient).__name__})
    kind = getattr(gradient, "kind", None)  # a user's own strategy may not say
    if kind is not None and kind not in algo.kinds:
        if lacks_proximal_term(kind, algo):
            raise UsageError(f"gradient={strategy} needs a proximal term; set algorithm.proximal=2")
        strategies = (option({"_target_": s}) for k in algo.kinds for s in STRATEGIES[k])
        use = " or ".join(f"gradient={fitting}" for fitting in strategies)
        raise UsageError(f"algorithm={name} cannot use gradient={strategy}; use {use}")
    rule = option(config["inner"])
    if sampling(config)["sizes"] and algo.steps and algo.rule.batch_size is not None:
        raise UsageError(
            "inner.batch_size leaves classes out of an inner step, which sampling.sizes cannot "
            "tell from classes that the task lacks; use inner.batch_size=null"
        )
    if kind == "displacement" and algo.init(torch.Generator())["hyper"]:
        raise UsageError(f"algorithm={name} learns no rates, as inner={rule} does; use inner=sgd")


def option(node: Mapping[str, Any]) -> str:
    """The name that the target of `node` has on the command line: FirstOrder -> first_order."""
    name = str(node["_target_"]).rpartition(".")[2]
    if name.isupper() or name == "ProtoNet":
        return name.lower()
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _outer(config: Mapping[str, Any], meta: Meta) -> Outer:
    schedule = config["outer"]["schedule"]
    try:
        outer = Outer(
            meta,
            make(config["outer"]["optimizer"], "outer.optimizer"),
            make(schedule, "outer.schedule") if schedule else None,
            config["training"]["clip_norm"],
            skip_overflow=config["precision"] == "fp16",
        )
    except ValueError as error:  # torch's optimizers check their numbers
        raise UsageError(f"outer: {error}; correct outer.optimizer or outer.schedule") from None
    if isinstance(outer.schedule, ReduceLROnPlateau):
        raise UsageError("outer.schedule follows steps, not a metric; see metalearn list")
    return outer


def _module(config: Mapping[str, Any], dataset: Images | Curves) -> tuple[nn.Module, Report | None]:
    images = isinstance(dataset, Images)
    if not images and (config["outputs"] is None or "rule" not in _parameters(config)):
        name = option(config["algorithm"])
        raise UsageError(f"algorithm={name} classifies; use algorithm=maml or anil for regression")
    shape = preparation(config).shape(dataset.image_shape) if images else (1,)
    node = config["backbone"]
    if not images and "channels" in node:
        data = option(config["dataset"])
        raise UsageError(f"backbone={option(node)} needs images, not {data}; use backbone=mlp")
    return build_module(node, shape, config["seed"])


def _algorithm(
    config: Mapping[str, Any],
    module: nn.Module,
    images: bool,
    adapting: Collection[str] | None = None,
) -> MetaAlgorithm:
    loss = build_loss(config, images)
    made: dict[str, Any] = {"module": module, "loss": loss, "adapting": adapting}
    if "rule" in _parameters(config):
        made["rule"] = make(config["inner"], "inner")
    made = {name: value for name, value in made.items() if name in _parameters(config)}
    return make(config["algorithm"], "algorithm", **made)


def _parameters(config: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    """What the algorithm's target takes."""
    return inspect.signature(target(config["algorithm"]["_target_"])).parameters
