"""The episodes of a manifest, shared out among processes, are those of one process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.episodes import FewShotEpisodes, ImbalancedSizes, Manifest, make_episodes
from tests.images import tiny_dataset

EPISODES = 24

RANK = """
import hashlib, sys
from pathlib import Path
import torch.distributed as dist
from metalearn.episodes import FewShotEpisodes, Manifest
from tests.images import tiny_dataset

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
source = FewShotEpisodes(tiny_dataset(Path(sys.argv[1]) / str(rank)), 3, 2, 2, seed=5)
mine = list(range(rank, {episodes}, world))
batch = source.batch("test", mine)
pixels = {{i: hashlib.sha256(batch.support.x[n].numpy().tobytes()).hexdigest()
           for n, i in enumerate(mine)}}
told = {{i: source.fingerprint("test", i) for i in mine}}
parts = [None] * world
dist.all_gather_object(parts, (told, pixels, Manifest(source, "test", {episodes}).hash))
if rank == 0:
    told = {{i: t for part in parts for i, t in part[0].items()}}
    pixels = {{i: p for part in parts for i, p in part[1].items()}}
    assert len({{part[2] for part in parts}}) == 1 and sorted(told) == list(range({episodes}))
    total = hashlib.sha256(b"".join(told[i] for i in sorted(told)))
    total.update("".join(pixels[i] for i in sorted(pixels)).encode())
    print("hash", parts[0][2], total.hexdigest())
dist.destroy_process_group()
"""


def shared_out(ranks: int, folder: Path) -> list[str]:
    script = folder / f"rank{ranks}.py"
    script.write_text(RANK.format(episodes=EPISODES))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(ranks), str(script), str(folder / f"data{ranks}")],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return next(line for line in done.stdout.splitlines() if line.startswith("hash")).split()[1:]


def test_two_ranks_and_this_process(tmp_path) -> None:
    source = FewShotEpisodes(tiny_dataset(tmp_path), 3, 2, 2, seed=5)
    total = hashlib.sha256(b"".join(source.fingerprint("test", i) for i in range(EPISODES)))
    x = source.batch("test", list(range(EPISODES))).support.x
    total.update("".join(hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in x).encode())
    want = [Manifest(source, "test", EPISODES).hash, total.hexdigest()]
    assert shared_out(2, tmp_path) == want


@pytest.mark.parametrize("sizes", ["fixed", "varied"])
def test_the_order_of_asking_does_not_matter(tiny, sizes) -> None:
    how = None if sizes == "fixed" else ImbalancedSizes(1, 3)
    shape = {"ways": 3, "shots": 1, "queries": 2, "seed": 1, "sizes": how}
    fresh = Manifest(make_episodes(tiny, **shape), "test", 20)
    used = make_episodes(tiny, **shape)
    for index in (19, 3, 7):
        used.batch("train", [index])
    assert Manifest(used, "test", 20).hash == fresh.hash
