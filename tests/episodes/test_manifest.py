"""A manifest's hash proves which episodes an evaluation saw."""

from itertools import combinations

import pytest
import torch

from metalearn.data import Sinusoid
from metalearn.episodes import CurveEpisodes, FewShotEpisodes, Manifest
from tests.images import tiny_dataset
from tests.preloaded import Process

# Another value here means that published manifests no longer name the same episodes.
FEW_SHOT = "ac7e59bf2d431ca4f8a261048653f15044a6d0221d050a870edf32b464e4969c"
SINUSOID = "4b2e7de36ef9aa28380127794fb0d8b1cedd4f7fd574871972c945387991e5ec"


def few_shot(dataset, seed=0, split="test", shape=(3, 2, 3), episodes=10) -> str:
    return Manifest(FewShotEpisodes(dataset, *shape, seed), split, episodes).hash


def sinusoid(family=None, seed=0, split="test", shape=(5, 4), episodes=10) -> str:
    family = family or Sinusoid()
    return Manifest(CurveEpisodes(family, *shape, seed), split, episodes).hash


def test_the_pinned_hashes(tiny) -> None:
    assert few_shot(tiny) == FEW_SHOT
    assert sinusoid() == SINUSOID


def test_another_process_draws_the_same(tmp_path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.images import tiny_dataset\n"
        "from tests.episodes.test_manifest import few_shot, sinusoid\n"
        "print(few_shot(tiny_dataset(Path(sys.argv[1]))), sinusoid())"
    )
    with Process(program, str(tmp_path)) as other:  # where strings have other hashes
        assert other.communicate()[0].split() == [FEW_SHOT, SINUSOID]


def test_the_hash_changes_with_all_that_decides(tiny, tmp_path) -> None:
    hashes = [
        few_shot(tiny),
        few_shot(tiny_dataset(tmp_path, salt=1)),
        few_shot(tiny, seed=1),
        few_shot(tiny, split="val"),
        few_shot(tiny, shape=(2, 2, 3)),
        few_shot(tiny, shape=(3, 3, 2)),  # the same examples, cut elsewhere
        few_shot(tiny, episodes=9),
        sinusoid(),
        sinusoid(Sinusoid(x=(-5.0, 4.0))),
        sinusoid(seed=1),
        sinusoid(split="train"),
        sinusoid(shape=(4, 5)),
        sinusoid(episodes=9),
    ]
    assert all(a != b for a, b in combinations(hashes, 2))


@pytest.mark.parametrize("size", [1, 3, 7, 10, 32])
def test_batches_cover_the_list_once_in_order(tiny, size) -> None:
    manifest = Manifest(FewShotEpisodes(tiny, 3, 1, 2), "val", 10)
    parts = list(manifest.batches(size))
    assert [len(part.query.y) for part in parts[:-1]] == [size] * (len(parts) - 1)
    whole = manifest.source.batch("val", range(10))
    for got, want in zip(zip(*(p.parts for p in parts), strict=True), whole.parts, strict=True):
        assert torch.equal(torch.cat([batch.x for batch in got]), want.x)
        assert torch.equal(torch.cat([batch.y for batch in got]), want.y)


def test_no_episodes_no_batches(tiny) -> None:
    assert list(Manifest(FewShotEpisodes(tiny, 3, 1, 2), "val", 0).batches(4)) == []
