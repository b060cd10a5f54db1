"""A report on W&B: its table, its page and every file as an artifact; as a W&B report too, where
the package of that interface is installed."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.tracking.reach import missing_key, one_line, unreachable
from metalearn.tracking.wandb_service import set_up

_TIMEOUT = 4.0  # seconds for a first answer


def log_report(
    folder: Path,
    files: Sequence[Path],
    rows: Sequence[Mapping[str, Any]],
    project: str,
    entity: str | None = None,
    mode: str = "online",
    warn: Callable[[str], None] = lambda line: None,
) -> str:
    """Log the files of a report in `folder` as one W&B run of the type "report"; where it is.

    rows: of the table, by column. mode: online, or offline for a folder that `wandb sync` uploads;
    online without a key or an answer is offline, and said so by `warn`. Raises UsageError where W&B
    itself fails.
    """
    settings = set_up()
    import wandb

    if mode == "online":
        address = os.environ.get("WANDB_BASE_URL") or settings.base_url
        if reason := missing_key(address) or unreachable(address, _TIMEOUT):
            warn(f"W&B: recording offline ({reason})")
            mode = "offline"
    columns: list[Any] = list(dict.fromkeys(name for row in rows for name in row))
    data: list[Any] = [[row.get(name) for name in columns] for row in rows]
    how: Any = mode
    quiet = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, init_timeout=_TIMEOUT
    )
    try:
        run = wandb.init(
            project=project, entity=entity, job_type="report", name=folder.name, dir=str(folder),
            mode=how, settings=quiet, reinit="create_new",
        )  # fmt: skip
        run.log({"table": wandb.Table(columns=columns, data=data, allow_mixed_types=True)})
        for path in files:
            if path.suffix == ".html":
                run.log({"page": wandb.Html(str(path), inject=False)})
        artifact = wandb.Artifact("report", type="report")
        for path in files:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
        place = run.url if mode == "online" else str(Path(run.dir).parent)
        written = as_report(run, folder.name, warn) if mode == "online" else None
        run.finish()
    except Exception as error:  # wandb's own, of the network, of its service
        raise UsageError(
            f"W&B did not take the report ({one_line(error)}); its files are in {folder}"
        ) from None
    return " and ".join(filter(None, (place, written)))


def as_report(run: Any, title: str, warn: Callable[[str], None]) -> str | None:
    """The address of a W&B report that shows the run's page and table; None without the package."""
    try:
        import wandb_workspaces.reports.v2 as reports  # pyright: ignore[reportMissingImports]
    except ImportError:
        warn("W&B: pip install wandb-workspaces makes a W&B report too; the run has page and table")
        return None
    panels = [
        reports.MediaBrowser(media_keys=["page"]),
        reports.WeavePanelSummaryTable(table_name="table"),
    ]
    grid = reports.PanelGrid(
        runsets=[reports.Runset(run.entity, run.project, query=run.name)], panels=panels
    )
    made = reports.Report(run.project, entity=run.entity, title=title, blocks=[grid])
    return str(made.save().url)
