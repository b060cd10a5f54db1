"""The user's own code belongs to what a run is: the hash of each file that a target comes from."""

import ast
import hashlib
import importlib.util
import site
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LIBRARIES = ("metalearn", "torch", "torchvision", "timm", "learn2learn", "higher")
"""Packages that a configuration may name without a word: their versions are the environment's."""


def targets(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` in a configuration, at any depth: its dotted path and what it names."""
    items = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list | tuple):
        items = ((str(number), part) for number, part in enumerate(value))
    for key, part in items:
        name = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            yield name, str(part)
        else:
            yield from targets(part, name)


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """By module, the sha256 of each file of the user's that the targets of `config` come from, and
    of the user's that those import; without any that cannot be found."""
    found: dict[str, str] = {}
    for _, target in targets(config):
        if target.partition(".")[0] not in LIBRARIES:
            _follow(_module(target), found, own=True)
    return dict(sorted(found.items()))


def changed(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    """What was edited between two of `sources`, in words; "" for nothing."""
    before, now = before or {}, now or {}
    names = [n for n in sorted({*before, *now}) if before.get(n) != now.get(n)]
    return f"{', '.join(names)} {'have' if names[1:] else 'has'} changed" if names else ""


def _follow(module: str | None, found: dict[str, str], own: bool = False) -> None:
    """Add `module` and what it imports. own: it is asked for, wherever it is installed."""
    path = _file(module) if module else None
    if module is None or path is None or module in found or not (own or not _installed(path)):
        return
    data = path.read_bytes()
    found[module] = hashlib.sha256(data).hexdigest()
    if path.suffix != ".py" or _installed(path):
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        nodes = list(ast.walk(ast.parse(data)))
    except (SyntaxError, ValueError):  # told where it is imported
        return
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.partition(".")[0] not in LIBRARIES:
                _follow(_module(name), found)


def _module(target: str) -> str | None:
    """The longest beginning of a dotted path that is a module."""
    while target:
        if _file(target):
            return target
        target = target.rpartition(".")[0]
    return None


def _file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # its package is none, or fails: told where it is imported
        return None
    path = Path(spec.origin) if spec and spec.origin else None
    return path if path and path.is_file() else None


def _installed(path: Path) -> bool:
    """Whether it is Python's or a package's that was installed."""
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {*site.getsitepackages(), site.getusersitepackages()}
    return any(path.is_relative_to(place) for place in filter(None, places))
