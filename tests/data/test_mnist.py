"""MNIST and the sets in its form: torchvision's own classes read small files of it."""

import gc
import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from metalearn.data import DataError, ImageDataset, mnist
from tests.data.idx import idx, write

SPLITS = ("train", "val", "test")


def drawn(classes: int = 10, each: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 28, 28] and labels [n], the classes in turns."""
    labels = np.tile(np.arange(classes), each)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), np.uint8)
    return images, labels


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def counts(dataset: ImageDataset) -> list[int]:
    return [dataset.class_count(split) for split in SPLITS]


def test_every_image_is_where_it_belongs(tmp_path: Path, data: Path) -> None:
    images, labels = drawn()
    write(data, images, labels)
    found = mnist(tmp_path / "cache")
    assert (found.name, found.image_shape, counts(found)) == ("mnist", (1, 28, 28), [4, 3, 3])
    assert found.store.classes == tuple(datasets.MNIST.classes)
    for c in range(10):
        block = found.store.images[found.store.offsets[c] : found.store.offsets[c + 1], ..., 0]
        assert np.array_equal(block, images[labels == c])
    assert mnist(tmp_path / "cache", size=14).image_shape == (1, 14, 14)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        "mnist-v1-mnist-14px",
        "mnist-v1-mnist-28px",
    ]


@pytest.mark.parametrize("variant, kind", [("fashion", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_its_likes(tmp_path: Path, data: Path, variant, kind) -> None:
    write(data, *drawn(), kind)
    found = mnist(tmp_path / "cache", variant=variant, seed=3)
    assert found.name == variant and counts(found) == [4, 3, 3]
    assert found.store.classes == tuple(getattr(datasets, kind).classes)
    assert found.digest != mnist(tmp_path / "cache", variant=variant).digest


def test_emnist_is_turned_upright(tmp_path: Path, data: Path) -> None:
    images, labels = drawn(47)
    write(data, images, labels, "EMNIST")
    found = mnist(tmp_path / "cache", variant="emnist", fractions=[0.64, 0.16, 0.2])
    assert counts(found) == [30, 8, 9]
    assert "".join(found.store.classes) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
    assert np.array_equal(found.store.images[0, ..., 0], images[0].T)


def test_a_set_that_is_only_tested_on(tmp_path: Path, data: Path) -> None:
    write(data, *drawn())
    found = mnist(tmp_path / "cache", fractions=[0, 0, 1])
    assert counts(found) == [0, 0, 10]
    assert counts(mnist(tmp_path / "cache", fractions=[0.5, 0, 0.5])) == [5, 0, 5]


@pytest.mark.parametrize("options", [{"variant": "qmnist"}, {"size": 0}, {"fractions": [1, 1, 1]}])
def test_wrong_options(tmp_path: Path, data: Path, one_line, options) -> None:
    write(data, *drawn())
    with pytest.raises(DataError, match=next(iter(options))) as caught:
        mnist(tmp_path / "cache", **options)
    one_line(caught)


def cut(raw: Path) -> None:
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


BAD = {
    "cut short": (cut, "cannot read"),
    "empty": (lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(b""), "cannot read"),
    "missing": (lambda raw: (raw / "t10k-labels-idx1-ubyte").unlink(), "Dataset not found"),
    "text": (lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(b"<html>"), "cannot read"),
    "a class missing": (
        lambda raw: [
            path.write_bytes(idx(np.arange(20, dtype=np.uint8) % 9))
            for path in raw.glob("*labels*")
        ],
        "10 classes of 28x28",
    ),
    "a label too high": (
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 10, np.uint8))),
        "10 classes of 28x28",
    ),
    "a label too few": (
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, np.uint8))),
        "10 classes of 28x28",
    ),
    "larger": (
        lambda raw: (raw / "t10k-images-idx3-ubyte").write_bytes(
            idx(np.zeros((20, 14, 56), np.uint8))
        ),
        "cannot read",
    ),
}


@pytest.mark.parametrize("spoil, said", BAD.values(), ids=BAD)
def test_files_that_are_not_as_they_should_be(
    tmp_path: Path, data: Path, one_line, spoil, said
) -> None:
    spoil(write(data, *drawn()))
    with pytest.raises(DataError, match=said) as caught:
        mnist(tmp_path / "cache")
    assert str(data / "MNIST") in one_line(caught)
    assert not (tmp_path / "cache").exists()


# torchvision keeps the answers of failed requests, which closes their sockets late.
late = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Mirror(BaseHTTPRequestHandler):
    """Serves `files` by the last part of the path, and nothing below `/gone/`."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        content = b"" if self.path.startswith("/gone/") else self.files.get(name, b"")
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server of a small MNIST, whose checksums torchvision takes for the right ones."""
    raw = write(tmp_path / "served", *drawn())
    files = {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in raw.iterdir()}
    names = [name for name, _ in datasets.MNIST.resources]
    sums = [(name, hashlib.md5(files[name]).hexdigest()) for name in names]
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Mirror,), {"files": files}))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{url}/gone/", f"{url}/here/"])
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    yield files, url
    server.shutdown()
    thread.join()
    server.server_close()
    gc.collect()  # while `late` still holds


@late
def test_the_second_mirror_serves_and_once_is_enough(
    tmp_path: Path, mirror, capfd: pytest.CaptureFixture[str]
) -> None:
    found = mnist(tmp_path / "cache")
    assert len(found.store.images) == 40
    assert capfd.readouterr() == ("", "")
    mirror[0].clear()
    assert mnist(tmp_path / "cache", size=14).image_shape == (1, 14, 14)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir())[0] == "MNIST"


@late
@pytest.mark.parametrize("bad", [b"", b"<html>busy</html>", gzip.compress(b"other", mtime=0)])
def test_mirrors_that_fail_leave_nothing(tmp_path: Path, mirror, one_line, bad: bytes) -> None:
    mirror[0]["t10k-labels-idx1-ubyte.gz"] = bad
    with pytest.raises(DataError, match="cannot download MNIST") as caught:
        mnist(tmp_path / "cache")
    for part in ("t10k-labels-idx1-ubyte.gz", mirror[1], "MNIST/raw/", "METALEARN_DATA"):
        assert part in one_line(caught)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, one_line) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot download MNIST") as caught:
        mnist(tmp_path / "cache")
    one_line(caught)


def test_an_archive_that_is_given_is_the_one_used(tmp_path: Path, data: Path, one_line) -> None:
    images, labels = drawn()
    write(data, images, labels)
    write(tmp_path / "mine", 255 - images, labels)
    found = mnist(tmp_path)
    given = mnist(tmp_path, archive=tmp_path / "mine")
    assert np.array_equal(given.store.images, 255 - found.store.images)
    with pytest.raises(DataError, match="correct dataset.archive") as caught:
        mnist(tmp_path, archive=tmp_path / "nowhere")
    one_line(caught)
