"""Batch, layer, instance and RMS norm whose second order is exact under every transform.

The fused kernels behind `F.batch_norm` and `F.layer_norm` save their statistics without
history, so that a gradient of a gradient under `torch.func.vmap` is silently wrong through
them (functorch issue 534; in float64 the meta-gradient of a Conv-4 is off by 1e-3). The
versions here are written with mean and rsqrt, and have the same parameters, buffers and outputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.functional import conv_batch_norm as stem

Statistics = Literal["transductive", "support", "running"]


class Call(NamedTuple):
    """What one forward pass tells the norm layers inside it, beside the weights.

    weight: of the examples, `[B]`; 0 is padding. record: where the layers put their moments.
    """

    weight: Tensor | None = None
    record: dict[nn.Module, tuple[Tensor, Tensor]] | None = None


_PLAIN = Call()
# Not an argument: a forward pass hands nothing on to the layers inside a user's module.
_call: ContextVar[Call] = ContextVar("metalearn_forward", default=_PLAIN)


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """Let the norm layers see `call` during one forward pass."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


_fused: ContextVar[bool] = ContextVar("metalearn_fused", default=False)


@contextmanager
def fused_norms() -> Iterator[None]:
    """Let batch and layer norm use torch's fused kernels, which are faster, and exact in every
    order as long as no `vmap` stands around the forward pass."""
    token = _fused.set(True)
    try:
        yield
    finally:
        _fused.reset(token)


