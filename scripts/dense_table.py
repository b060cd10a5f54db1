"""Gather runs of task=detection or segmentation, and their evaluations, into a file and a table.

    uv run python -m scripts.dense_table experiments/detection <run folder> ...

Writes `results.csv`, a line a measurement, and the table between the marks of `README.md` there.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalearn.evaluation.statistics import measure_of
from metalearn.runtime.files import write_atomic

BEGIN, END = "<!-- table -->", "<!-- end -->"
FACTS = (
    *("dataset", "split", "ways", "shots", "queries", "episodes", "steps", "seconds", "clock"),
    *("norm_policy", "transductive", "head", "loss_function", "seed", "manifest_hash"),
)
FIGURES = ("", "untrained_")
BESIDE = {"box_ap50": "boxes alone", "fb_iou": "foreground-background IoU"}
"""What is told of the first measurement of a run, where there is one."""


def rows(run: Path) -> list[dict[str, Any]]:
    """Of the result of a run, and of what was measured later."""
    whole = json.loads((run / "result.json").read_text(encoding="utf-8"))
    found = []
    for path in (run / "result.json", *sorted(run.glob("evaluations/*/result.json"))):
        result = json.loads(path.read_text(encoding="utf-8"))
        # An evaluation takes seconds of its own; what was learned is the run's.
        facts = {name: result.get(name) for name in FACTS}
        facts |= {name: whole.get(name) for name in ("steps", "seconds", "clock")}
        # Of a detector that it started from the name, and not where it lay.
        facts["head"] = re.sub(r"weights \S*/", "weights ", facts["head"] or "") or None
        row: dict[str, Any] = {"run": run.name, "algorithm": result["algorithm"], **facts}
        measure = measure_of(result)
        for name in (*(f"{prefix}{measure}" for prefix in FIGURES), *BESIDE):
            row[name], row[f"{name}_half_width"] = (
                result.get(name),
                result.get(f"{name}_half_width"),
            )
        found.append(row)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """A row a run, a column a number of shots."""
    measure = next(name for name in found[0] if f"untrained_{name}" in found[0])
    shots = sorted({row["shots"] for row in found})
    names = list(dict.fromkeys(row["run"] for row in found))
    extra = [name for name in BESIDE if any(row[name] is not None for row in found)]
    head = ["run", "data", "meta-steps", *(f"{k}-shot" for k in shots), "untrained"]
    head += [BESIDE[name] for name in extra]
    lines = [head, ["---"] * len(head)]
    for name in names:
        own = {row["shots"]: row for row in found if row["run"] == name}
        first = next(row for row in found if row["run"] == name)
        cells = [name, first["dataset"], str(first["steps"])]
        cells += [_figure(own[k], measure) if k in own else "-" for k in shots]
        cells.append(_figure(first, f"untrained_{measure}"))
        cells += [_figure(first, beside) for beside in extra]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(row: Mapping[str, Any], name: str) -> str:
    value, half = row.get(name), row.get(f"{name}_half_width")
    return "-" if value is None else f"{100 * value:.1f} ± {100 * float(half):.1f}"


def main(arguments: list[str]) -> None:
    """`<folder> <run> ...`."""
    folder, runs = Path(arguments[0]), [Path(name) for name in arguments[1:]]
    found = [row for run in runs for row in rows(run)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_atomic(folder / "results.csv", text.getvalue())
    page = folder / "README.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomic(page, f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
