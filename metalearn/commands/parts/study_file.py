"""`study.yaml`: which runs a study is made of, or what it searches."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import UsageError, nearest

COMMANDS = ("train", "pretrain")
_OWN = ("run_dir", "resume")  # the study's to say


@dataclass(frozen=True)
class Study:
    """command: of every run. overrides: of every run. groups: by name, choices that are each some
    overrides together, by their own name. lists: by the name of a setting, its values. seeds: of
    each combination. exclude: combinations that are left out. search: instead of groups and lists.
    """

    command: str = "train"
    overrides: list[str] = field(default_factory=list)
    groups: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    lists: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    exclude: list[dict[str, list[Any]]] = field(default_factory=list)
    search: dict[str, Any] | None = None

    def combinations(self) -> list[list[str]]:
        """The overrides of every run, seeds varying fastest. Raises UsageError where none is left,
        or an exclusion names what does not vary."""
        axes: dict[str, dict[Any, list[str]]] = {n: dict(own) for n, own in self.groups.items()}
        for name, values in self.lists.items():
            axes[name] = {_comparable(v): [f"{name}={written(v)}"] for v in values}
        if self.seeds:
            axes["seed"] = {seed: [f"seed={seed}"] for seed in self.seeds}
        for rule in self.exclude:
            if unknown := [name for name in rule if name not in axes]:
                raise UsageError(
                    f"exclude names {unknown[0]}, which does not vary"
                    f"{nearest(unknown[0], axes)}; use {', '.join(axes) or 'groups and lists'}"
                )
            for name, values in rule.items():
                left = [v for v in values if v not in axes[name]]
                if left:
                    raise UsageError(f"exclude names {name}={left[0]}, which {name} never is")
        found = []
        for labels in itertools.product(*axes.values()):
            chosen = dict(zip(axes, labels, strict=True))
            out = (all(chosen[n] in values for n, values in rule.items()) for rule in self.exclude)
            if not any(out):
                own = (axes[name][label] for name, label in chosen.items())
                found.append([*self.overrides, *itertools.chain.from_iterable(own)])
        if not found:
            raise UsageError("exclude leaves no run; leave some of it out")
        return found


def written(value: Any) -> str:
    """A value of YAML's as Hydra reads it in an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    text = str(value)
    if text == "" or (isinstance(value, str) and any(c in " ,[]{}()'\"\\" for c in text)):
        escaped = text.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return text


def _comparable(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else written(value)


def read_study(path: Path) -> Study:
    """The study in a file. Raises UsageError for what it does not understand."""
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; write the study into it") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; name a file such as study.yaml") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8; write it as YAML") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(held, dict):
        raise UsageError(f"{path} holds no settings; give it {', '.join(_READERS)}")
    values = {}
    for key, value in held.items():
        if key not in _READERS:
            raise UsageError(
                f"{path}: no key {key}{nearest(str(key), _READERS)}; use {', '.join(_READERS)}"
            )
        try:
            values[key] = _READERS[key](value)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
    study = Study(**values)
    if study.search is not None and (study.groups or study.lists or study.exclude):
        raise UsageError(f"{path}: a search has a space, and no groups, lists or exclude")
    space = (study.search or {}).get("space", {})
    fixed = [_name(override) for override in study.overrides]
    for name in (*study.lists, *space, *map(_name, _every_override(study))):
        if name in _OWN or str(name).startswith("hydra"):
            raise UsageError(f"{path}: {name} is the study's own to say; leave it out")
        if name == "seed" and (study.seeds or name in space):
            raise UsageError(f"{path}: seed is for seeds to say; leave it out")
    for name in (*study.lists, *space):
        if name in fixed or name in study.groups:
            where = "overrides" if name in fixed else "groups"
            raise UsageError(f"{path}: {name} stands in {where} too; leave one out")
    return study


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _every_override(study: Study) -> Iterator[str]:
    yield from study.overrides
    for choices in study.groups.values():
        for overrides in choices.values():
            yield from overrides


def _command(value: Any) -> str:
    if value not in COMMANDS:
        raise UsageError(f"command={value} cannot be planned; use {' or '.join(COMMANDS)}")
    return value


def _overrides(value: Any, name: str = "overrides") -> list[str]:
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise UsageError(f"{name} must be a list such as [dataset=omniglot, training.steps=9]")
    return value


def _groups(value: Any) -> dict[str, dict[str, list[str]]]:
    example = "groups: {method: {maml: [algorithm=maml], anil: [algorithm=anil]}}"
    _check_mapping("groups", value, dict, example)
    return {
        str(name): {str(c): _overrides(own, f"groups.{name}.{c}") for c, own in choices.items()}
        for name, choices in value.items()
    }


def _lists(value: Any) -> dict[str, list[Any]]:
    _check_mapping("lists", value, list, "lists: {episodes.shots: [1, 5]}")
    for name, values in value.items():
        if len({str(_comparable(v)) for v in values}) < len(values):
            raise UsageError(f"lists.{name} has a value twice; leave one out")
    return {str(name): values for name, values in value.items()}


def _check_mapping(name: str, value: Any, kind: type, example: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(v, kind) and v for v in value.values()):
        raise UsageError(f"{name} must be as in {example}")


def _seeds(value: Any) -> list[int]:
    whole = isinstance(value, list) and all(type(seed) is int for seed in value)
    if not whole or not value or len(set(value)) < len(value):
        raise UsageError(f"seeds={value} must be different whole numbers, as in seeds: [0, 1, 2]")
    return value


def _exclude(value: Any) -> list[dict[str, list[Any]]]:
    if not isinstance(value, list) or not all(isinstance(rule, dict) and rule for rule in value):
        raise UsageError("exclude must be as in exclude: [{algorithm: maml, episodes.shots: [5]}]")
    return [
        {str(n): [_comparable(v) for v in (own if isinstance(own, list) else [own])]
         for n, own in rule.items()}
        for rule in value
    ]  # fmt: skip


def _search(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("space"), dict):
        raise UsageError(
            "search must be as in search: {trials: 30, space: {inner.rate: 'interval(0.01, 0.5)'}}"
        )
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "command": _command,
    "overrides": _overrides,
    "groups": _groups,
    "lists": _lists,
    "seeds": _seeds,
    "exclude": _exclude,
    "search": _search,
}


def named(overrides: Sequence[str], shared: Collection[str]) -> str:
    """What tells one run from the others."""
    return " ".join(o for o in overrides if o not in shared) or "the run"