def _moments(x: Tensor, dims: tuple[int, ...], weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of `x` over `dims` (kept), example b counting `weight[b]` times."""
    if weight is None:
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        return mean, var
    weight = weight.to(x.dtype)
    share = (weight / weight.sum()).view(-1, *[1] * (x.ndim - 1))
    others = tuple(d for d in dims if d != 0)

    def average(t: Tensor) -> Tensor:
        t = (t * share).sum(0, keepdim=True)
        return t.mean(others, keepdim=True) if others else t

    mean = average(x)
    return mean, average((x - mean).square())


def _affine(x: Tensor, mean: Tensor, var: Tensor, eps: float, weight, bias, shape) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, as one multiplication and one addition."""
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight.view(shape)
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.view(shape)
    return x * scale + shift


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`torch.batch_norm` of `[B, C, *]`, which leaves running averages as they are."""
    shape = (1, -1, *[1] * (input.ndim - 2))
    if training or running_mean is None or running_var is None:
        padding = _call.get().weight
        # One row is not a batch of examples: weight standardisation passes a kernel this way.
        weighted = padding is not None and len(input) > 1
        return _batch_norm(input, weight, bias, eps, padding if weighted else None)
    mean, var = running_mean.detach().view(shape), running_var.detach().view(shape)
    return _affine(input, mean, var, eps, weight, bias, shape)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, padding: Tensor | None
) -> Tensor:
    """`x` normalised by its own statistics, example b counting `padding[b]` times."""
    if padding is None and (made := stem.seen(x)):
        return stem.normalised(made, weight, bias, eps)
    # The kernel refuses one value a channel, whose variance is 0.
    if _fused.get() and padding is None and x.numel() > x.shape[1]:
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    mean, var = _moments(x, (0, *range(2, x.ndim)), padding)
    return _affine(x, mean, var, eps, weight, bias, (1, -1, *[1] * (x.ndim - 2)))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """`torch.layer_norm`, over the last `len(normalized_shape)` dimensions."""
    if _fused.get():
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    mean, var = _moments(input, tuple(range(-len(normalized_shape), 0)), None)
    return _affine(input, mean, var, eps, weight, bias, normalized_shape)


def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`torch.instance_norm` over the positions of `[B, C, *]`."""
    if not use_input_stats:
        return batch_norm(
            input, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled
        )
    mean, var = _moments(input, tuple(range(2, input.ndim)), None)
    return _affine(input, mean, var, eps, weight, bias, (1, -1, *[1] * (input.ndim - 2)))


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`torch.rms_norm`, over the last `len(normalized_shape)` dimensions."""
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    square = input.square().mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)
    normal = input * torch.rsqrt(square + eps)
    return normal if weight is None else normal * weight


class BatchNorm(nn.Module):
    """Batch norm over `[B, C, *]` whose second order is exact in every transform.

    statistics: whose mean and variance normalise.
        "transductive": those of the batch at hand, support or query (MAML's own protocol:
        the queries of an episode see one another).
        "support": those of the support set, for the queries too.
        "running": the running averages in `running_mean` and `running_var`, constants of both
        loops; the outer loop moves them after each meta-step (`PureModule.track`).
    Padding (an example weight of 0) is left out of every mean and variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        features: int,
        statistics: Statistics = "transductive",
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ):
        super().__init__()
        self.statistics, self.eps, self.momentum = statistics, eps, momentum
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None
        if statistics == "running":
            self.register_buffer("running_mean", torch.zeros(features))
            self.register_buffer("running_var", torch.ones(features))
        if statistics == "support":
            self.register_buffer("support_mean", None)
            self.register_buffer("support_var", None)

    @classmethod
    def like(cls, norm: nn.modules.batchnorm._NormBase) -> "BatchNorm":
        """The same layer with the same tensors. In eval mode its running averages are frozen; in
        train mode it normalises by the batch's."""
        running = not norm.training and norm.running_mean is not None
        statistics = "running" if running else "transductive"
        new = cls(norm.num_features, statistics, norm.eps, momentum=0.0, affine=norm.affine)
        new.weight, new.bias = norm.weight, norm.bias
        if running:
            new._buffers.update(running_mean=norm.running_mean, running_var=norm.running_var)
        return new

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *]` to the same shape."""
        call = _call.get()
        dims = (0, *range(2, x.ndim))
        shape = (1, -1, *[1] * (x.ndim - 2))
        if self.statistics == "running":
            mean = self.running_mean.detach().view(shape)
            var = self.running_var.detach().view(shape)
            if call.record is not None:
                call.record[self] = self._running_moments(x.detach(), dims, call.weight)
        else:
            mean, var = self._buffers.get("support_mean"), self._buffers.get("support_var")
            if mean is None and call.record is None:
                return _batch_norm(x, self.weight, self.bias, self.eps, call.weight)
            if mean is None or var is None:
                mean, var = _moments(x, dims, call.weight)
            if call.record is not None:
                call.record[self] = mean, var
        return _affine(x, mean, var, self.eps, self.weight, self.bias, shape)

    @staticmethod
    def _running_moments(x: Tensor, dims: tuple[int, ...], weight: Tensor | None):
        """Mean and unbiased variance, which is what torch's running averages are made of."""
        mean, var = _moments(x, dims, weight)
        examples = x.new_full((), len(x)) if weight is None else weight.sum()
        count = examples * x[0, 0].numel()
        return mean, var * (count / (count - 1).clamp(min=1))


class LayerNorm(nn.Module):
    """Layer norm over the last `len(shape)` dimensions, exact in every order."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., *shape]` to the same shape."""
        return layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class InstanceNorm(nn.Module):
    """Instance norm over the positions of `[B, C, *]`, exact in every order."""

    def __init__(self, norm: nn.modules.instancenorm._InstanceNorm):
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *]` to the same shape."""
        return instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps)


_BatchNorm = nn.modules.batchnorm._BatchNorm
_InstanceNorm = nn.modules.instancenorm._InstanceNorm


def _replacement(module: nn.Module) -> nn.Module | None:
    forward = type(module).forward
    if forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return BatchNorm.like(cast(_BatchNorm, module))
    if forward is _InstanceNorm.forward:
        norm = cast(_InstanceNorm, module)
        running = not norm.training and norm.running_mean is not None
        return BatchNorm.like(norm) if running else InstanceNorm(norm)
    if forward is nn.LayerNorm.forward:
        return LayerNorm(cast(nn.LayerNorm, module))
    # A subclass with a forward of its own may do more than normalise: it stays as it is, and
    # `exact.Exact` takes the call of `F.batch_norm` inside.
    if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
        module.track_running_stats = False
        module.running_mean = module.running_var = module.num_batches_tracked = None
    return None


def replace_norms(module: nn.Module) -> nn.Module:
    """`module`, changed in place, with every norm layer of torch's replaced by one of these."""
    done: dict[nn.Module, nn.Module] = {}

    def replaced(module: nn.Module) -> nn.Module:
        if module not in done:
            done[module] = _replacement(module) or module
            if done[module] is module:
                # Not named_children(), which leaves out a layer's second place.
                for name, child in module._modules.items():
                    if child is not None:
                        module.add_module(name, replaced(child))
        return done[module]

    return replaced(module)
