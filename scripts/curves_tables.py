"""Curves of accuracy over sparsity and corruptions: experiments/pruning and robustness.

    uv run python -m scripts.curves_tables --command
    uv run python -m scripts.curves_tables [--folder runs/curves]

`--command` prints the `metalearn compare` that makes FOLDER. Then writes, for each of the two, its
picture, its part of the comparison as `curves.json`, and the table between the marks of README.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.evaluation.comparison import curve_report
from metalearn.evaluation.statistics import mean_interval
from metalearn.runtime.files import decode_floats, encode_floats, write_atomic

PLACE = Path(__file__).parents[1] / "experiments"
PLACES = {"sparsity": "pruning", "robustness": "robustness"}
BEGIN, END = "<!-- table -->\n", "<!-- end -->"
COMMAND = (
    "metalearn compare dataset=cifar_fs backbone=cifar_resnet backbone.depth=20 "
    "backbone.weights=DEFAULT 'episodes.shots=[1]' episodes.queries=5 isolate=false meta.shots=1 "
    "meta.clock=processor tracker=disabled device=cpu 'methods=[nearest_centroid,protonet,maml]' "
    "'robustness=[all,pgd]' 'sparsity=[0,0.5,0.7,0.8,0.9,0.95]' meta.seconds=90 "
    "evaluation.episodes=200 evaluation.network_episodes=100 evaluation.timed=10 "
    "curves.episodes=40 run_dir=runs/curves"
)

Rows = Sequence[Mapping[str, Any]]


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(values: Sequence[float]) -> str:
    """In percent, with the 95% interval over episodes."""
    mean, half, _ = mean_interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def of_sparsity(comparison: Mapping[str, Any], results: Rows) -> str:
    """A row for each method and sparsity."""
    return "\n".join(
        lines_of(["method", *title.head[1:]], title.rows)
        for title in curve_report.tables({**comparison, "robustness": None})
    )


def of_robustness(comparison: Mapping[str, Any], results: Rows) -> str:
    """A row for each method, with the mean over corruptions, then one for each corruption."""
    severities = comparison["config"]["curves"]["severities"]
    curves = {result["method"]: result["curves"]["robustness"] for result in results}
    first = next(iter(curves.values()))
    plain = [row["name"] for row in first if row["severity"] is None]
    names = list(dict.fromkeys(row["name"] for row in first if row["severity"] is not None))

    def found(method: str, name: str, severity: int | None) -> list[float]:
        wanted = name, severity
        return next(r["accuracies"] for r in curves[method] if (r["name"], r["severity"]) == wanted)

    every = []
    for method in curves:
        means = [np.mean([found(method, n, s) for n in names], axis=0) for s in severities]
        natural = [found(method, name, None) for name in plain]
        every.append([method, *map(cell, [*natural, *means])])
    head = ["method", *plain, *(f"{len(names)} corruptions, severity {s}" for s in severities)]
    each = [
        [
            name.replace("_", " "),
            *(
                " / ".join(f"{100 * np.mean(found(method, name, s)):.1f}" for s in severities)
                for method in curves
            ),
        ]
        for name in names
    ]
    own = [f"corruption, severity {' / '.join(map(str, severities))}", *curves]
    return f"{lines_of(head, every)}\n{lines_of(own, each)}"


def main() -> None:
    """Print the command, or write tables, pictures and numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/curves"))
    parser.add_argument("--command", action="store_true")
    asked = parser.parse_args()
    if asked.command:
        print(COMMAND)
        return

    def read(path: Path) -> dict[str, Any]:
        return decode_floats(json.loads(path.read_text(encoding="utf-8")))

    comparison = read(asked.folder / "comparison.json")
    methods = dict.fromkeys(row["method"] for row in comparison["rows"])
    results = [read(asked.folder / "methods" / f"{method}.json") for method in methods]
    for kind, name in PLACES.items():
        place, other = PLACE / name, next(k for k in PLACES if k != kind)
        own = {**comparison, other: None}
        curve_report.draw(own, place)
        kept = {k: v for k, v in own.items() if k not in ("config", other)}
        kept["weights"] = Path(str(kept["weights"])).name
        kept["curves"] = {r["method"]: r["curves"][kind] for r in results}
        write_atomic(place / "curves.json", json.dumps(encode_floats(kept)) + "\n")
        made = (of_sparsity if kind == "sparsity" else of_robustness)(own, results)
        page = (place / "README.md").read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        write_atomic(place / "README.md", f"{head}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
