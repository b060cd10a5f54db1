"""`metalearn list`: the choices of the config groups."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from metalearn.commands import searchpath
from metalearn.commands.config import conf_folder
from metalearn.errors import UsageError, nearest

GROUPS = (
    *(
        "algorithm",
        "gradient",
        "engine",
        "inner",
        "backbone",
        "adaptation",
        "head",
        "loss",
        "dataset",
    ),
    *("sampling", "augmentation", "images", "outer", "outer/schedule", "pretrain/optimizer"),
    *("pretrain/schedule", "tracker", "experiment", "debug"),
)


def main(arguments: list[str], console: Console) -> None:
    """`metalearn list [group ...] [hydra.searchpath=[...]]`."""
    arguments, override = searchpath.split(arguments)
    if unknown := [a for a in arguments if a not in GROUPS]:
        name = unknown[0]
        raise UsageError(f"no group {name}{nearest(name, GROUPS)}; use {', '.join(GROUPS)}")
    console.print(choices(arguments or GROUPS, override=override))


def choices(
    groups: Sequence[str],
    state: Callable[[str], str] | None = None,
    override: str | None = None,
) -> Table:
    """The choices of each config group with the first comments of their files.

    state: from the name of a choice to a word on it, for a column of its own. override:
    `hydra.searchpath=[...]`, of more folders. Raises UsageError for one that is not there.
    """
    folders = [conf_folder(), *searchpath.folders(override)]
    table = Table("override", *(["state"] if state else []), "what it is", box=None, pad_edge=False)
    for group in groups:
        found = [p for f in folders for p in (f / group).glob("[!_]*.yaml")]
        # As Hydra: of two of one name, that of the first folder.
        for path in sorted({p.stem: p for p in reversed(found)}.values(), key=lambda p: p.stem):
            states = [state(path.stem)] if state else []
            table.add_row(f"{group}={path.stem}", *states, _description(path))
    return table


def _description(path: Path) -> str:
    """The first comment of a config file that has a line of its own."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ")
    return ""
