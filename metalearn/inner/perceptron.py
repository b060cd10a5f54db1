"""A network of two layers as a dict of tensors, for what is learned beside the weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.inner.rules import under_prefix, with_prefix
from metalearn.types import Params


def random_matrix(rows: int, columns: int, like: Tensor, seed: int = 0) -> Tensor:
    """`[rows, columns]` of variance 1 / columns, the same at every call; as `like`."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return (matrix / columns**0.5).to(like)


def perceptron_start(
    name: str, sizes: tuple[int, int, int], like: Tensor, zero: bool = True
) -> Params:
    """The tensors of a perceptron, under `name.in`, `name.bias`, `name.out` and `name.shift`.

    sizes: inputs, hidden units, outputs. zero: it returns 0 at the start.
    """
    inputs, hidden, outputs = sizes
    last = random_matrix(outputs, hidden, like, 1)
    layers = {"in": random_matrix(hidden, inputs, like), "bias": like.new_zeros(hidden)}
    after = {"out": last * 0 if zero else last, "shift": like.new_zeros(outputs)}
    return with_prefix(name, {**layers, **after})


def perceptron(hyper: Params, name: str, x: Tensor) -> Tensor:
    """out relu(in x + bias) + shift of `x` `[..., inputs]`, from the tensors under `name`."""
    own = under_prefix(name, hyper)
    return F.linear(F.linear(x, own["in"], own["bias"]).relu(), own["out"], own["shift"])


def means(tensors: Params) -> Tensor:
    """`[n]`: the mean of each of n tensors."""
    return torch.stack([t.mean() for t in tensors.values()])
