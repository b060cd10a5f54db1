"""Config folders of installed packages: how a method from elsewhere gets its name here.

A package registers with an entry point of the group `metalearn` whose value is the module beside
whose file a folder `conf` lies, laid out as ours:

    [project.entry-points.metalearn]
    mine = "metalearn_mine"            # conf/algorithm/mine.yaml beside metalearn_mine/__init__.py
"""

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from metalearn.errors import UsageError


def plugin_folders() -> list[Path]:
    """The config folder of every package that registers one. Raises UsageError for one that is
    not there."""
    folders: list[Path] = []
    for point in sorted(entry_points(group="metalearn"), key=lambda point: point.name):
        spec = find_spec(point.value)
        folder = Path(spec.origin).with_name("conf") if spec and spec.origin else None
        if folder is None or not folder.is_dir():
            whose = point.dist.name if point.dist else point.name
            raise UsageError(
                f"package {whose} registers {point.value}, which has no folder conf beside it; "
                f"reinstall it, or pip uninstall {whose}"
            )
        folders.append(folder)
    return folders


class Installed(SearchPathPlugin):
    """Hydra looks into these folders after ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add them."""
        for folder in plugin_folders():
            search_path.append("metalearn", f"file://{folder}")
