"""Batches that background threads make while the engine computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

K = TypeVar("K")
V = TypeVar("V")


def prefetched(make: Callable[[K], V], keys: Iterable[K], workers: int) -> Generator[V, None, None]:
    """`make(key)` for each of `keys`, in order, by `workers` threads, each at most one ahead.

    With 0 workers each is made on demand. An exception of `make` is raised where its value would
    come. Close the iterator to stop the threads early.
    """
    if not workers:
        yield from map(make, keys)
        return
    ahead: deque[Future[V]] = deque()
    with _pool(workers) as pool:
        try:
            for key in keys:
                ahead.append(pool.submit(make, key))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that use one core each, for torch too."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="metalearn-episodes")
    threads, gate = torch.get_num_threads(), Barrier(workers)

    def begin() -> None:
        gate.wait()  # so that every thread comes by
        torch.set_num_threads(1)

    for begun in [pool.submit(begin) for _ in range(workers)]:
        begun.result()
    torch.set_num_threads(threads)  # a thread's call is seen by those that start later
    return pool
