"""CIFAR-100 from either archive: the same store; the published splits; hostile archives."""

import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from metalearn.data import DataError, cifar_fs, data_folder, fc100
from metalearn.data.cifar import cifar100, decode
from metalearn.data.store import build_store, verify
from tests.inputs.cifar import CLASSES, EXAMPLES, Evil, Python2, images, name, official, zipped

# The superclasses of CIFAR-100, as its site lists them.
SUPERCLASSES = """
beaver dolphin otter seal whale/aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip/bottle bowl can cup plate
apple mushroom orange pear sweet_pepper/clock keyboard lamp telephone television
bed chair couch table wardrobe/bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf/bridge castle house road skyscraper
cloud forest mountain plain sea/camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk/crab lobster snail spider worm
baby boy girl man woman/crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel/maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train/lawn_mower rocket streetcar tank tractor
"""


def test_either_archive_gives_the_same_store(tmp_path: Path) -> None:
    one = decode(zipped(tmp_path / "a.zip"), tmp_path / "a", 3, EXAMPLES)
    other = decode(official(tmp_path / "b.tar.gz"), tmp_path / "b", 3, EXAMPLES)
    assert one.digest == other.digest
    assert one.classes == tuple(CLASSES)
    order = np.argsort([name(0, e) for e in range(EXAMPLES)])
    np.testing.assert_array_equal(one.images[:EXAMPLES], images()[0][order])


BAD_TARS = {
    "lacks test": ({"test": None}, "lacks test"),
    "no pickle": ({"meta": b"nonsense"}, "cannot be read"),
    "cut short": ({"train": Python2.dumps({b"data": b""})[:-4]}, "cannot be read"),
    "no table": ({"meta": Python2.dumps({b"names": [b"a"]})}, "tables are not CIFAR-100's"),
    "a list": ({"train": Python2.dumps([1])}, "tables are not CIFAR-100's"),
    "label of no class": (
        {"meta": Python2.dumps({b"fine_label_names": [b"apple"]})},
        "tables are not CIFAR-100's",
    ),
}


@pytest.mark.parametrize("instead, said", BAD_TARS.values(), ids=BAD_TARS)
def test_damaged_official_archives(tmp_path: Path, one_line, instead, said) -> None:
    with pytest.raises(DataError) as caught:
        decode(official(tmp_path / "c.tar.gz", **instead), tmp_path / "store", 3, EXAMPLES)
    assert said in one_line(caught)
    assert not (tmp_path / "store").exists()


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch, one_line) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    archive = official(tmp_path / "c.tar.gz", train=pickle.dumps(Evil(), 2))
    with pytest.raises(DataError) as caught:
        decode(archive, tmp_path / "store", 3, EXAMPLES)
    assert "asks for" in one_line(caught) and not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8b\x08broken"])
def test_no_archive_at_all(tmp_path: Path, one_line, content: bytes) -> None:
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(content)
    for given in (path, tmp_path / "nowhere.tar.gz", tmp_path / "nowhere.zip"):
        with pytest.raises(DataError) as caught:
            cifar100(tmp_path / "root", given)
        assert given.name in one_line(caught)


@pytest.mark.parametrize("kind", [{"side": 16}, {"skip": 1}], ids=str)
def test_zips_of_something_else(tmp_path: Path, one_line, kind) -> None:
    with pytest.raises(DataError) as caught:
        decode(zipped(tmp_path / "a.zip", **kind), tmp_path / "store", 3, EXAMPLES)
    assert "put CIFAR-100 in its place" in one_line(caught)
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = data_folder()
    if folder is None or not (folder / "cifar100" / "cifar100.zip").is_file():
        pytest.skip("no real CIFAR-100: neither METALEARN_DATA nor ../shared/data holds cifar100/")
    root = tmp_path_factory.mktemp("cifar")
    cifar_fs(root)
    return root


