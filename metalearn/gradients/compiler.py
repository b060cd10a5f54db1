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
from metalearn.kernels import DECOMPOSITIONS, compiling

_cache: WeakKeyDictionary[Any, dict[Any, "Compiled"]] = WeakKeyDictionary()
_lock = threading.Lock()

_LARGE = 3000
"""Operations from which the calls of the kernels are compiled apart and optimised less: a C++
compiler's time grows faster than a function, to more than six minutes for that of a ViT-Tiny."""


def _check_compiler(device: torch.device) -> None:
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
    """A function of flat tensors, compiled for their shapes, and how its outputs are nested.

    Raises UsageError where nothing can be compiled.
    """

    nested: Callable[[Iterator[Any]], Any]
    """Takes the outputs in order, and returns them nested as the function returned its own."""

    def __init__(self, function: Callable[..., Any], tensors: Sequence[Tensor]):
        _check_compiler(tensors[0].device)

        def flat(*tensors: Tensor) -> list[Tensor]:
            outputs = function(*tensors)
            self.nested = tree.builder(outputs)
            # An output that is an input, or the same twice, is no kernel's result.
            return [t.clone() for t in tree.leaves(outputs)]

        with torch.no_grad(), compiling():
            # The trace tells inputs apart by object: one given twice would count as one for good.
            graph = make_fx(flat, DECOMPOSITIONS)(*(t.detach() for t in tensors))
        self.constants = _lift_constants(graph)
        _keep_layout(graph)
        _write_apart(graph)
        graph.recompile()
        for node in graph.graph.nodes:
            node.meta.pop("val", None)  # shapes under a mode that the compiler would not share
        options: dict[str, Any] = {}
        if tensors[0].device.type == "cpu":
            options = {
                "cpp_wrapper": True,
                "cpp_wrapper_build_separate": len(graph.graph.nodes) > _LARGE,
                "cpp.threads": torch.get_num_threads(),
            }
        self.code = _machine_code(graph, [*tensors, *self.constants], options)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """What the function returns. No gradient passes through, nor is one recorded."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self(tensors)
        return self.nested(iter(self.code([*tensors, *self.constants])))


def _machine_code(
    graph: torch.fx.GraphModule, tensors: list[Tensor], options: dict[str, Any]
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """`graph` compiled, without the layers that torch calls it through, which would look for
    inputs that are changed and outputs that alias: a piece has neither. They cost more than a
    step of a small network. The list is emptied."""
    import torch._functorch.config as functorch
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # takes seconds to import

    made: list[Any] = []

    def compile_inner(*args: Any, **options: Any) -> Any:
        made.append(compile_fx_inner(*args, **options))
        return made[-1]

    # A cache of those layers would not ask for what is inside them.
    # Where gradients are recorded, it would be one of two halves that torch compiles.
    with _quiet(), functorch.patch(enable_autograd_cache=False), torch.no_grad():
        compile_fx(graph, tensors, inner_compile=compile_inner, config_patches=options)
    return made[0].current_callable


def _lift_constants(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Make the tensors that the traced function held itself inputs, after its own; return them.
    What torch compiles would ask for them as inputs too, in an order of its own."""
    constants: dict[str, Tensor] = {}
    places: dict[str, torch.fx.Node] = {}
    last = graph.graph.find_nodes(op="placeholder")[-1]
    for node in graph.graph.find_nodes(op="get_attr"):
        held = getattr(graph, node.target)
        if not isinstance(held, Tensor):
            continue
        if node.target not in constants:
            constants[node.target] = held.detach()
            with graph.graph.inserting_after(last):
                last = places[node.target] = graph.graph.placeholder(f"constant_{len(places)}")
            last.meta["val"] = held
        node.replace_all_uses_with(places[node.target])
        graph.graph.erase_node(node)
    for name in constants:
        delattr(graph, name)  # or it would be asked for all the same
    return list(constants.values())


def _keep_layout(graph: torch.fx.GraphModule) -> None:
    """Say the strides of one-channel images at every convolution: inductor takes all strides of a
    dimension of size 1 for the same, and the convolution's output would not be channels-last."""
    convolution = torch.ops.aten.convolution.default
    for node in graph.graph.find_nodes(op="call_function", target=convolution):
        x = node.args[0].meta["val"]
        if x.shape[1] == 1 and x.is_contiguous(memory_format=torch.channels_last):
            with graph.graph.inserting_before(node):
                strides = list(x.shape), _strides(x)
                view = graph.graph.call_function(
                    torch.ops.aten.as_strided.default, (node.args[0], *strides)
                )
            node.replace_input_with(node.args[0], view)


_WRITES = {
    getattr(torch.ops.aten, name)
    for name in (
        *("index_add", "index_copy", "index_fill", "index_put"),
        *("select_scatter", "slice_scatter", "diagonal_scatter"),
    )
}


def _write_apart(graph: torch.fx.GraphModule) -> None:
    """Copy what is expanded before something is written into it: up to torch 2.13 inductor writes
    into the one memory of all rows (pytorch issue 183986). `vmap` expands what tasks share, so
    that every task would get the sum over tasks."""
    for node in graph.graph.nodes:
        if getattr(node.target, "overloadpacket", None) not in _WRITES:
            continue
        x = node.args[0].meta["val"]
        if any(n > 1 and step == 0 for n, step in zip(x.shape, x.stride(), strict=True)):
            with graph.graph.inserting_before(node):
                apart = graph.graph.call_function(
                    torch.ops.aten.clone.default,
                    (node.args[0],),
                    {"memory_format": torch.contiguous_format},
                )
            node.replace_input_with(node.args[0], apart)


def compiled(
    owner: Any, key: Any, function: Callable[[], Callable[..., Any]], tensors: Sequence[Tensor]
) -> Compiled:
    """`function()` compiled for `tensors`, or what was compiled for `key` of `owner` before."""
    kept = _cache.setdefault(owner, {})
    if (known := kept.get(key)) is not None:
        return known
    with _lock:
        if key not in kept:
            kept[key] = Compiled(function(), tensors)
    return kept[key]


def channels_last(t: Tensor) -> Tensor:
    """`t` `[A, B, H, W]` in memory as `[A, H, W, B]`, with those strides even where B is 1 and
    torch would take any for the same: they choose the layout of a convolution's output."""
    strides = _strides(t)
    if t.stride() == strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def _strides(t: Tensor) -> tuple[int, int, int, int]:
    _, b, h, w = t.shape
    return h * w * b, 1, w * b, b
