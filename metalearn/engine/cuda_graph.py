"""A meta-gradient as one CUDA graph: its thousand kernels launched by a single call.

The graph is recorded once for given shapes and replayed on static copies of the weights and
episodes, so that nothing in a replay waits for the host. What it computes is what was recorded:
the same operations on the same shapes, dropout masks included, which follow from seeds that are
inputs too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError

_WARM_UP = 3  # runs before the record, in which libraries choose and allocate


def check_capture(capture: str, device: torch.device) -> None:
    """Raise UsageError for a capture that is unknown, or that the device does not have."""
    if capture not in ("none", "graph", "compile"):
        raise UsageError(f"capture={capture!r} is not known; use none, graph or compile")
    if capture != "none" and device.type != "cuda":
        raise UsageError(f"capture={capture} needs a CUDA device; use capture=none on a CPU")


class Captured:
    """`function` of nested tensors, recorded for `inputs`; its outputs live until the next call."""

    def __init__(self, function: Callable[..., Any], inputs: Any):
        leaves = tree.leaves(inputs)
        self.inputs = [t.clone() if isinstance(t, Tensor) else t for t in leaves]
        static = tree.rebuild(inputs, iter(self.inputs))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                function(*static)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*static)

    def __call__(self, *inputs: Any) -> Any:
        for static, given in zip(self.inputs, tree.leaves(inputs), strict=True):
            if isinstance(static, Tensor):
                static.copy_(given, non_blocking=True)
        self.graph.replay()
        return tree.rebuild(self.outputs, (t.clone() for t in tree.leaves(self.outputs)))


Graphs = dict[Any, Captured]
"""What was recorded for one algorithm, by what it was recorded for."""


@contextmanager
def forgetting(graphs: Graphs) -> Iterator[None]:
    """What is recorded inside is forgotten after, and the memory that it holds."""
    before = set(graphs)
    try:
        yield
    finally:
        if recorded := set(graphs) - before:
            for key in recorded:
                del graphs[key]
            torch.cuda.empty_cache()


def captured(graphs: Graphs, key: Any, function: Callable[..., Any], inputs: Any) -> Any:
    """`function(*inputs)` by the graph that `graphs` has for `key`, recorded now at first."""
    shapes = tuple((t.shape, t.dtype) if isinstance(t, Tensor) else t for t in tree.leaves(inputs))
    if (key, shapes) not in graphs:
        graphs[key, shapes] = Captured(function, inputs)
    return graphs[key, shapes](*inputs)
