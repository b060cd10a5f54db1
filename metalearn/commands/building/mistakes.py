"""One line for every mistake in the overrides, saying what to change."""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

from metalearn.commands.building.arguments import arguments, at
from metalearn.errors import nearest
from metalearn.training.old_configs import KEYS

_TYPES = {
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
    "String": "text",
}


def explain(error: Exception, known: Callable[[], Mapping[str, Any]], job: str = "train") -> str:
    """The line for an error of Hydra's or OmegaConf's.

    known: the configuration without the mistake, asked only where a name has to be suggested.
    job: the command whose configuration it is.
    """
    text = str(error)
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if error.options:
            return unknown_choice(group, choice, error.options)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}; write name=value, and quote what is not plain text"
    if match := re.match(r"In '([^']+)/([^'/]+)': (?s:.*)Key '(\w+)' not in", text):
        group, choice, key = match.groups()
        return f"{group}={choice} sets {key}, which metalearn {job} does not have; choose another"
    if match := re.match(r"(?:In '(task)/\w+': )?Could not override '([^']+)'", text):
        return _unknown(match[1] or match[2], known(), job)
    if match := re.match(r"Error merging override (.+)", text):
        if isinstance(cause, ConfigKeyError | ConfigAttributeError):
            return _unknown(str(cause.full_key), known(), job)
        return _value(match[1], cause or error)
    if match := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        name, _, values = match[1].partition("=")
        return f"{match[1]} is several values; add -m to sweep, or make a list: {name}=[{values}]"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _unknown(str(error.full_key), known(), job)
    if isinstance(error, MissingMandatoryValue):
        return f"{text.partition(':')[2].split()[0]} is missing; choose one (see metalearn list)"
    if full_key := getattr(error, "full_key", None):
        return _value(str(full_key), error)
    if match := re.search(r"path=(\S+) is not available", text):
        where = "hydra.searchpath, or the entry point metalearn.conf that names it"
        return f"no config folder {match[1]}; correct {where}"
    if text.startswith("Config group override must be"):
        return "a config group cannot be null; name a choice (see metalearn list)"
    return " ".join(text.split())


def unknown_choice(group: str, choice: str, options: Sequence[str]) -> str:
    """The line for a choice that a config group does not have."""
    told = f"{group}={choice} is not known" if choice else f"{group}= needs a choice"
    return f"{told}{nearest(choice, options)}; choose from {', '.join(options)}"


def _unknown(key: str, config: Mapping[str, Any], job: str) -> str:
    if "/" in key:
        return f"no config group {key}; see metalearn list"
    for old, new in KEYS.items():
        if new and f"{key}.".startswith(f"{old}."):
            return f"no key {key}; it is {new}{key.removeprefix(old)} now"
    if key == "task":
        return f"{job} is for classification; metalearn train and pretrain take a task"
    folder, _, last = key.rpartition(".")
    parent = at(config, folder)
    if isinstance(parent, Mapping) and last in arguments(parent.get("_target_")):
        return f"{key} is not in the configuration; add it with a plus: +{key}=..."
    return f"no key {key}{_nearest_key(key, config)}; see metalearn {job} --cfg job"


def _nearest_key(key: str, config: Mapping[str, Any]) -> str:
    """Near in the same section, else by its whole path, else by its last part anywhere."""
    keys = _keys(config)
    folder, _, last = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == folder}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(keys)}
    whole = {k: k for k in keys if key.count(".") == k.count(".") and folder not in keys}
    for name, known in ((last, siblings), (key, whole), (last, anywhere)):
        if found := get_close_matches(name, known, 1, 0.7):
            return f" (did you mean {known[found[0]]}?)"
    return ""


def _keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys += _keys(value, f"{prefix}{name}.")
    return keys


def _value(override: str, error: BaseException) -> str:
    text = str(error).splitlines()[0]
    if match := re.search(r"could not be converted to (\w+)", text):
        return f"{override} must be {_TYPES.get(match[1], match[1])}"
    if "is not a ListConfig" in text:
        return f"{override} must be a list [...]"
    if "is not a subclass of" in text:
        return f"{override} replaces several values; override one of them"
    if "is not Optional" in text or "not optional" in text:
        return f"{override.partition('=')[0]} must not be null"
    return f"{override}: {text}"
