"""The episodes of a manifest, shared out among processes, are those of one process."""

import hashlib
import json
from pathlib import Path

import pytest

from metalearn.engine.ranks import Ranks
from metalearn.episodes import FewShotEpisodes, ImbalancedSizes, Manifest, make_episodes
from tests.images import tiny_dataset
from tests.rank_processes import succeed

EPISODES = 24


def share(ranks: Ranks, folder: Path) -> None:
    """What a rank prints of its share of the episodes, read from a data set of its own."""
    source = FewShotEpisodes(tiny_dataset(folder / str(ranks.rank)), 3, 2, 2, seed=5)
    mine = list(range(ranks.rank, EPISODES, ranks.size))
    batch = source.batch("test", mine)
    pixels = {
        i: hashlib.sha256(batch.support.x[n].numpy().tobytes()).hexdigest()
        for n, i in enumerate(mine)
    }
    told = {i: source.fingerprint("test", i).hex() for i in mine}
    print(json.dumps([told, pixels, Manifest(source, "test", EPISODES).hash]))


def test_two_ranks_and_this_process(tmp_path) -> None:
    source = FewShotEpisodes(tiny_dataset(tmp_path), 3, 2, 2, seed=5)
    total = hashlib.sha256(b"".join(source.fingerprint("test", i) for i in range(EPISODES)))
    x = source.batch("test", list(range(EPISODES))).support.x
    total.update("".join(hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in x).encode())
    want = [Manifest(source, "test", EPISODES).hash, total.hexdigest()]
    told, pixels = {}, {}
    for printed in succeed(tmp_path, (2, "tests.episodes.test_ranks:share")):
        part = json.loads(printed)
        told, pixels = told | part[0], pixels | part[1]
        assert part[2] == want[0]
    every = [str(i) for i in range(EPISODES)]
    total = hashlib.sha256(b"".join(bytes.fromhex(told[i]) for i in every))
    total.update("".join(pixels[i] for i in every).encode())
    assert total.hexdigest() == want[1]


@pytest.mark.parametrize("sizes", ["fixed", "varied"])
def test_the_order_of_asking_does_not_matter(tiny, sizes) -> None:
    how = None if sizes == "fixed" else ImbalancedSizes(1, 3)
    shape = {"ways": 3, "shots": 1, "queries": 2, "seed": 1, "sizes": how}
    fresh = Manifest(make_episodes(tiny, **shape), "test", 20)
    used = make_episodes(tiny, **shape)
    for index in (19, 3, 7):
        used.batch("train", [index])
    assert Manifest(used, "test", 20).hash == fresh.hash
