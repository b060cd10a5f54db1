"""Every method that a configuration names, and what the code says of it."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from rich.table import Table
from torch import nn

from metalearn.algorithms import Metric
from metalearn.commands.building.arguments import factory, option, target
from metalearn.commands.building.config import conf_files, conf_folder
from metalearn.engine.strategy import STRATEGIES
from metalearn.errors import UsageError, nearest
from metalearn.functional.norms import BatchNorm
from metalearn.inner.protocol import MetaAlgorithm, on_features

GROUPS = ("algorithm", "classifier")
_NAME = r"(?:(?:van|der|den|de|von) )*[A-Z][\w'-]+"
_PAPER = re.compile(rf"({_NAME}(?:, {_NAME})*(?: et al\.)? \d{{4}})")
_FEATURES = 8  # D of the features that methods are tried on


class Described(NamedTuple):
    """One row. choice: the override that chooses it. citation: of its paper, from the code. file:
    of the configuration. parts: what it names that is of the method: the target itself, and those
    of a strategy or an inner rule that it brings."""

    choice: str
    family: str
    marks: str
    strategies: str
    what: str
    paper: str
    citation: str
    file: Path
    parts: tuple[Callable[..., Any], ...]

    @property
    def transductive(self) -> bool:
        """As its marks say."""
        return self.marks.startswith("transductive")


def methods(override: str | None = None) -> list[Described]:
    """Every algorithm and classifier by name; override: see `conf_files`."""
    files = [(group, path) for group in GROUPS for path in conf_files(group, override)]
    return [_described(group, path) for group, path in files]


def find(name: str) -> tuple[str, Path]:
    """The group and the file of the method of that name. Raises UsageError."""
    known = {path.stem: (group, path) for group in reversed(GROUPS) for path in conf_files(group)}
    if name not in known:
        raise UsageError(f"no method {name}{nearest(name, known)}; see metalearn list algorithms")
    return known[name]


def built(group: str, path: Path, module: nn.Module, features: nn.Module) -> MetaAlgorithm:
    """The method of a file on a network with outputs, or where it wants none on `features`."""
    whole = read(path)
    if group == "classifier":
        return Metric(features, _made(whole, group), features=_FEATURES)
    network = features if whole.get("outputs", 1) is None else module
    return _algorithm(whole.get("algorithm", whole), _choices(whole), network)


def table(rows: list[Described]) -> Table:
    """For people: the inductive ones, and after a gap the transductive."""
    shown = Table(*("override", "family", "marks", "strategies", "what it is", "paper"), box=None,
                  pad_edge=False)  # fmt: skip
    told = sorted(rows, key=lambda row: row.transductive)
    for row, before in zip(told, [None, *told], strict=False):
        if before is not None and row.transductive and not before.transductive:
            shown.add_row()
        shown.add_row(row.choice, row.family, row.marks, row.strategies, row.what, row.paper)
    return shown


def _described(group: str, path: Path) -> Described:
    whole = read(path)
    node = whole if group == "classifier" else whole.get("algorithm", whole)
    chosen = _choices(whole)
    made = target(node["_target_"])
    body = [nn.Linear(4, 6), BatchNorm(6, "support"), nn.Tanh(), nn.Linear(6, _FEATURES)]
    algo = built(group, path, nn.Sequential(*body, nn.Linear(_FEATURES, 3)), nn.Sequential(*body))
    alone = on_features(algo)
    family = "classifier" if group == "classifier" else "gradient" if algo.steps else "metric"
    marks = [
        "transductive" if algo.transductive else "inductive",
        f"{algo.steps} inner step{'s' if algo.steps > 1 else ''}"
        if algo.steps
        else "no inner loop",
        "on features" if alone is not None else "on inputs",
    ]
    text = _comment(path)
    paper = _PAPER.search(text)
    what = text[: paper.start()] if paper else text
    others = [
        conf_folder() / group / f"{chosen.get(group)}.yaml" for group in ("gradient", "inner")
    ]
    brought = (read(other) for other in others if other.is_file())
    parts = (made, *(target(node["_target_"]) for node in brought if "_target_" in node))
    docs = [doc for part in parts for doc in documented(part)]
    return Described(
        f"{group}={path.stem}",
        family,
        ", ".join(marks),
        " ".join(_strategies(algo, chosen.get("gradient"))),
        what.strip().rstrip("."),
        _short(paper[1]) if paper else "",
        _citation("\n\n".join(docs), paper[1]) if paper else "",
        path,
        parts,
    )


def documented(part: Callable[..., Any]) -> tuple[str, str]:
    """What the module of `part` says, and what it says itself."""
    return sys.modules[part.__module__].__doc__ or "", inspect.getdoc(part) or ""


def read(path: Path) -> dict[str, Any]:
    """A file of a config group, on top of those of the same group that it starts from, without
    values that another group gives."""
    values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    for default in values.get("defaults", ()):
        if isinstance(default, str) and default != "_self_" and "@" not in default:
            values = {**read(path.with_name(f"{default}.yaml")), **values}
    return _known(values)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without interpolations."""
    kept = {n: _known(v) if isinstance(v, Mapping) else v for n, v in values.items()}
    return {n: v for n, v in kept.items() if not (isinstance(v, str) and "${" in v)}


