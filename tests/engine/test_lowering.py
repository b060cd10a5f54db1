"""The rewritten operations equal torch's in value, gradient and second derivative."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, jvp, vmap

from metalearn.engine.lowering import by_im2col, compiling, im2col_conv2d, max_pool_2x2
from tests.tasks import generator

# torch's own formulas for forward mode use what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def orders(f, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """f, its gradient, and reverse-over-reverse and forward-over-reverse second derivatives, all
    against random weights."""
    value = f(*inputs)
    out = random(*value.shape, seed=1)
    along = tuple(random(*t.shape, seed=2 + i) for i, t in enumerate(inputs))
    places = tuple(range(len(inputs)))

    def weighed(*inputs):
        return (f(*inputs) * out).sin().sum()

    def slope(*inputs):
        grads = grad(weighed, argnums=places)(*inputs)
        return sum((g * v).sum() for g, v in zip(grads, along, strict=True))

    first = grad(weighed, argnums=places)(*inputs)
    second = grad(slope, argnums=places)(*inputs)
    _, forward = jvp(grad(weighed, argnums=places), inputs, along)
    return [value, *first, *second, *forward]


def same(got, want, rtol=1e-10):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-11)


SIZES = [(2, 3, 8, 8), (2, 3, 7, 9), (1, 1, 2, 2), (2, 2, 3, 2), (3, 8, 6)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_max_pool(size):
    same(orders(max_pool_2x2, random(*size)), orders(lambda x: F.max_pool2d(x, 2), random(*size)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_max_pool_between_equal_values(size):
    """After a ReLU most windows hold several zeros: the gradient goes where torch's goes."""
    few = random(*size).mul(1.5).round()
    same(orders(max_pool_2x2, few), orders(lambda x: F.max_pool2d(x, 2), few))
    same(orders(max_pool_2x2, few.relu()), orders(lambda x: F.max_pool2d(x, 2), few.relu()))
    flat = torch.ones(size, dtype=torch.float64)
    same(orders(max_pool_2x2, flat), orders(lambda x: F.max_pool2d(x, 2), flat))


def test_max_pool_in_other_layouts_and_of_infinities():
    x = random(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    same([max_pool_2x2(x)], [F.max_pool2d(x, 2)])
    x[0, 0, :3] = -torch.inf
    x[0, 1, 2] = torch.inf
    same([max_pool_2x2(x)], [F.max_pool2d(x, 2)])


POOLS = {
    "two": ({"kernel_size": 2}, True),
    "pair": ({"kernel_size": (2, 2), "stride": [2]}, True),
    "stride-1": ({"kernel_size": 2, "stride": 1}, False),
    "three": ({"kernel_size": 3}, False),
    "oblong": ({"kernel_size": (2, 3)}, False),
    "padded": ({"kernel_size": 2, "padding": 1}, False),
    "dilated": ({"kernel_size": 2, "stride": 2, "dilation": 2}, False),
    "ceiling": ({"kernel_size": 2, "ceil_mode": True}, False),
    "indices": ({"kernel_size": 2, "return_indices": True}, False),
}


@pytest.mark.parametrize("case", POOLS)
def test_only_pooling_by_two_is_replaced_when_compiling(case, monkeypatch):
    options, replaced = POOLS[case]
    calls = []
    monkeypatch.setattr(
        "metalearn.engine.lowering.max_pool_2x2", lambda x: calls.append(x) or max_pool_2x2(x)
    )
    x = random(2, 3, 7, 7)
    for pool in (lambda x: F.max_pool2d(x, **options), nn.MaxPool2d(**options)):
        calls.clear()
        want = pool(x)
        assert not calls
        with compiling():
            got = pool(x)
        assert len(calls) == replaced
        same(got, want) if isinstance(got, tuple) else same([got], [want])


CONVOLUTIONS = {
    "plain": {},
    "padding": {"padding": 1},
    "stride": {"stride": 2, "padding": 1},
    "oblong": {"stride": (2, 1), "padding": (0, 2)},
    "dilation": {"dilation": 2, "padding": (2, 1)},
    "list": {"stride": [3], "padding": [1], "dilation": [1, 2]},
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case, size, kernel, bias):
    options = CONVOLUTIONS[case]
    inputs = [random(2, 3, *size), random(4, 3, *kernel, seed=5)]
    if bias:
        inputs.append(random(4, seed=6))
    got = orders(lambda *t: im2col_conv2d(*t, **options), *inputs)
    same(got, orders(lambda *t: F.conv2d(*t, **options), *inputs))


def test_convolution_with_weights_of_each_task():
    tasks = random(3, 2, 2, 6, 6), random(3, 4, 2, 3, 3, seed=5), random(3, 4, seed=6)

    def second(f, *inputs):
        """The gradient of its gradient's squared length."""

        def length(*inputs):
            grads = grad(lambda *t: f(*t, padding=1).sin().sum(), argnums=(0, 1, 2))(*inputs)
            return sum(g.square().sum() for g in grads)

        return grad(length, argnums=(0, 1, 2))(*inputs)

    want = [second(F.conv2d, *(t[i] for t in tasks)) for i in range(3)]
    got = vmap(lambda *t: second(im2col_conv2d, *t))(*tasks)
    same(got, [torch.stack(parts) for parts in zip(*want, strict=True)])


@pytest.mark.parametrize(
    "options, replaced",
    [({}, True), ({"stride": 2}, True), ({"groups": 3}, False), ({"padding": "same"}, False)],
    ids=str,
)
def test_only_plain_convolutions_are_replaced(options, replaced, monkeypatch):
    calls = []

    def watched(*args):
        calls.append(args)
        return im2col_conv2d(*args)

    monkeypatch.setattr("metalearn.engine.lowering.im2col_conv2d", watched)
    layer = nn.Conv2d(3, 6, 3, **options).double()
    x = random(2, 3, 7, 7)
    want = layer(x)
    assert not calls
    with by_im2col():
        got = layer(x)
    assert len(calls) == replaced
    same([got], [want])
