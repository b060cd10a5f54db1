"""What is changed in a traced graph before it is compiled."""

import operator

import torch
import torch.nn.functional as F
from torch.func import grad, vjp
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.engine.fx_passes import drop_unused
from tests.tasks import generator


def test_a_hessian_vector_product_computes_no_gradient_of_weights_that_nobody_asks_for():
    draw = generator(0)
    x, first, second, direction = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (5, 4, 3, 3), (4, 3, 3, 3))
    )

    def product(first, second, direction):
        def loss(first):
            return F.conv2d(F.conv2d(x, first).tanh(), second).square().sum()

        return vjp(grad(loss), first)[1](direction)[0]

    graph = make_fx(product)(first, second, direction)
    want = graph(first, second, direction)
    drop_unused(graph)
    graph.recompile()
    torch.testing.assert_close(graph(first, second, direction), want)
    backward = graph.graph.find_nodes(
        op="call_function", target=torch.ops.aten.convolution_backward.default
    )
    assert backward
    for node in backward:
        taken = {user.args[1] for user in node.users if user.target is operator.getitem}
        assert {i for i, computed in enumerate(node.args[-1]) if computed} == taken
