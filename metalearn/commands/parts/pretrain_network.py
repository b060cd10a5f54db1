"""The networks of a pre-training: the one that is trained, its rotation head, its teacher; and the
optimizer of what is trained."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from metalearn.backbones.weights import Report, Weights, read_weights
from metalearn.commands.building.arguments import corner, explained
from metalearn.commands.building.network import load, make_module
from metalearn.commands.building.trust import check_trust
from metalearn.data import ImageDataset
from metalearn.errors import UsageError
from metalearn.training.classification import head_of, torch_norms
from metalearn.training.distillation import Teacher
from metalearn.training.folder import read_config
from metalearn.training.held_out_split import SPLIT
from metalearn.training.old_configs import renewed
from metalearn.training.run import finished
from metalearn.training.sources import targets
from metalearn.training.supervised_result import WEIGHTS

PRECISIONS = ("fp32", "tf32", "bf16")
BATCH_NORMS = ("transductive", "support", "running", "frozen")


def network(
    config: Mapping[str, Any],
    shape: tuple[int, int, int],
    classes: int,
    weights: Weights | None = None,
) -> tuple[nn.Module, Report | None]:
    """The backbone of a configuration with a head for so many classes, and torch's own norms; and
    what became of the weights that it starts from. Raises UsageError."""
    if config["outputs"] not in (None, classes):
        raise UsageError(
            f"outputs={config['outputs']}, but there are {classes} base classes; use outputs=null"
        )
    node = dict(config["backbone"])
    for name in ("ways", "outputs"):
        if name in node and node[name] is None:
            node[name] = classes
    # With averages, whatever the policy of who uses the weights later.
    if node.get("norm") in BATCH_NORMS:
        node["norm"] = "frozen"
    module = make_module(node, shape, config["seed"])
    if (outputs := head_of(module).out_features) != classes:
        raise UsageError(f"the backbone has {outputs} outputs, not {classes}, one a base class")
    # With torch's norms, whose averages training makes anew where the weights have none.
    module = torch_norms(module)
    return module, None if weights is None else load(module, node, weights)


def make_rotation_head(
    module: nn.Module, rotation: float, shape: tuple[int, int, int], seed: int
) -> nn.Linear | None:
    """What tells the four rotations apart, where its loss weighs anything. Raises UsageError."""
    if not rotation:
        return None
    if shape[1] != shape[2]:
        raise UsageError("training.rotation needs square images; use rotation=0 or images.size")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(head_of(module).in_features, 4)


def check_distillation(asked: Mapping[str, Any]) -> None:
    """Raise UsageError for numbers out of range, or a folder that holds no finished run."""
    if not 0 <= asked["weight"] <= 1:
        raise UsageError(f"distillation.weight={asked['weight']} must be 0 to 1")
    if not 0 < asked["temperature"] < math.inf:
        raise UsageError(
            f"distillation.temperature={asked['temperature']} must be above 0, and finite"
        )
    if asked["teacher"] is None:
        return
    folder = Path(asked["teacher"])
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"distillation.teacher={folder} is not a run folder (no config.yaml)")
    if (folder / "weights.safetensors").is_file():
        raise UsageError(
            f"distillation.teacher={folder} is a run of train, which has no base classes; name one "
            "of pretrain"
        )
    if finished(folder) is None:
        raise UsageError(
            f"distillation.teacher={folder} has not finished; the command that started it goes on "
            "with it"
        )


def find_teacher(
    config: Mapping[str, Any], dataset: ImageDataset, shape: tuple[int, int, int]
) -> tuple[dict[str, Any], Teacher | None]:
    """The network of `distillation.teacher`, None without, and `config` with its sha256.

    Raises UsageError where its file is not what the run wrote, where it comes from code that
    nothing trusts, or where it was trained on other classes or images, or on images that are held
    out here.
    """
    asked = config["distillation"]
    if asked["teacher"] is None:
        return dict(config), None
    folder, name = Path(asked["teacher"]), f"distillation.teacher={asked['teacher']}"
    weights = read_weights(folder)
    told, wrote = weights.told, (finished(folder) or {}).get("weights_sha256")
    if weights.sha256 != wrote:
        raise UsageError(
            f"{folder / WEIGHTS} is not what the run wrote (sha256 {str(weights.sha256)[:8]}, in "
            f"result.json {str(wrote)[:8]}); put it back, or train the teacher anew"
        )
    pin = asked["sha256"]
    if pin is not None and (len(pin) < 8 or not str(wrote).startswith(pin.lower())):
        raise UsageError(f"{name} has sha256 {wrote}, not {pin}; correct distillation.sha256")
    own = dataset.class_names(SPLIT)
    if told.get("class_names") != own:
        raise UsageError(
            f"{name} knows other classes ({len(told.get('class_names') or ())} of "
            f"{told.get('dataset')}, not these {len(own)} of {dataset.name}); name a run on the "
            "same data set"
        )
    _check_images(name, told.get("images") or {}, config, shape)
    held = read_config(folder / "config.yaml", "held_out")["held_out"]
    if held != config["held_out"]:
        values = " ".join(f"held_out.{key}={value}" for key, value in held.items())
        raise UsageError(
            f"{name} held out other images, and may have learned what is held out here; use its "
            f"{values}"
        )
    node = renewed({"backbone": told.get("backbone")})["backbone"]
    if not isinstance(node, dict):
        raise UsageError(f"{folder / WEIGHTS} does not say its backbone; train the teacher anew")
    trusted = [path for _, path in targets(config)]
    trusted += [word.strip() for word in (asked["trust"] or "").split(",") if word.strip()]
    trusted += ["true"] if "True" in trusted else []  # a bool that was made text
    check_trust({"backbone": node}, trusted, folder / WEIGHTS, "distillation.trust")
    plain = {"backbone": {**node, "match": None, "copy": None}, "outputs": None, "seed": 0}
    module, _ = network(plain, shape, len(own), weights)
    module, sha256 = module.eval().requires_grad_(False), str(wrote)
    teacher = Teacher(module, asked["weight"], asked["temperature"], sha256)
    return {**config, "distillation": {**asked, "sha256": sha256}}, teacher


def _check_images(
    name: str, theirs: Mapping[str, Any], config: Mapping[str, Any], shape: tuple[int, int, int]
) -> None:
    """Raise UsageError where the teacher was trained to see other images than are given here."""
    given = config.get("images") or {}
    here = {"size": shape[-1] if shape[1] == shape[2] else None, "channels": shape[0]}
    here |= {key: given.get(key) for key in ("mean", "std")}
    if wrong := [key for key, value in here.items() if theirs.get(key) != value]:
        key = wrong[0]
        value = "null" if theirs.get(key) is None else theirs[key]
        raise UsageError(f"{name} sees other images; use images.{key}={value}, as it did")


def optimizer_of(make_optimizer: Any, learned: list[dict[str, Any]]) -> Optimizer:
    """The optimizer of what is learned, tried on a corner of it. Raises UsageError."""
    with explained("optimizer", "optimizer, which takes a step from a gradient alone"):
        small = [{**group, "params": [corner(p) for p in group["params"]]} for group in learned]
        for weight in (weight for group in small for weight in group["params"]):
            weight.grad = torch.full_like(weight, 1e-3)
        make_optimizer(params=small).step()
        optimizer = make_optimizer(params=learned)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
