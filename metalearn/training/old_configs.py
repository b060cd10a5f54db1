"""Configurations that older versions wrote, brought to the words of this one: the only table."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

TARGETS = {
    "metalearn.adaptation": "metalearn.backbones.adaptation",
    "metalearn.gradients.Reptile": "metalearn.gradients.Displacement",
}
"""Targets, and modules with all that is in them, that have moved or have another name."""

KEYS: dict[str, str | None] = {
    "division": "held_out",
    "schedule.least": "schedule.min_factor",
    "gradient.batching": None,  # of the engine, which stands beside it
    "gradient.precision": None,
    "gradient.capture": None,
}
"""Keys that have another name, by their dotted path; None for one that is gone."""


ADDED: dict[str, Any] = {}
"""What newer configurations hold, by its dotted path, with the value that does as before."""


def renewed(
    config: Mapping[str, Any],
    keys: Mapping[str, str | None] = KEYS,
    added: Mapping[str, Any] = ADDED,
    targets: Mapping[str, str] = TARGETS,
) -> dict[str, Any]:
    """A copy of `config` in which `keys` are renamed or dropped, where they are found; then what
    is `added` and not there is filled in. What there is under a new name stays."""
    new = deepcopy(dict(config))
    for old, now in keys.items():
        section, key = _section(new, old)
        if section is None or key not in section:
            continue
        value = section.pop(key)
        if now is not None:
            _fill_in(new, now, value)
    for path, value in added.items():
        _fill_in(new, path, value)
    _renew_backbone(new.get("backbone"))
    return _found(new, targets)


def _renew_backbone(node: Any) -> None:
    """What only some backbones have, with the value that does as before, in place."""
    if not isinstance(node, dict):
        return
    if str(node.get("_target_")).endswith(".Conv4"):
        node.setdefault("last_map", "flatten")
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
    return new
