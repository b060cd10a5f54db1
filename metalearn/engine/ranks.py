"""Ranks: processes that share every meta-batch and agree on every step. torchrun starts them.

    g = sum over ranks r of  (T_r / T) * g_r        g_r the mean over the T_r tasks of rank r

That is one all-reduce of one tensor a meta-step, after the meta-gradient is computed: DDP has no
derivative of a derivative, and a mean over tasks is there only once its last task is done, so that
buckets would have nothing to hide behind. The metrics of every task go along, each in a place of
its own, and so does the signal that has come to any rank: all stop after the same step.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from metalearn.errors import RankLost, UsageError, reason_of
from metalearn.functional.norm_functions import Moments, pooled
from metalearn.runtime.signals import ENDING, Ending
from metalearn.types import Episodes, GradientAndMetrics, MetaGradients, Metrics

V = TypeVar("V")

_PATIENCE = timedelta(minutes=30)  # that one rank may take while the others wait, as to autotune
_MISTAKE, _SPOKEN = "metalearn/mistake", "metalearn/spoken"
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(eq=False)
class Ranks:
    """Rank `rank` of `size`, in torch's default process group. `Ranks()` is a process alone.

    store: where a rank leaves a line for the first one; None for nowhere. ending: the signal that
    has come to this rank.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = None
    ending: Ending = field(default_factory=Ending)
    _signals: Tensor | None = field(default=None, init=False, repr=False)

    @classmethod
    def joined(cls) -> "Ranks | None":
        """The ranks that the environment names, as torchrun does, once all are there; None for a
        process alone. A process group that is there is taken as it is.

        Raises UsageError for an environment that is not whole.
        """
        if dist.is_available() and dist.is_initialized():
            return _JOINED.setdefault(None, cls(dist.get_rank(), dist.get_world_size()))
        named = [name for name in _NEEDED[:2] if name in os.environ]
        if len(named) < 2 or os.environ["WORLD_SIZE"] == "1":
            return None
        whole = all(os.environ[name].isdecimal() for name in named)
        if not whole or int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
            told = " and ".join(f"{name}={os.environ[name]}" for name in named)
            raise UsageError(f"{told} name no rank; start it by torchrun, or unset both")
        if missing := [name for name in _NEEDED if name not in os.environ]:
            raise UsageError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} without {', '.join(missing)} does not say "
                "where the ranks meet; start it by torchrun, or unset RANK and WORLD_SIZE"
            )
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        # Objects and what lies on the host go by gloo.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        try:
            store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
            given = {"store": store, "rank": rank, "world_size": size, "timeout": _PATIENCE}
            dist.init_process_group(backend, **given)
        except RuntimeError as error:
            place, size = (os.environ[name] for name in ("MASTER_ADDR", "WORLD_SIZE"))
            raise UsageError(
                f"the ranks did not meet at {place}:{os.environ['MASTER_PORT']} "
                f"({reason_of(error)}); start as many as WORLD_SIZE={size} says"
            ) from None
        return _JOINED.setdefault(None, cls(rank, size, store))

    def leave(self) -> None:
        """Leave the process group. Other ranks that still wait for this one are lost."""
        _JOINED.clear()
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """The places, of `total`, that are this rank's: neighbours, and as many as the others have,
        or one more; none where there are fewer than ranks."""
        each, more = divmod(total, self.size)
        start = self.rank * each + min(self.rank, more)
        return range(start, start + each + (self.rank < more))

    def work(self, total: int) -> slice:
        """Of `total` tasks those to compute: `share`, or the first where that is empty, which then
        counts for nothing, so that every rank goes the same way."""
        mine = self.share(total) or range(1)
        return slice(mine.start, mine.stop)

    def part(self, episodes: Episodes) -> Episodes:
        """Of the T tasks of `episodes` those that this rank computes."""
        if self.size == 1:
            return episodes
        rows = self.work(episodes.tasks)
        return episodes.map(lambda t: t[rows])

    def mean(self, gradient: MetaGradients, metrics: Metrics, tasks: int) -> GradientAndMetrics:
        """The mean over all `tasks`, and the metrics `[T]`, of every rank's own."""
        mine = self.share(tasks)
        names = [(part, name) for part in ("init", "hyper") for name in sorted(gradient[part])]
        weight = len(mine) / tasks
        own = [gradient[part][name] for part, name in names]
        parts = [t * weight if mine else torch.zeros_like(t) for t in own]
        for name in sorted(metrics):
            value = metrics[name]
            every = value.new_zeros(tasks, *value.shape[1:])
            every[mine.start : mine.stop] = value[: len(mine)]
            parts.append(every)
        parts = self.summed(parts)
        mean = MetaGradients(init={}, hyper={})
        for (part, name), t in zip(names, parts, strict=False):
            mean[part][name] = t
        return mean, dict(zip(sorted(metrics), parts[len(names) :], strict=True))

    def summed(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The sum over ranks of each of `parts`, which has its shape on every one, by one
        all-reduce of them all. Raises RankLost."""
        if self.size == 1:
            return list(parts)
        dtype = reduce(torch.promote_types, (t.dtype for t in parts), torch.float32)
        came = torch.tensor([float(number == self.ending.number) for number in ENDING])
        flat = torch.cat([t.detach().to(parts[0].device, dtype).flatten() for t in (*parts, came)])
        _together(dist.all_reduce, flat)
        *sums, self._signals = flat.split([t.numel() for t in (*parts, came)])
        return [s.view(t.shape).to(t.dtype) for s, t in zip(sums, parts, strict=True)]

    def stopping(self) -> int:
        """The signal that any rank had before the last sum; 0 for none. The same on every rank."""
        if self.size == 1:
            return self.ending.number
        found = [] if self._signals is None else self._signals.tolist()
        return next((n for n, count in zip(ENDING, found, strict=False) if count), 0)

    def agreed(self) -> int:
        """The signal that has come to any rank by now; 0 for none."""
        self.summed([torch.zeros(())])
        return self.stopping()

    def moments(self, found: Sequence[Moments], idle: bool) -> list[Moments]:
        """Of all ranks together what each has `found` in its own examples. idle: these count for
        nothing."""
        if self.size == 1 or not found:
            return list(found)
        count = torch.stack([m.count for m in found])
        own = [*(t for m in found for t in m[:2]), torch.zeros_like(count) if idle else count]
        dtype = reduce(torch.promote_types, (t.dtype for t in own))
        flat = torch.cat([t.to(dtype).flatten() for t in own])
        every = [torch.empty_like(flat) for _ in range(self.size)]
        _together(dist.all_gather, every, flat)
        *parts, counts = torch.stack(every).split([t.numel() for t in own], 1)
        return [
            pooled(Moments(parts[2 * i], parts[2 * i + 1], counts[:, i]), m)
            for i, m in enumerate(found)
        ]

    def gathered(self, value: V) -> list[V]:
        """Every rank's `value`, in order. Any object that can be pickled. Raises RankLost."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        _together(dist.all_gather_object, found, value)
        return found

    def told(self, make: Callable[[], V]) -> V:
        """What `make` gives on the first rank, which alone calls it. Raises RankLost."""
        if self.size == 1:
            return make()
        box = [make() if self.first else None]
        _together(dist.broadcast_object_list, box)
        return box[0]  # type: ignore[return-value]

    def speaks_first(self) -> bool:
        """Whether no other rank has asked this before."""
        with suppress(RuntimeError):
            return self.store is None or self.store.add(_SPOKEN, 1) == 1
        return True

    def leave_word(self, line: str) -> None:
        """Why this rank ends, for the first one to tell."""
        with suppress(RuntimeError):
            if self.store is not None:
                self.store.set(_MISTAKE, f"rank {self.rank}: {line}")

    def word(self) -> str | None:
        """What a rank that has ended left; None where it left nothing."""
        with suppress(RuntimeError):
            if self.store is not None and self.store.check([_MISTAKE]):
                return self.store.get(_MISTAKE).decode()
        return None


_JOINED: dict[None, Ranks] = {}


def _together(act: Callable[..., Any], *arguments: Any) -> None:
    try:
        act(*arguments)
    except RuntimeError as error:  # torch's own; a closed connection has no type
        reason = re.sub(r"^\[[^]]*\] ", "", reason_of(error))  # where gloo says it in its source
        told = f"a rank ended, or no longer answers ({reason}); the same command goes on"
        raise RankLost(f"{told}, or starts again", reason) from error
