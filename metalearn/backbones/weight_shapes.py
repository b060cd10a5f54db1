"""Tensors of another shape: other channels, another grid of positions, timm's older layouts."""

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.types import Params

# timm is imported where it is used: seconds that no other backbone should cost.

_POSITION = re.compile(
    r"pos(ition)?(al)?_?(emb|bias)|rel(ative)?_?pos|(^|[._])(cls|class|dist|reg|register|mask)_"
    r"?(tokens?|embed(ding)?)$"
)


def is_position(name: str) -> bool:
    """Whether a name is that of a position embedding, a table of relative positions or a token."""
    return _POSITION.search(name) is not None


def fitted(name: str, given: Tensor, wanted: Tensor, module: nn.Module) -> Tensor | None:
    """`given` in the shape of `wanted`, as timm does it; None where that cannot be.

    A convolution of 3 channels takes their sum or a repetition. A position embedding `[1, P, D]`
    of a square grid behind 0, 1 or 2 tokens is resampled to another such grid.
    """
    if wanted.is_floating_point() and not given.is_floating_point():
        return None  # whole numbers are codes, of a quantised network
    if given.shape == wanted.shape:
        return given
    others_alike = (len(given), *given.shape[2:]) == (len(wanted), *wanted.shape[2:])
    if given.ndim == wanted.ndim == 4 and given.shape[1] == 3 and others_alike:
        from timm.models import adapt_input_conv

        return adapt_input_conv(wanted.shape[1], given)
    if given.ndim == wanted.ndim == 3 and len(given) == len(wanted) == 1 and is_position(name):
        known = getattr(module, "num_prefix_tokens", None)
        for tokens in (0, 1, 2) if known is None else (known,):
            here, there = (_side(t.shape[1] - tokens) for t in (wanted, given))
            if here and there and given.shape[2] == wanted.shape[2]:
                from timm.layers.pos_embed import resample_abs_pos_embed

                return resample_abs_pos_embed(given, [here, here], num_prefix_tokens=tokens)
    return None


def _side(positions: int) -> int | None:
    """Of a square grid of so many positions; None where it is none."""
    side = math.isqrt(max(positions, 0))
    return side if side and side**2 == positions else None


def converted(given: Params, module: nn.Module) -> Iterable[Params]:
    """`given` as timm reads it into a network of its own: names of the papers' own code changed
    to timm's, grids, windows and patches resampled; each part of the file that it
    may be. Nothing where timm has no such function."""
    read: Any = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if read is not None and type(module).__module__.startswith("timm."):
        for part in _parts(given):
            found = _read(read, part, module)
            if found:
                yield found


def _read(read: Callable[..., Any], given: Params, module: nn.Module) -> Params | None:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what timm calls in torch
            found = read(dict(given), module)
    except Exception:  # of a file that is no network of this family, by any line of theirs
        return None
    return {name: t for name, t in found.items() if isinstance(t, Tensor)}


def _parts(given: Params) -> Iterable[Params]:
    """All of it, then what stands behind a prefix that most names share."""
    yield given
    for depth in (1, 2, 3):
        starts = {name: ".".join(name.split(".")[:depth]) + "." for name in given}
        for start in dict.fromkeys(starts.values()):
            inside = {n.removeprefix(start): t for n, t in given.items() if n.startswith(start)}
            if len(inside) > len(given) / 2:
                yield inside
