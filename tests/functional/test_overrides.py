"""Calls inside a module's own forward: torch's outputs, and the second derivative of a plain loop
under every transform."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn.backbones import Conv4, ResNet12, torchvision_model
from metalearn.functional import pure
from metalearn.functional.norms import BatchNorm, LayerNorm
from metalearn.functional.overrides import attention
from tests.tasks import generator, network

TASKS = 3


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Affine(nn.Module):
    """`function(x, weight, bias)` in a forward of its own."""

    def __init__(self, function, size: int):
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return self.function(x, self.weight, self.bias)


class Attends(nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.inputs, self.given = nn.Linear(4, 12), given

    def forward(self, x):
        q, k, v = self.inputs(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, **self.given)


class MultiHead(nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.attention, self.given = nn.MultiheadAttention(4, 2, batch_first=True), given

    def forward(self, x):
        return self.attention(x, x.sin(), x, **self.given)[0]


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.transpose(1, -1)).transpose(1, -1)


HIDDEN = torch.tensor([[False, False, True], [False, True, True]])
MAPS, ROWS = (2, 4, 3, 3), (2, 3, 4)
MODULES = {
    "F.layer_norm": (lambda: Affine(lambda x, w, b: F.layer_norm(x, (4,), w, b), 4), ROWS),
    "torch.layer_norm": (lambda: Affine(lambda x, w, b: torch.layer_norm(x, [4], w, b), 4), ROWS),
    "F.batch_norm": (
        lambda: Affine(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), 4),
        MAPS,
    ),
    "F.instance_norm": (
        lambda: Affine(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), 4),
        MAPS,
    ),
    "F.rms_norm": (lambda: Affine(lambda x, w, b: F.rms_norm(x, (4,), w) + b, 4), ROWS),
    "group norm": (lambda: nn.GroupNorm(2, 4), MAPS),
    "subclass": (lambda: ChannelsLast(4), MAPS),
    "hardsigmoid": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid()), ROWS),
    "attention": (Attends, ROWS),
    "attention-causal": (lambda: Attends(is_causal=True, scale=0.7), ROWS),
    "attention-masked": (lambda: Attends(attn_mask=torch.eye(3).bool()), ROWS),
    "multi-head": (MultiHead, ROWS),
    "multi-head-fused": (lambda: MultiHead(need_weights=False), ROWS),
    "multi-head-padding": (lambda: MultiHead(key_padding_mask=HIDDEN, need_weights=False), ROWS),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), ROWS),
    "decoder": (lambda: Decodes(), ROWS),
}


class Decodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(4, 2, 8, 0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x, x.cos())


# torch's own, when it first meets forward mode.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
@pytest.mark.parametrize("name", MODULES)
def test_hessian_products_under_every_transform(name, monkeypatch):
    """Weights and inputs differ by task; the reference is torch's own module, double backward."""
    build, shape = MODULES[name]
    module = network(build)
    net = pure(module)
    names = list(net.params)
    tasks = {n: net.params[n] + 0.2 * randn(TASKS, *net.params[n].shape, seed=3) for n in names}
    tasks["x"] = randn(TASKS, *shape)
    vectors = {n: randn(*t.shape, seed=5) for n, t in tasks.items()}

    def scalar(out):
        return (out.sin() * torch.linspace(0.5, 1.5, out.numel()).view(out.shape)).sum()

    def loss(inputs):
        return scalar(net.apply({n: inputs[n] for n in names}, inputs["x"]))

    def dot(a, b):
        return sum((a[n] * b[n]).sum() for n in a)

    def plain(t):
        inputs = {n: v[t].clone().requires_grad_() for n, v in tasks.items()}
        out = functional_call(module, {n: inputs[n] for n in names}, (inputs["x"],))
        first = torch.autograd.grad(scalar(out), list(inputs.values()), create_graph=True)
        slope = dot(dict(zip(inputs, first, strict=True)), {n: v[t] for n, v in vectors.items()})
        second = torch.autograd.grad(slope, list(inputs.values()), materialize_grads=True)
        return first, second, out

    with monkeypatch.context() as patch, sdpa_kernel(SDPBackend.MATH):
        patch.setattr(F, "hardsigmoid", lambda x, inplace: F.relu6(x + 3) / 6)
        first, second, out = (
            [torch.stack(parts) for parts in zip(*of_tasks, strict=True)]
            if isinstance(of_tasks[0], tuple)
            else torch.stack(of_tasks)
            for of_tasks in zip(*(plain(t) for t in range(TASKS)), strict=True)
        )

    def close(got, want):
        torch.testing.assert_close(got, dict(zip(tasks, want, strict=True)), rtol=1e-9, atol=1e-10)

    got = vmap(lambda inputs: net.apply({n: inputs[n] for n in names}, inputs["x"]))(tasks)
    torch.testing.assert_close(got, out, rtol=1e-10, atol=1e-12)
    close(vmap(grad(loss))(tasks), first)
    close(vmap(lambda i, v: grad(lambda i: dot(grad(loss)(i), v))(i))(tasks, vectors), second)
    close(grad(lambda i: dot(vmap(grad(loss))(i), vectors))(tasks), second)
    close(grad(lambda i: dot(grad(lambda i: vmap(loss)(i).sum())(i), vectors))(tasks), second)
    close(jvp(vmap(grad(loss)), (tasks,), (vectors,))[1], second)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.tensor([[True, False, False], [False, False, False]])},
        {"attn_mask": torch.tensor([[0.5, -torch.inf, 1.0], [-torch.inf] * 3])},
        {"enable_gqa": True},
    ],
)
def test_attention_equals_torchs(given):
    q = randn(2, 4, 2, 6)
    heads = 2 if "enable_gqa" in given else 4
    k, v = randn(2, heads, 3, 6, seed=1), randn(2, heads, 3, 5, seed=2)
    want = F.scaled_dot_product_attention(q, k, v, **given)
    torch.testing.assert_close(attention(q, k, v, **given), want, rtol=1e-12, atol=1e-14)


