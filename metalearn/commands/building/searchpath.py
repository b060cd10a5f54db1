"""Where config groups are looked for: ours, and those of other projects.

A project names its own at each command, by `hydra.searchpath=[file:///folder]` or
`[pkg://package]`, or once, by an entry point of the group `metalearn.conf`, a package:

    [project.entry-points."metalearn.conf"]
    mine = "my_package.conf"
"""

import functools
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin

from metalearn.errors import UsageError

GROUP = "metalearn.conf"
OVERRIDE = "hydra.searchpath"


def conf_folder() -> Path:
    """Where `conf/` lies: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[2]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


class OtherProjects(SearchPathPlugin):
    """Hydra finds the config groups of the entry points after ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them."""
        for place in named():
            search_path.append("metalearn", place)


def register() -> None:
    """Make entry points known to Hydra."""
    Plugins.instance().register(OtherProjects)


def named() -> list[str]:
    """The packages of the entry points, as `pkg://package`."""
    return list(_named(tuple((place, _written(place)) for place in sys.path)))


def _written(place: str) -> int | None:
    try:
        return os.stat(place).st_mtime_ns
    except OSError:  # not there, or not ours to look at
        return None


@functools.lru_cache(maxsize=1)
def _named(installed: tuple[tuple[str, int | None], ...]) -> tuple[str, ...]:
    """`named`, while nothing is installed: to read them all takes a hundredth of a second."""
    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return tuple(f"pkg://{value}" for value in dict.fromkeys(point.value for point in found))


def folders(override: str | None = None) -> list[Path]:
    """The folders of entry points and of an override `hydra.searchpath=[...]`. Raises UsageError
    where one is not there."""
    places = named()
    if override is not None:
        try:
            value = OverridesParser.create().parse_override(override).value()
        except HydraException:
            value = None
        if not isinstance(value, list):
            raise UsageError(f"{override} must be a list, as {OVERRIDE}=[file:///folder]")
        places = [*map(str, value), *places]
    return [_folder(place) for place in places]


def split(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The other arguments, and the override of the search path."""
    given = [a for a in arguments if a.lstrip("+").startswith(f"{OVERRIDE}=")]
    return [a for a in arguments if a not in given], given[-1] if given else None


def _folder(place: str) -> Path:
    schema, _, path = place.rpartition("://")
    try:
        folder = Path(str(files(path))) if schema == "pkg" else Path(path).expanduser()
    except ModuleNotFoundError:
        folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"no config folder {place}; correct {OVERRIDE} or the entry point {GROUP}")
    return folder
