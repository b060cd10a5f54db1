"""A table of published figures, each with the run that reproduces it, as `conf/table/` keeps them.

title: Omniglot, Conv-4                # of the page
run: [dataset=omniglot]                # overrides of `metalearn train` for every cell
seeds: [0, 1, 2]
after: [0, 1, 10]                      # inner steps of a second table; none without
differs: [Vinyals' split]              # from the papers' settings, in every cell
cells:
  maml_5w1s:                           # names its folder: experiments/<table>/maml_5w1s/
    paper: Finn et al. 2017
    conditions: 5-way 1-shot
    figure: 98.7                       # percent; a loss as it is; null where a paper has none
    interval: 0.4                      # half of it; null where the paper gives none
    run: [algorithm=maml]
    pretrain: [backbone=conv4]         # a run of `metalearn pretrain` that it starts from
    differs: [the images are ours]
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import UsageError, nearest

DIFFERENCE = "differs"


@dataclass(frozen=True)
class Cell:
    """One published figure. run, pretrain: overrides, those of the table among them."""

    name: str
    paper: str
    conditions: str
    run: tuple[str, ...]
    figure: float | None = None
    interval: float | None = None
    pretrain: tuple[str, ...] | None = None
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """A table. after: the inner steps that a second table shows."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    after: tuple[int, ...] = ()
    differs: tuple[str, ...] = ()

    def chosen(self, names: Sequence[str] | None) -> tuple[Cell, ...]:
        """The cells of these names, None for all. Raises UsageError."""
        if names is None:
            return self.cells
        known = {cell.name: cell for cell in self.cells}
        for name in names:
            if name not in known:
                near = nearest(name, known)
                raise UsageError(f"table {self.name} has no cell {name}{near}; use {_all(known)}")
        return tuple(known[name] for name in dict.fromkeys(names))


def read_ledger(path: Path) -> Ledger:
    """The table in a YAML file. Raises UsageError for what is no table."""
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    shared = {part.name for part in fields(Ledger)} - {"name"} | {"run", "pretrain"}
    held = _mapping(held, f"{path}: a table", shared, ("title", "cells"))
    before = _texts(held.get("run"), f"{path}: run")
    pretrain = held.get("pretrain")
    cells = held["cells"]
    if not isinstance(cells, dict) or not cells:
        raise UsageError(f"{path}: cells must name a cell or more")
    made = [_cell(str(name), cell, before, pretrain, path) for name, cell in cells.items()]
    return Ledger(
        path.stem,
        str(held["title"]),
        tuple(made),
        _numbers(held.get("seeds", [0, 1, 2]), f"{path}: seeds"),
        _numbers(held.get("after", []), f"{path}: after", least=0),
        tuple(_texts(held.get(DIFFERENCE), f"{path}: {DIFFERENCE}")),
    )


def _cell(name: str, held: Any, before: list[str], pretrain: Any, path: Path) -> Cell:
    where = f"{path}: cell {name}"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"{where} must be letters, digits, _, - and dots: it names a folder")
    known = {part.name for part in fields(Cell)} - {"name"}
    held = _mapping(held, where, known, ("paper", "conditions", "run"))
    for key in ("figure", "interval"):
        value = held.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"{where}: {key} must be a number or null, not {value!r}")
    if held.get("interval") is not None and held.get("figure") is None:
        raise UsageError(f"{where} has an interval and no figure")
    own = held.get("pretrain", pretrain)
    return Cell(
        name,
        str(held["paper"]),
        str(held["conditions"]),
        (*before, *_texts(held["run"], f"{where}: run")),
        held.get("figure"),
        held.get("interval"),
        None if own is None else tuple(_texts(own, f"{where}: pretrain")),
        tuple(_texts(held.get(DIFFERENCE), f"{where}: {DIFFERENCE}")),
    )


def _mapping(held: Any, where: str, known: set[str], needed: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(held, dict):
        raise UsageError(f"{where} must be keys and values, not {type(held).__name__}")
    for key in held:
        if key not in known:
            raise UsageError(
                f"{where} has no key {key}{nearest(str(key), known)}; use {_all(known)}"
            )
    for key in needed:
        if key not in held:
            raise UsageError(f"{where} needs {key}")
    return held


def _texts(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"{where} must be a list of texts, not {value!r}")
    return list(value)


def _numbers(value: Any, where: str, least: int | None = None) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(one) is int for one in value)
    if not whole or (least is None and not value) or any(one < (least or 0) for one in value):
        raise UsageError(f"{where} must be a list of whole numbers, not {value!r}")
    return tuple(dict.fromkeys(value))


def _all(names: Any) -> str:
    return ", ".join(sorted(names))
