"""What is changed in the graph of a piece between its trace and the compiler."""

import operator

import torch
from torch import Tensor

from metalearn.engine.lowering import channels_last_strides

_aten = torch.ops.aten


def lift_constants(graph: torch.fx.GraphModule) -> list[Tensor]:
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


def drop_unused(graph: torch.fx.GraphModule) -> None:
    """Leave out what no output needs. A convolution's backward pass is one operation with several
    results, and would compute them all: the gradient for the weights, in a Hessian-vector product
    that only goes through it."""
    graph.graph.eliminate_dead_code()
    backward = _aten.convolution_backward.default
    for node in graph.graph.find_nodes(op="call_function", target=backward):
        taken = {user.args[1] for user in node.users if user.target is operator.getitem}
        *others, mask = node.args
        node.args = (*others, [asked and i in taken for i, asked in enumerate(mask)])


def keep_layout(graph: torch.fx.GraphModule) -> None:
    """Say the strides of one-channel images at every convolution: inductor takes all strides of a
    dimension of size 1 for the same, and the convolution's output would not be channels-last."""
    convolution = _aten.convolution.default
    for node in graph.graph.find_nodes(op="call_function", target=convolution):
        x = node.args[0].meta["val"]
        if x.shape[1] == 1 and x.is_contiguous(memory_format=torch.channels_last):
            with graph.graph.inserting_before(node):
                strides = list(x.shape), channels_last_strides(x)
                view = graph.graph.call_function(_aten.as_strided.default, (node.args[0], *strides))
            node.replace_input_with(node.args[0], view)


def reshape_not_view(graph: torch.fx.GraphModule) -> None:
    """Let what was a view at the trace be a copy: inductor may lay images out with their channels
    last, and then no view of them is flat."""
    for node in graph.graph.find_nodes(op="call_function", target=_aten.view.default):
        node.target = _aten.reshape.default


_INDEXED = ("index_add", "index_copy", "index_fill", "index_put")
_SCATTERED = ("select_scatter", "slice_scatter", "diagonal_scatter")
_WRITES = {getattr(_aten, name) for name in (*_INDEXED, *_SCATTERED)}


def write_apart(graph: torch.fx.GraphModule) -> None:
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
                    _aten.clone.default, (node.args[0],), {"memory_format": torch.contiguous_format}
                )
            node.replace_input_with(node.args[0], apart)
