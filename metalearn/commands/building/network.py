"""The network of a configuration, and the weights that it starts from."""

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from metalearn.backbones import CifarResNet, TextEncoder, timm_model, torchvision_model
from metalearn.backbones.defaults import cifar_default, described, timm_default, torchvision_default
from metalearn.backbones.encoder_folder import encoder_default
from metalearn.backbones.ensemble import Prepared
from metalearn.backbones.weight_order import as_trained, renamed
from metalearn.backbones.weights import Report, Weights, check_pin, load_into, read_weights
from metalearn.commands.building.admission import OUTPUTS, admission
from metalearn.commands.building.arguments import check_node, factory, target
from metalearn.commands.building.members import (
    Member,
    built,
    changed_members,
    is_ensemble,
    joined,
    members,
    of_member,
    own_values,
)
from metalearn.commands.building.texts import check_tokens
from metalearn.commands.building.trial import evaluated
from metalearn.data.download import download
from metalearn.data.paths import data_folder
from metalearn.episodes import ImageTransform
from metalearn.errors import UsageError, reason_of
from metalearn.functional import pure
from metalearn.functional.copied import copied
from metalearn.functional.double_backward import unlike_types
from metalearn.runtime.files import cache_folder
from metalearn.training.settings import ImageSettings
from metalearn.types import Inputs

DEFAULT = "DEFAULT"
_OF_WEIGHTS = ("weights", "sha256", "copy", "rename", "match", "admit", "licence")
_FROM_DATA = ("channels", "size", "inputs")


def check_backbone(node: Mapping[str, Any]) -> None:
    """Raise UsageError for a backbone that cannot be made, whatever the data."""
    if is_ensemble(node):
        for name, member in members(node):
            with of_member(name):
                check_backbone({n: v for n, v in member.items() if n != "images"})
        node = own_values(node)
    left = {n: v for n, v in _own(node).items() if n not in _FROM_DATA or v is not None}
    check_node(left, "backbone")
    match = node.get("match")
    if match is not None and not (isinstance(match, int | float) and 0 <= match <= 1):
        raise UsageError(f"backbone.match={match} must be a share, 0 to 1")
    admission(node)
    for name in ("weights", "sha256", "copy", "licence"):
        if not isinstance(node.get(name), str | None):
            raise UsageError(f"backbone.{name}={node[name]} must be text, or null")
    rules = node.get("rename") or {}
    if not isinstance(rules, Mapping) or not all(isinstance(v, str) for v in rules.values()):
        raise UsageError("backbone.rename must be {pattern: what takes its place, ...}, or null")


def find_weights(node: Mapping[str, Any]) -> Weights | None:
    """What `backbone.weights` names; None where it is null. Raises UsageError."""
    named, pin, rules = node.get("weights"), node.get("sha256"), node.get("rename")
    if named is None:
        return None
    if named != DEFAULT:
        weights = described(read_weights(named, pin))
    else:
        weights = _default(node)
        check_pin(weights.source, weights.sha256, pin)
    if rules:
        weights = weights._replace(tensors=renamed(weights.tensors, rules, weights.source))
    if (asked := admission(node)) is not None:
        asked.check_file(weights, pin, node.get("licence"))
    return weights


def _default(node: Mapping[str, Any]) -> Weights:
    made = target(node["_target_"])
    if made is torchvision_model:
        return torchvision_default(node["name"])
    if made is timm_model:
        return timm_default(node["name"], node.get("options") or {})
    if made is TextEncoder:
        return encoder_default(node.get("folder"))
    if made is CifarResNet:
        data = data_folder()
        folders = [data / "pretrained"] if data else []

        def fetched(address: str, name: str, sha256: str) -> Path:
            return download([address], cache_folder() / "pretrained" / name, sha256=sha256)

        return cifar_default(node["depth"], folders, fetched)
    raise UsageError(f"{node['_target_']} has no DEFAULT weights; name a file in backbone.weights")


def with_weights(config: Mapping[str, Any]) -> tuple[dict[str, Any], Weights | None]:
    """The weights that `config` names, and `config` with what they say of themselves:
    `backbone.sha256`, and the `images` they were trained on where these are null.

    Raises UsageError where there are no such weights.
    """
    if is_ensemble(node := config["backbone"]):

        def pinned(member: dict[str, Any]) -> dict[str, Any]:
            images = member.pop("images", None) or {}
            given, _ = with_weights({"backbone": member, "images": images})
            return {**given["backbone"], "images": given["images"]}

        return {**config, "backbone": changed_members(node, pinned)}, None
    weights = find_weights(node)
    if weights is None:
        return dict(config), None
    known, images = inspect.signature(ImageSettings).parameters, dict(config.get("images") or {})
    told = {name: value for name, value in weights.images.items() if name in known}
    images |= {name: value for name, value in told.items() if images.get(name) is None}
    backbone = {**config["backbone"], "sha256": weights.sha256}
    if target(backbone["_target_"]) is timm_model:
        options = backbone.get("options") or {}
        trained = as_trained(backbone["name"], weights.tensors)
        if more := {n: v for n, v in trained.items() if n not in options}:
            named = ", ".join(f"{name}={value}" for name, value in more.items())
            weights = weights._replace(source=f"{weights.source}, in a network with {named}")
            backbone["options"] = {**options, **more}
    return {**config, "backbone": backbone, "images": images}, weights


