"""From overrides to what a selection does, with every mistake told before anything is measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.backbones.weights import Weights
from metalearn.commands.building.admission import OUTPUTS, bare
from metalearn.commands.building.arguments import at, check_choice, check_values
from metalearn.commands.building.config import compose
from metalearn.commands.building.network import check_backbone, with_weights
from metalearn.commands.building.texts import check_tokenizer
from metalearn.commands.building.trust import check_trust
from metalearn.errors import UsageError, nearest
from metalearn.evaluation.selection.looks import NEAREST_CENTROID
from metalearn.evaluation.selection.scores import SCORES
from metalearn.runtime.device import torch_device
from metalearn.runtime.files import decode_floats
from metalearn.training.folder import read_config

ALL_SCORES = (*SCORES, NEAREST_CENTROID)
_OWN = ("backbone", "images", "norm")  # what a candidate may override
_NORMS = ("frozen", "running", "group", "none")


class Named(NamedTuple):
    """A candidate as plain values. backbone: without a head. weights: None for random ones."""

    backbone: dict[str, Any]
    images: dict[str, Any]
    weights: Weights | None

    def headed(self) -> tuple[dict[str, Any], int] | None:
        """The backbone with the classes that its weights tell, and their number; None where they
        tell none, as far as can be seen."""
        if self.weights is None or not set(OUTPUTS) & set(self.backbone):
            return None
        layers = [
            len(t)
            for name, t in self.weights.tensors.items()
            if t.ndim == 2 and name.endswith("weight")
        ]
        if not layers:
            return None
        own = {name: layers[-1] for name in OUTPUTS if name in self.backbone}
        return {**self.backbone, **own}, layers[-1]


class SelectionPlan(NamedTuple):
    """config: `conf/select.yaml`, composed. reached: by candidate, what a comparison folder says
    was reached, by name `accuracy` and `half_width`."""

    config: dict[str, Any]
    candidates: dict[str, Named]
    scores: list[str]
    reached: dict[str, dict[str, Any]]


def plan(overrides: Sequence[str]) -> SelectionPlan:
    """What `metalearn select <overrides>` is to do. Raises UsageError."""
    config = compose(overrides, "select")
    check_values(config)
    torch_device(config["device"])
    check_choice("norm", config["norm"], _NORMS)
    for name in ("sample.images", "sample.classes"):
        if at(config, name) < 2:
            raise UsageError(f"{name}={at(config, name)} must be 2 or more")
    shape = config["episodes"]
    if not shape["shots"] or min(shape["shots"]) < 1:
        raise UsageError(f"episodes.shots={shape['shots']} must be numbers of 1 or more each")
    scores = list(ALL_SCORES) if config["scores"] is None else config["scores"]
    for name in scores:
        if name not in ALL_SCORES:
            raise UsageError(
                f"no score {name}{nearest(name, ALL_SCORES)}; use {', '.join(ALL_SCORES)}"
            )
    if not scores:
        raise UsageError("scores=[] is empty; name one or more, or use scores=null for all")
    _check_episodes(config, scores)
    known = config["candidates"]
    asked = list(known) if config["backbones"] is None else config["backbones"]
    if not asked:
        raise UsageError("backbones=[] is empty; name one or more, or use backbones=null for all")
    found = {}
    for name in dict.fromkeys(asked):
        try:
            found[name] = _candidate(config, name, overrides)
        except UsageError as error:
            raise UsageError(f"backbones, {name}: {error}") from None
    reached = {name: _compared(Path(place)) for name, place in config["compared"].items()}
    for name in reached:
        if name not in found:
            raise UsageError(f"compared.{name} is no candidate; use {', '.join(found)}")
    return SelectionPlan(config, found, scores, reached)


def _check_episodes(config: Mapping[str, Any], scores: Sequence[str]) -> None:
    """Raise UsageError where the sample cannot give the episodes that are asked for."""
    shape, sample = config["episodes"], config["sample"]
    needed = max(shape["shots"]) + shape["queries"]
    for name, least, of in (
        ("images", needed, "episodes.shots + episodes.queries"),
        ("classes", shape["ways"], "episodes.ways"),
    ):
        if sample[name] < least and (config["accuracy"] or NEAREST_CENTROID in scores):
            raise UsageError(
                f"sample.{name}={sample[name]} must be {of} = {least} or more, or scores without "
                f"{NEAREST_CENTROID}, and accuracy=false"
            )


def _candidate(config: Mapping[str, Any], name: str, overrides: Sequence[str]) -> Named:
    known = config["candidates"]
    if name in known:
        for override in known[name]:
            key = override.partition("=")[0].lstrip("+~").partition(".")[0].partition("@")[0]
            if key not in _OWN or override.startswith("backbone.ways"):
                raise UsageError(f"{override} is one for all; only {', '.join(_OWN)} differ")
        own = compose([*overrides, *known[name]], "select")
        node = dict(own["backbone"])
    elif (path := Path(name).expanduser() / "config.yaml").is_file():
        use = "name a run of metalearn pretrain"
        held = read_config(path, "backbone._target_", "images", use=use)
        own = {**config, "images": held["images"]}
        node = {**held["backbone"], "weights": str(path.parent), "sha256": None}
        check_trust({"backbone": node}, (), path)
    else:
        raise UsageError(
            f"there is no such candidate{nearest(name, known)}; use {', '.join(known)}, the run "
            f"folder of a metalearn pretrain, or add '+candidates.{name}=[\"backbone=...\"]'"
        )
    node = bare(node)
    node |= {"norm": own["norm"]} if "norm" in node else {}
    given, weights = with_weights({**own, "backbone": node})
    check_backbone(given["backbone"])
    check_tokenizer({**config, "backbone": node})
    return Named(given["backbone"], dict(given["images"]), weights)


def _compared(place: Path) -> dict[str, Any]:
    path = place / "comparison.json"
    if not path.is_file():
        raise UsageError(f"{place} holds no comparison.json; name a folder of metalearn compare")
    try:
        made = decode_floats(json.loads(path.read_text(encoding="utf-8")))
        return {
            f"{row['method']} {row['shots']}-shot": {
                name: row[name] for name in ("accuracy", "half_width", "episodes")
            }
            for row in made["rows"]
            if row.get("queries", "balanced") == "balanced"
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error})") from None