def _choices(values: Mapping[str, Any]) -> dict[str, str]:
    """What a file overrides of other groups."""
    found: dict[str, str] = {}
    for default in values.get("defaults", ()):
        if isinstance(default, Mapping):
            for key, value in default.items():
                found[str(key).removeprefix("override ").lstrip("/")] = str(value)
    return found


def _made(node: Mapping[str, Any], name: str, **late: Any) -> Any:
    """What `node` names, called."""
    own = {key: value for key, value in node.items() if key != "defaults"}
    return factory(own, name)(**late)


def _algorithm(
    node: Mapping[str, Any], chosen: Mapping[str, str], module: nn.Module
) -> MetaAlgorithm:
    """The algorithm of `node` on a network."""
    late: dict[str, Any] = {"module": module}
    takes = inspect.signature(target(node["_target_"])).parameters
    if "features" in takes:
        late["features"] = _FEATURES
    if "classifier" in takes and "classifier" not in node and "classifier" in chosen:
        file = conf_folder() / "classifier" / f"{chosen['classifier']}.yaml"
        late["classifier"] = _made(read(file), "classifier")
    return _made(node, "algorithm", **late)


def _strategies(algo: MetaAlgorithm, chosen: str | None) -> list[str]:
    """The names of those of its kinds; of one that is chosen for what it alone computes, it."""
    kinds: dict[str, Any] = {
        option({"_target_": name}): kind for kind, names in STRATEGIES.items() for name in names
    }
    if chosen is not None and kinds.get(chosen, algo.kinds[0]) != algo.kinds[0]:
        return [chosen]
    return [name for name, kind in kinds.items() if kind in algo.kinds]


def _comment(path: Path) -> str:
    """The first lines of a file that are comments, as one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = [line for line in lines if not line.startswith("# @package")]
    end = next((i for i, line in enumerate(first) if not line.startswith("#")), len(first))
    return " ".join(line.lstrip("# ") for line in first[:end])


def _short(paper: str) -> str:
    """The first author and the year, where there are more than two."""
    authors = paper.removesuffix(paper[-5:]).split(", ")
    return f"{authors[0]} et al. {paper[-4:]}" if len(authors) > 2 else paper


def _citation(docs: str, paper: str) -> str:
    """The sentence of `docs` that names the paper: its authors from the first on, its title and
    year; "" where there is none."""
    author, year = re.match(_NAME, paper), paper[-4:]
    text = " ".join(docs.split())
    found = author and re.search(rf"\b{author[0]}\b[^:]{{0,160}}[: ].{{0,160}}?\b{year}\b", text)
    return found[0] if found else ""
