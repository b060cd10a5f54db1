"""wandb's own process, which uploads: its start, and its end without an upload."""

import contextlib
import os
import time
from pathlib import Path
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


def leave(folder: Path) -> None:
    """End wandb's service without an upload, for which the process would wait at its exit, as soon
    as its file in `folder` grows no more."""
    import wandb

    service: Any = wandb.setup()
    for name in ("_connection", "_proc", "_process"):  # seen in 0.31
        service = getattr(service, name, None)
    if service is None:
        return  # another version: it waits
    sizes = [-1, -2]
    while sizes[-1] != sizes[-2] and len(sizes) < 20:
        time.sleep(0.1)
        sizes.append(sum(path.stat().st_size for path in folder.rglob("*.wandb")))
    service.terminate()
    with contextlib.suppress(Exception, SystemExit):  # by the exit code of the service
        wandb.teardown()