def test_the_real_one(root: Path) -> None:
    data = cifar_fs(root)
    assert data.store.images.shape == (60000, 32, 32, 3)
    assert data.image_shape == (3, 32, 32)
    assert len(data.store.classes) == 100 and (np.diff(data.store.offsets) == 600).all()
    assert [data.class_count(s) for s in ("train", "val", "test")] == [64, 16, 20]
    assert [fc100(root).class_count(s) for s in ("train", "val", "test")] == [60, 20, 20]
    verify(root / "cifar100-v1")
    # The mean and deviation that everybody quotes for CIFAR-100's training images.
    sample = np.asarray(data.store.images[::7], dtype=np.float64) / 255
    np.testing.assert_allclose(sample.mean((0, 1, 2)), [0.507, 0.487, 0.441], atol=3e-3)
    np.testing.assert_allclose(sample.std((0, 1, 2)), [0.267, 0.256, 0.276], atol=3e-3)


def lists(benchmark: str) -> dict[str, list[str]]:
    folder = Path(cifar_fs.__globals__["__file__"]).parent / "splits"
    splits = ("train", "val", "test")
    return {s: (folder / f"{benchmark}_{s}.txt").read_text().split() for s in splits}


def test_packaged_lists() -> None:
    groups = [set(line.split()) for line in SUPERCLASSES.strip().replace("/", "\n").split("\n")]
    every = set().union(*groups)
    assert len(groups) == 20 and len(every) == 100
    for benchmark, sizes in (("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])):
        found = lists(benchmark)
        assert [len(names) for names in found.values()] == sizes
        assert set().union(*found.values()) == every
    for names in lists("fc100").values():  # no superclass in two splits
        assert all(group <= set(names) or not group & set(names) for group in groups)


def test_superclasses_are_groups(tmp_path: Path) -> None:
    names = sorted(set().union(*lists("fc100").values()))
    images = (np.full((2, 32, 32, 3), c, np.uint8) for c in range(100))
    build_store(tmp_path / "cifar100-v1", "cifar100", names, images)
    data = fc100(tmp_path)
    assert data.groups is not None and cifar_fs(tmp_path).groups == data.groups
    inside = [{data.groups[i] for i in data.splits[s].index} for s in ("train", "val", "test")]
    assert [len(groups) for groups in inside] == [12, 4, 4]
    groups = dict(zip(names, data.groups, strict=True))
    assert groups["lawn_mower"] == "vehicles_2" and groups["ray"] == "fish"
    lines = [set(line.split()) for line in SUPERCLASSES.strip().replace("/", "\n").split("\n")]
    for group in set(data.groups):
        assert {name for name in names if groups[name] == group} in lines


def test_an_archive_that_is_given_is_the_one_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(decode.__globals__, "decode", partial(decode, classes=3, examples=EXAMPLES))
    other = build_store(tmp_path / "cifar100-v1", "cifar100", ["a"], [np.zeros((1, 4, 4, 3), "u1")])
    archive = zipped(tmp_path / "mine.zip")
    assert cifar100(tmp_path).digest == other.digest
    mine = cifar100(tmp_path, archive)
    assert mine.classes == tuple(CLASSES)
    stores = {path.name for path in tmp_path.glob("cifar100-*")}
    assert len(stores) == 2
    assert cifar100(tmp_path, archive).digest == mine.digest
    assert {path.name for path in tmp_path.glob("cifar100-*")} == stores
    os.utime(archive, (0, 0))  # perhaps another one in its place
    assert cifar100(tmp_path, archive).digest == mine.digest
    assert len(list(tmp_path.glob("cifar100-*"))) == 3


def test_packaged_lists_equal_the_published_ones(root: Path) -> None:
    folder = data_folder()
    assert folder is not None
    for benchmark, place in (("cifar_fs", "cifar-fs"), ("fc100", "fc100")):
        for split, names in lists(benchmark).items():
            published = folder / "cifar100" / "splits" / place / f"{split}.txt"
            assert names == published.read_text().split()
