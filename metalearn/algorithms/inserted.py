"""Layers put behind those of a network, which keep their names and their weights."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from metalearn.backbones.heads import head_name
from metalearn.functional.norms import BatchNorm, LayerNorm, replace_norms
from metalearn.functional.torch_private import ConvolutionBase

_LINEAR = (nn.Linear, ConvolutionBase)
_WEIGHTED = (*_LINEAR, BatchNorm, LayerNorm, nn.GroupNorm)


def prepared(module: nn.Module) -> nn.Module:
    """A copy of `module` whose norm layers will not be replaced any more."""
    return replace_norms(copy.deepcopy(module))


def layers(module: nn.Module, norms: bool = False) -> dict[str, nn.Module]:
    """The linear and convolutional layers before the head, in order; with `norms` those too."""
    kinds, head = _WEIGHTED if norms else _LINEAR, head_name(module)
    named = ((path, part) for path, part in module.named_modules() if path != head)
    return {
        path: part
        for path, part in named
        if isinstance(part, kinds) and getattr(part, "weight", None) is not None
    }


def width(layer: nn.Module) -> int:
    """The channels that a layer gives."""
    channels = getattr(layer, "out_channels", None)
    return channels if channels is not None else len(cast(Tensor, layer.weight))


def put_behind(layer: nn.Module, name: str, new: nn.Module) -> None:
    """Let `layer` return what `new`, its submodule `name` from here on, makes of its output."""
    layer.add_module(name, new.to(next(layer.parameters())))
    layer.register_forward_hook(lambda layer, _, y: layer.get_submodule(name)(y))


def drawn(module: nn.Linear, seed: int = 0) -> nn.Linear:
    """`module` with weights of variance 1 / inputs from a generator of its own, and no shift."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(weight / module.in_features**0.5)
        module.bias.zero_()
    return module
