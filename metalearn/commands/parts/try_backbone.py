"""Which network `metalearn try` takes, and why: what was asked for, or what is at hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalearn.backbones.norms import inductive
from metalearn.backbones.weights import Report, Weights
from metalearn.commands.building.arguments import check_choice
from metalearn.commands.building.config import compose
from metalearn.commands.building.network import build_module, with_weights
from metalearn.commands.building.trust import check_trust
from metalearn.data.own_images import look_of, side_of
from metalearn.episodes import ImageTransform
from metalearn.errors import DataError, UsageError
from metalearn.training.folder import read_config
from metalearn.training.run import finished

_LARGE = 64  # pixels a side, from which on weights of ImageNet see more than CIFAR's
_BASE = ("algorithm=metric", "dataset=folder", "dataset.channels=3", "tracker=disabled")


class Chosen(NamedTuple):
    """overrides: of `metalearn train`, which make the network. why: in words. run: that it is of,
    with its configuration; None for one that overrides name."""

    overrides: list[str]
    why: str
    run: Path | None = None


def choose_backbone(overrides: Sequence[str], folder: Path) -> Chosen:
    """By the user's `backbone=`, a run folder or a choice of the group, or what is at hand."""
    named = [o.removeprefix("backbone=") for o in overrides if o.startswith("backbone=")]
    rest = [o for o in overrides if not o.startswith("backbone=")]
    if named:
        path = Path(named[-1]).expanduser()
        if (path / "config.yaml").is_file():
            return Chosen(rest, f"the run {path}", path)
        return Chosen(list(overrides), f"backbone={named[-1]}, as asked")
    if any(o.startswith("backbone.") for o in overrides):
        raise UsageError("backbone.<key>= is of a backbone; name it too, backbone=<choice>")
    side, cached = side_of(folder), _imagenet()
    if cached and side >= _LARGE:
        why = f"ImageNet's weights are in torch's cache, for pictures of {side} pixels"
        return Chosen(["backbone=torchvision", "backbone.weights=DEFAULT", *rest], why)
    why = f"CIFAR-10's weights, the smallest download, for pictures of {side} pixels"
    if side >= _LARGE:
        why += ", which are made 32x32; give backbone=torchvision backbone.weights=DEFAULT for more"
    return Chosen(["backbone=cifar_resnet", "backbone.weights=DEFAULT", *rest], why)


def _imagenet() -> bool:
    place = Path(torch.hub.get_dir()) / "checkpoints"
    return any(place.glob("resnet18-*.pth"))


def configured(chosen: Chosen, trust: Sequence[str]) -> tuple[dict[str, Any], Weights | None]:
    """The configuration of the run that the network is for, its images as the weights expect them;
    and the weights. Raises UsageError where there are none to be had."""
    words = [*_BASE, *chosen.overrides]
    config = compose(words)
    if chosen.run is not None:
        config = {**config, **_of_run(chosen.run, config, trust)}
    elif "norm" in config["backbone"] and not any(o.startswith("backbone.norm=") for o in words):
        config["backbone"]["norm"] = "frozen"
    try:
        config, weights = with_weights(config)
    except (DataError, UsageError) as error:
        if any(o.startswith(("backbone=cifar", "backbone=torchvision")) for o in chosen.overrides):
            raise UsageError(
                f"{chosen.why}, cannot be had: {error}; or give backbone=<run folder of metalearn "
                "train or pretrain>"
            ) from None
        raise
    size = config["images"].get("size")
    if size and not any(o.startswith("dataset.size=") for o in words) and chosen.run is None:
        config["dataset"] = {**config["dataset"], "size": size}
    return config, weights


def _of_run(run: Path, config: Mapping[str, Any], trust: Sequence[str]) -> dict[str, Any]:
    """What a run says of its network and its images."""
    path = run / "config.yaml"
    held = read_config(path, "backbone._target_", "dataset")
    node, images, dataset = held["backbone"], held.get("images") or {}, held["dataset"]
    if (result := finished(run)) is None:
        raise UsageError(f"{run} has not finished; the command that started it goes on")
    check_trust({"backbone": node}, trust, path)
    outputs = {n: None for n in ("ways", "outputs") if n in node}
    norm = {"norm": "frozen"} if held.get("optimizer") and "norm" in node else {}  # of pretrain
    node = {**node, **outputs, **norm, "weights": str(run), "sha256": None, "rename": None}
    own: dict[str, Any] = dict(config["dataset"])
    if shape := result.get("image_shape"):
        look = look_of(dataset, shape)
        own |= {"size": look.size, "channels": look.channels, "fit": look.fit}
        own["invert"] = look.invert
    return {"backbone": node, "images": {**config["images"], **images}, "dataset": own}


def network(
    config: Mapping[str, Any], weights: Weights | None
) -> tuple[torch.nn.Module, Report | None, ImageTransform]:
    """The network, with its weights, and what is done to images before it.

    Raises UsageError where a feature would depend on the other images.
    """
    transform = ImageTransform(**config["images"])
    check_choice("dataset.fit", config["dataset"]["fit"], ("crop", "stretch"))
    size, channels = config["dataset"]["size"], config["dataset"]["channels"]
    shape = transform.shape((channels, size, size))
    example = torch.zeros(2, *shape)
    module, report = build_module(config["backbone"], shape, config["seed"], weights, example)
    if not inductive(module):
        raise UsageError(
            "that network normalises each image by those beside it, or by a support set's, so that "
            "no feature stands by itself; use weights with averages, backbone.norm=frozen, or a "
            "run with backbone.norm=running or group"
        )
    return module, report, transform
