"""A page for every method that `metalearn list algorithms` knows, and the table of all.

    uv run python -m scripts.method_pages

Writes `experiments/methods/<name>.md` and the table in the README there, from the docstrings, the
configuration, the records under `experiments/` and `experiments/methods/published.yaml`. The same
tree gives the same pages, and `tests/test_method_pages.py` says where they are not up to date.
"""

import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from metalearn.commands.building.methods import Described, documented, methods
from metalearn.runtime.files import write_atomic

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
FOLDER = EXPERIMENTS / "methods"
BEGIN, END = "<!-- methods -->", "<!-- end -->"
HEAD = ("method", "family", "paper", "lines", "Omniglot 5w1s, ours", "published", "tasks/s", "MiB")
DATA = {"omniglot": "Omniglot", "cifar_fs": "CIFAR-FS", "fc100": "FC100"}
NAMES = {"nearest_centroid": "cosine", "lr_d2": "logistic_regression"}
"""What a comparison calls a method, and what its configuration is called."""
BESIDE = {
    "matching_fce": "metalearn.classifiers.full_context",
    "in_context": "metalearn.classifiers.transformer",
}
"""A module that says what the target of a configuration only names."""

Record = Mapping[str, Any]
"""A figure, ours or published: `data`, `how`, and by case, as 5w1s, the accuracy in percent."""


def main() -> None:
    """Write every page, and take away those of methods that are gone."""
    found = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in found and path.read_text("utf-8").startswith("# `"):
            path.unlink()
    for name, text in found.items():
        write_atomic(FOLDER / name, text)
    print(f"{len(found) - 1} pages in {os.path.relpath(FOLDER)}")


def pages(rows: Sequence[Described] | None = None) -> dict[str, str]:
    """By file name, what the pages and the README hold today. rows: as `methods()` gives them."""
    rows = methods() if rows is None else rows
    known = {row.choice: key(row) for row in rows}
    published = yaml.safe_load((FOLDER / "published.yaml").read_text("utf-8"))
    ours = records(known)
    if unknown := (published.keys() | ours.keys()) - set(known.values()):
        raise SystemExit(f"figures of methods that are not there: {', '.join(sorted(unknown))}")
    found: dict[str, str] = {}
    inductive, transductive = [], []  # which never stand in one table
    for row in rows:
        name = known[row.choice]
        theirs, own = published.get(name, []), ours.get(name, [])
        found[f"{name}.md"] = page(row, theirs, own)
        table = transductive if row.transductive else inductive
        table.append(line(row, name, theirs, own))
    readme = (FOLDER / "README.md").read_text("utf-8")
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    told = f"Transductive: {len(transductive)}, which see a task's queries together.\n"
    tables = markdown(HEAD, inductive), told, markdown(HEAD, transductive)
    made = [f"{BEGIN}\n", *tables, f"{END}{after}"]
    return {**found, "README.md": before + "\n".join(made)}


def key(row: Described) -> str:
    """The name of its page: of two methods of one name the classifier says so."""
    group, _, name = row.choice.partition("=")
    both = group == "classifier" and (row.file.parents[1] / "algorithm" / f"{name}.yaml").exists()
    return f"classifier_{name}" if both else name


def page(row: Described, published: Sequence[Record], ours: Sequence[Record]) -> str:
    """Of one method."""
    group, _, name = row.choice.partition("=")
    train = f"algorithm={name}" if group == "algorithm" else f"algorithm=metric {row.choice}"
    commands = [f"    metalearn train {train}"]
    if group == "classifier":
        commands.append(f"    metalearn compare 'methods=[{name}]'")
    commands += [f"    metalearn compare comparison=omniglot 'methods=[{n}]'" for n in _preset(row)]
    settings = [line.split("#")[0].rstrip() for line in row.file.read_text("utf-8").splitlines()]
    parts = [
        f"# `{row.choice}`",
        f"{row.what}.",
        *texts(row),
        "## What it is",
        "\n".join(
            [
                f"- declares: {row.family}, {row.marks}",
                f"- strategies: {row.strategies}",
                *(f"- `{file}`: {count} lines" for file, count in files(row)),
            ]
        ),
        f"## Settings, `{row.file.relative_to(ROOT)}`",
        "```yaml\n" + "\n".join(filter(None, settings)) + "\n```",
        "\n".join(commands),
        "## Figures",
        figures(published, ours),
    ]
    return "\n\n".join(parts) + "\n"


