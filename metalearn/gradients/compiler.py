"""A piece compiled: traced once to a graph of tensor operations, and that to machine code.

The trace runs the piece, so whatever Python it holds is gone from the result: transforms of
`torch.func`, modules, contexts. On a CPU the result runs without holding Python's lock, so that
tasks in several threads run side by side.
"""

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.kernels import compiling

_cache: WeakKeyDictionary[Any, dict[Any, "Compiled"]] = WeakKeyDictionary()
_lock = threading.Lock()


def check_compiler(device: torch.device) -> None:
    """Raise UsageError where nothing could be compiled."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise UsageError("+compile needs a C++ compiler, and none is there; install g++")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's word that it found no CUDA, which a CPU does not need."""
    speaker = logging.getLogger("torch.utils.cpp_extension")
    before = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(before)


class Compiled:
    """A function of flat tensors, compiled for their shapes, and how its outputs are nested."""

    def __init__(self, function: Callable[..., Any], tensors: Sequence[Tensor]):
        def flat(*tensors: Tensor) -> list[Tensor]:
            self.outputs = function(*tensors)
            # An output that is an input, or the same twice, is no kernel's result.
            return [t.clone() for t in tree.leaves(self.outputs)]

        with torch.no_grad(), compiling():
            # The trace tells inputs apart by object: one given twice would count as one for good.
            graph = make_fx(flat)(*(t.detach() for t in tensors))
        for node in graph.graph.nodes:
            node.meta.pop("val", None)  # shapes under a mode that the compiler would not share
        self.outputs = tree.rebuild(self.outputs, iter(lambda: None, 0))  # keeps no tensor alive
        options: dict[str, Any] = {}
        if tensors[0].device.type == "cpu":
            options = {"cpp_wrapper": True, "cpp.threads": torch.get_num_threads()}
        with _quiet():
            self.code: Any = torch._inductor.compile(graph, list(tensors), options=options)

    def __call__(self, *tensors: Tensor) -> Any:
        return tree.rebuild(self.outputs, iter(self.code(*tensors)))


def compiled(
    owner: Any, key: Any, function: Callable[..., Any], tensors: Sequence[Tensor]
) -> Compiled:
    """`function` compiled for `tensors`, or what was compiled for `key` of `owner` before."""
    kept = _cache.setdefault(owner, {})
    if key not in kept:
        with _lock:
            if key not in kept:
                kept[key] = Compiled(function, tensors)
    return kept[key]


def channels_last(t: Tensor) -> Tensor:
    """`t` `[A, B, H, W]` in memory as `[A, H, W, B]`, with those strides even where B is 1 and
    torch would take any for the same: they choose the layout of a convolution's output."""
    _, b, h, w = t.shape
    strides = (h * w * b, 1, w * b, b)
    if t.stride() == strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)
