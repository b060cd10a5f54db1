"""Every file under conf/, found recursively, composes, takes one step and is tested."""

import copy
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from metalearn.algorithms import Metric
from metalearn.commands.building.arguments import make, option, target
from metalearn.commands.building.config import compose, conf_folder
from metalearn.commands.building.meta_training import build
from metalearn.commands.list import GROUPS
from metalearn.data import data_folder
from metalearn.data.class_splits import listed
from metalearn.data.store import build_store
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.evaluation.statistics import measure_of
from tests.command import metalearn
from tests.data.idx import write
from tests.texts import encoder_folder, needs_transformers

OTHERS = (
    "pretrain.yaml",
    "compare.yaml",
    "comparison",
    "table",
)  # commands of their own, with tests of their own
FILES = sorted(
    path.relative_to(conf_folder())
    for path in conf_folder().rglob("*.yaml")
    if path.relative_to(conf_folder()).parts[0] not in ("sweep", "pretrain", "classifier", *OTHERS)
    and not path.name.startswith("_")
)
ONE_STEP = (
    "training.steps=1",
    "training.meta_batch=1",
    "evaluation.episodes=2",
    "evaluation.validation_episodes=2",
    "evaluation.untrained=false",
)


@functools.cache
def composed(*overrides: str) -> dict[str, Any]:
    """What they give; it takes as long as the step."""
    return compose(overrides)


def small(overrides: list[str]) -> list[str]:
    """What makes the run of `overrides` a matter of a second."""
    config = composed(*overrides)
    extra = [*ONE_STEP, "run_dir=run"]
    if not any(override.startswith("tracker=") for override in overrides):
        extra += ["tracker=disabled", "tracker.plots=false"]
    if not any(override.startswith("engine=") for override in overrides):
        extra.append("batching=loop")  # nothing is measured or compiled for one step
    if "filters" in config["backbone"]:
        extra.append("backbone.filters=4")
    if "depth" in config["backbone"]:
        extra.append(f"backbone.depth={10 if 'width' in config['backbone'] else 8}")
    if "width" in config["backbone"]:
        extra.append("backbone.width=1")
    if "widths" in config["backbone"]:
        extra.append("backbone.widths=[4,4,8,8]")
    if config["backbone"].get("name", "").startswith("vit"):
        extra.append("+backbone.options.depth=2")
    if "classes" in config["dataset"]:
        extra.append("dataset.classes=60")
    if (config["training"]["ways"] or 0) > 20:
        extra.append("training.ways=20")
    return extra