def _preset(row: Described) -> list[str]:
    """What `comparison=omniglot` calls the method, where it has it."""
    preset = yaml.safe_load((ROOT / "conf" / "comparison" / "omniglot.yaml").read_text("utf-8"))
    chosen = {row.choice, *(["algorithm=metric"] if row.family == "classifier" else [])}
    overrides = preset["meta"]["overrides"].items()
    return [name for name, words in overrides if chosen <= set(words) and _alone(row, words)]


def _alone(row: Described, words: Sequence[str]) -> bool:
    """Whether a classifier that `words` choose is that of the page, or they choose none."""
    return row.family == "classifier" or not any(w.startswith("classifier=") for w in words)


def texts(row: Described) -> list[str]:
    """What the code says of the method, from the docstrings that hold an equation."""
    found: dict[str, None] = {}
    for part in row.parts:
        of_module, own = (inspect.cleandoc(doc) for doc in documented(part))
        said = [doc for doc in (of_module, own) if re.search(r"\n\n    \S", doc)]
        found |= dict.fromkeys(said)
    if row.choice.partition("=")[2] in BESIDE:
        found[inspect.cleandoc(beside(row).__doc__ or "")] = None
    return list(found)


def beside(row: Described) -> Any:
    return import_module(BESIDE[row.choice.partition("=")[2]])


def files(row: Described) -> list[tuple[str, int]]:
    """Those of its code, with their lines."""
    modules = [import_module(part.__module__) for part in row.parts if not _is_unroll(part)]
    if row.choice.partition("=")[2] in BESIDE:
        modules.append(beside(row))
    paths = dict.fromkeys(Path(inspect.getfile(module)) for module in modules)
    return [(str(p.relative_to(ROOT)), len(p.read_text("utf-8").splitlines())) for p in paths]


def _is_unroll(part: Callable[..., Any]) -> bool:
    """A means, and no part of any method."""
    return part.__name__ == "Unroll"


def figures(published: Sequence[Record], ours: Sequence[Record]) -> str:
    """Ours beside those of others, by data set."""
    told = [] if ours else ["Ours: not measured yet."]
    told += [] if published else ["Published: not sourced."]
    if not (published or ours):
        return " ".join(told)
    rows = [*(("ours", one) for one in ours), *((one.get("by", "paper"), one) for one in published)]
    order = list(dict.fromkeys(["Omniglot", *(one["data"] for _, one in rows)]))
    rows.sort(key=lambda row: order.index(row[1]["data"]))
    found = {case for _, one in rows for case in one if re.match(r"\d+w\d+s", case)}
    cases = sorted(found, key=lambda case: ([int(n) for n in re.findall(r"\d+", case)], case))
    body = [
        [one["data"], whose, *(str(one.get(case, "")) for case in cases), one.get("how", "")]
        for whose, one in rows
    ]
    table = markdown(("data", "whose", *cases, "how"), body)
    return "\n\n".join([table.rstrip("\n"), *([" ".join(told)] if told else [])])


def line(
    row: Described, name: str, published: Sequence[Record], ours: Sequence[Record]
) -> list[str]:
    """Of the table of all."""
    own = next((one for one in ours if one["data"] == "Omniglot" and "rate" in one), {})
    own = own or next((one for one in ours if one["data"] == "Omniglot"), {})
    theirs = next((one for one in published if one["data"] == "Omniglot"), {})
    mark = " †" if row.transductive else ""
    lines = " + ".join(str(count) for _, count in files(row))
    return [
        f"[{name}]({name}.md){mark}",
        row.family,
        row.paper,
        lines,
        own.get("5w1s", ""),
        theirs.get("5w1s", ""),
        own.get("rate", ""),
        own.get("memory", ""),
    ]


