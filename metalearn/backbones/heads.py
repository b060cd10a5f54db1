"""Heads: where the last weights of a network are, and what may stand there."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import UsageError


def learned(module: nn.Module) -> list[str]:
    """The names of the weights that are learned."""
    return [name for name, weight in module.named_parameters() if weight.requires_grad]


def head_name(module: nn.Module) -> str:
    """The submodule that holds the last of the weights that are learned."""
    names = learned(module)
    if not names:
        raise UsageError("no weight of the network is learned; leave some with requires_grad=True")
    return names[-1].rpartition(".")[0]


def within(name: str, path: str | None) -> bool:
    """Whether `name` is of the submodule at `path`, "" for the whole network, None for none."""
    return path is not None and (not path or f"{name}.".startswith(f"{path}."))


_NO_DIRECTION = 1e-6  # a length below which what is left is rounding


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last dimension; x itself where it has no direction, as at 0: a derivative
    of 1 / |x| there would be all that a step follows."""
    wide = _wide(x)
    return (wide * inverse_length(wide)).to(x.dtype)


def inverse_length(x: Tensor) -> Tensor:
    """1 / |x| over the last dimension, which stays as 1; 1 where x has no direction."""
    return inverse_root(squared_length(x)).to(x.dtype)


def inverse_root(squared: Tensor) -> Tensor:
    """1 / |x| of |x|^2; 1 where x has no direction."""
    return torch.where(squared > _NO_DIRECTION**2, squared, 1).rsqrt()


def squared_length(x: Tensor) -> Tensor:
    """|x|^2 over the last dimension, which stays as 1; of half precision in single."""
    x = _wide(x)
    if torch.is_grad_enabled():
        return x.square().sum(-1, keepdim=True)
    # A third of the time, but no second derivative at 0.
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()


def _wide(x: Tensor) -> Tensor:
    # Half precision has neither the small number nor the large sums.
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class CosineHead(nn.Module):
    """Logits by the angle between features and a learned direction for each class.

        logits_n = scale * <w_n, f> / (|w_n| |f|),   scale learned

    Gidaris, Komodakis: Dynamic Few-Shot Visual Learning without Forgetting, 2018; Baseline++ of
    Chen et al.: A Closer Look at Few-shot Classification, 2019, section 3.2.
    """

    def __init__(self, weight: Tensor, scale: float = 10.0):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.scale = nn.Parameter(weight.new_tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to logits `[..., N]`."""
        return self.scale * F.linear(unit(x), unit(self.weight))


def linear(module: nn.Module, path: str | None, /) -> nn.Module:
    """`module` as it is: w_n f + b_n."""
    return module


def zero(module: nn.Module, path: str | None, /) -> nn.Module:
    """A copy of `module` whose linear layer at `path` is 0: w_n = 0, b_n = 0.

    The inner loop then starts as fine-tuning of given weights does, and no class before another:
    Ye, Chao: How to Train Your MAML to Excel in Few-Shot Classification, 2022. Raises UsageError
    where there is no linear layer at `path`.
    """
    if path is None:
        raise UsageError("head=zero is of a network with outputs, and here are features alone")
    module = copy.deepcopy(module)
    layer = _linear_at(module, path)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return module


def cosine(module: nn.Module, path: str | None, /, scale: float = 10.0) -> nn.Module:
    """A copy of `module` with a `CosineHead` in the place of the linear layer at `path`, which
    gives it the weights it starts from; None where there is no head.

    scale: where it starts, 10 in Gidaris & Komodakis. Raises UsageError where there is no linear
    layer at `path`, or for a scale of 0 or less.
    """
    if not scale > 0:
        raise UsageError(f"head.scale={scale} must be above 0")
    if path is None:
        raise UsageError("head=cosine is of a network with outputs, and here are features alone")
    module = copy.deepcopy(module)
    old = _linear_at(module, path)
    new = CosineHead(old.weight.detach(), scale)
    if not path:
        return new
    module.set_submodule(path, new)
    return module


def _linear_at(module: nn.Module, path: str) -> nn.Linear:
    layer = module.get_submodule(path)
    if not isinstance(layer, nn.Linear):
        name = type(layer).__name__
        raise UsageError(
            f"the network ends in {path} ({name}), not a linear layer; use head=linear"
        )
    return layer