def without_weights(node: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone without what it, or its members, start from."""
    none = {"weights": None}
    if is_ensemble(node):
        return changed_members(node, lambda member: {**member, **none})
    return {**node, **none}


def check_width(node: Mapping[str, Any], outputs: int | None) -> None:
    """Raise UsageError where a backbone of ours is given another width than the network is to
    have; in one of the user's these names may mean something else."""
    if str(node["_target_"]).startswith("metalearn."):
        for name in OUTPUTS:
            if name in node and node[name] != outputs:
                wanted = "null, for an algorithm on features" if outputs is None else outputs
                raise UsageError(
                    f"backbone.{name}={node[name]}, but outputs={wanted}; leave out "
                    f"backbone.{name}, which follows it"
                )


def build_module(
    node: Mapping[str, Any],
    shape: Sequence[int],
    seed: int,
    weights: Weights | None,
    example: Inputs | None = None,
) -> tuple[nn.Module, Report | None]:
    """The network of the backbone `node` for examples of `shape`, `(C, H, W)` or `(n,)`, with
    `weights` loaded; and the report of the loading.

    example: a few inputs `[B, *X]` that it is tried on; by default an image of zeros. Raises
    UsageError for whatever goes wrong in building it, or where it cannot take them.
    """
    reports: list[Report] = []
    module = make_module(node, shape, seed, example, reports)
    return module, joined(reports) if weights is None else load(module, node, weights)


def _member(node: dict[str, Any], shape: Sequence[int], seed: int) -> Member:
    """A member of an ensemble, behind what its weights, or `images` beside them, say of images."""
    told = node.pop("images", None) or {}
    given, weights = with_weights({"backbone": node, "images": told})
    images = {name: value for name, value in given["images"].items() if value is not None}
    transform = ImageTransform(**images)
    inside = transform.shape(shape) if len(shape) == 3 else shape
    module, report = build_module(given["backbone"], inside, seed, weights)
    if not transform.is_identity:
        module = Prepared(module, transform.size, transform.channels, transform.mean, transform.std)
    return Member(module, features(module, torch.zeros(1, *shape)), report)


def make_module(
    node: Mapping[str, Any],
    shape: Sequence[int],
    seed: int,
    example: Inputs | None = None,
    reports: list[Report] | None = None,
) -> nn.Module:
    """As `build_module`, without the weights; those of an ensemble's members are loaded, and their
    reports go to `reports`."""
    own, late = _own(node), {}
    if is_ensemble(node):
        own, (late, found) = (
            own_values(own),
            built(node, lambda member, number: _member(member, shape, seed + number)),
        )
        if reports is not None:
            reports += found
    known = dict(zip(_FROM_DATA, (shape[0], shape[-1], math.prod(shape)), strict=True))
    others = [f"backbone.{n}={own[n]}" for n in known if own.get(n, None) not in (None, known[n])]
    own |= {name: value for name, value in known.items() if name in own and own[name] is None}
    name = own.get("name") or str(own["_target_"]).rpartition(".")[2]
    if example is None and len(shape) == 3:
        example = torch.zeros(1, *shape)
    # The backbone's constructor draws from torch's global generator: seeded here, put back after.
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")  # told below
        torch.manual_seed(seed)
        module = factory(own, "backbone")(**late)
        if not isinstance(module, nn.Module):
            kind = f"no torch.nn.Module, but a {type(module).__name__}"
            raise UsageError(f"backbone {name} is {kind}; let its target return one")
        for weight, tensor in module.named_parameters():
            if not is_lazy(tensor) and not tensor.numel():
                raise UsageError(
                    f"backbone {name}: {weight} is empty, {list(tensor.shape)}; every width must "
                    "be 1 or more"
                )
        module = _usable(module, shape)
        if example is not None:
            check_tokens(module, example)
            try:
                evaluated(module, example)
            except UsageError:
                raise
            except Exception as error:  # of a network that may be anybody's
                if types := unlike_types(dict(module.named_parameters()), example):
                    raise UsageError(types) from None
                use = f"leave out {' and '.join(others)}" if others else "choose another backbone"
                raise UsageError(
                    f"backbone {name} cannot take inputs of {'x'.join(map(str, shape))}: "
                    f"{reason_of(error)}; {use}"
                ) from error
    return module


def load(module: nn.Module, node: Mapping[str, Any], weights: Weights) -> Report:
    """Load `weights` into the network of the backbone `node`. Raises UsageError."""
    match, has_head = node.get("match"), all(node.get(name, 0) is not None for name in OUTPUTS)
    match = 1.0 if match is None else match
    report = load_into(module, weights, match, node.get("copy"), has_head)
    if (asked := admission(node)) is not None:
        asked.check_match(report)
    return report


def features(module: nn.Module, x: Inputs) -> int:
    """How many numbers `module` makes of one example; x: some of them, `[B, *X]`."""
    net = pure(module)
    with torch.no_grad():
        return net.apply({**net.buffers, **net.params}, x).flatten(1).shape[1]


def _usable(module: nn.Module, shape: Sequence[int]) -> nn.Module:
    """What a backbone's constructor made, without wrappers; where weights are still to take the
    size of what comes, after one batch. Raises UsageError."""
    if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        try:
            with torch.no_grad():
                module.eval()(torch.zeros(2, *shape))
            module.train()
        except Exception as error:
            raise UsageError(
                f"the network cannot take examples of {'x'.join(map(str, shape))}: "
                f"{reason_of(error)}"
            ) from None
    return copied(module)


def _own(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node without what is said of its weights."""
    return {name: value for name, value in node.items() if name not in _OF_WEIGHTS}
