"""What the members of a sweep differ in beside what it names: a choice may set more than itself."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from metalearn.commands.building.arguments import option

_NOT_TOLD = ("run_dir", "name", "resume", "tracker")  # of where it lies, not of what it is


def differences(
    configs: Sequence[Mapping[str, Any] | None], named: Sequence[Collection[str]]
) -> list[str]:
    """For each member its values, as overrides, of what is not the same in all of them.

    configs: of the members, None where one could not be composed. named: the keys that each
    member's overrides name, which say it themselves.
    """
    rows = [dict(_flat(config)) if config else None for config in configs]
    there = [row for row in rows if row is not None]
    told: dict[tuple[str, ...], str] = {}
    for key in dict.fromkeys(key for row in there for key in row):
        if any(_within(key, name) for names in named for name in names):
            continue
        values = tuple(str(row.get(key)) for row in there)
        if len(set(values)) > 1:
            told.setdefault(values, key)  # what follows it has the same values
    return [
        "" if row is None else " ".join(f"{key}={_shown(row.get(key))}" for key in told.values())
        for row in rows
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its path, that of a class by the path of its group; `outputs` first, since
    networks follow it."""
    for key in sorted(config, key=lambda key: key != "outputs"):
        value, path = config[key], f"{prefix}{key}"
        if path in _NOT_TOLD or (key.startswith("_") and key != "_target_"):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif key == "_target_":
            yield prefix.rstrip("."), option({"_target_": value})
        else:
            yield path, value


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.") or f"{name}.".startswith(f"{key}.")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
