"""What cannot be differentiated twice is named, and nothing else is."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from metalearn.backbones import Conv4, timm_model, torchvision_model
from metalearn.errors import UsageError
from metalearn.functional import pure
from metalearn.functional.double_backward import check_twice_differentiable
from tests.tasks import generator, network


class Cube(torch.autograd.Function):
    """x^3 with a backward pass that counts as a constant."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2


class OldCube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x


class Last(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.rnn = kind(4, 4, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def around(layer: nn.Module):
    """`layer` at the place `1.1`, between two linear ones."""
    inner = nn.Sequential(nn.Tanh(), layer)
    return pure(nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 2)).double())


def sequences() -> torch.Tensor:
    return torch.rand(3, 3, 4, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize(
    "layer, line",
    [
        (Calls(Cube.apply), r"^1.1 \(Calls\) cannot be differentiated twice: trying to.*first_o"),
        (Calls(OldCube.apply), r"^1.1 \(Calls\) cannot be differentiated by torch.func: In order"),
        (
            Calls(torch._C._nn.hardsigmoid),
            r"^1.1 \(Calls\) .* twice: derivative for aten::hardsigmoid_backward is not impl",
        ),
        (Counts(), r"^1.1 \(Counts\) changes seen in its forward"),
        (torch.ao.nn.quantized.FloatFunctional(), r"^1.1 \(FloatFunctional\) is quantised"),
        (Calls(torch.Tensor.detach), None),
        (nn.Hardsigmoid(), None),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), None),
        (nn.Dropout(), None),
        (Last(nn.LSTM), None),
    ],
)
def test_the_layer_is_named(layer, line):
    net = around(layer)
    if line is None:
        check_twice_differentiable(net, sequences())
        return
    with pytest.raises(UsageError, match=line):
        check_twice_differentiable(net, sequences())


def test_a_head_at_zero_has_a_gradient_and_hides_no_layer_below_it():
    def ending_at_zero(*below):
        head = nn.Linear(4, 3)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return pure(nn.Sequential(nn.Linear(4, 4), *below, head).double())

    x = torch.randn(3, 4, generator=generator(0), dtype=torch.float64)
    check_twice_differentiable(ending_at_zero(nn.Tanh()), x)
    with pytest.raises(UsageError, match="cannot be differentiated"):
        check_twice_differentiable(ending_at_zero(Calls(Cube.apply)), x)


def test_no_gradient_at_all():
    net = pure(nn.Sequential(nn.Linear(4, 4), Calls(torch.Tensor.detach)).double())
    with pytest.raises(UsageError, match="^Sequential: no gradient reaches its weights"):
        check_twice_differentiable(net, sequences())


def test_an_error_of_the_forward_pass_is_its_own():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        check_twice_differentiable(around(nn.Linear(3, 4)), sequences())


def test_once_differentiable_is_silently_a_constant_to_torch_func():
    """Why the check does not use torch.func for the second order. 12 would be right."""
    assert torch.func.grad(torch.func.grad(Cube.apply))(torch.tensor(2.0)) == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: Conv4(3, 3, 4, 32),
        lambda: torchvision_model("resnet18", 3, size=32),
        lambda: torchvision_model("mobilenet_v3_small", 3, size=32),
        lambda: timm_model("convnext_atto", 3, size=32),
        lambda: timm_model("vit_tiny_patch16_224", 3, size=32, options={"depth": 2}),
    ],
)
def test_real_networks_pass(build):
    net = pure(network(build, dtype=torch.float32))
    before = {n: t.clone() for n, t in {**net.params, **net.buffers}.items()}
    x = torch.rand(2, 3, 32, 32, generator=generator())
    check_twice_differentiable(net, x, batched=True)
    torch.testing.assert_close({**net.params, **net.buffers}, before, rtol=0, atol=0)
    assert not any(t.requires_grad or t.grad is not None for t in net.params.values())
