"""The network of a configuration, the weights that it starts from, and what a task makes of it."""

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from metalearn.algorithms.losses import Loss, auto, present
from metalearn.backbones import CifarResNet, timm_model, torchvision_model
from metalearn.backbones.adaptation import Adaptation, everything
from metalearn.backbones.defaults import cifar_default, described, timm_default, torchvision_default
from metalearn.backbones.heads import head_name
from metalearn.backbones.weight_order import as_trained, renamed
from metalearn.backbones.weights import Report, Weights, check_pin, load_into, read_weights
from metalearn.commands.admission import OUTPUTS, admission
from metalearn.commands.arguments import check_node, make, target
from metalearn.commands.trial import evaluated
from metalearn.data.download import download
from metalearn.data.paths import data_folder
from metalearn.errors import UsageError, reason_of
from metalearn.functional import pure
from metalearn.functional.copied import copied
from metalearn.functional.double_backward import unlike_types
from metalearn.runtime.files import cache_folder
from metalearn.training.settings import ImageSettings
from metalearn.types import Batch, Inputs

DEFAULT = "DEFAULT"
_OF_WEIGHTS = ("weights", "sha256", "copy", "rename", "match", "admit", "licence")
_FROM_DATA = ("channels", "size", "inputs")


def check_backbone(node: Mapping[str, Any]) -> None:
    """Raise UsageError for a backbone that cannot be made, whatever the data."""
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
    weights = find_weights(config["backbone"])
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
    module = make_module(node, shape, seed, example)
    return module, None if weights is None else load(module, node, weights)


def make_module(
    node: Mapping[str, Any], shape: Sequence[int], seed: int, example: Inputs | None = None
) -> nn.Module:
    """As `build_module`, without the weights."""
    own = _own(node)
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
        module = make(own, "backbone")
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
            try:
                evaluated(module, example)
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


@dataclass(frozen=True)
class TaskChoices:
    """What a configuration makes of a network for one task: its head, what adapts, the loss.

    head: from a network and the name of its head to the network with another; None for its own.
    """

    head: Callable[..., nn.Module] | None
    adaptation: Adaptation
    loss: Loss
    outputs: int | None
    seed: int

    def network(self, module: nn.Module) -> tuple[nn.Module, Collection[str] | None]:
        """`module`, its weights being loaded already, with the head and the adaptation; and the
        names of the weights that the inner loop adapts, None for all. Raises UsageError."""
        path = None if self.outputs is None else head_name(module)
        if self.head is not None:
            module = self.head(module, path)
            path = path and head_name(module)
        with torch.random.fork_rng():
            # LoRA draws; not what the backbone drew.
            torch.manual_seed(self.seed + 1)
            module = self.adaptation.prepare(module, path)
        return module, self.adaptation.adapting(module, path)

    def check_loss(self, support: Batch) -> None:
        """Raise UsageError for a loss that is not for the data: classes, or real targets.

        support: of one task, `[1, S, *X]`. Targets that are a dict are for a loss of the user's.
        """
        if isinstance(support.y, dict):
            return
        x = torch.zeros(2, 2)
        self.loss(x, Batch(x, x if support.y.is_floating_point() else torch.zeros(2).long()))


def task_choices(
    config: Mapping[str, Any], parameters: Collection[str], missing_classes: bool
) -> TaskChoices:
    """Every choice that is right or wrong whatever the network and the data. Raises UsageError.

    What a configuration older than a choice lacks is the usual one. parameters: what the algorithm
    takes. missing_classes: a task may have fewer classes than the network has outputs.
    """
    node = config.get("adaptation")
    adaptation: Adaptation = make(node, "adaptation") if node else everything()
    if adaptation.chosen is not None and adaptation.outer == "all" and "adapting" not in parameters:
        raise UsageError(
            f"adaptation={adaptation.name} says what the inner loop adapts, which this algorithm "
            "does not ask; use adaptation.outer=adapted to learn nothing else, or algorithm=maml"
        )
    head = make(config["head"], "head") if config.get("head") else None
    loss: Loss = make(config["loss"], "loss") if config.get("loss") else auto
    loss = present(loss) if missing_classes else loss
    return TaskChoices(head, adaptation, loss, config["outputs"], config["seed"])
