"""Ranks for a test: processes with torch imported, that meet by a file and not by torchrun."""

import sys
from contextlib import ExitStack
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from metalearn.engine.ranks import Ranks
from tests.preloaded import Process

CODE = "from tests.rank_processes import rank_of; rank_of()"


def on_ranks(folder: Path, *jobs: tuple[int, str]) -> list[tuple[int | None, str, str]]:
    """Each of `jobs`, a number of ranks and a function "module:name" of (ranks, folder), one after
    another; the exit code and both outputs of every process."""
    words = [str(folder), *(f"{size}:{function}" for size, function in jobs)]
    with ExitStack() as stack:
        count = max(size for size, _ in jobs)
        every = [stack.enter_context(Process(CODE, str(rank), *words)) for rank in range(count)]
        outputs = [process.communicate() for process in every]
    return [(p.returncode, *printed) for p, printed in zip(every, outputs, strict=True)]


def succeed(folder: Path, *jobs: tuple[int, str]) -> list[str]:
    """`on_ranks`, where no process fails; what each printed."""
    ended = on_ranks(folder, *jobs)
    failed = [err[-3000:] for code, _, err in ended if code]
    assert not failed, failed[0]
    return [out for _, out, _ in ended]


def rank_of() -> None:
    """One process of `on_ranks`."""
    rank, folder, *jobs = sys.argv[1:]
    torch.set_num_threads(1)
    for number, job in enumerate(jobs):
        size, module, name = job.split(":")
        if int(rank) >= int(size):
            continue
        store = dist.FileStore(str(Path(folder) / f"meet-{number}"), int(size))
        dist.init_process_group(
            "gloo", store=store, rank=int(rank), world_size=int(size), timeout=timedelta(minutes=5)
        )
        ranks = Ranks.joined()
        assert ranks is not None and (ranks.rank, ranks.size) == (int(rank), int(size))
        getattr(import_module(module), name)(ranks, Path(folder))
        ranks.leave()
