"""Any `nn.Module` as a pure function of its weights that can be differentiated twice.

`pure(module)` copies the module and replaces batch, instance and layer norm by versions
written with mean and rsqrt. The fused kernels behind `F.batch_norm` and `F.layer_norm` save
their statistics without history, so that a gradient of a gradient under `torch.func.vmap` is
silently wrong through them (functorch issue 534; in float64 the meta-gradient of a Conv-4 is
off by 1e-3). The versions here have the same parameters, buffers and outputs.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.errors import UsageError
from metalearn.types import Params

Statistics = Literal["transductive", "support", "running"]


class _Call(NamedTuple):
    """What one forward pass tells the norm layers inside it, beside the weights."""

    weight: Tensor | None = None
    record: dict[nn.Module, tuple[Tensor, Tensor]] | None = None


_PLAIN = _Call()
# A context variable and not an attribute: one module may run in several threads.
_call: ContextVar[_Call] = ContextVar("metalearn_forward", default=_PLAIN)


@contextmanager
def _calling(call: _Call) -> Iterator[None]:
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


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
    def like(cls, norm: nn.modules.batchnorm._BatchNorm) -> "BatchNorm":
        """The same layer with the same tensors: running averages in eval mode, else the batch's."""
        running = not norm.training and norm.running_mean is not None
        momentum = 0.1 if norm.momentum is None else norm.momentum
        new = cls(
            norm.num_features,
            "running" if running else "transductive",
            norm.eps,
            momentum,
            affine=norm.affine,
        )
        new.weight, new.bias = norm.weight, norm.bias
        if running:
            new.running_mean, new.running_var = norm.running_mean, norm.running_var
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
        elif self.statistics == "support" and self.support_mean is not None:
            mean, var = self.support_mean, self.support_var
        else:
            mean, var = _moments(x, dims, call.weight)
            if call.record is not None:
                call.record[self] = mean, var
        return _affine(x, mean, var, self.eps, self.weight, self.bias, shape)

    @staticmethod
    def _running_moments(x: Tensor, dims: tuple[int, ...], weight: Tensor | None):
        """Mean and unbiased variance, which is what torch's running averages are made of."""
        mean, var = _moments(x, dims, weight)
        examples = x.new_tensor(len(x)) if weight is None else weight.sum()
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
        mean, var = _moments(x, tuple(range(-len(self.shape), 0)), None)
        return _affine(x, mean, var, self.eps, self.weight, self.bias, self.shape)


class InstanceNorm(nn.Module):
    """Instance norm over the positions of `[B, C, *]`, exact in every order."""

    def __init__(self, norm: nn.modules.instancenorm._InstanceNorm):
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *]` to the same shape."""
        mean, var = _moments(x, tuple(range(2, x.ndim)), None)
        shape = (1, -1, *[1] * (x.ndim - 2))
        return _affine(x, mean, var, self.eps, self.weight, self.bias, shape)


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
    # A subclass with a forward of its own may do more than normalise: it stays as it is.
    if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
        raise UsageError(
            f"{type(module).__name__} changes its running averages in forward; "
            "call eval() on it or use metalearn.functional.BatchNorm"
        )
    return None


def _replace_norms(module: nn.Module) -> nn.Module:
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


@dataclass(frozen=True, eq=False)
class PureModule:
    """A module without state: `apply(weights, x)`.

    module: the private copy that carries the structure.
    params: its trainable starting weights, detached; parameters with `requires_grad=False`
        are frozen and counted with the buffers.
    buffers: everything else that a forward pass reads. No gradient reaches them.
    places: for each name, all the places in the module that hold the tensor (tied weights).
    """

    module: nn.Module
    params: Params
    buffers: Params
    places: dict[str, tuple[str, ...]]

    def _forward(self, weights: Params, x: Tensor) -> Tensor:
        # Not functional_call's own tie_weights: where one layer stands at two places of the
        # module, it leaves the layer with the weights of the call (pytorch 164759).
        placed = {
            place: t for name, t in weights.items() for place in self.places.get(name, (name,))
        }
        return functional_call(self.module, placed, (x,), tie_weights=False)

    def apply(self, weights: Params, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The module's output for `x` `[B, *X]` under `weights` (parameters, buffers, support
        statistics; a name left out keeps its starting value). `weight` `[B]` marks padding."""
        with _calling(_Call(weight)):
            return self._forward(weights, x)

    def _record(self, weights: Params, x: Tensor, weight: Tensor | None):
        record: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        with _calling(_Call(weight, record)):
            self._forward(weights, x)
        return {n: (m, record[m]) for n, m in self.module.named_modules() if m in record}

    def support_statistics(
        self, weights: Params, x: Tensor, weight: Tensor | None = None
    ) -> Params:
        """What `apply` needs to treat queries by the statistics of the support set `x`.

        Empty, and free, unless a norm layer has `statistics="support"`.
        """
        if all(getattr(m, "statistics", "") != "support" for m in self.module.modules()):
            return {}
        known = ("support_mean", "support_var")
        weights = {n: t for n, t in weights.items() if n.rpartition(".")[2] not in known}
        found = self._record(weights, x, weight)
        prefix = {name: f"{name}." if name else "" for name in found}
        return {
            f"{prefix[name]}support_{kind}": value
            for name, (norm, moments) in found.items()
            if norm.statistics == "support"
            for kind, value in zip(("mean", "var"), moments, strict=True)
        }

    @torch.no_grad()
    def track(self, weights: Params, buffers: Params, x: Tensor) -> Params:
        """`buffers` after the running averages took one step of their momentum towards the
        statistics of `x` `[B, *X]` under `weights`. Unchanged without such norm layers."""
        if all(getattr(m, "statistics", "") != "running" for m in self.module.modules()):
            return buffers
        moved = dict(buffers)
        for name, (norm, moments) in self._record({**buffers, **weights}, x, None).items():
            for kind, value in zip(("mean", "var"), moments, strict=True):
                key = f"{name}.running_{kind}" if name else f"running_{kind}"
                if key in moved:
                    moved[key] = torch.lerp(moved[key], value.flatten(), norm.momentum)
        return moved


def _places(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every place of a parameter or buffer, under the name that `named_parameters` gives it."""
    places: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None:
                places.setdefault(id(tensor), []).append(f"{path}.{key}" if path else key)
    return {names[0]: tuple(names) for names in places.values()}


def pure(module: nn.Module) -> PureModule:
    """Make `module` pure; the module itself is neither changed nor referred to afterwards.

    Tied weights stay tied. Modules in eval mode normalise by their running averages, those in
    train mode by the statistics of the batch.
    """
    module = _replace_norms(copy.deepcopy(module))
    params = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    buffers = {n: b.detach() for n, b in module.named_buffers() if b is not None}
    return PureModule(module, params, {**frozen, **buffers}, _places(module))
