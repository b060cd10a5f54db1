"""Arithmetic on dicts of tensors: the weights of one task as one vector."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from metalearn.types import Meta, Params


def map(f: Callable[..., Tensor], *trees: Params) -> Params:
    """Apply `f` to the tensors that share a name; every tree has the first one's names."""
    return {name: f(*(tree[name] for tree in trees)) for name in trees[0]}


def add(a: Params, b: Params) -> Params:
    """a + b."""
    return map(torch.add, a, b)


def scale(a: Params, factor: float) -> Params:
    """factor * a."""
    return map(lambda t: t * factor, a)


def zeros_like(a: Params) -> Params:
    """0, shaped like a."""
    return map(torch.zeros_like, a)


def detach(a: Params) -> Params:
    """The same values without history."""
    return map(torch.Tensor.detach, a)


def clone(a: Params) -> Params:
    """A copy that shares no memory, without history."""
    return map(lambda t: t.detach().clone(), a)


def map_meta(f: Callable[[Tensor], Tensor], meta: Meta) -> Meta:
    """Apply `f` to every tensor of `meta`."""
    return Meta(
        init=map(f, meta["init"]), hyper=map(f, meta["hyper"]), buffers=map(f, meta["buffers"])
    )


_NODES = dict, tuple, list


def leaves(nested: Any) -> list[Any]:
    """What stands in nested dicts, tuples and lists, in order: tensors, None, numbers."""
    found: list[Any] = []
    _collect(nested, found)
    return found


def _collect(nested: Any, found: list[Any]) -> None:
    if not isinstance(nested, _NODES):
        found.append(nested)
        return
    for part in nested.values() if isinstance(nested, dict) else nested:
        if isinstance(part, Tensor):  # most are: spares a call
            found.append(part)
        else:
            _collect(part, found)


def rebuild(like: Any, leaves: Iterator[Any]) -> Any:
    """`like` with its leaves replaced by `leaves` in order."""
    if not isinstance(like, _NODES):
        return next(leaves)
    if isinstance(like, dict):
        return {
            name: rebuild(part, leaves) if isinstance(part, _NODES) else next(leaves)
            for name, part in like.items()
        }
    parts = [rebuild(part, leaves) for part in like]
    if hasattr(like, "_fields"):
        return type(like)(*parts)
    return parts if isinstance(like, list) else tuple(parts)
