"""Norm layers whose second order is exact, and a network whose norms are these."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from metalearn.functional.norm_functions import (
    current_call,
    instance_norm,
    layer_norm,
    moments,
    normalise,
    normalised_by_batch,
    running_moments,
)
from metalearn.functional.torch_private import BatchNormBase, InstanceNormBase, NormBase, children

Statistics = Literal["transductive", "support", "running"]


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
    support_mean: Tensor | None
    support_var: Tensor | None

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
    def like(cls, norm: NormBase) -> "BatchNorm":
        """The same layer with the same tensors. In eval mode its running averages are frozen; in
        train mode it normalises by the batch's."""
        mean, var = (None, None) if norm.training else (norm.running_mean, norm.running_var)
        statistics = "transductive" if mean is None else "running"
        new = cls(norm.num_features, statistics, norm.eps, momentum=0.0, affine=norm.affine)
        new.weight, new.bias = norm.weight, norm.bias
        if mean is not None and var is not None:
            new.running_mean, new.running_var = mean, var
        return new

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *]` to the same shape."""
        call = current_call()
        dims = (0, *range(2, x.ndim))
        shape = (1, -1, *[1] * (x.ndim - 2))
        if self.statistics == "running":
            mean = self.running_mean.detach().view(shape)
            var = self.running_var.detach().view(shape)
            if call.record is not None:
                call.record[self] = running_moments(x.detach(), call.weight)
        else:
            of_support = self.statistics == "support"
            mean, var = (self.support_mean, self.support_var) if of_support else (None, None)
            if mean is None and call.record is None:
                return normalised_by_batch(x, self.weight, self.bias, self.eps, call.weight)
            if mean is None or var is None:
                mean, var = moments(x, dims, call.weight)
            if call.record is not None:
                call.record[self] = mean, var
        return normalise(x, mean, var, self.eps, self.weight, self.bias, shape)


def follow_support(norm: NormBase) -> None:
    """Let the running averages of a layer in eval mode, which has a forward of its own (timm's
    batch norm with the activation inside), move after each meta-step, as those of `BatchNorm`."""
    norm.statistics = "running"  # type: ignore[assignment]


def statistics_of(part: nn.Module) -> Statistics | None:
    """Whose moments a batch norm uses, where it or `follow_support` says so."""
    return getattr(part, "statistics", None) if isinstance(part, BatchNorm | NormBase) else None


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

    def __init__(self, norm: InstanceNormBase):
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *]` to the same shape."""
        return instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps)


def _replacement(module: nn.Module) -> nn.Module | None:
    forward = type(module).forward
    if forward in (BatchNormBase.forward, nn.SyncBatchNorm.forward):
        return BatchNorm.like(cast(BatchNormBase, module))
    if forward is InstanceNormBase.forward:
        norm = cast(InstanceNormBase, module)
        running = not norm.training and norm.running_mean is not None
        return BatchNorm.like(norm) if running else InstanceNorm(norm)
    if forward is nn.LayerNorm.forward:
        return LayerNorm(cast(nn.LayerNorm, module))
    # A subclass with a forward of its own may do more than normalise: it stays as it is, and
    # `overrides.Exact` takes the call of `F.batch_norm` inside.
    if isinstance(module, BatchNormBase) and module.training and module.track_running_stats:
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
                for name, child in children(module).items():
                    if child is not None:
                        module.add_module(name, replaced(child))
        return done[module]

    return replaced(module)
