"""Keep a finished run under `experiments/<table>/` and renew that table's README.

    uv run python scripts/record.py <run folder> experiments/omniglot

Copies what the run's command wrote (result, config, per-episode file, pictures) and rebuilds
the table between the two markers of the README there, ours beside `published.yaml`.
"""

import json
import shutil
import sys
from pathlib import Path

import yaml

KEPT = (
    "result.json",
    "config.yaml",
    "episodes.csv",
    "learning_curve.png",
    "accuracy_by_step.png",
)
BEGIN, END = "<!-- results -->", "<!-- end -->"
HEAD = (
    "| experiment | ours | published | episodes | queries a class | norm policy | seed | minutes "
    "| peak MiB | manifest | commit |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(folder: Path, published: dict[str, str]) -> str:
    """One line of the table, from one recorded run."""
    result = json.loads((folder / "result.json").read_text())
    ours = f"{100 * result['accuracy']:.2f} ± {100 * result['accuracy_half_width']:.2f}"
    before = f"{100 * result['untrained_accuracy']:.1f}"
    cells = [
        f"[{folder.name}]({folder.name})",
        f"**{ours}** (untrained {before})",
        published.get(folder.name, "-"),
        result["episodes"],
        result["queries"],
        result["norm_policy"],
        result["seed"],
        f"{result['seconds'] / 60:.1f}",
        f"{result['peak_memory_bytes'] / 2**20:.0f}",
        f"`{result['manifest_hash'][:8]}`",
        f"`{(result['commit'] or 'none')[:8]}`",
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    """Record one run, or with the table's folder alone renew the README."""
    *runs, table = map(Path, sys.argv[1:])
    for run in runs:
        commit = json.loads((run / "result.json").read_text())["commit"] or ""
        if not commit or commit.endswith("-dirty"):
            sys.exit(f"{run} was not made by a committed version ({commit or 'no commit'})")
        name = yaml.safe_load((run / "config.yaml").read_text())["name"]
        (table / name).mkdir(parents=True, exist_ok=True)
        for kept in KEPT:
            if (run / kept).exists():
                shutil.copy(run / kept, table / name / kept)
    published = yaml.safe_load((table / "published.yaml").read_text())
    results = [json.loads(path.read_text()) for path in table.glob("*/result.json")]
    if len({result["manifest_hash"] for result in results}) > 1:
        sys.exit(f"the runs in {table} were not tested on the same episodes")
    rows = [row(result.parent, published) for result in sorted(table.glob("*/result.json"))]
    readme = table / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text("\n".join([before + BEGIN, HEAD, *rows, END + after]))


if __name__ == "__main__":
    main()