def changed(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`config` with the plain values of `overrides`, in less time than it takes to compose anew."""
    config = copy.deepcopy(config)
    for key, _, value in (override.lstrip("+").partition("=") for override in overrides):
        *groups, name = key.split(".")
        inner = functools.reduce(lambda node, group: node[group], groups, config)
        if key != "tracker":  # a group, which a step does without
            assert not isinstance(inner.get(name), dict), key
            inner[name] = yaml.safe_load(value)
    return config


def numbers(value: object) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def test_the_files_are_found() -> None:
    groups = {path.parent.as_posix() for path in FILES}
    assert len(FILES) >= 26
    assert {".", "algorithm", "backbone", "outer/schedule", "experiment", "debug"} <= groups
    assert {"adaptation", "head", "loss"} <= groups


def test_metalearn_list_shows_every_group() -> None:
    folders = {path.parent.relative_to(conf_folder()) for path in conf_folder().rglob("*.yaml")}
    assert {f.as_posix() for f in folders} - {".", "sweep"} == set(GROUPS)


REAL = {
    "omniglot": "omniglot/images_background.zip",
    "cifar_fs": "cifar100/cifar100.zip",
    "fc100": "cifar100/cifar100.zip",
    "intents": "intents/banking77/full.jsonl",
}
"""Archives of the data sets that are taken as they are."""


def stand_in(name: str, workplace: Path) -> list[str]:
    """Noise in place of images that cannot be had here, decoded already or as files; what to
    override."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (200, 16, 16, 16, 3), np.uint8)
    if name == "mnist":
        images = rng.integers(0, 256, (400, 28, 28), np.uint8)
        write(workplace / "cache", images, np.arange(400) % 10)
        return []
    if name == "folder":
        for c in range(15):
            (workplace / "mine" / f"class{c}").mkdir(parents=True)
            for i in range(16):
                image = Image.fromarray(blocks[c, i])
                image.save(workplace / "mine" / f"class{c}" / f"{i}.png")
        return ["dataset.root=mine", "dataset.size=16", "dataset.fractions=[0.34,0.33,0.33]"]
    if name == "cub":
        classes = [f"{c:03d}.Bird" for c in range(200)]
    else:
        classes = sorted(sum(listed(name).values(), []))
    images = (blocks[c % len(blocks)] for c in range(len(classes)))
    build_store(workplace / "cache" / f"{name}-v1-16px", name, classes, images)
    return ["dataset.size=16"]


ALIASES = {
    **dict.fromkeys(("bmg", "es_maml", "fomaml", "imaml", "meta_curvature", "meta_sgd"), "maml"),
    "meta_baseline": "protonet",
}
"""Config: the algorithm that it sets up."""
MADE_FOR = {"displacement": "reptile", "implicit": "imaml"}  # kind: an algorithm it is for


WHOLE = ("tracker", "debug", "experiment", ".")  # groups of which only a run shows anything
SHARE = 8
NAMES = {str(path.with_suffix("")): path for path in FILES}
RUNS = [
    pytest.param(path, id=name, marks=[] if place % SHARE == 0 or group in WHOLE else slow)
    for place, (name, path) in enumerate(NAMES.items())
    for group, slow in [(path.parent.as_posix(), pytest.mark.slow)]
]


@pytest.fixture
def chosen(path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The overrides for a run with the file, and with data that are here."""
    group = path.parent.as_posix()
    words = [] if group == "." else [f"{group}={path.stem}"]
    if group == "gradient":
        kind = target(composed(*words)["gradient"]["_target_"]).kind
        words += [f"algorithm={MADE_FOR[kind]}"] if kind in MADE_FOR else []
    if path.stem == "ensemble":
        words.append("+backbone@backbone.members.one=conv4")
    if path.stem == "word_vectors":
        words = ["dataset=intents"]
    if path.stem == "transformers":
        needs_transformers()
        folder = encoder_folder(workplace / "encoder", max_position_embeddings=64)
        words += ["dataset=intents", "dataset.length=64", f"backbone.folder={folder}"]
    if path.stem == "superclass":
        words.append("dataset=fc100")
    dense = {"detection", "segmentation"} & {path.stem}
    if dense or path.stem == "glyph_scenes":
        words = [f"task={(*dense, 'segmentation')[0]}", "dataset=glyph_scenes"]
        if dense == {"detection"}:
            pytest.importorskip("pycocotools", reason="pycocotools is not installed")
            pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    dataset = composed(*words)["dataset"]
    name = dataset["_target_"].rpartition(".")[2]
    for archive in (REAL[part] for part in (name, *dataset.get("sets", ())) if part in REAL):
        data = data_folder()
        if data is None or not (data / archive).is_file():
            pytest.skip(f"no {archive} in METALEARN_DATA or ../shared/data")
    if name in ("cub", "folder", "mini_imagenet", "mnist", "tiered_imagenet", "tiny_imagenet"):
        monkeypatch.setenv("METALEARN_CACHE", str(workplace / "cache"))
        words += stand_in(name, workplace)
    return words


def check_what_does_not_follow(config: dict[str, Any]) -> None:
    """Network, data and budget do not follow the algorithm, or a sweep over algorithms would
    compare other things too; a paper's choices are those of an experiment."""
    usual = composed()
    same = ("dataset", "episodes", "evaluation", "images", "augmentation", "sampling", "seed")
    assert {key: config[key] for key in same} == {key: usual[key] for key in same}
    assert config["training"] == usual["training"]
    # But for the head, which metric methods do not have.
    assert {**config["backbone"], "ways": 5} == usual["backbone"]


@pytest.mark.parametrize("path", NAMES.values(), ids=NAMES)
def test_a_config_composes_and_takes_one_step(path: Path, chosen: list[str]) -> None:
    if path.parent.name == "algorithm":
        check_what_does_not_follow(composed(*chosen))
    config = changed(composed(*chosen), small(chosen))
    if config["capture"] != "none" and not torch.cuda.is_available():
        with pytest.raises(UsageError, match="needs a CUDA device; use capture=none on a CPU"):
            build(config)
        return
    Engine(composed(*chosen)["batching"])
    _, stage = build(config)
    (batch,) = stage.batches(range(1), 0)
    gradient, metrics = stage.engine(stage.gradient, stage.algo, stage.meta, batch)
    assert metrics["loss"].isfinite().all()
    assert all(t.isfinite().all() for part in gradient.values() for t in part.values())


@pytest.mark.parametrize("path", RUNS)
def test_a_config_is_trained_and_tested(path: Path, chosen: list[str]) -> None:
    """Of most files `-m slow`: they were seen to take a step."""
    group = path.parent.as_posix()
    outcome = metalearn("train", *chosen, *small(chosen))
    if composed(*chosen)["capture"] != "none" and not torch.cuda.is_available():
        assert "needs a CUDA device; use capture=none on a CPU" in outcome.mistake
        return
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    measure = measure_of(result)
    assert {measure, f"{measure}_half_width", "weights_sha256"} <= set(result)
    assert all(math.isfinite(number) for number in numbers(result))
    assert (result["steps"], result["episodes"]) == (1, 2)
    if group == "algorithm":
        name = ALIASES.get(path.stem, path.stem.replace("_", ""))
        assert result["algorithm"].lower() == name
    if group == "tracker":
        assert bool(list(Path("run").glob("wandb/offline-run-*"))) == (path.stem != "disabled")


def test_every_classifier_takes_one_step(workplace: Path) -> None:
    """One network and batch for all, as a run each would take most of a minute."""
    names = sorted(path.stem for path in (conf_folder() / "classifier").glob("*.yaml"))
    assert len(names) >= 15
    chosen = ["algorithm=metric", "backbone=conv4", "backbone.filters=4", "dataset.classes=60"]
    _, stage = build(compose([*chosen, "training.meta_batch=1"]))
    (batch,) = stage.batches(range(1), 0)
    each = [f"+classifier@classifiers.{name}={name}" for name in names]
    compared = compose([*chosen[1:3], *each], "compare")
    for name in names:
        node = compared["classifiers"][name]
        assert name.startswith(option(node))
        algo = Metric(stage.algo.net.module, make(node, "classifier"), features=4)
        gradient, metrics = stage.gradient(algo, algo.init(), batch)
        assert metrics["loss"].isfinite().all(), name
        assert all(t.isfinite().all() for part in gradient.values() for t in part.values()), name
        assert any(t.any() for t in gradient["init"].values()), name


def test_a_classifier_that_is_trained_is_named_in_the_result(workplace: Path) -> None:
    chosen = ["algorithm=metric", "classifier=frn", "classifier.ways=5"]
    outcome = metalearn("train", *chosen, *small(chosen))
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert (result["algorithm"], result["classifier"]) == ("Metric", "FRN")


def test_debug_fast_is_what_it_says() -> None:
    config = compose(["debug=fast"])
    assert (config["training"]["steps"], config["evaluation"]["episodes"]) == (2, 4)


def test_a_choice_of_algorithm_brings_what_it_needs() -> None:
    assert compose(["algorithm=protonet"])["outputs"] is None
    assert compose(["algorithm=reptile"])["gradient"]["_target_"].endswith("Displacement")
    assert compose(["algorithm=reptile"])["inner"]["batch_size"] == 10
    assert compose(["dataset=sinusoid"])["backbone"]["outputs"] == 1
    assert compose(["episodes.ways=7"])["backbone"]["ways"] == 7
    assert compose(["algorithm=reptile", "outer=adam"])["outer"]["optimizer"]["lr"] == 0.001


def test_an_experiment_sets_what_train_yaml_has_a_default_for() -> None:
    protonet = compose(["experiment=omniglot_protonet_5w1s"])
    assert (protonet["name"], protonet["outputs"]) == ("omniglot_protonet_5w1s", None)
    assert protonet["backbone"]["ways"] is None
    assert compose(["experiment=omniglot_maml_5w1s"])["batching"] == "vmap"


def test_the_default_folder_is_the_same_for_the_same_command_alone() -> None:
    one = compose(["seed=3", "tracker=online"])["run_dir"]
    assert one.startswith("runs/maml-glyphs-5w1s-seed3-")
    assert compose(["seed=3", "resume=never"])["run_dir"] == one
    assert compose(["seed=3", "training.steps=7"])["run_dir"] != one


def test_a_users_own_folder_of_configs_adds_an_algorithm(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "mine" / "algorithm").mkdir(parents=True)
    (workplace / "mine" / "algorithm" / "half.yaml").write_text(
        "_target_: half_steps.HalfSteps\nsteps: 4\n"
    )
    (workplace / "half_steps.py").write_text(
        "from metalearn.algorithms import MAML\n\n"
        "def HalfSteps(module, steps: int, rule, loss):\n"
        "    return MAML(module, steps // 2, rule, loss)\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    chosen = [f"hydra.searchpath=[file://{workplace}/mine]", "algorithm=half"]
    outcome = metalearn("train", *chosen, *small(chosen))
    assert outcome.code == 0, outcome.err
    by_step = json.loads(Path("run/result.json").read_text())["accuracy_by_step"]
    assert len(by_step) == 1 + 2
