"""Every mistake is one line that says what to change, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.commands.building.config import conf_folder
from metalearn.functional.precision import slowdown
from metalearn.training import run, stage
from metalearn.training.result import _dataset
from tests.command import FAST, metalearn
from tests.data.idx import write

ALGORITHMS = ", ".join(sorted(path.stem for path in (conf_folder() / "algorithm").iterdir()))

MISTAKES = {
    "episodes.wyas=5": "no key episodes.wyas (did you mean episodes.ways?)",
    "epsiodes.ways=5": "did you mean episodes.ways?",
    "lr=1": "did you mean outer.optimizer.lr?",
    "+foo=1": "no key foo; see metalearn train --cfg job",
    "+episodes.wyas=1": "no key episodes.wyas (did you mean episodes.ways?)",
    "algorithm=mamll": f"is not known (did you mean maml?); choose from {ALGORITHMS}",
    "algorithm=": f"algorithm= needs a choice; choose from {ALGORITHMS}",
    "experiment=omniglot_mam_5w1s": "did you mean omniglot_maml_5w1s?",
    "algorithm=metric classifier.strength=-1": "strength=-1 must be above 0",
    "algorithm=metric classifier.strength=a": "strength=a must be a finite number",
    "algorithm=metric +classifier.slope=1": "classifier.slope",
    "algorithm=metric algorithm.classifier.strength=2": "it is classifier.strength now",
    "classifier=ridge": "classifier=ridge is for algorithm=metric, not maml",
    "algorithm=soft_kmeans algorithm.refinements=0": "refinements=0 must be 1 or more",
    "debug=slow": "debug=slow is not known; choose from fast",
    "inner=null": "a config group cannot be null; name a choice",
    "~inner": "inner is missing; choose one",
    "training.steps=abc": "training.steps=abc must be a whole number",
    "episodes.ways=2.5": "episodes.ways=2.5 must be a whole number",
    "seed=x": "seed=x must be a whole number",
    "seed=null": "seed must not be null",
    "seed=-1": "seed=-1 must be 0 or more",
    "training=3": "training=3 replaces several values; override one of them",
    "tracker.tags=x": "tracker.tags=x must be a list",
    "inner.rate=fast": "inner.rate=fast must be a finite number",
    "inner.rate=inf": "inner.rate=inf must be a finite number",
    "algorithm.steps=two": "algorithm.steps=two must be a whole number",
    "outer.optimizer.lr=x": "outer.optimizer.lr=x must be a finite number",
    "backbone.norm=suport": "must be transductive, support, running, frozen, group or none",
    "backbone=mlp backbone.hidden=[a]": "backbone.hidden=['a'] must be a list",
    "algorithm.stepz=3": "no key algorithm.stepz (did you mean algorithm.steps?)",
    "+algorithm.stepz=3": "algorithm.stepz is not known to metalearn.algorithms.MAML",
    "+algorithm.foo=1": "it takes steps",
    "outer.optimizer.betas=[0,0]": "add it with a plus: +outer.optimizer.betas=...",
    "+outer.optimizer.betas=[2,2]": "outer: Invalid beta parameter at index 0: 2",
    "algorithm._target_=foo.bar": "algorithm._target_=foo.bar cannot be imported",
    "training.steps=-1": "training.steps=-1 must be 1 or more",
    "training.meta_batch=0": "training.meta_batch=0 must be 1 or more",
    "training.clip_norm=0": "training.clip_norm=0.0 must be above 0, or null",
    "algorithm.steps=-1": "algorithm.steps=-1 must be 0 or more",
    "inner.rate=-0.1": "inner.rate=-0.1 must be 0 or more",
    "inner.batch_size=0": "inner.batch_size=0 must be 1 or more",
    "episodes.ways=0": "episodes.ways=0 must be 1 or more",
    "episodes.ways=41": "glyphs has 40 classes in its train split; use at most 40",
    "episodes.ways=8": "glyphs has 7 classes in its val split; use at most 7",
    "episodes.shots=6": "a class of glyphs (test) has 20 examples; use at most 20",
    "training.ways=20": "training.ways=20, but the network has 5 outputs",
    "evaluation.split=tset": "split='tset' is not known; use train, val, test",
    "algorithm=protonet gradient=first_order": "use gradient=adjoint or gradient=unroll",
    "algorithm=reptile gradient=adjoint": (
        "algorithm=reptile cannot use gradient=adjoint; use gradient=displacement"
    ),
    "algorithm=reptile inner=lslr": "algorithm=reptile learns no rates, as inner=lslr does",
    "algorithm=anil algorithm.head=x": "no weights under head='x'; name a submodule",
    "algorithm=protonet algorithm.temperature=0": "temperature=0 must be above 0",
    "backbone=conv4 backbone.size=8": "images of 8x8 are too small for Conv4; use 16x16 or more",
    "dataset.classes=3": "glyphs: needs classes >= 24",
    "precision=bf61": "precision='bf61' is not known (did you mean bf16?); use fp32, tf32, bf16",
    "batching=foo": "use auto, or loop, threads, vmap or a number of tasks",
    "batching=loop+fast": "with any of +compile, +forward_over_reverse, +im2col",
    "capture=graph": "capture=graph needs a CUDA device; use capture=none on a CPU",
    "gradient=implicit": "set algorithm.proximal=2",
    "device=tpu": "device='tpu' is not known; use auto, cpu or cuda",
    "device=cuda:99": "device=cuda:99",
    "resume=foo": "resume=foo is not known; use auto or never",
    "tracker.mode=ofline": "tracker.mode=ofline is not known (did you mean offline?)",
    "[": "cannot read '['; write name=value",
    "training.steps": "cannot read 'training.steps'; write name=value",
    "seed=1,2": "seed=1,2 is several values; add -m to sweep, or make a list: seed=[1,2]",
    "training.steps=${foo}": "Interpolation key 'foo' not found",
    "hydra.searchpath=[file:///nowhere]": "no config folder file:///nowhere; correct",
    "run_dir=/dev/null": "run_dir=/dev/null cannot be made: /dev/null is a file",
    "run_dir=/proc/nowhere": "run_dir=/proc/nowhere cannot be made",
    "-m episodes.wyas=3": "no key episodes.wyas (did you mean episodes.ways?)",
    "-m algorithm=maml,mamll": "algorithm=mamll is not known (did you mean maml?)",
    "--multirn": "no option --multirn (did you mean --multirun?)",
    "--cfg foo": "--cfg needs job, hydra or all",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_in_training_is_one_line(overrides: str, workplace: Path) -> None:
    given = overrides.split()
    named = {word.partition("=")[0] for word in given}
    small = [word for word in FAST if word.partition("=")[0] not in named]
    if "backbone=mlp" in given:
        small.remove("backbone.filters=4")
    outcome = metalearn("train", *(given if "--" in overrides else [*small, *given]))
    assert MISTAKES[overrides] in outcome.mistake
    assert not list(workplace.iterdir())


SINUSOID = {
    "backbone=conv4": "backbone=conv4 needs images, not sinusoid; use backbone=mlp",
    "algorithm=protonet": "algorithm=protonet classifies; use algorithm=maml or anil",
}


@pytest.mark.parametrize("override", SINUSOID)
def test_regression_refuses_what_is_for_images(override: str, workplace: Path) -> None:
    outcome = metalearn("train", "debug=fast", "dataset=sinusoid", override)
    assert SINUSOID[override] in outcome.mistake


OTHERS = {
    "trian": "no command trian (did you mean train?); use train, pretrain, ",
    "evaluate": "evaluate needs one run: metalearn evaluate run=<folder> [overrides]",
    "evaluate run=": "evaluate needs one run",
    "evaluate run=nowhere": "nowhere is not a run folder (no config.yaml); see `ls runs`",
    "data lst": "no data command lst (did you mean list?); use list, prepare, verify, show",
    "data show dataset=sinusoid": "regression has no images to show",
    "data show episode=first": "episode=first must be a whole number",
    "data show split=dev dataset.classes=60": "split=dev is not known; use train, val, test",
    "data manifest dataset=sinusoid": "only episodes of images have a manifest file",
    "train augmentation=standard dataset=sinusoid": "augmentation is for images",
    "train augmentation=standard augmentation.support.flip=2": "flip=2 must be 0 to 1",
    "train augmentation=standard augmentation.support.flop=1": "no key augmentation.support.flop",
    "train +augmentation.queries=1": "no key augmentation.queries",
    "train augmentation=randaugment augmentation.support.magnitude=31": "must be 0 to 30",
    "train images=imagenet dataset=sinusoid": "images is for images; use images=as_they_are",
    "train images=imagenet images.channels=null dataset.classes=60": "images.mean has 3 numbers",
    "train images.std=[0]": "images.std=[0.0] must be above 0",
    "train images.sise=84": "no key images.sise (did you mean images.size?)",
    "data prepare dataset=folder": "dataset.root is missing; use dataset.root=",
    "data prepare dataset=folder dataset.root=nowhere": "there is no folder or archive",
    "data prepare dataset=gliphs": "dataset=gliphs is not known (did you mean glyphs?)",
    "list algoritm": "no group algoritm (did you mean algorithm?)",
}


@pytest.mark.parametrize("command", OTHERS)
def test_a_mistake_in_another_command_is_one_line(command: str, workplace: Path) -> None:
    assert OTHERS[command] in metalearn(*command.split()).mistake


def test_a_missing_gpu_is_one_line(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = metalearn("train", *FAST, "device=cuda")
    assert outcome.mistake == "device=cuda, but no CUDA device is visible; use device=cpu"


def test_a_missing_data_set_is_one_line(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "empty").mkdir()
    monkeypatch.setenv("METALEARN_DATA", str(workplace / "empty"))
    monkeypatch.setenv("METALEARN_CACHE", str(workplace / "cache"))
    refused = ("http://127.0.0.1:9/{}.zip",)  # the discard port, where nobody listens
    monkeypatch.setattr(sys.modules["metalearn.data.omniglot"], "MIRRORS", refused)
    line = metalearn("train", "debug=fast", "dataset=omniglot").mistake
    assert "cannot download images_background.zip" in line and "METALEARN_DATA" in line


def test_a_slow_precision_is_told(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "this processor takes"
    monkeypatch.setattr(stage, "_EMULATED", 0.0)  # whatever the machine
    small = (
        "dataset.classes=60",
        "backbone.filters=2",
        "tracker=disabled",
        "tracker.plots=false",
        "evaluation.episodes=2",
    )
    supervised = ("pretrain", *small, "training.steps=1", "evaluation.validation_episodes=2")
    for command in (("train", *FAST), supervised):
        assert said in metalearn(*command, "precision=bf16", "resume=never").out
    assert slowdown("fp32", torch.device("cpu")) == 1


def test_a_bug_keeps_its_traceback(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(run, "_train", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        metalearn("train", *FAST)


def test_the_configuration_and_help_are_printed(workplace: Path) -> None:
    shown = metalearn("train", "algorithm=protonet", "--cfg", "job", "seed=7")
    assert "_target_: metalearn.algorithms.ProtoNet" in shown.out and "seed: 7" in shown.out
    assert f"algorithm: {ALGORITHMS}" in metalearn("train", "--help").out
    assert metalearn().out == metalearn("--help").out == metalearn("evaluate", "--help").out
    assert "usage: metalearn <command> [overrides]" in metalearn("help").out


def test_list_describes_every_choice(workplace: Path) -> None:
    lines = metalearn("list").out.splitlines()
    rows = {line.split()[0]: line.partition(" ")[2].strip() for line in lines[1:]}
    assert rows["algorithm=maml"].startswith("MAML: every weight adapts.")
    assert rows["gradient=adjoint"].startswith("Exact;")
    assert {"backbone=conv4", "dataset=glyphs", "inner=lslr", "outer/schedule=cosine"} <= set(rows)
    assert [name for name, told in rows.items() if not told] == []
    assert metalearn("list", "inner").out.count("inner=") == 10


def test_data_list_says_what_is_here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(workplace / "cache"))
    monkeypatch.setenv("METALEARN_DATA", str(workplace))

    def states() -> dict[str, str]:
        rows = [line.split() for line in metalearn("data", "list").out.splitlines()]
        return {
            row[0].removeprefix("dataset="): row[1] for row in rows if row and "dataset=" in row[0]
        }

    assert states() == {
        "intents": "yours",
        "glyph_scenes": "made",
        **dict.fromkeys(("cifar_fs", "cub", "fc100", "mnist", "omniglot"), "download"),
        **dict.fromkeys(("folder", "mini_imagenet", "tiered_imagenet", "tiny_imagenet"), "yours"),
        **dict.fromkeys(("glyphs", "harmonic", "mixture", "sinusoid"), "made"),
    }
    metalearn("data", "prepare", "dataset.classes=24")
    (workplace / "mini_imagenet.zip").touch()
    (workplace / "cache" / "cifar100").mkdir()  # downloaded, and not decoded yet
    (workplace / "cache" / "cifar100" / "cifar-100-python.tar.gz").touch()
    found = states()
    assert (found["glyphs"], found["mini_imagenet"]) == ("prepared", "found")
    assert found["cifar_fs"] == found["fc100"] == "found" and found["cub"] == "download"
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, metalearn("data", "list").out.splitlines())) <= 80


def test_a_set_that_is_only_tested_on(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.tile(np.arange(10), 40)
    images = np.random.default_rng(0).integers(0, 256, (400, 28, 28), np.uint8)
    write(workplace / "data", images, labels)
    monkeypatch.setenv("METALEARN_DATA", str(workplace / "data"))
    chosen = ("dataset=mnist", "dataset.fractions=[0,0,1]")
    prepared = metalearn("data", "prepare", *chosen)
    rows = [
        line.strip("│ \n").split("│") for line in prepared.out.splitlines() if "classes" in line
    ]
    assert [row[1].strip() for row in rows] == ["0", "0", "10"]
    listed = metalearn("data", "manifest", *chosen, "evaluation.episodes=3", "out=m.json")
    assert listed.out.startswith("m.json: 3 episodes, 3-way")
    none = "mnist has no classes in its train split"
    for command in (("data", "show", "split=train"), ("data", "show", "split=train", "episode=0")):
        assert none in metalearn(*command, *chosen).mistake
    assert f"{none}; use another split, or give it" in metalearn("train", *chosen).mistake


def test_data_is_prepared_and_verified(workplace: Path) -> None:
    prepared = metalearn("data", "prepare", "dataset.classes=60")
    assert "1200 of 1x28x28" in prepared.out and prepared.code == 0
    verified = metalearn("data", "verify", "dataset.classes=60")
    assert "(verified)" in verified.out and "40" in verified.out


def test_the_installed_command_exits_with_two(workplace: Path) -> None:
    command = [str(Path(sys.executable).with_name("metalearn")), "train", "seeed=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    told = "metalearn: no key seeed (did you mean seed?); see metalearn train --cfg job\n"
    assert done.stderr == told


def test_data_is_shown(workplace: Path) -> None:
    assert "glyphs-test-classes.png: " in metalearn("data", "show", "dataset.classes=60").out
    shown = metalearn("data", "show", "dataset.classes=60", "split=val", "episode=3", "out=a/e.png")
    assert shown.out.startswith("a/e.png: ") and shown.code == 0
    for path in ("glyphs-test-classes.png", "a/e.png"):
        assert (workplace / path).read_bytes().startswith(b"\x89PNG")


def test_a_run_is_measured_on_a_manifest(workplace: Path) -> None:
    listed = metalearn("data", "manifest", *FAST[1:2], "evaluation.episodes=7", "out=m.json")
    assert listed.out.startswith("m.json: 7 episodes, 5-way 1-shot, 15 queries a class, hash ")
    metalearn("train", *FAST, "run_dir=run")
    measured = metalearn("evaluate", "run=run", "manifest=m.json")
    assert measured.code == 0 and listed.out.split()[-1][:12] in measured.out
    wrong = metalearn("train", *FAST, "evaluation.manifest=m.json", "dataset.seed=1").mistake
    assert "m.json is refused (it lists images of glyphs with hash" in wrong
    two = metalearn("train", *FAST, "evaluation.manifest=m.json", "episodes.ways=3").mistake
    assert two.endswith("the network has 3 outputs; use episodes.ways=5")


def test_training_images_are_changed(workplace: Path) -> None:
    trained = metalearn("train", *FAST, "augmentation=standard", "augmentation.query=null")
    assert trained.code == 0, trained.err


def test_out_does_not_replace_what_is_not_ours(workplace: Path) -> None:
    precious = workplace / "precious.txt"
    precious.write_text("thesis")
    for action in ("show", "manifest"):
        told = metalearn("data", action, "dataset.classes=60", f"out={precious}").mistake
        assert told == f"{precious} is another file, and stays; use another out=<file>"
    assert precious.read_text() == "thesis"
    for _ in range(2):
        assert metalearn("data", "show", "dataset.classes=60", "out=sheet.png").code == 0


def test_a_result_names_the_sets_of_a_mixture() -> None:
    sets = {"omniglot": {}, "cifar_fs": {}}
    dataset = {"_target_": "metalearn.data.Mixture", "sets": sets, "proportions": None}
    assert _dataset({"dataset": dataset}, "test") == "Mixture of omniglot, cifar_fs"
    shares = {"test": {"cifar_fs": 1, "omniglot": 0}}
    assert (
        _dataset({"dataset": {**dataset, "proportions": shares}}, "test") == "Mixture of cifar_fs"
    )
    folder = {"_target_": "metalearn.data.folder", "root": "pictures/birds"}
    assert _dataset({"dataset": folder}, "test") == "folder birds"
