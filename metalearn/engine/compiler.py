"""A piece compiled: traced once to a graph of tensor operations, and that to machine code.

The trace runs the piece, so whatever Python it holds is gone from the result: transforms of
`torch.func`, modules, contexts. On a CPU the result runs without holding Python's lock, so that
tasks in several threads run side by side.
"""

import functools
import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn import tree
from metalearn.engine import matmul
from metalearn.engine.fx_passes import (
    drop_unused,
    keep_layout,
    lift_constants,
    reshape_not_view,
    write_apart,
)
from metalearn.engine.lowering import channels_last, compiling
from metalearn.errors import UsageError
from metalearn.functional.torch_private import compile_fx, functorch_config, keeping_machine_code

Cache = dict[Any, "Compiled"]
"""What was compiled for one algorithm, by what it was compiled for."""

_lock = threading.Lock()

_HASHED: dict[str, Any] = {"realize_opcount_threshold": 8}
"""Options for a graph with dropout: every stage of the hash that masks come from takes the one
before it twice, and inductor would write each out where it is taken, twice as often at every
stage: for more than ten minutes, in place of one."""

_LARGE = 3000
"""Operations from which the calls of the kernels are compiled apart and optimised less: a C++
compiler's time grows faster than a function, to more than six minutes for that of a ViT-Tiny."""

_MOST = 10_000
"""Operations above which a piece is refused: one of 11,471 was compiled for five minutes."""


_SPEAKERS = ("torch.utils.cpp_extension", "torch._inductor.ir")
"""They tell that there is no CUDA, which a CPU does not need, and of operations that are called as
without a compiler."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's word on what is as it should be."""
    speakers = [logging.getLogger(name) for name in _SPEAKERS]
    before = [speaker.level for speaker in speakers]
    for speaker in speakers:
        speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for speaker, level in zip(speakers, before, strict=True):
            speaker.setLevel(level)


class Compiled:
    """A function of flat tensors, compiled for their shapes, and how its outputs are nested.

    images_last: take images and weights of convolutions with their channels last in memory; all
    else, and without it these too, is taken without gaps.
    Raises UsageError where nothing can be compiled, or too much.
    """

    nested: Callable[[Sequence[Any]], Any]
    """Takes the outputs in order, and returns them nested as the function returned its own."""

    def __init__(
        self, function: Callable[..., Any], tensors: Sequence[Tensor], images_last: bool = False
    ):
        on_cpu = tensors[0].device.type == "cpu"
        if on_cpu and not any(map(shutil.which, ("g++", "clang++", "cl"))):
            raise UsageError("+compile needs a C++ compiler, and none is there; install g++")
        self.images_last = images_last
        tensors = self.laid_out(tensors)

        def flat(*tensors: Tensor) -> list[Tensor]:
            outputs = function(*tensors)
            self.nested = tree.builder(outputs)
            # An output that is an input, or the same twice, is no kernel's result.
            return [t.clone() for t in tree.leaves(outputs)]

        with torch.no_grad(), compiling():
            # The trace tells inputs apart by object: one given twice would count as one for good.
            graph = make_fx(flat, matmul.DECOMPOSITIONS)(*(t.detach() for t in tensors))
        self.constants = lift_constants(graph)
        drop_unused(graph)
        if (count := len(graph.graph.nodes)) > _MOST:
            raise UsageError(
                f"{count} operations are too many to compile at once; leave +whole out of "
                "batching, or take fewer inner steps"
            )
        keep_layout(graph)
        reshape_not_view(graph)
        write_apart(graph)
        graph.recompile()
        for node in graph.graph.nodes:
            node.meta.pop("val", None)  # shapes under a mode that the compiler would not share
        xor = torch.ops.aten.bitwise_xor.Tensor
        hashed = graph.graph.find_nodes(op="call_function", target=xor, sort=False)
        options: dict[str, Any] = dict(_HASHED) if hashed else {}
        if on_cpu:
            options |= {
                "cpp_wrapper": True,
                # Shapes are asked for before; each check costs as much as a small kernel.
                "size_asserts": False,
                "cpp_wrapper_build_separate": len(graph.graph.nodes) > _LARGE,
                "cpp.threads": torch.get_num_threads(),
            }
        self.code = _machine_code(graph, [*tensors, *self.constants], options)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """What the function returns. No gradient passes through, nor is one recorded."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self(tensors)
        return self.ready(self.laid_out(tensors))

    def ready(self, tensors: Sequence[Tensor]) -> Any:
        """The same of tensors that are laid out, where no gradient is recorded."""
        return self.nested(self.code([*tensors, *self.constants]))

    def laid_out(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The machine code takes its inputs as they stood in memory when it was made."""
        if self.images_last:
            return [channels_last(t) if t.ndim == 4 else t.contiguous() for t in tensors]
        return [t.contiguous() for t in tensors]


def _machine_code(
    graph: torch.fx.GraphModule, tensors: list[Tensor], options: dict[str, Any]
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """`graph` compiled, without the layers that torch calls it through, which would look for
    inputs that are changed and outputs that alias: a piece has neither. They cost more than a
    step of a small network. The list is emptied."""
    outer, inner = compile_fx()
    matmul.lower_product()
    made: list[Any] = []

    def compile_inner(*args: Any, **options: Any) -> Any:
        made.append(inner(*args, **options))
        return made[-1]

    # A cache of those layers would not ask for what is inside them.
    # Where gradients are recorded, it would be one of two halves that torch compiles.
    on_cpu = tensors[0].device.type == "cpu"
    kept = keeping_machine_code(_ours()) if on_cpu else nullcontext()
    cold = functorch_config().patch(enable_autograd_cache=False)
    with _quiet(), cold, torch.no_grad(), kept:
        outer(graph, tensors, inner_compile=compile_inner, config_patches=options)
    return made[0].current_callable


@functools.cache
def _ours() -> str:
    """What of ours decides machine code, and shows neither in a graph nor in torch's settings."""
    return hashlib.sha256(Path(matmul.__file__).read_bytes()).hexdigest()


def compiled(
    cache: Cache,
    key: Any,
    function: Callable[[], Callable[..., Any]],
    tensors: Sequence[Tensor],
    images_last: bool,
) -> Compiled:
    """`function()` compiled for `tensors`, or what `cache` has for `key`."""
    if (known := cache.get(key)) is not None:
        return known
    with _lock:
        if key not in cache:
            cache[key] = Compiled(function(), tensors, images_last)
    return cache[key]
