"""`metalearn pretrain` as a user sees it: its mistakes, what it leaves, how that is used."""

import hashlib
import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from metalearn.backbones import Conv4
from metalearn.backbones.weights import read_weights
from metalearn.commands.building.config import compose, conf_folder
from metalearn.commands.pretrain import command_line
from metalearn.data import data_folder, glyphs
from metalearn.evaluation.statistics import mean_interval
from tests.command import FAST, metalearn
from tests.inputs.files import write_images

SMALL = (
    "dataset.classes=60", "dataset.size=16", "backbone.filters=8", "training.epochs=1",
    "training.batch_size=32", "evaluation.episodes=30", "evaluation.validation_episodes=10",
    "tracker=disabled", "tracker.plots=false", "device=cpu",
)  # fmt: skip

MISTAKES = {
    "training.stepz=3": "no key training.stepz (did you mean training.steps?); "
    "see metalearn pretrain --cfg job",
    "+foo=1": "no key foo; see metalearn pretrain --cfg job",
    "algorithm=maml": "no key algorithm; see metalearn pretrain --cfg job",
    "pretrain/optimizer=adamm": "pretrain/optimizer=adamm is not known (did you mean adamw?)",
    "optimizer=lion": "optimizer=lion names no target; choose one (see metalearn list)",
    "optimizer._target_=torch.optim.Lion": "optimizer._target_=torch.optim.Lion cannot be imported",
    "optimizer.lr=-1": "optimizer.lr=-1 must be 0 or more",
    "optimizer.momentum=2 optimizer.nesterov=maybe": "optimizer.nesterov=maybe must be true or fal",
    "optimizer.momentum=-0.5": "optimizer: Invalid momentum value: -0.5; correct optimizer",
    "optimizer.momentum=0": "optimizer: Nesterov momentum requires a momentum",
    "schedule.warmup=-1": "schedule.warmup=-1 must be 0 or more",
    "held_out.val=0.6 held_out.test=0.4": "must be 0 or more, and below 1 together",
    "held_out.test=-0.1": "held_out.test=-0.1 must be 0 or more",
    "held_out.val=0.0001": "held_out.val=0.0001 of 800 images is none; use a larger share, or 0",
    "training.batch_size=800": "training.batch_size=800, but 720 images are there to train on",
    "training.batch_size=0": "training.batch_size=0 must be 1 or more",
    "training.mixup=-1": "training.mixup=-1.0 must be 0 or more",
    "training.cutmix=-0.1": "training.cutmix=-0.1 must be 0 or more",
    "training.rotation=-1": "training.rotation=-1.0 must be 0 or more",
    "training.ema=1": "training.ema=1.0 must be 0 or more, and below 1",
    "training.label_smoothing=1": "training.label_smoothing=1.0 must be below 1",
    "training.select=best": "training.select=best is not known; use few_shot, accuracy or last",
    "training.select=accuracy held_out.val=0": "select=accuracy needs held_out.val above 0",
    "episodes.shots=[]": "training.select=few_shot needs episodes.shots; use accuracy or last",
    "episodes.shots=[0]": "episodes.shots=[0] must be 1 or more each",
    "episodes.shots=3": "episodes.shots=3 must be a list [...]",
    "episodes.ways=9": "glyphs has 7 classes in its val split; use at most 7",
    "episodes.queries=16": "a class of glyphs (val) has 20 examples; use at most 20",
    "precision=fp16": "precision=fp16 is not known (did you mean bf16?); use fp32, tf32 or bf16",
    "outputs=5": "outputs=5, but there are 40 base classes; use outputs=null",
    "backbone.ways=5": "the backbone has 5 outputs, not 40, one a base class",
    "backbone.weights=nowhere": "no weights at nowhere; correct backbone.weights",
    "dataset=sinusoid": "dataset=sinusoid sets inner, which metalearn pretrain does not have",
    "dataset=harmonic": "dataset=harmonic sets inner, which metalearn pretrain does not have",
    "dataset=mixture": "pretrain takes images of one data set with classes",
    "augmentation=standard augmentation.support.flip=2": "flip=2 must be 0 to 1",
    "resume=foo": "resume=foo is not known; use auto or never",
    "seed=1,2": "seed=1,2 is several values; add -m to sweep",
    "--multirn": "no option --multirn (did you mean --multirun?)",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_one_line(overrides: str, workplace: Path) -> None:
    given = overrides.split()
    named = {word.partition("=")[0] for word in given}
    small = [word for word in SMALL if word.partition("=")[0] not in named]
    if "dataset" in named:
        small = [word for word in small if not word.startswith("dataset.")]
    outcome = metalearn("pretrain", *(given if "--" in overrides else [*small, *given]))
    assert MISTAKES[overrides] in outcome.mistake
    assert not list(workplace.iterdir())


def test_a_split_without_classes_is_one_line(workplace: Path) -> None:

    write_images(workplace / "pets", *(f"c{c}" for c in range(10)))
    asked = ["dataset=folder", "dataset.root=pets", "dataset.size=16", "held_out.val=0"]
    asked += ["dataset.fractions=[0.5,0,0.5]", "held_out.test=0", "training.batch_size=4"]
    small = [word for word in SMALL if not word.startswith(("dataset.", "training.batch"))]
    line = metalearn("pretrain", *asked, *small).mistake
    assert line.startswith("pets has no classes in its val split; use another split")
    # Without few-shot episodes it can be done.
    alone = ["episodes.shots=[]", "training.select=last", "run_dir=run"]
    outcome = metalearn("pretrain", *asked, *small, *alone)
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/result.json").read_text())["few_shot"] == []


def test_what_a_run_leaves(workplace: Path) -> None:
    outcome = metalearn(
        "pretrain", *SMALL, "run_dir=run", "images.channels=3", "tracker.plots=true"
    )
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    data = glyphs(size=16, classes=60, drawings=20)

    digest = hashlib.sha256(Path("run/backbone.safetensors").read_bytes()).hexdigest()
    assert result["weights_sha256"] == digest
    with safe_open("run/backbone.safetensors", "pt") as file:
        told = json.loads(file.metadata()["metalearn"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    frozen = Conv4(40, 3, 8, 16, norm="frozen")
    assert {n: t.shape for n, t in tensors.items()} == {
        n: t.shape for n, t in frozen.state_dict().items()
    }
    assert told["images"] == {"size": 16, "channels": 3, "mean": None, "std": None}
    assert (told["classes"], len(told["class_names"]), told["dataset"]) == (40, 40, "glyphs")
    assert (told["steps"], told["accuracy"]) == (result["selected_step"], result["accuracy"])
    assert told["backbone"]["_target_"] == "metalearn.backbones.Conv4"
    assert read_weights("run").images == told["images"]

    # What the table says, measured again from the file alone.
    assert (result["images"], result["val_images"], result["train_images"]) == (40, 40, 720)
    frozen.load_state_dict(tensors)
    frozen.eval()
    from metalearn.training.held_out_split import hold_out

    subset = hold_out(data, 0.05, 0.05).test
    x = torch.from_numpy(data.images("train", subset.classes, subset.examples)).float() / 255
    from metalearn.functional import pure

    net = pure(frozen)
    logits = net.apply({**net.params, **net.buffers}, x.expand(-1, 3, -1, -1))
    right = (logits.argmax(1) == torch.from_numpy(subset.classes)).double()
    assert mean_interval(right.numpy())[:2] == pytest.approx(
        (result["accuracy"], result["accuracy_half_width"])
    )

    # Its few-shot episodes are those of `metalearn data manifest`.
    for one in result["few_shot"]:
        asked = [
            f"episodes.shots={one['shots']}", "evaluation.episodes=30", "dataset.classes=60",
            "dataset.size=16", "out=m.json",
        ]  # fmt: skip
        assert metalearn("data", "manifest", *asked).code == 0
        assert json.loads(Path("m.json").read_text())["hash"] == one["manifest_hash"]
    rows = Path("run/episodes.csv").read_text().splitlines()
    assert rows[0] == "index,accuracy_1_shot,accuracy_5_shot" and len(rows) == 31
    for line in (f"{result['accuracy']:.2%}", "5-way 5-shot", digest[:12], "use them"):
        assert line in outcome.out
    assert Path("run/learning_curve.png").stat().st_size > 10_000


def test_train_goes_on_from_the_weights(workplace: Path) -> None:
    assert metalearn("pretrain", *SMALL, "run_dir=run").code == 0
    command = json.loads(Path("run/result.json").read_text())["command"]
    assert command == (
        "metalearn train dataset=glyphs dataset.size=16 dataset.classes=60 backbone=conv4 "
        "backbone.filters=8 backbone.norm=frozen backbone.weights=run"
    )
    # At one shot the centroid is the example, so that ProtoNets by the cosine are the same
    # classifier as long as nothing is learned.
    more = [
        "algorithm=protonet", "algorithm.distance=cosine", "training.steps=1",
        "outer.optimizer.lr=0", "evaluation.episodes=30", "evaluation.untrained=false",
        "training.meta_batch=1", "evaluation.validation_episodes=2",
        "tracker=disabled", "tracker.plots=false",
    ]  # fmt: skip
    outcome = metalearn(*shlex.split(command)[1:], *more, "run_dir=one")
    assert outcome.code == 0 and "24 of 24 tensors matched" in outcome.out, outcome
    found = json.loads(Path("one/result.json").read_text())
    one = json.loads(Path("run/result.json").read_text())["few_shot"][0]
    assert found["manifest_hash"] == one["manifest_hash"]
    assert found["accuracy"] == pytest.approx(one["accuracy"], abs=1e-3)
    assert "run is a run of pretrain" in metalearn("evaluate", "run=run").mistake


def test_a_run_may_start_from_weights(workplace: Path) -> None:
    assert metalearn("pretrain", *SMALL, "run_dir=run").code == 0
    again = ["backbone.weights=run", "optimizer.lr=0", "training.steps=1", "run_dir=two"]
    outcome = metalearn("pretrain", *SMALL, *again)
    assert outcome.code == 0 and "100.0% of the numbers of the body" in outcome.out
    first, second = (read_weights(name).tensors for name in ("run", "two"))
    for name, t in first.items():
        if "running" not in name:
            assert torch.equal(t, second[name])


def test_the_command_names_what_differs_from_a_choice() -> None:
    def line(*overrides: str) -> str:
        return command_line(compose(overrides, "pretrain"), Path("runs/a"))

    assert line("dataset=cifar_fs", "backbone=resnet12", "backbone.drop_rate=0.1") == (
        "metalearn train dataset=cifar_fs backbone=resnet12 backbone.drop_rate=0.1 "
        "backbone.norm=frozen backbone.weights=runs/a"
    )
    assert "backbone=conv4_strided backbone.norm" in line("backbone=conv4_strided")
    narrow = "backbone.widths=[64,128,256,512]"
    assert f"backbone=resnet12 {narrow} " in line("backbone=resnet12", narrow)
    vit = line("dataset=cifar_fs", "backbone=vit_tiny", "backbone.options.patch_size=8")
    assert "backbone=vit_tiny backbone.options={patch_size:8} " in vit
    for text in (vit, line("backbone=resnet12", narrow)):
        words = text.split()[2:]
        again = compose([w for w in words if not w.startswith("backbone.weights")])["backbone"]
        assert again["_target_"].startswith("metalearn.backbones.")
    assert "frozen" not in line("backbone.norm=group")


CHOICES = sorted(
    f"{path.parent.relative_to(conf_folder())}={path.stem}"
    for path in (conf_folder() / "pretrain").rglob("*.yaml")
)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_trains(choice: str, workplace: Path) -> None:
    assert len(CHOICES) >= 5
    outcome = metalearn("pretrain", *SMALL, choice, "training.steps=3", "run_dir=run")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/result.json").read_text())["steps"] == 3


BACKBONES = {
    "resnet12": ["backbone.widths=[4,4,8,8]"],
    "mlp": [],
    "cifar_resnet": [],
    "timm": ["backbone.name=resnet10t"],
    "torchvision": [],
    "vit_tiny": ["pretrain/optimizer=adamw"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_kind_of_backbone_trains_and_is_used(name: str, workplace: Path) -> None:
    small = [word for word in SMALL if not word.startswith("backbone.")]
    chosen = [f"backbone={name}", *BACKBONES[name], "training.steps=2", "run_dir=run"]
    outcome = metalearn("pretrain", *small, *chosen, "training.rotation=0.5", "training.ema=0.5")
    assert outcome.code == 0, outcome.err
    words = shlex.split(json.loads(Path("run/result.json").read_text())["command"])
    fast = [w for w in FAST if not w.startswith(("backbone", "dataset"))]
    used = metalearn(*words[1:], *fast, "algorithm=protonet", "run_dir=used")
    assert used.code == 0, used.err
    assert "missing" not in used.out


def test_a_sweep_over_rates(workplace: Path) -> None:
    outcome = metalearn("pretrain", "-m", *SMALL, "training.steps=2", "optimizer.lr=0.01,0.1")
    assert outcome.code == 0, outcome.err
    assert len(list(Path("runs").glob("pretrain-conv4-glyphs-seed0-*"))) == 2
    assert "optimizer.lr=0.01" in outcome.out and "validation score" in outcome.out


def test_the_configuration_help_and_list_are_printed(workplace: Path) -> None:
    shown = metalearn("pretrain", "pretrain/optimizer=adamw", "--cfg", "job", "seed=7")
    assert "_target_: torch.optim.AdamW" in shown.out and "seed: 7" in shown.out
    assert "pretrain/optimizer: adamw, sgd" in metalearn("pretrain", "--help").out
    assert "pretrain   train a backbone on the base classes" in metalearn("help").out
    assert "pretrain/schedule=milestones" in metalearn("list", "pretrain/schedule").out
    one = compose(["seed=3"], "pretrain")["run_dir"]
    assert one.startswith("runs/pretrain-conv4-glyphs-seed3-")
    assert compose(["seed=3", "resume=never"], "pretrain")["run_dir"] == one


@pytest.mark.slow
def test_turned_classes_of_omniglot_are_classes(workplace: Path) -> None:
    data = data_folder()
    if data is None or not (data / "omniglot/images_background.zip").is_file():
        pytest.skip("no omniglot in METALEARN_DATA or ../shared/data")
    small = [word for word in SMALL if not word.startswith("dataset.")]
    chosen = ["dataset=omniglot", "training.steps=20", "run_dir=run", "training.batch_size=64"]
    outcome = metalearn("pretrain", *small, *chosen)
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert (result["classes"], result["images"]) == (4112, 4112)
