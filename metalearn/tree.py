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
    if not isinstance(nested, _NODES):
        return [nested]
    found: list[Any] = []
    _collect(nested, found)
    return found


def _collect(node: Any, found: list[Any]) -> None:
    for part in node.values() if isinstance(node, dict) else node:
        # Most are tensors, and a small network's step is short enough to notice a call.
        if isinstance(part, Tensor) or not isinstance(part, _NODES):
            found.append(part)
        else:
            _collect(part, found)


def builder(like: Any) -> Callable[[Iterator[Any]], Any]:
    """What takes leaves in order, and returns them nested like `like`. It keeps no leaf of it."""
    if not isinstance(like, _NODES):
        return next
    if isinstance(like, dict):
        names = tuple(like)
        parts = [builder(part) for part in like.values()]
        if all(part is next for part in parts):
            # `names` first: where they end, no leaf has been taken too many.
            return lambda leaves: dict(zip(names, leaves, strict=False))
        return lambda leaves: {n: build(leaves) for n, build in zip(names, parts, strict=True)}
    kind: Callable[..., Any] = getattr(like, "_make", type(like))  # of a named tuple
    parts = [builder(part) for part in like]
    return lambda leaves: kind([build(leaves) for build in parts])


def rebuild(like: Any, leaves: Iterator[Any]) -> Any:
    """`like` with its leaves replaced by `leaves` in order."""
    return builder(like)(leaves)
