"""What a run folder's configuration may name: nothing else is imported without the user's word."""

from collections.abc import Mapping, Sequence
from typing import Any

from metalearn.commands.building.arguments import target
from metalearn.errors import UsageError
from metalearn.training.sources import targets

SAFE = (
    *(f"metalearn.{name}" for name in ("algorithms", "backbones", "classifiers", "episodes")),
    *("metalearn.gradients", "metalearn.inner"),
    *("metalearn.training.pruning", "metalearn.training.rates"),
    *("torch.nn", "torch.optim", "torchvision.models", "timm.models"),
)
"""Packages that hold objects of a run alone: to call one writes no file and starts nothing."""
_DATA = "metalearn.data"


def check_trust(
    config: Mapping[str, Any], trust: Sequence[str], where: object, key: str = "trust"
) -> None:
    """Raise UsageError for a target in `config`, of the file `where`, that is neither of `SAFE` nor
    of the packages in `trust`, "true" for all. Nothing else is imported. key: says what to trust.
    """
    if "true" in trust:
        return
    for name, path in targets(config):
        if not (_within(path, trust) or _safe(path, name)):
            package = path.partition(".")[0]
            raise UsageError(
                f"{where} would call {name}={path}, which is no part of a network or a method of "
                f"metalearn or torch; if you trust that run, add {key}={package}, or {key}=true"
            )


def _safe(path: str, name: str) -> bool:
    """Whether it is an object of one of `SAFE`, not something that these have imported."""
    package, _, last = path.rpartition(".")
    if package == _DATA:
        return last in target(_DATA).__all__
    if not _within(path, SAFE):
        return False
    made = str(getattr(target(path, name), "__module__", ""))
    return made.partition(".")[0] in {"torch", "torchvision", "timm"} or _within(made, SAFE)


def _within(path: str, packages: Sequence[str]) -> bool:
    return any(f"{path}.".startswith(f"{package}.") for package in packages)
