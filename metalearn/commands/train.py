"""`metalearn train`: meta-training, validation and a test; `-m` sweeps."""

from typing import Any

from rich.console import Console

from metalearn.commands.building import hydra_runs
from metalearn.commands.building.meta_training import build
from metalearn.training import run as shell


def main(arguments: list[str], console: Console) -> None:
    """`metalearn train [overrides] [options of Hydra]`."""
    hydra_runs.start("train", run, arguments, console)


def run(config: dict[str, Any], console: Console, watch: shell.Watch | None = None) -> float | None:
    """One run from its configuration, in its folder; the best validation score.

    The score is mean accuracy, or minus the mean loss in regression: what a sweep maximises.
    None where SIGTERM stopped the run. Raises UsageError, or DataError, before the folder is made.
    """
    return shell.run(config, build, console, watch)
