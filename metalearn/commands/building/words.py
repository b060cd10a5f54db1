"""The words behind a command that are no overrides of Hydra's: places, and options by name."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from metalearn.errors import UsageError, nearest

D = TypeVar("D")
T = TypeVar("T")


def split(
    arguments: Sequence[str], command: str, known: Collection[str], prefixes: tuple[str, ...] = ()
) -> tuple[list[Path], dict[str, str]]:
    """Places, which are there or have no `=`, and the values of `name=value`.

    prefixes: of further names. Raises UsageError for a name that is not known.
    """
    places, options = list[Path](), dict[str, str]()
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            places.append(Path(argument))
        elif name in known or name.startswith(prefixes):
            options[name] = value
        else:
            raise unknown(name, command, known)
    return places, options


def unknown(name: str, command: str, known: Collection[str]) -> UsageError:
    """The mistake of an option that the command does not have."""
    told = f"; it has {', '.join(known)}" if known else ""
    return UsageError(f"no option {name}{nearest(name, known)} of {command}{told}")


def trusted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The packages that `trust=a,b` names, as often as it is given, and the other words."""
    given = [a for a in arguments if a.startswith("trust=")]
    names = ",".join(a.removeprefix("trust=").strip("[]") for a in given).split(",")
    return [n.strip() for n in names if n.strip()], [a for a in arguments if a not in given]


def flag(options: Mapping[str, str], name: str, default: D) -> bool | D:
    """True or false. Raises UsageError for anything else."""
    if name not in options:
        return default
    if options[name] not in ("true", "false"):
        raise UsageError(f"{name}={options[name]} must be true or false")
    return options[name] == "true"


def whole(options: Mapping[str, str], name: str) -> int | None:
    """None where it is not given. Raises UsageError for what is no whole number of 1 or more."""
    if name not in options:
        return None
    if options[name].isdecimal() and int(options[name]) > 0:
        return int(options[name])
    raise UsageError(f"{name}={options[name]} must be a whole number, 1 or more")


def number(options: Mapping[str, str], name: str) -> float | None:
    """None where it is not given. Raises UsageError for what is no finite number above 0."""
    if name not in options:
        return None
    with suppress(ValueError):
        if 0 < (value := float(options[name])) < float("inf"):
            return value
    raise UsageError(f"{name}={options[name]} must be a number above 0")


def read_options(arguments: Sequence[str], defaults: T, command: str) -> T:
    """A dataclass like `defaults` with the values of `name=value`: text, or numbers above 0.

    Raises UsageError for a name or a value that is not known.
    """
    places, options = split(arguments, command, vars(defaults))
    if places:
        raise UsageError(f"cannot read {str(places[0])!r}; write name=value")
    reads: dict[type, Callable[..., Any]] = {int: whole, float: number, str: dict.get}
    given = {name: reads[type(vars(defaults)[name])](options, name) for name in options}
    return dataclasses.replace(cast(Any, defaults), **given)
