"""A supervised step on a batch that ranks share: each takes its own images, and all sum.

d L = sum over ranks r of  (B_r / B) * d L_r        L_r the mean over the B_r images of rank r
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metalearn.engine.ranks import Ranks
from metalearn.errors import RankLost


class TogetherNormed(TorchFunctionMode):
    """While it is entered, `F.batch_norm` in train mode normalises by the moments of all ranks'
    examples, so that a network trains the same on any number of them (Ioffe, Szegedy 2015, over
    the whole batch). torch's own `SyncBatchNorm` is for GPUs alone."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, or batch norm over all ranks in its place."""
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            rest = weight, bias, training, momentum, eps
            return F.batch_norm(input, running_mean, running_var, *rest)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        channels = x.shape[1]
        var, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
        count = x.new_full((1,), x.numel() / channels)
        every = _Everyone.apply(torch.cat([mean, var, count]), self.ranks)
        means, variances, counts = every.split([channels, channels, 1], 1)  # type: ignore
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = var * (total / (total - 1).clamp(min=1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = (x - mean.view(shape)) * (var + eps).rsqrt().view(shape)
        if weight is not None:
            y = y * weight.view(shape)
        if bias is not None:
            y = y + bias.view(shape)
        return y.to(input.dtype)


class _Everyone(torch.autograd.Function):
    """Every rank's `[n]` as `[W, n]`; the loss whose gradient comes back is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        rows = own.new_zeros(ranks.size, len(own))
        rows[ranks.rank] = own
        return ranks.summed([rows])[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.ranks.summed([grad])[0][ctx.ranks.rank], None


class SharedStep:
    """One step on a batch that ranks share: entered around a rank's own forward and backward pass.

    Batch norms see the whole batch. What is drawn at random, as by dropout, follows from (seed,
    step, rank), and `drew` says whether anything was. Buffers are put back where a rank is lost.
    """

    def __init__(self, ranks: Ranks, module: nn.Module, seed: int, step: int) -> None:
        self.ranks, self.module, self.drew = ranks, module, False
        self._buffers = {n: t.detach().clone() for n, t in module.named_buffers()}
        key = hashlib.sha256(f"{seed}/{step}/{ranks.rank}".encode()).digest()
        self._seed = int.from_bytes(key[:8], "little") >> 1

    @contextmanager
    def entered(self, device: torch.device) -> Iterator[None]:
        """Around both passes."""
        own = [device] if device.type == "cuda" else []
        with self._putting_back(), torch.random.fork_rng(own), TogetherNormed(self.ranks):
            torch.manual_seed(self._seed)
            before = _drawn(device)
            yield
            self.drew = _drawn(device) != before

    def average(
        self, learned: Sequence[Tensor], told: Sequence[Tensor], share: float
    ) -> list[Tensor]:
        """Put the sum over ranks into the gradients of `learned`, and the mean into the buffers;
        returns the mean of what is `told`. share: of the batch that is this rank's."""
        own = [p for p in learned if p.grad is not None]
        names = [n for n, t in self.module.named_buffers() if t.is_floating_point()]
        now = dict(self.module.named_buffers())
        with self._putting_back(), torch.no_grad():
            # What they moved by: a buffer that stays is the same to the bit.
            moved = [(now[n] - self._buffers[n]) * share for n in names]
            shares = [t.detach() * share for t in told]
            sums = self.ranks.summed([*(p.grad for p in own), *moved, *shares])  # type: ignore
            for p, grad in zip(own, sums, strict=False):
                p.grad = grad
            for name, step in zip(names, sums[len(own) :], strict=False):
                now[name].copy_(self._buffers[name] + step)
        return sums[len(own) + len(names) :]

    @contextmanager
    def _putting_back(self) -> Iterator[None]:
        try:
            yield
        except RankLost:
            with torch.no_grad():
                for name, t in self.module.named_buffers():
                    t.copy_(self._buffers[name])
            raise


def _drawn(device: torch.device) -> bytes:
    """Where torch's generators stand."""
    states = [torch.get_rng_state()]
    states += [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return b"".join(t.numpy().tobytes() for t in states)
