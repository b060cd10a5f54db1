"""`metalearn predict` and `export` on folders of pictures that no run has seen."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from metalearn.commands.building.meta_training import build
from metalearn.commands.building.trained import asked, open_run
from metalearn.errors import UsageError
from metalearn.evaluation.own_images import exporting
from metalearn.training.folder import load_weights
from tests.command import FAST, Outcome, metalearn
from tests.own_pictures import SIDE, glyph_folders

RUNS = {
    "proto": ["algorithm=protonet", "backbone.norm=group", "images.mean=0.4", "images.std=0.3"],
    "maml": ["backbone.norm=transductive"],
    "kmeans": ["algorithm=soft_kmeans", "backbone.norm=support"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> Path:
    """A run of each kind, two steps long, and folders of pictures."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(data_cache))
        for name, more in RUNS.items():
            own = [f"dataset.size={SIDE}", *more, f"run_dir={place / name}"]
            assert metalearn("train", *FAST, *own).code == 0
        glyph_folders(place)
    return place


@pytest.fixture
def place(trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that, as the current folder; the data set is not there."""
    shutil.copytree(trained, workplace, dirs_exist_ok=True)
    monkeypatch.setenv("METALEARN_CACHE", str(workplace / "empty"))
    return workplace


def predict(run: str, *more: str, support: str = "support", images: str = "images") -> Outcome:
    return metalearn("predict", f"run={run}", f"images={images}", f"support={support}", *more)


def rows(out: str = "predictions") -> list[dict[str, str]]:
    with Path(out, "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_answers_are_those_of_the_nearest_mean_by_hand(place: Path) -> None:
    outcome = predict("proto")
    assert outcome.code == 0, outcome.err
    trained = open_run("proto", asked([], "predict", ()), "predict", print)
    adapter = trained.adapter(3, 12)
    weights = {**adapter.meta["buffers"], **adapter.meta["init"]}

    def features(paths: list[Path]) -> torch.Tensor:
        pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(np.float32)
        x = torch.from_numpy((pixels / 255 - np.float32(0.4)) / np.float32(0.3)).unsqueeze(1)
        with torch.no_grad():
            return adapter.algo.net.apply(weights, x).flatten(1).double()

    classes = sorted(path.name for path in Path("support").iterdir())
    means = torch.stack([features(sorted(Path("support", c).iterdir())).mean(0) for c in classes])
    told = json.loads(Path("predictions/predictions.json").read_text())
    query = features([Path("images", row["file"]) for row in rows()])
    distances = (query.unsqueeze(1) - means).square().sum(2)
    want = (-distances / told["calibration"]["temperature"]).softmax(1)
    got = torch.tensor([[float(row[f"p_{c}"]) for c in classes] for row in rows()])
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=0)
    for row, p in zip(rows(), want, strict=True):
        first, second = p.sort(descending=True).values[:2].tolist()
        assert row["class"] == classes[int(p.argmax())] and row["truth"] in classes
        assert float(row["confidence"]) == pytest.approx(first, abs=2e-5)
        assert float(row["margin"]) == pytest.approx(first - second, abs=4e-5)
        assert (row["calibrated"], row["depends_on_others"]) == ("yes", "0")
    right = np.mean([row["class"] == row["truth"] for row in rows()])
    assert f"named as the classes: {right:.1%}" in outcome.out
    for name in ("uncertain", "support"):
        with Image.open(f"predictions/{name}.png") as sheet:
            assert min(sheet.size) > 100


@pytest.mark.parametrize("run", ["maml", "kmeans"])
def test_an_episode_of_the_run_has_the_same_accuracy_as_in_its_test(
    run: str, place: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(data_cache))
        stage = build(yaml.safe_load(Path(run, "config.yaml").read_text()), trained=True)[1]
        episode = stage.test.source.batch("test", [0])
    for part, batch in (("s", episode.support), ("q", episode.query)):
        pixels = (batch.x[0, :, 0] * 255).round().to(torch.uint8).numpy()
        for n, (image, label) in enumerate(zip(pixels, batch.y[0].tolist(), strict=True)):
            Path(part, str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(Path(part, str(label), f"{n:03d}.png"))
    outcome = predict(run, support="s", images="q")
    assert outcome.code == 0, outcome.err
    with Path(run, "episodes.csv").open() as file:
        want = float(next(csv.DictReader(file))["accuracy"])
    told = json.loads(Path("predictions/predictions.json").read_text())
    assert told["accuracy"]["accuracy"] == pytest.approx(want)
    others = str(len(episode.query.y[0]) - 1)
    assert {row["depends_on_others"] for row in rows()} == {others}
    assert "each answer depends on all images of this call" in outcome.out
    assert "not calibrated" in outcome.out  # of one shot a class
    assert {row["calibrated"] for row in rows()} == {"no"}


def test_a_norm_of_the_support_set_answers_each_image_alone(place: Path) -> None:
    assert predict("maml", "backbone.norm=support", "out=all").code == 0
    name = rows("all")[0]["file"]
    only = predict("maml", "backbone.norm=support", "out=one", images=f"images/{name}")
    assert only.code == 0, only.err
    assert rows("one")[0]["p_" + rows("all")[0]["class"]] == rows("all")[0]["confidence"]
    assert {row["depends_on_others"] for row in rows("all")} == {"0"}


def test_any_ways_and_unequal_shots_and_every_kind_of_image(place: Path) -> None:
    first, second = sorted(Path("support").iterdir())[:2]
    shutil.copytree(first, 'support/a,"b"\nmore')
    (second / "0.png").unlink()
    picture = Image.open("images/" + rows_of_images()[0])
    grey = np.asarray(picture)
    Image.fromarray(grey.astype(np.uint16) * 257).save("images/deep.png")
    picture.convert("RGBA").save("images/clear.png")
    picture.convert("P").save("images/palette.gif")
    picture.resize((40, 30)).convert("RGB").save("images/large.jpg")
    shutil.copy(second / "1.png", "images/copy.png")
    Path("images/cut.png").write_bytes(Path("images", rows_of_images()[0]).read_bytes()[:80])
    outcome = predict("proto")
    assert outcome.code == 1
    assert outcome.out.count("cut.png") == 1 and "1 images could not be read" in outcome.out
    assert (
        "more 4" in outcome.out
        and "1 of the images are files of the support" in outcome.out
        and f"{second.name} 3" in outcome.out
    )
    found = {row["file"]: row["class"] for row in rows()}
    same = {found[name] for name in (rows_of_images()[0], "deep.png", "clear.png", "palette.gif")}
    assert len(same) == 1 and "large.jpg" in found and "cut.png" not in found
    told = json.loads(Path("predictions/predictions.json").read_text())
    assert len(told["not_read"]) == 1 and sum(told["shots"]) == 15


def rows_of_images() -> list[str]:
    return sorted(path.relative_to("images").as_posix() for path in Path("images").glob("*/*.png"))


def no_images(place: Path) -> None:
    shutil.rmtree("images")
    Path("images").mkdir()


def all_broken(place: Path) -> None:
    for path in Path("images").glob("*/*.png"):
        path.write_bytes(b"no image")


def one_class(place: Path) -> None:
    for path in sorted(Path("support").iterdir())[1:]:
        shutil.rmtree(path)


def empty_class(place: Path) -> None:
    Path("support/owl").mkdir()


def broken_class(place: Path) -> None:
    Path("support/owl").mkdir()
    Path("support/owl/a.png").write_bytes(b"no image")


def many_classes(place: Path) -> None:
    own = next(Path("support").iterdir())
    for n in range(3):
        shutil.copytree(own, f"support/more{n}")


def unfinished(place: Path) -> None:
    Path("proto/weights.safetensors").unlink()


def damaged(place: Path) -> None:
    Path("proto/weights.safetensors").write_bytes(b"no weights")


def file_in_the_way(place: Path) -> None:
    Path("predictions").write_text("mine")


MISTAKES = {
    "no image": (no_images, "proto", "there are no images in images"),
    "none that can be read": (all_broken, "proto", "no image in images can be read"),
    "one class": (one_class, "proto", "support has one class, "),
    "an empty class": (empty_class, "proto", "support/owl has no image that can be read (it is"),
    "a broken class": (broken_class, "proto", "support/owl has no image that can be read (owl/a"),
    "more classes than outputs": (many_classes, "maml", "6 classes, but the head of maml has 5"),
    "an unfinished run": (unfinished, "proto", "proto has not finished"),
    "other weights": (damaged, "proto", "weights.safetensors is not what the run wrote"),
    "out is a file": (file_in_the_way, "proto", "out=predictions cannot be made"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(kind: str, place: Path) -> None:
    spoil, run, said = MISTAKES[kind]
    spoil(place)
    assert said in predict(run).mistake
    assert not Path("predictions").is_dir()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images=images"], "predict needs a run"),
        (["run=proto"], "predict needs images="),
        (["run=proto", "images=images"], "proto knows no classes of yours; give support="),
        (["run=nowhere", "images=images"], "nowhere is not a run folder"),
        (["run=proto", "imagse=images"], "no option imagse (did you mean images?) of predict"),
        (["run=proto", "images=images", "images=a"], "predict needs one images="),
        (["run=proto", "images=images", "support=none"], "there is no none; correct support="),
        (["run=proto", "images=images", "support=support", "invert=maybe"], "invert=maybe must be"),
        (["run=proto", "images=images", "support=support", "inner.rte=1"], "no key inner.rte"),
    ],
)
def test_a_word_that_is_not_known_is_one_line(words: list[str], said: str, place: Path) -> None:
    assert said in metalearn("predict", *words).mistake


def test_damaged_weights_of_the_same_hash_say_so(place: Path) -> None:
    stage = open_run("proto", asked([], "predict", ()), "predict", print).adapter(3, 12)
    with pytest.raises(ValueError, match="is damaged"):
        Path("w").write_bytes(b"no weights")
        load_weights(Path("w"), stage.meta)


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_readme_loads_what_was_exported_without_metalearn(place: Path) -> None:
    """The lines of README, in a process that cannot import metalearn: the answer of `predict`."""
    assert predict("proto").code == 0
    row = rows()[0]
    outcome = metalearn("export", "run=proto", "support=support")
    assert outcome.code == 0, outcome.err
    (lines,) = re.findall(r"^```python\n(import json.*?)^```", README, re.M | re.S)
    assert lines.count("\n") <= 9
    shutil.copy(Path("images", row["file"]), "picture.png")
    hidden = "import sys; sys.modules['metalearn'] = None\n"
    python = [sys.executable, "-I", "-W", "ignore", "-c", hidden + lines]
    done = subprocess.run(python, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    name, confidence = done.stdout.split()
    assert name == row["class"]
    assert float(confidence) == pytest.approx(float(row["confidence"]), abs=2e-5)
    told = json.loads(Path("export/network.json").read_text())
    assert told["largest_difference"]["torch"] < 1e-4 and told["calibrated"] is True
    assert b"/tests/" not in Path("export/network.pt2").read_bytes()


def test_an_adapted_network_is_exported_with_its_support_statistics(place: Path) -> None:
    more = ["backbone.norm=support", "evaluation.steps=2"]
    assert predict("maml", *more).code == 0
    assert metalearn("export", "run=maml", "support=support", *more).code == 0
    net = torch.export.load("export/network.pt2").module()
    classes = json.loads(Path("export/network.json").read_text())["classes"]
    pixels = []
    for row in rows():
        with Image.open(Path("images", row["file"])) as image:
            pixels.append(np.asarray(image, np.float32) / 255)
    x = torch.from_numpy(np.stack(pixels)).unsqueeze(1)
    want = torch.tensor([[float(row[f"p_{name}"]) for name in classes] for row in rows()])
    for size in (1, len(x)):  # of any batch
        torch.testing.assert_close(net(x[:size]).softmax(1), want[:size], atol=2e-5, rtol=0)


def test_onnx_answers_the_same(place: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    outcome = metalearn("export", "run=proto", "support=support", "format=onnx")
    assert outcome.code == 0, outcome.err
    assert Path("export/network.onnx").stat().st_size > 1000


EXPORTS = {
    "a transductive algorithm": (["run=kmeans", "support=support"], "answers the images of one"),
    "norms of the batch": (["run=maml", "support=support"], "add backbone.norm=support"),
    "norms of a support set": (["run=maml", "backbone.norm=support", "images=images"],
                               "takes the statistics of a support set; give support="),
    "another format": (["run=proto", "format=onx"], "format=onx is not known (did you mean onnx?)"),
    "no data to try": (["run=proto", "images=none"], "there is no none; correct images="),
    "no run": ([], "export needs a run"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPORTS)
def test_what_cannot_be_exported_is_one_line(kind: str, place: Path) -> None:
    words, said = EXPORTS[kind]
    assert said in metalearn("export", *words).mistake
    assert not Path("export").exists()


def test_without_its_packages_onnx_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_ONNX", ("no_such_package",))
    with pytest.raises(UsageError, match="format=onnx needs no_such_package"):
        exporting.as_onnx(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [2e-5, np.nan])
def test_what_answers_otherwise_is_not_left_in_place(error: float, tmp_path: Path) -> None:
    x, path = torch.rand(3, 2), tmp_path / "network.pt2"
    with pytest.raises(UsageError, match="answers otherwise"):
        exporting.left_in_place(path, b"x", lambda x: x.numpy(), x, x.numpy() + error)
    assert not path.exists()
    assert exporting.left_in_place(path, b"x", lambda x: x.numpy(), x, x.numpy()) == 0
