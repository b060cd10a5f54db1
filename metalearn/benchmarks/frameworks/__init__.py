"""The engines that are compared, each as its users write it: a name, the package it needs, a
function that makes a meta-step."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from metalearn.benchmarks.cells import Cell
from metalearn.errors import UsageError, nearest


class NotInstalled(Exception):
    """The framework's package is not installed."""


class Runner(NamedTuple):
    """A meta-step, ready to be called again and again on the same weights and tasks.

    step: starts one and returns its result. wait: until that is there. gradient: the result as
    tensors by the names of the torch module's parameters, the mean over tasks.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], None]
    gradient: Callable[[Any], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Framework:
    """package: what has to be installed. path: the module here that has `prepare`.
    options: further keyword arguments of `prepare`."""

    package: str
    path: str
    options: Mapping[str, str]
    low_precision: bool = False


def _ours(strategy: str) -> Framework:
    low = {"bf16", "bf16-all", "fp16"} & set(strategy.split(":"))
    return Framework("metalearn", "ours", {"strategy": strategy}, bool(low))


FRAMEWORKS = {
    "ours": _ours("exact:auto:fp32"),
    "ours-bf16": _ours("exact:auto:bf16"),
    "ours-graph": _ours("exact:auto:fp32:graph"),
    "ours-graph-bf16": _ours("exact:auto:bf16:graph"),
    "learn2learn": Framework("learn2learn", "learn2learn", {}),
    "higher": Framework("higher", "higher", {}),
    "torchopt": Framework("torchopt", "torchopt", {}),
    "jax-vmap": Framework("jax", "jax", {"variant": "vmap"}),
    "jax-loop": Framework("jax", "jax", {"variant": "loop"}),
    "plain": Framework("torch", "plain", {}),
}


def default(device: str) -> tuple[str, ...]:
    """Those that are raced where none are named: the captured ones on a CUDA device."""
    names = (name for name in FRAMEWORKS if name != "plain")
    return tuple(name for name in names if device == "cuda" or "-graph" not in name)


def parse(text: str) -> tuple[str, ...]:
    """The frameworks that `frameworks=` names, "jax" being both of its variants.

    `ours@<strategy>:<batching>:<precision>:<capture>` is any strategy of ours. Raises UsageError.
    """
    names: list[str] = []
    for name in text.split(","):
        names += ["jax-vmap", "jax-loop"] if name == "jax" else [name]
    for name in names:
        if name.startswith("ours@"):
            from metalearn.benchmarks.frameworks import ours

            ours.engine_and_strategy(name.partition("@")[2])
        elif name not in FRAMEWORKS:
            raise UsageError(
                f"frameworks={name} is not known{nearest(name, FRAMEWORKS)}; use "
                f"{', '.join(FRAMEWORKS)}, jax or ours@<strategy>:<batching>:<precision>:<capture>"
            )
    return tuple(dict.fromkeys(names))


def framework(name: str) -> Framework:
    """By its name in `FRAMEWORKS`, or `ours@...`."""
    return FRAMEWORKS[name] if name in FRAMEWORKS else _ours(name.partition("@")[2])


def load(name: str) -> Callable[[Cell, str], Runner]:
    """`prepare(cell, device)` of a framework. Raises NotInstalled."""
    found = framework(name)
    if importlib.util.find_spec(found.package) is None:
        raise NotInstalled(f"{found.package} is not installed")
    module = importlib.import_module(f"metalearn.benchmarks.frameworks.{found.path}")
    return partial(module.prepare, **found.options)
