"""`metalearn list`: the choices of the config groups."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from metalearn.commands.building import searchpath
from metalearn.commands.building.config import conf_files
from metalearn.commands.building.methods import methods, table
from metalearn.errors import UsageError, nearest

_NAMES = (
    "algorithm classifier gradient engine inner backbone adaptation head loss task dataset "
    "sampling augmentation adversarial pruning images outer outer/schedule pretrain/optimizer "
    "pretrain/schedule pretrain/recipe tracker experiment comparison table debug"
)
GROUPS = tuple(_NAMES.split())


def main(arguments: list[str], console: Console) -> None:
    """`metalearn list [group ...] [hydra.searchpath=[...]]`, or `metalearn list algorithms`: every
    method and its marks."""
    arguments, override = searchpath.split(arguments)
    if arguments == ["algorithms"]:
        rows = methods(override)
        console.print(table(rows))
        console.print(f"\n{len(rows)} methods")
        return
    if unknown := [a for a in arguments if a not in GROUPS]:
        name, known = unknown[0], ("algorithms", *GROUPS)
        raise UsageError(f"no group {name}{nearest(name, known)}; use {', '.join(known)}")
    console.print(choices(arguments or GROUPS, override=override))


def choices(
    groups: Sequence[str], state: Callable[[str], str] | None = None, override: str | None = None
) -> Table:
    """The choices of each config group with the first comments of their files.

    state: from the name of a choice to a word on it, for a column of its own. override:
    `hydra.searchpath=[...]`, of more folders. Raises UsageError for one that is not there.
    """
    table = Table("override", *(["state"] if state else []), "what it is", box=None, pad_edge=False)
    for group in groups:
        for path in conf_files(group, override):
            states = [state(path.stem)] if state else []
            table.add_row(f"{group}={path.stem}", *states, _description(path))
    return table


def _description(path: Path) -> str:
    """The first comment of a config file that has a line of its own."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ")
    return ""
