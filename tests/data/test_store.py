"""Stores are written whole or not at all, by one process or by several, and checked at opening."""

import json
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from metalearn.data import DataError
from metalearn.data.store import build_store, open_store, verify
from tests.preloaded import Process

CLASSES = ["a", "b", "c"]


def blocks(scale: int = 1) -> list[np.ndarray]:
    """2, 3 and 4 images of [4, 5, 3] with values that tell them apart."""
    rng = np.random.default_rng(scale)
    return [rng.integers(0, 256, (n, 4, 5, 3), dtype=np.uint8) for n in (2, 3, 4)]


def build(folder: Path, scale: int = 1, name: str = "tiny"):
    return build_store(folder, name, CLASSES, iter(blocks(scale)))


def test_what_went_in_comes_out(tmp_path: Path) -> None:
    store = build(tmp_path / "deep" / "store")
    assert np.array_equal(store.images, np.concatenate(blocks()))
    assert isinstance(store.images, np.memmap) and not store.images.flags.writeable
    assert store.classes == tuple(CLASSES) and store.name == "tiny"
    assert store.offsets.tolist() == [0, 2, 5, 9] and store.offsets.dtype == np.int64
    verify(tmp_path / "deep" / "store")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["store"]


def test_digest_depends_on_content_and_not_on_the_name(tmp_path: Path) -> None:
    first = build(tmp_path / "1").digest
    assert build(tmp_path / "2", name="other").digest == first
    assert build(tmp_path / "3", scale=2).digest != first
    other = build_store(tmp_path / "4", "tiny", ["a", "b", "d"], iter(blocks()))
    assert other.digest != first
    assert first.startswith("71a6dcf76f012deb")  # what evaluations recorded must stay true


def test_a_second_build_uses_the_first(tmp_path: Path) -> None:
    first = build(tmp_path / "store")
    assert build(tmp_path / "store", scale=2).digest == first.digest
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield blocks()[0]
        raise DataError("the source is damaged")

    with pytest.raises(DataError, match=r"the source is damaged"):
        build_store(tmp_path / "store", "tiny", CLASSES, broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((2, 4, 5, 3), np.float32),
        np.zeros((0, 4, 5, 3), np.uint8),
    ],
    ids=["shape", "type", "empty"],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, bad: np.ndarray, one_line) -> None:
    with pytest.raises(DataError, match=r"class b of store tiny") as caught:
        build_store(tmp_path / "store", "tiny", ["a", "b"], [blocks()[0], bad])
    one_line(caught)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_is_never_taken_for_whole(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: no store, and a later build is right."""
    program = (
        "import sys, time; from pathlib import Path; import numpy as np\n"
        "from metalearn.data.store import build_store\n"
        "def slow():\n"
        "    yield np.zeros((2, 4, 5, 3), np.uint8)\n"
        "    print('half', flush=True); time.sleep(60)\n"
        "build_store(Path(sys.argv[1]), 'tiny', ['a', 'b'], slow())\n"
    )
    with Process(program, str(tmp_path / "store")) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    lock, *left = sorted(tmp_path.iterdir(), reverse=True)
    assert lock.name == ".store.lock" and len(left) == 1
    assert left[0].name.startswith(".store.building-")
    with pytest.raises(DataError, match=r"no image store"):
        open_store(tmp_path / "store")
    build(tmp_path / "store")
    verify(tmp_path / "store")
    assert left[0].exists()  # it could be a live one, until an hour has passed without a write
    old = time.time() - 4000
    for path in (*left[0].iterdir(), left[0]):
        os.utime(path, (old, old))
    build(tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


# Python 3.12 warns of any fork beside threads; these children touch files alone.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_build_at_once_agree(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        jobs = [pool.submit(_digest, tmp_path / "store", scale) for scale in range(1, 9)]
        digests = {job.result() for job in jobs}
    assert len(digests) == 1
    verify(tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def _digest(folder: Path, scale: int) -> str:
    return build(folder, scale).digest


def _cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)


def _grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def _edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: _cut(f / "images.npy"),
        lambda f: _grow(f / "images.npy"),
        lambda f: (f / "images.npy").write_bytes(b""),
        lambda f: (f / "images.npy").unlink(),
        lambda f: _cut(f / "store.json"),
        lambda f: (f / "store.json").write_text("[]"),
        lambda f: _edit(f / "store.json", offsets=[0, 2, 5]),
        lambda f: _edit(f / "store.json", offsets=[0, 5, 2, 9]),
        lambda f: _edit(f / "store.json", shape=[9, 4, 5, 1]),
        lambda f: _edit(f / "store.json", format=0),
    ],
)
def test_a_damaged_store_is_one_clear_error(tmp_path: Path, damage, one_line) -> None:
    build(tmp_path / "store")
    damage(tmp_path / "store")
    for call in (open_store, build):
        with pytest.raises(DataError, match=r"damaged .*; delete that folder") as caught:
            call(tmp_path / "store")
        assert str(tmp_path / "store") in one_line(caught)


def test_verify_sees_one_flipped_bit(tmp_path: Path) -> None:
    build(tmp_path / "store")
    path = tmp_path / "store" / "images.npy"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    open_store(tmp_path / "store")
    with pytest.raises(DataError, match=r"its digest does not match"):
        verify(tmp_path / "store")


def test_a_cache_that_cannot_be_written(tmp_path: Path, one_line) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"METALEARN_CACHE") as caught:
        build(tmp_path / "file" / "store")
    one_line(caught)


BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from metalearn.data.store import build_store

def images():
    Path(sys.argv[1], f"began-{sys.argv[2]}").touch()
    time.sleep(1.5)
    yield np.zeros((2, 3, 3, 1), np.uint8)

print(build_store(Path(sys.argv[1]) / "store", "both", ["one"], images()).digest)
"""


def test_two_processes_do_the_work_once(tmp_path: Path) -> None:
    builders = [Process(BUILDER, str(tmp_path), str(number)) for number in range(3)]
    digests = set()
    for process in builders:
        with process:
            digests.add(process.communicate()[0])
    assert [process.returncode for process in builders] == [0, 0, 0] and len(digests) == 1
    assert len(list(tmp_path.glob("began-*"))) == 1
    assert sorted(p.name for p in tmp_path.iterdir() if "began" not in p.name) == ["store"]
