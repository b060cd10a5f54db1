"""`hydra/sweeper=optuna`. Hydra takes plugins from this package alone, and imports all of them in
every program that uses it: what this one does lies in `metalearn/commands/building/search.py`."""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """A search by Optuna. options: the fields of `SearchSettings`, in that file."""

    launcher: Launcher

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `sweep`."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> None:
        """Search; what was found is printed and written into the folder of the sweep."""
        from metalearn.commands.building.search import search

        assert self.config is not None  # Hydra has called `setup`
        search(self.config, self.launcher, arguments)
