"""A manifest's file: the same episodes and hash again, and a refusal of anything else."""

import json
from pathlib import Path

import pytest
import torch

from metalearn.data import DataError, Sinusoid
from metalearn.episodes import (
    CurveEpisodes,
    FewShotEpisodes,
    Manifest,
    read_manifest,
    write_manifest,
)
from metalearn.errors import UsageError
from tests.images import tiny_dataset


@pytest.fixture
def written(tiny, tmp_path: Path) -> tuple[Manifest, Path]:
    manifest = Manifest(FewShotEpisodes(tiny, 3, 2, 3, seed=4), "test", 10)
    write_manifest(manifest, tmp_path / "sub" / "m.json")
    return manifest, tmp_path / "sub" / "m.json"


def test_the_same_episodes_again(tiny, written) -> None:
    manifest, path = written
    again = read_manifest(path, tiny)
    assert again.hash == manifest.hash and again.episodes == 10 and again.split == "test"
    assert again.source.shape == (3, 2, 3)
    for got, want in zip(again.batches(4), manifest.batches(4), strict=True):
        for a, b in zip(got.parts, want.parts, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    with pytest.raises(UsageError, match="lists episodes of test, not of val"):
        again.source.check("val")


def test_another_framework_can_read_it(tiny, written) -> None:
    saved = json.loads(written[1].read_text())
    names = tiny.splits["test"].names(tiny.store)
    assert saved["classes"] == names and len(saved["episodes"]) == 10
    ids = written[0].source.draw("test", 7)
    assert saved["episodes"][7]["classes"] == ids.classes.tolist()
    assert saved["episodes"][7]["query"] == ids.query.tolist()
    assert saved["dataset_hash"] == tiny.digest


def spoil(path: Path, change) -> None:
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))


SPOILT = {
    "other data": (lambda s: s.update(dataset_hash="0" * 64), "it lists images of tiny with hash"),
    "another format": (lambda s: s.update(format=2), "its format is 2, not 1"),
    "no episodes": (lambda s: s.update(episodes=[]), "lists no episodes"),
    "no list": (lambda s: s.pop("episodes"), "damaged: KeyError"),
    "no such class": (lambda s: s["episodes"][3].update(classes=[0, 1, 4]), "class that the split"),
    "no such example": (
        lambda s: s["episodes"][3]["query"][0].__setitem__(0, 99),
        "example that its class lacks",
    ),
    "below 0": (lambda s: s["episodes"][3]["support"][0].__setitem__(0, -1), "must be 0 or more"),
    "ragged": (lambda s: s["episodes"][3]["query"][0].pop(), "differ in shape"),
    "shapes": (lambda s: [q.pop() for q in s["episodes"][3]["query"]], "differ in shape"),
    "flat": (
        lambda s: [e.update(query=e["query"][0]) for e in s["episodes"]],
        "examples of every class",
    ),
    "fractions": (lambda s: s["episodes"][0].update(classes=[0.5, 1, 2]), "must be whole"),
    "split": (lambda s: s.update(split="dev"), "names split 'dev'"),
    "one swapped": (lambda s: s["episodes"].reverse(), "not those that its hash names"),
    "a list": (lambda s: s.update(episodes=[1]), "damaged: TypeError"),
}


@pytest.mark.parametrize("change, said", SPOILT.values(), ids=SPOILT)
def test_what_is_refused(tiny, written, change, said) -> None:
    spoil(written[1], change)
    with pytest.raises(DataError) as caught:
        read_manifest(written[1], tiny)
    line = str(caught.value)
    assert said in line and "metalearn data manifest" in line and "\n" not in line


def test_other_pixels_are_other_data(tiny, written, tmp_path) -> None:
    with pytest.raises(DataError, match="it lists images of tiny with hash"):
        read_manifest(written[1], tiny_dataset(tmp_path, salt=1))


def test_no_file_no_json_no_images(tiny, tmp_path) -> None:
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_manifest(tmp_path / "nowhere.json", tiny)
    (tmp_path / "m.json").write_text("[")
    with pytest.raises(DataError, match="is refused"):
        read_manifest(tmp_path / "m.json", tiny)
    with pytest.raises(UsageError, match="only episodes of images"):
        write_manifest(Manifest(CurveEpisodes(Sinusoid(), 5, 4), "val", 2), tmp_path / "s.json")
