"""Many configurations of one command: Hydra composes each choice of groups once."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf

from metalearn.commands.config import explaining, on_conf, plain


@contextmanager
def composer(command: str) -> Iterator[Callable[[Sequence[str]], dict[str, Any]]]:
    """`config.compose` for many lists of overrides; what it yields raises UsageError as that does.

    A composition of Hydra's takes a quarter of a second, most of it to read and merge the groups.
    Values (`inner.rate=0.1`) are set after that, so lists that differ in values alone share what
    their groups give, and set them as Hydra does, by `OmegaConf.update`. What fails there is
    composed once more by Hydra itself, which says why.
    """
    bases: dict[tuple[str, ...], DictConfig] = {}
    is_group: dict[str, bool] = {}

    def composed(overrides: Sequence[str]) -> dict[str, Any]:
        with explaining(overrides, command):
            try:
                return plain(_composed(bases, is_group, command, overrides), command)
            except Exception:
                return plain(hydra.compose(command, list(overrides)), command)

    with on_conf():
        yield composed


def _composed(
    bases: dict[tuple[str, ...], DictConfig],
    is_group: dict[str, bool],
    command: str,
    overrides: Sequence[str],
) -> DictConfig:
    loader = GlobalHydra.instance().config_loader()
    values, groups = [], []
    for override in OverridesParser.create(loader).parse_overrides(list(overrides)):
        key = override.key_or_group
        if key not in is_group:  # to ask takes as long as a quarter of a composition
            is_group[key] = bool(loader.get_group_options(key)) or key.startswith("hydra")
        single = override.type == OverrideType.CHANGE and not override.is_sweep_override()
        plainly = single and override.package is None and not is_group[key]
        (values if plainly else groups).append(override)
    lines = tuple(override.input_line or "" for override in groups)
    if lines not in bases:
        bases[lines] = hydra.compose(command, list(lines))
    config = copy.deepcopy(bases[lines])
    for override in values:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    return config