def test_a_row_without_any_key_has_finite_second_derivatives():
    q, mask = randn(2, 6), torch.tensor([[True, False, True], [False, False, False]])
    k = v = randn(3, 6, seed=1)
    second = grad(lambda q: grad(lambda q: attention(q, k, v, mask).sin().sum())(q).square().sum())
    assert second(q).isfinite().all()
    assert second(q)[0].abs().max() > 1e-4


def test_running_averages_of_a_function_stay():
    class Tracks(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x):
            return F.batch_norm(x, self.mean, self.var, training=self.training)

    x = 3 + randn(5, 4)
    net = pure(Tracks().double())
    for module, want in ((net, F.batch_norm(x, None, None, training=True)), (net, None)):
        if want is not None:
            torch.testing.assert_close(module.apply(net.buffers, x), want)
            continue
        with net.evaluating():
            torch.testing.assert_close(net.apply(net.buffers, x), x / (1 + 1e-5) ** 0.5)
    assert (net.buffers["mean"] == 0).all()


def test_padding_is_left_out_of_a_function_too():
    net = pure(network(lambda: Affine(MODULES["F.batch_norm"][0]().function, 4)))
    x, weight = randn(5, 4), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(
        net.apply(net.params, x, weight)[:3], net.apply(net.params, x[:3]), rtol=1e-12, atol=1e-13
    )


def test_weight_standardisation_is_not_a_batch():
    """timm's StdConv2d hands its kernel to F.batch_norm, as one example."""
    conv = network(lambda: StdConv2d(3, 4, 3))
    x, weight = randn(3, 3, 5, 5), torch.tensor([1.0, 1.0, 0.0])
    net = pure(conv)
    real = net.apply(net.params, x, weight)[:2]  # padding reaches it as a copy of another
    torch.testing.assert_close(real, conv(x)[:2], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "build, on",
    [
        (lambda: Conv4(5), False),
        (lambda: ResNet12(5, size=32, widths=(4, 4, 4, 4)), False),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.GELU()), False),
        (lambda: ResNet12(5, size=32, widths=(4, 4, 4, 4), drop_rate=0.1), True),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout()), True),
        (lambda: nn.TransformerEncoderLayer(4, 2), True),
        (lambda: Affine(F.layer_norm, 4), True),
        (lambda: torchvision_model("resnet18", size=32), True),
    ],
)
def test_small_known_networks_go_without(build, on):
    assert pure(build()).exact == on


@pytest.mark.parametrize("name", ["F.layer_norm", "encoder", "multi-head-fused"])
def test_it_can_be_traced(name):
    """By make_fx inside torch.func.grad, and the graph computes what the module does."""
    build, shape = MODULES[name]
    net = pure(network(build))

    def slope(params, x):
        def loss(params):
            return net.apply(params, x).sin().sum()

        return grad(lambda p: sum(g.square().sum() for g in grad(loss)(p).values()))(params)

    x, other = randn(*shape), randn(*shape, seed=1)
    graph = make_fx(slope)(net.params, x)
    moved = {n: p + 0.1 for n, p in net.params.items()}
    torch.testing.assert_close(graph(moved, other), slope(moved, other), rtol=1e-10, atol=1e-12)
    called = {str(node.target) for node in graph.graph.nodes}
    assert not {c for c in called if "native_layer_norm" in c or "flash" in c}


def test_the_module_replacements_agree_with_the_functions():
    """One definition: a norm of torch's and the function it calls are the same numbers."""
    for norm, shape in ((nn.LayerNorm(4), ROWS), (nn.BatchNorm2d(4), MAPS)):
        net = pure(network(lambda norm=norm: norm))
        assert isinstance(net.module, BatchNorm | LayerNorm)
        x = randn(*shape)
        function = (
            (lambda x, w, b: F.layer_norm(x, (4,), w, b))
            if shape == ROWS
            else (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True))
        )
        through = pure(Affine(function, 4).double())
        got, want = through.apply(net.params, x), net.apply(net.params, x)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        off = dataclasses.replace(through, exact=False)
        torch.testing.assert_close(off.apply(net.params, x), want, rtol=1e-12, atol=1e-13)
