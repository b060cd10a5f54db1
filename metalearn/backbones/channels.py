"""Channels taken out of a network, which is smaller and faster for it.

A convolution gives channels that one other layer alone reads, through norms, activations and
pooling: those of the smallest filters go, with their place in the norms and in the reader. So
shrink all convolutions of Conv-4 but the last of one without a head, and those inside the
residual blocks of the ResNets; what blocks are added to stays as wide. The network is
followed by torch.fx.

Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, 2017, section 3.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from metalearn.errors import UsageError, reason_of
from metalearn.functional.norms import BatchNorm

_NORMS = (BatchNorm, nn.BatchNorm2d)
_BY_CHANNEL = (
    *(nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)
_FUNCTIONS = (
    *(F.relu, F.leaky_relu, F.gelu, F.silu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    *(torch.relu, torch.tanh, torch.flatten),
)
_METHODS = ("relu", "tanh", "mean", "flatten")


@dataclass(frozen=True)
class Channels:
    """A share `sparsity` of the channels of each convolution that can lose them, at the start.

    At least one channel stays. Raises UsageError for a sparsity of 1 or more.
    """

    sparsity: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"pruning.sparsity={self.sparsity} must be 0 or more, and below 1")

    def __call__(self, module: nn.Module) -> nn.Module:
        """`module` with fewer channels, a copy. Its shapes follow from the network and `sparsity`
        alone, its channels from the weights.

        Raises UsageError where it cannot be followed, or no convolution can lose channels.
        """
        module = copy.deepcopy(module)
        pairs = chains(module)
        if not pairs:
            raise UsageError(
                "pruning=channels finds no convolution whose channels one other layer alone reads "
                "(group norm and attention read several at once); use pruning=magnitude"
            )
        parts = dict(module.named_modules())
        for writer, (norms, reader) in pairs.items():
            self._shrink(parts[writer], [parts[name] for name in norms], parts[reader])
        return module

    def _shrink(self, writer: nn.Module, norms: list[nn.Module], reader: nn.Module) -> None:
        assert isinstance(writer, nn.Conv2d)
        before = writer.out_channels
        stay = max(1, round(before * (1 - self.sparsity)))
        size = writer.weight.detach().double().abs().sum((1, 2, 3))
        kept = torch.argsort(size, descending=True, stable=True)[:stay].sort().values
        for part in (writer, *norms):
            for name, tensor in _own(part).items():
                if tensor.ndim and tensor.shape[0] == before:
                    _set(part, name, tensor.detach()[kept])
        writer.out_channels = stay
        for norm in norms:
            if hasattr(norm, "num_features"):
                norm.num_features = stay  # type: ignore[assignment]
        weight = reader.weight.detach()  # type: ignore[union-attr]
        if isinstance(reader, nn.Linear):  # of flattened maps, channel by channel
            places = weight.shape[1] // before
            weight = weight.view(len(weight), before, places)[:, kept].flatten(1)
            reader.in_features = stay * places
        else:
            weight = weight[:, kept]
            reader.in_channels = stay  # type: ignore[assignment]
        _set(reader, "weight", weight)


def _own(part: nn.Module) -> dict[str, Tensor]:
    return {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False))}


def _set(part: nn.Module, name: str, value: Tensor) -> None:
    before, value = getattr(part, name), value.clone()
    if isinstance(before, nn.Parameter):
        value = nn.Parameter(value, requires_grad=before.requires_grad)
    setattr(part, name, value)


class _Whole(fx.Tracer):
    """Looks into what has parts, and at layers as a whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` has no parts."""
        return not any(True for _ in m.children())


def chains(module: nn.Module) -> dict[str, tuple[list[str], str]]:
    """Each convolution that can lose channels, with the norms behind it and the one layer that
    reads them. Raises UsageError where torch.fx cannot follow the network."""
    try:
        graph = _Whole().trace(module)
    except Exception as error:  # whatever a network of anybody's does with its inputs
        raise UsageError(
            f"pruning=channels cannot follow the network ({reason_of(error)}); use "
            "pruning=magnitude"
        ) from None
    parts = dict(module.named_modules())
    called: dict[Any, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            part = parts[str(node.target)]
            called[part] = called.get(part, 0) + 1
    found = {}
    for node in graph.nodes:
        if node.op == "call_module" and _plain(parts[str(node.target)]):
            path, norms, places = _reader(node, parts)
            used = [str(node.target), *norms, *([path] if path else [])]
            once = all(called[parts[name]] == 1 for name in used)
            if path and once and (places or isinstance(parts[path], nn.Conv2d)):
                found[str(node.target)] = norms, path
    return found


def _plain(part: nn.Module) -> bool:
    return type(part) is nn.Conv2d and part.groups == 1


def _reader(node: fx.Node, parts: dict[str, nn.Module]) -> tuple[str | None, list[str], bool]:
    """The layer that alone reads what `node` gives, None for no such one; the norms on the way, and
    whether it was flattened or averaged over places."""
    norms, flat = [], False
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module":
            name, part = str(node.target), parts[str(node.target)]
            if _plain(part) or type(part) is nn.Linear:
                return name, norms, flat
            if isinstance(part, _NORMS):
                norms.append(name)
            elif isinstance(part, nn.Flatten):
                flat = True
            elif not (isinstance(part, _BY_CHANNEL) or type(part).__name__ == "DropBlock"):
                break
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            flat = flat or node.target is torch.flatten
        elif node.op == "call_method" and node.target in _METHODS:
            flat = flat or node.target in ("mean", "flatten")
        else:
            break
    return None, [], False
