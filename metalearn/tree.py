"""Arithmetic on dicts of tensors: the weights of one task as one vector."""

import itertools
from collections.abc import Callable, Iterator, Sequence
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


def builder(like: Any) -> Callable[[Sequence[Any]], Any]:
    """`rebuild` for many calls, of a list of leaves, as code of its own: a small network's step
    would notice the loops. It keeps no leaf of `like`."""
    count, kinds = itertools.count(), dict[str, Any]()

    def written(node: Any) -> str:
        if isinstance(node, dict):
            return f"{{{', '.join(f'{name!r}: {written(part)}' for name, part in node.items())}}}"
        if not isinstance(node, _NODES):
            return f"leaves[{next(count)}]"
        parts = f"[{', '.join([written(part) for part in node])}]"
        kind = getattr(node, "_make", type(node))  # of a named tuple
        kinds[name := f"kind{len(kinds)}"] = kind
        return f"{name}({parts})"

    return eval(f"lambda leaves: {written(like)}", kinds)


def rebuild(like: Any, leaves: Iterator[Any]) -> Any:
    """`like` with its leaves replaced by `leaves` in order."""
    if not isinstance(like, _NODES):
        return next(leaves)
    if isinstance(like, dict):
        return {name: rebuild(part, leaves) for name, part in like.items()}
    kind: Callable[..., Any] = getattr(like, "_make", type(like))  # of a named tuple
    return kind([rebuild(part, leaves) for part in like])
