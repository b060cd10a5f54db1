"""`metalearn try`: from pictures to a classifier with an estimate."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from metalearn.backbones import Conv4
from metalearn.evaluation.own_images.selecting import Held
from metalearn.training.folder import load_weights
from tests.command import Outcome, metalearn
from tests.own_pictures import SIDE, glyph_folders

BACKBONE = ["backbone=conv4", "backbone.filters=4", "backbone.norm=group", "images.size=16"]
BACKBONE += ["dataset.size=16", "dataset.channels=1", "backbone.weights=weights.safetensors"]


@pytest.fixture
def place(workplace: Path) -> Path:
    """Pictures of three classes, and weights of a tiny network."""
    glyph_folders(workplace, shots=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Conv4(ways=None, channels=1, size=SIDE, filters=4, norm="group")
    save_file(net.state_dict(), "weights.safetensors")
    return workplace


def tried(*more: str, folder: str = "support") -> Outcome:
    return metalearn("try", folder, *BACKBONE, "repeats=1", *more)


def result(out: str = "try") -> dict:
    return json.loads(Path(out, "result.json").read_text())


def test_from_pictures_to_a_folder_that_predict_uses(place: Path) -> None:
    outcome = tried()
    assert outcome.code == 0, outcome.err
    told = result()
    low, high = told["accuracy_interval"]
    assert 0 <= low < told["accuracy"] < high <= 1 and told["pictures"] == 9
    assert f"estimate: {told['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%}" in outcome.out
    assert "warning: few images (glyph00047 3" in outcome.out
    assert len(Path("try/held_out.csv").read_text().splitlines()) == 1 + 9
    for name in ("reliability", "confusion", "support"):
        with Image.open(f"try/{name}.png") as picture:
            assert min(picture.size) > 100
    # With what it keeps, and with the same folder given again, the answers are the same.
    assert metalearn("predict", "run=try", "images=images").code == 0
    first = Path("predictions/predictions.csv").read_text()
    assert metalearn("predict", "run=try", "images=images", "support=support").code == 0
    again = Path("predictions/predictions.csv").read_text()
    assert column(first, "class") == column(again, "class")
    assert "its estimate is in result.json" in metalearn("evaluate", "run=try").mistake
    # The same command gives the same, in the place of what was there.
    kept = {name: Path("try", name).read_bytes() for name in ("held_out.csv", "result.json")}
    assert tried().code == 0
    assert kept == {name: Path("try", name).read_bytes() for name in kept}
    assert metalearn("predict", "run=try", "images=images").code == 0
    assert Path("predictions/predictions.csv").read_text() == first


def column(text: str, name: str) -> list[str]:
    head, *rows = (line.split(",") for line in text.splitlines())
    return [row[head.index(name)] for row in rows]


def test_a_run_is_a_backbone_too_and_copies_are_told(place: Path) -> None:
    assert tried("out=before").code == 0
    first, second = sorted(Path("support").iterdir())[:2]
    with Image.open(first / "0.png") as picture:
        picture.save(first / "again.jpg", quality=95)  # another file of the same picture
    shutil.copy(second / "1.png", first / "wrong.png")
    outcome = metalearn("try", "support", "backbone=before", "repeats=1")
    assert outcome.code == 0, outcome.err
    assert "backbone: the run before" in outcome.out
    assert "look the same; they are held out together" in outcome.out
    assert "look the same and are of different classes" in outcome.out
    assert (result()["alike"], result()["pictures"]) == (2, 9)
    assert load_weights(Path("try/weights.safetensors"), meta_of("try"))["init"]


def meta_of(run: str) -> dict:
    from metalearn.commands.building.trained import asked, open_run

    return open_run(run, asked([], "predict", ()), "predict", print).adapter(3, 11).meta  # type: ignore[return-value]


def test_the_estimate_counts_pictures_not_repeats() -> None:
    images, labels = np.tile(np.arange(4), 3), np.tile([0, 0, 1, 1], 3)
    p = np.full((12, 2), 0.5)
    p[np.arange(12), labels] += 0.1
    p[0] = p[0, ::-1]  # one of twelve answers is wrong
    held = Held(images, p, labels, Counter(), 2, 3)
    estimate = held.estimate(np.array([0, 1, 2, 3]))
    assert estimate.accuracy == pytest.approx(11 / 12) and estimate.count == 4
    # Of two copies of one picture each is half of it.
    estimate = held.estimate(np.array([0, 0, 2, 3]))
    assert estimate.accuracy == pytest.approx((5 / 6 + 1 + 1) / 3) and estimate.count == 3


MISTAKES = {
    "an empty folder": (lambda: Path("empty").mkdir(), "empty", "empty has no class folders"),
    "one picture": (lambda: one_left(), "support", "glyph00047 has one picture; an estimate takes"),
    "copies of one": (lambda: copies(), "support", "has one picture, and copies of it"),
    "no folder": (lambda: None, "nowhere", "there is no nowhere"),
    "weights cut": (
        lambda: Path("weights.safetensors").write_bytes(b"x" * 9),
        "support",
        "weights",
    ),
    "a run in the way": (lambda: in_the_way(), "support", "try holds another run"),
}


def one_left() -> None:
    for path in sorted(Path("support/glyph00047").iterdir())[1:]:
        path.unlink()


def copies() -> None:
    first, *rest = sorted(Path("support/glyph00047").iterdir())
    for path in rest:
        shutil.copy(first, path)


def cut() -> None:
    Path("weights.safetensors").write_bytes(b"x" * 9)


def in_the_way() -> None:
    Path("try").mkdir()
    Path("try/config.yaml").write_text("seed: 0")


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(kind: str, place: Path) -> None:
    spoil, folder, said = MISTAKES[kind]
    spoil()
    before = sorted(Path().rglob("*"))
    assert said in tried(folder=folder).mistake
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "try needs one folder"),
        (["support", "images"], "try needs one folder"),
        (["support", "backbnoe=conv4"], "no option backbnoe (did you mean backbone?) of try"),
        (["support", "repeats=0"], "repeats=0 must be a whole number"),
        (["support", "backbone.filters=4"], "name it too"),
        (["support", "backbone=conv4", "backbone.norm=transductive"], "no feature stands by"),
    ],
)
def test_a_word_that_is_not_known_is_one_line(words: list[str], said: str, place: Path) -> None:
    assert said in metalearn("try", *words).mistake
