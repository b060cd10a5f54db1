"""Hydra's composition, which a process does once for each choice of groups."""

import copy
from collections.abc import Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from metalearn.commands.building import searchpath

_bases: dict[object, DictConfig] = {}
_KEPT = 100  # compositions; 0.2 MB each


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of `command` with `overrides`, unresolved; Hydra is initialised.

    Raises what Hydra raises.

    A composition of Hydra's takes a quarter of a second, most of it to read and merge the groups.
    Values (`inner.rate=0.1`) are set after that, so lists that differ in values alone share what
    their groups give, as long as no config file changes, and set them as Hydra does.
    """
    folders = [searchpath.conf_folder(), *searchpath.folders(searchpath.split(overrides)[1])]
    values, groups, changed = [], [], []
    loader = GlobalHydra.instance().config_loader()
    for override in OverridesParser.create(loader).parse_overrides(list(overrides)):
        key = override.key_or_group
        single = override.type == OverrideType.CHANGE and not override.is_sweep_override()
        of_hydra = key.partition(".")[0].partition("/")[0] == "hydra"
        is_group = of_hydra or any((folder / key).is_dir() for folder in folders)
        plainly = single and override.package is None and not is_group
        (values if plainly else groups).append(override)
        if not plainly and not is_group:
            changed.append(key)
    if any(_within(override.key_or_group, key) for override in values for key in changed):
        return hydra.compose(command, list(overrides))  # their order matters
    lines = tuple(override.input_line or "" for override in groups)
    files = [(path, path.stat()) for folder in folders for path in folder.rglob("*.yaml")]
    known = command, lines, tuple((p, stat.st_mtime_ns, stat.st_size) for p, stat in files)
    if known not in _bases:
        if len(_bases) == _KEPT:
            del _bases[next(iter(_bases))]
        _bases[known] = hydra.compose(command, list(lines))
    config = copy.deepcopy(_bases[known])
    for override in values:
        _set(config, override)
    return config


def _set(config: DictConfig, override: Override) -> None:
    key = override.key_or_group
    try:
        OmegaConf.update(config, key, override.value(), merge=True)
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise ConfigCompositionException(f"Could not override '{key}'.") from error
    except OmegaConfBaseException as error:
        line = override.input_line
        raise ConfigCompositionException(f"Error merging override {line}") from error


def _within(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
