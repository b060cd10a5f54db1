"""From a composed configuration to the objects it names, with every mistake one line."""

import inspect
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from hydra.utils import get_object, instantiate

from metalearn import tree
from metalearn.algorithms.base import MetaAlgorithm
from metalearn.algorithms.losses import cross_entropy, mean_squared
from metalearn.data import ImageDataset, Sinusoid
from metalearn.episodes import EpisodeSource, Manifest, make_episodes
from metalearn.errors import UsageError
from metalearn.gradients.base import MetaGradient, check_algorithm, check_precision
from metalearn.gradients.batching import check_batching
from metalearn.training.folder import torch_device
from metalearn.training.loop import Problem
from metalearn.training.outer import Outer
from metalearn.types import Meta

_INJECTED = {
    "algorithm": {"module", "rule", "loss"},
    "optimizer": {"params"},
    "schedule": {"optimizer"},
}


@dataclass(frozen=True)
class Built:
    """Everything that a configuration names. test: the manifest of `evaluation.split`."""

    problem: Problem
    test: Manifest
    meta: Meta
    outer: Outer


def build(config: Mapping[str, Any]) -> Built:
    """Build a run. Raises UsageError, or DataError where a data set is missing or damaged."""
    device = torch_device(config["device"])
    check_precision(config["precision"])
    check_batching(config["batching"])
    dataset = build_dataset(config)
    gradient: MetaGradient = _make(config["gradient"], "gradient")
    algo = _algorithm(config, dataset)
    check_algorithm(gradient, algo)
    meta = algo.init(torch.Generator().manual_seed(config["seed"]))
    meta = tree.map_meta(lambda t: t.to(device), meta)
    if algo.strategies == ("Reptile",) and meta["hyper"]:
        raise UsageError("Reptile learns no inner rates; use inner=sgd")
    training, evaluation = config["training"], config["evaluation"]
    for name in ("steps", "meta_batch", "validate_every", "checkpoint_every", "keep"):
        _at_least_one(f"training.{name}", training[name])
    for name in ("episodes", "validation_episodes"):
        _at_least_one(f"evaluation.{name}", evaluation[name])
    train = _episodes(config, dataset, config["seed"], training, "train")
    test = _episodes(config, dataset, evaluation["seed"], {}, evaluation["split"])
    validation = _episodes(config, dataset, evaluation["seed"], {}, "val")
    problem = Problem(
        algo,
        gradient,
        train,
        Manifest(validation, "val", evaluation["validation_episodes"]),
        device,
        config["batching"],
        evaluation["steps"],
    )
    outer = Outer(
        meta,
        _make(config["outer"]["optimizer"], "optimizer"),
        _make(config["outer"]["schedule"], "schedule") if config["outer"]["schedule"] else None,
        training["clip_norm"],
    )
    return Built(problem, Manifest(test, evaluation["split"], evaluation["episodes"]), meta, outer)


def build_dataset(config: Mapping[str, Any]) -> ImageDataset | Sinusoid:
    """The data set alone, prepared if it was not."""
    return _make(config["dataset"], "dataset")


def _episodes(
    config: Mapping[str, Any], dataset: Any, seed: int, own: Mapping[str, Any], split: str
) -> EpisodeSource:
    shape = {
        name: value if own.get(name) is None else own[name]
        for name, value in config["episodes"].items()
    }
    source = make_episodes(dataset, **shape, seed=seed)
    source.check(split)
    return source


def _algorithm(config: Mapping[str, Any], dataset: ImageDataset | Sinusoid) -> MetaAlgorithm:
    images = isinstance(dataset, ImageDataset)
    shape = dataset.image_shape if images else (1,)
    node = dict(config["backbone"])
    for name, value in {
        "channels": shape[0],
        "size": shape[-1],
        "inputs": math.prod(shape),
    }.items():
        if name in node and node[name] is None:
            node[name] = value
    if not images and "channels" in node:
        raise UsageError(f"{node['_target_']} needs images; use backbone=mlp with this data set")
    # The backbone's constructor draws from torch's global generator: seeded here, put back after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        module = _make(node, "backbone")
    made = {"module": module, "loss": cross_entropy if images else mean_squared}
    parameters = inspect.signature(get_object(config["algorithm"]["_target_"])).parameters
    if "rule" in parameters:
        made["rule"] = _make(config["inner"], "inner")
    if not images and "rule" not in parameters:
        raise UsageError("this algorithm classifies; use algorithm=maml or anil for regression")
    return _make(config["algorithm"], "algorithm", **made)


def _make(node: Mapping[str, Any], name: str, **made: Any) -> Any:
    """Call what `node` names, after checking its arguments against the signature."""
    _check_arguments(node, name)
    if made:
        # Hydra would copy a module into a config; a partial keeps it out of its hands.
        return instantiate({**node, "_partial_": True}, _convert_="all")(**made)
    return instantiate(dict(node), _convert_="all")


def _check_arguments(node: Mapping[str, Any], name: str) -> None:
    path = node.get("_target_")
    try:
        target = get_object(str(path))
    except Exception as error:
        raise UsageError(
            f"{name}._target_={path} cannot be imported ({error})".splitlines()[0]
        ) from None
    signature = inspect.signature(target)
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if key not in signature.parameters and not takes_any:
            known = [n for n in signature.parameters if n not in _INJECTED.get(name, ())]
            raise UsageError(f"{name}.{key} is not known to {path}; it takes {', '.join(known)}")
        if key in hints and not _fits(value, hints[key]):
            wanted = getattr(hints[key], "__name__", str(hints[key])).replace("typing.", "")
            raise UsageError(f"{name}.{key}={value!r} must be {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a configured value is of a plain type; types that are not plain fit everything."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return True


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name}={value} must be 1 or more")
