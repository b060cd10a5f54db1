"""Background threads make the same batches in the same order, and stop when told."""

import threading
import time
from contextlib import closing

import pytest
import torch

from metalearn.episodes import FewShotEpisodes
from metalearn.episodes.prefetch import prefetched


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_same_batches_in_order(tiny, workers) -> None:
    source = FewShotEpisodes(tiny, 3, 2, 2)
    keys = [range(i, i + 3) for i in range(0, 30, 3)]
    made = list(prefetched(lambda key: source.batch("train", key), keys, workers))
    for got, key in zip(made, keys, strict=True):
        for a, b in zip(got.parts, source.batch("train", key).parts, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_threads_are_ahead_by_one_each_and_in_the_background() -> None:
    begun: list[int] = []

    def make(key: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        assert torch.get_num_threads() == 1
        begun.append(key)
        return key

    with closing(prefetched(make, range(100), 3)) as coming:
        assert next(coming) == 0
        deadline = time.monotonic() + 300
        while len(begun) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert sorted(begun) == [0, 1, 2, 3]
    assert not [t for t in threading.enumerate() if t.name.startswith("metalearn-episodes")]


def test_torch_keeps_its_threads() -> None:
    torch.set_num_threads(2)
    try:
        assert list(prefetched(lambda key: key, range(3), 2)) == [0, 1, 2]
        assert torch.get_num_threads() == 2
        seen: list[int] = []
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert seen == [2]
    finally:
        torch.set_num_threads(1)


def test_an_error_comes_in_its_turn() -> None:
    def make(key: int) -> int:
        if key == 2:
            raise ValueError("third")
        return key

    coming = prefetched(make, range(5), 2)
    assert [next(coming), next(coming)] == [0, 1]
    with pytest.raises(ValueError, match="third"):
        next(coming)
