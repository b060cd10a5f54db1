"""`metalearn select`: each score of each candidate on one sample, beside what was reached."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metalearn import data
from metalearn.backbones import Conv4
from metalearn.commands.parts.select_plan import ALL_SCORES
from metalearn.data import TensorDataset
from metalearn.evaluation.selection.sample import sample
from metalearn.evaluation.selection.scores import h_score, leep, logme
from tests.command import metalearn
from tests.images import tiny_dataset

SMALL = [
    "select", "dataset.classes=120", "sample.images=20", "sample.classes=8",
    "evaluation.episodes=10", "episodes.shots=[1,5]", "run_dir=out",
    '+candidates.mine=["backbone=conv4","backbone.filters=4","backbone.weights=w.safetensors"]',
    '+candidates.bare=["backbone=conv4","backbone.filters=4","norm=group"]',
]  # fmt: skip


@pytest.fixture
def net(workplace: Path) -> Conv4:
    """One of 7 source classes, its weights in `w.safetensors`."""
    torch.manual_seed(0)
    net = Conv4(ways=7, channels=1, size=28, filters=4, norm="frozen")
    save_file(net.state_dict(), workplace / "w.safetensors")
    return net


def test_it_ranks_and_says_how_well_it_did(net: Conv4, workplace: Path) -> None:
    ran = metalearn(*SMALL, "backbones=[bare,mine]", "accuracy=true")
    assert ran.code == 0, ran.err
    assert "the head (head) too" in ran.out and "no leep nor nce: these weights tell no" in ran.out
    made = json.loads(Path("out/selection.json").read_text())
    rows = {row["candidate"]: row for row in made["rows"]}
    assert list(rows["mine"]["scores"]) == list(ALL_SCORES)
    assert rows["mine"]["source_classes"] == 7 and rows["bare"]["source_classes"] is None
    assert {rows["bare"]["scores"][name]["value"] for name in ("leep", "nce")} == {None}
    # The scores are those of the same images, by hand.
    drawn = sample(data.glyphs(classes=120), "val", 8, 20, 0)
    places = np.arange(160)
    images = drawn.images("val", places // 20, places % 20)
    with torch.no_grad():
        net.eval()
        logits = net(torch.from_numpy(images).float() / 255)
        net.head = torch.nn.Identity()
        features = net(torch.from_numpy(images).float() / 255)
    scores = {name: found["value"] for name, found in rows["mine"]["scores"].items()}
    assert scores["logme"] == pytest.approx(logme(features.numpy(), places // 20), rel=1e-4)
    assert scores["h_score"] == pytest.approx(h_score(features.numpy(), places // 20), rel=1e-3)
    theta = logits.double().softmax(1).numpy()
    assert scores["leep"] == pytest.approx(leep(theta, places // 20), abs=1e-4)
    # What was reached is of other classes, and its order is that of the rows.
    reached = [row["reached"]["nearest_centroid 1-shot"]["accuracy"] for row in made["rows"]]
    assert reached == sorted(reached, reverse=True)
    tau = made["tau"]["logistic_regression 5-shot"]
    assert tau["logme"]["candidates"] == 2 and tau["leep"] == {"tau": None, "candidates": 1}
    assert abs(tau["logme"]["tau"]) == pytest.approx(1)
    assert all(
        row["seconds"] > 0 and row["norm_policy"] in ("frozen", "group") for row in made["rows"]
    )
    page = Path("out/selection.md").read_text()
    assert "| tau: nearest_centroid 5-shot |" in page and "| n_leep |" in page
    # The same command finds all done.
    again = metalearn(*SMALL, "backbones=[bare,mine]", "accuracy=true")
    assert again.code == 0 and "(1 of 2)" not in again.out
    assert json.loads(Path("out/selection.json").read_text())["rows"] == made["rows"]


def test_a_run_of_pretrain_and_a_comparison(net: Conv4, workplace: Path) -> None:
    del net
    trained = metalearn(
        "pretrain", "backbone=conv4", "backbone.filters=4", "dataset.classes=60", "run_dir=base",
        "tracker=disabled", "tracker.plots=false", "device=cpu", "training.steps=1",
        "training.batch_size=2", "evaluation.episodes=2", "evaluation.validation_episodes=2",
        "episodes.queries=1", "held_out.val=0.02", "held_out.test=0.02",
        "evaluation.train_images=2",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    Path("seen").mkdir()
    rows = [
        {
            "method": "nearest_centroid",
            "shots": 5,
            "accuracy": 0.5,
            "half_width": 0.1,
            "episodes": 9,
        }
    ]
    Path("seen/comparison.json").write_text(json.dumps({"rows": rows}))
    ran = metalearn(
        *SMALL,
        "backbones=[mine,base]",
        "scores=[logme,leep]",
        "+compared.base=seen",
        "+compared.mine=seen",
    )
    assert ran.code == 0, ran.err
    made = json.loads(Path("out/selection.json").read_text())
    found = {row["candidate"]: row for row in made["rows"]}
    classes = json.loads(Path("base/result.json").read_text()).get("classes", 0)
    assert found["base"]["source_classes"] == (classes or found["base"]["source_classes"]) > 7
    nothing = {"tau": None, "candidates": 2}  # of equal accuracies
    assert made["tau"] == {"nearest_centroid 5-shot": {"logme": nothing, "leep": nothing}}


BAD = {
    "backbones=[resnet21]": "backbones, resnet21: there is no such candidate (did you mean",
    "backbones=[]": "backbones=[] is empty",
    "scores=[logmee]": "no score logmee (did you mean logme?)",
    "sample.images=1": "sample.images=1 must be 2 or more",
    "norm=support": "norm=support",
    "sample.split=base": "split=base is not known; use train, val, test",
    "+compared.other=.": ". holds no comparison.json; name a folder of metalearn compare",
    "+compared.mine=nowhere": "nowhere holds no comparison.json",
    '+candidates.far=["dataset=omniglot"]': "backbones, far: dataset=omniglot is one for all",
    '+candidates.gone=["backbone.weights=gone.th"]': "backbones, gone: no weights at gone.th",
    "sample.images=10": "must be episodes.shots + episodes.queries = 20 or more",
    "episodes.queries=30": "must be episodes.shots + episodes.queries = 35 or more",
}


@pytest.mark.parametrize("given", BAD)
def test_a_mistake_is_one_line(given: str, net: Conv4) -> None:
    del net
    names = {"+candidates.far": "[far]", "+candidates.gone": "[gone]"}
    asked = f"backbones={names.get(given.partition('=')[0], '[mine]')}"
    words = [word for word in SMALL if word.partition("=")[0] != given.partition("=")[0]]
    ran = metalearn(*words, *([asked] if "backbones=" not in given else []), given)
    assert ran.code == 2 and BAD[given] in ran.err + ran.out


def test_a_sample_is_the_same_examples_turned_as_they_are(tmp_path: Path) -> None:
    whole = tiny_dataset(tmp_path)
    some = sample(whole, "train", 6, 3, 5)
    again = sample(whole, "train", 6, 3, 5)
    assert some.digest == again.digest != sample(whole, "train", 6, 3, 6).digest
    names = whole.class_names("train")
    for place, name in enumerate(some.class_names("train")):
        count = whole.sizes["train"][names.index(name)]
        old = whole.images("train", np.full(count, names.index(name)), np.arange(count))
        old = old.reshape(count, -1)
        new = some.images("train", np.full(3, place), np.arange(3)).reshape(3, -1)
        assert all((row == old).all(1).any() for row in new)
    x = torch.arange(40.0)
    tensors = TensorDataset(
        {"a": x, "b": -x}, torch.arange(40) % 4, {"train": [3, 1, 2], "val": [0], "test": []}
    )
    found = sample(tensors, "train", 3, 2, 0)
    inputs, _ = found.examples("train", np.array([0, 0, 1]), np.array([0, 1, 0]))
    assert (inputs["a"] == -inputs["b"]).all() and (inputs["a"] % 4).tolist() == [3, 3, 1]
    assert found.sizes["train"].tolist() == [2, 2, 2] and not len(found.sizes["val"])
