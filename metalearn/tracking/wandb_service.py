"""wandb's own process, which uploads: its start, and its end where a start was refused."""

import os
from typing import Any


def set_up() -> Any:
    """Import and silence wandb; returns its settings, of the environment and of its files."""
    # wandb's reports about itself wait up to ten seconds for a silent server as the process
    # exits, and print when it refuses them.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Not left to `init`, whose log-in prints a line before it has its own settings.
    return wandb.setup(settings=wandb.Settings(silent=True)).settings


def release_id() -> None:
    """End wandb's service, which after a refused start holds the run's id as in use."""
    import wandb

    wandb.teardown()
