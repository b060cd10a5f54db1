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


def on_ranks(sizes: tuple[int, ...], function: str, folder: Path) -> list[str]:
    """`function(ranks, folder)` on each of `sizes` ranks, one after another; what every process
    printed. function: "module:name". Fails where one of them does."""
    count = max(sizes)
    words = function, str(folder), ",".join(map(str, sizes))
    with ExitStack() as stack:
        every = [stack.enter_context(Process(CODE, str(rank), *words)) for rank in range(count)]
        outputs = [process.communicate() for process in every]
    failed = [err for p, (_, err) in zip(every, outputs, strict=True) if p.returncode]
    assert not failed, failed[0][-3000:]
    return [out for out, _ in outputs]


def rank_of() -> None:
    """One process of `on_ranks`."""
    rank, function, folder, sizes = sys.argv[1:]
    torch.set_num_threads(1)
    module, _, name = function.partition(":")
    for size in map(int, sizes.split(",")):
        if int(rank) >= size:
            continue
        store = dist.FileStore(str(Path(folder) / f"meet-{size}"), size)
        limit = timedelta(minutes=5)
        dist.init_process_group("gloo", store=store, rank=int(rank), world_size=size, timeout=limit)
        ranks = Ranks.joined()
        assert ranks is not None and (ranks.rank, ranks.size) == (int(rank), size)
        getattr(import_module(module), name)(ranks, Path(folder))
        ranks.leave()