def records(known: Mapping[str, str]) -> dict[str, list[Record]]:
    """What was measured, by the name of a page. known: these names by the override of each."""
    found: dict[str, list[Record]] = {}
    for path in sorted(EXPERIMENTS.rglob("comparison.json")):
        for choice, record in compared(path, known):
            found.setdefault(known[choice], []).append(record)
    for path in sorted(EXPERIMENTS.rglob("result.json")):
        *_, table, cell, seed, _ = path.parts
        if not seed.startswith("seed"):
            continue
        known_as = (re.fullmatch(r"[a-z]+_(\w+)_\d+w\d+s", n) for n in (cell, f"{table}_{cell}"))
        name = next(filter(None, known_as), None)
        if name and f"algorithm={name[1]}" in known:
            found.setdefault(known[f"algorithm={name[1]}"], []).append(trained(path))
    return found


def compared(path: Path, known: Mapping[str, str]) -> list[tuple[str, Record]]:
    """Of a `comparison.json`: the override that names a method, and a record of its figures."""
    made = json.loads(path.read_text("utf-8"))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    costs = {cost["method"]: cost for cost in made["costs"]}
    for row in made["rows"]:
        plain = row["method"].removesuffix("_scratch")
        learned = row["family"] in ("meta-learning", "from scratch")
        name = NAMES.get(plain, plain)
        groups = ("algorithm", "classifier") if learned else ("classifier",)
        choice = next((f"{g}={name}" for g in groups if f"{g}={name}" in known), None)
        if choice is None:
            continue
        queries = row.get("queries", "balanced")
        drawn = "" if queries == "balanced" else f" {queries}"
        percent = f"{100 * row['accuracy']:.2f} ± {100 * row['half_width']:.2f}"
        one = found.setdefault((choice, row["method"]), {})
        one[f"{made['ways']}w{row['shots']}s{drawn}"] = percent
        one |= {"data": DATA.get(made["dataset"], made["dataset"])}
        cost, training = costs[row["method"]], made.get("training", {}).get(row["method"], {})
        told = [made["backbone"]]
        scratch = row["method"].endswith("_scratch") or not made["weights"]
        told.append("random weights" if scratch else "pre-trained")
        if "steps" in training:
            told.append(f"{training['steps']} meta-steps in {training['seconds']:.0f} s")
        if cost.get("tasks_per_second") is not None:
            one["rate"] = f"{cost['tasks_per_second']:.1f}"
            one["memory"] = f"{cost['training_peak_memory_bytes'] / 2**20:.0f}"
            told.append(f"{one['rate']} tasks/s, {one['memory']} MiB")
        told += [f"norm {norm_of(made['norm_policy'], row['method'])}", f"seed {made['seed']}"]
        one["episodes"] = {**one.get("episodes", {}), str(row["episodes"]): None}
        counts = " and ".join(one["episodes"])
        told.append(f"{counts} episodes, {made['queries']} queries a class")
        one["how"] = f"{', '.join(told)} ([record]({os.path.relpath(path, FOLDER)}))"
    return [(choice, one) for (choice, _), one in found.items()]


def norm_of(policies: str, method: str) -> str:
    """Of one method. policies: "frozen; group for maml_scratch", the usual one first."""
    usual, *others = policies.split("; ")
    named = (other.partition(" for ") for other in others)
    return next((norm for norm, _, names in named if method in names.split(", ")), usual)


def trained(path: Path) -> Record:
    """Of the `result.json` of a run."""
    made = json.loads(path.read_text("utf-8"))
    told = [
        f"{made['backbone']}, random weights",
        f"{made['steps']} meta-steps in {made['seconds']:.0f} s",
        f"norm {made['norm_policy']}, seed {made['seed']}",
        f"{made['episodes']} episodes, {made['queries']} queries a class",
    ]
    percent = f"{100 * made['accuracy']:.2f} ± {100 * made['accuracy_half_width']:.2f}"
    return {
        "data": DATA.get(made["dataset"], made["dataset"]),
        f"{made['ways']}w{made['shots']}s": percent,
        "how": f"{', '.join(told)} ([record]({os.path.relpath(path, FOLDER)}))",
    }


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(c.replace("|", r"\|") for c in one) + " |\n" for one in lines)


if __name__ == "__main__":
    main()
