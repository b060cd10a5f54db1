"""Configurations that older versions wrote, brought to the words of this one: the only table."""

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from metalearn.runtime.files import packaged

TARGETS = {
    "metalearn.adaptation": "metalearn.backbones.adaptation",
    "metalearn.gradients.Reptile": "metalearn.gradients.Displacement",
}
"""Targets, and modules with all that is in them, that have moved or have another name."""

KEYS: dict[str, str | None] = {
    "division": "held_out",
    "algorithm.classifier": "classifier",
    "schedule.least": "schedule.min_factor",
    "gradient.batching": None,  # of the engine, which stands beside it
    "gradient.precision": None,
    "gradient.capture": None,
}
"""Keys that have another name, by their dotted path; None for one that is gone."""


OF_TARGET: dict[str, dict[str, Any]] = {
    "metalearn.data.folder": {"min_images": 1, "class_folder": "path"}
}
"""What newer nodes of a target hold, with the values that do as before."""

PLACES = ("root", "archive", "splits", "tokenizer")
"""Keys of a data set that are paths of the user's; `splits` is one of dataset=folder alone, and
`tokenizer` is one but for "words"."""

ADDED: dict[str, Any] = {
    "sampling.queries": "balanced",
    "sampling.concentration": 2.0,
    "tuning.prototype_rates": [0.0, 0.0001, 0.001, 0.01],
    "tuning.prototype_steps": 50,
    "tuning.copies": 10,
    "meta.clock": "wall",
}
"""What newer sections hold, by its dotted path, with the value that does as before."""

_STANDARD = {
    **{"_target_": "metalearn.episodes.Augmentation", "turn": False, "crop": 4},
    **{"flip": 0.5, "jitter": 0.4, "erase": 0.0},
}
_NO_TEACHER = {"teacher": None, "sha256": None, "weight": 0.5, "temperature": 4.0, "trust": None}

_CLEAN = {"name": None, "severity": 3, "on": "query", "sizes": "auto", "seed": 0}

OF_KIND: dict[str, dict[str, Any]] = {
    "algorithm": {
        **{"classifier": None, "lite": None, "check": "none", "adversarial": None, "pruning": None},
        "corruption": _CLEAN,
    },
    "held_out": {"distillation": _NO_TEACHER, "manifold_mixup": {"alpha": 0.0, "layers": None}},
    "meta": {
        "sampling": {"queries": ["balanced"], "concentration": 2.0},
        "classifiers": {},
        "jobs": 1,
        **{"sparsity": None, "robustness": None},
        "curves": {
            **{"episodes": 100, "pruning": "magnitude", "severities": [1, 3, 5], "on": "query"},
            **{"epsilon": 8 / 255, "steps": 20},
        },
        "augmentation": {"support": _STANDARD, "query": _STANDARD},
    },
}
"""What newer configurations hold: those of training, of pre-training and of a comparison, by a
key that tells them; with the values that do as before."""


def renewed(
    config: Mapping[str, Any],
    keys: Mapping[str, str | None] = KEYS,
    added: Mapping[str, Any] = ADDED,
    targets: Mapping[str, str] = TARGETS,
) -> dict[str, Any]:
    """A copy of `config` in which `keys` are renamed or dropped, where they are found; then what
    is `added` is filled in where its section is there and it is not. What there is under a new
    name stays."""
    new = deepcopy(dict(config))
    for old, now in keys.items():
        section, key = _section(new, old)
        if section is None or key not in section:
            continue
        value = section.pop(key)
        if now is not None:
            _fill_in(new, now, value)
    for path, value in added.items():
        if path.partition(".")[0] in new:
            _fill_in(new, path, value)
    for kind in OF_KIND.keys() & new.keys():
        new = {**deepcopy(OF_KIND[kind]), **new}
    if "algorithm" in new:
        _fill_in(new, "training.clock", "wall")
    _renew_backbone(new.get("backbone"))
    return placed(_found(new, targets))


def placed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which the paths of data sets and manifests are absolute, so that another folder
    finds them too: what older versions wrote, and what a command line says."""
    new = dict(config)
    if "dataset" in new:
        new["dataset"] = _placed(new["dataset"])
    backbone = new.get("backbone")
    if isinstance(backbone, dict) and "folder" in backbone:
        new["backbone"] = {**backbone, "folder": _of_encoder(backbone["folder"])}
    evaluation = new.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("manifest"), str):
        new["evaluation"] = {**evaluation, "manifest": _absolute(evaluation["manifest"])}
    return new


def _placed(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    ours = str(node.get("_target_")).startswith("metalearn.")
    made = {
        key: _absolute(value)
        if key in PLACES and isinstance(value, str) and (ours or key != "splits")
        else _placed(value)
        for key, value in node.items()
        if key != "tokenizer"
    }
    return {key: made.get(key, _of_encoder(value)) for key, value in node.items()}


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())


def _of_encoder(path: Any) -> Any:
    """A folder, absolute; "words", and the name of an installed package, as they are."""
    if not isinstance(path, str) or path == "words":
        return path
    named = path.isidentifier() and not os.path.exists(path) and packaged(path, "*")
    return path if named else _absolute(path)


def _renew_backbone(node: Any) -> None:
    """What only some backbones have, with the value that does as before, in place."""
    if not isinstance(node, dict):
        return
    last_maps = {"Conv4": "flatten", "ResNet12": "mean", "CifarResNet": "mean"}
    if (network := str(node.get("_target_")).rpartition(".")[2]) in last_maps:
        node.setdefault("last_map", last_maps[network])
    if "match" in node:
        node |= {name: node.get(name) for name in ("rename", "admit", "licence")}
    if "match" in node and "copy" not in node:
        # Nine tenths of the body were enough, where nothing else was said.
        node |= {"copy": None, "match": 1.0 if node["match"] == 0.9 else node["match"]}


def _fill_in(config: dict[str, Any], path: str, value: Any) -> None:
    section, key = _section(config, path, make=True)
    if section is not None:
        section.setdefault(key, deepcopy(value))


def _section(config: dict[str, Any], path: str, make: bool = False) -> tuple[dict | None, str]:
    """The mapping that the last word of a dotted path is a key of; None where there is none."""
    *folders, key = path.split(".")
    section: Any = config
    for name in folders:
        section = section.setdefault(name, {}) if make else section.get(name)
        if not isinstance(section, dict):
            return None, key
    return section, key


def _found(value: Any, targets: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_found(item, targets) for item in value]
    if not isinstance(value, dict):
        return value
    new = {key: _found(item, targets) for key, item in value.items()}
    if isinstance(path := new.get("_target_"), str):
        module, _, name = path.rpartition(".")
        new["_target_"] = targets.get(path, f"{targets.get(module, module)}.{name}")
        for key, usual in OF_TARGET.get(new["_target_"], {}).items():
            new.setdefault(key, usual)
    return new
