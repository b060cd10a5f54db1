"""One table of the runs of `scripts/cifar_fs_gpu.sh`, beside published figures.

    python -m scripts.cifar_fs_table runs/cifar_fs_gpu

What did not run, or did not end, is said to be not measured.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METHODS = {
    "protonet": "ProtoNets from it",
    "meta_baseline": "Meta-Baseline from it (Chen et al. 2021)",
    "maml": "MAML from it, second order, 5 steps",
}
PUBLISHED = {
    "ProtoNets, ResNet-12 (as given by Lee et al. 2019)": ("72.2 ± 0.7", "83.5 ± 0.5"),
    "RFS-simple, ResNet-12 (Tian et al. 2020)": ("71.5", "86.0"),
}
SHOTS = (1, 5)
MISSING = "not measured"


def table(folder: Path) -> str:
    """Markdown; a run that did not end is a cell of its own."""
    lines = [
        "CIFAR-FS, 5-way, percent of queries with 95% intervals",
        "",
        "| | 1-shot | 5-shot | episodes | norm | test manifests |",
        "|---|---|---|---|---|---|",
    ]
    result = _result(folder / "pretrain")
    found = {one["shots"]: one for one in result.get("few_shot", [])}
    told = [{**found[k], "norm_policy": result["norm_policy"]} if k in found else {} for k in SHOTS]
    lines.append(_line("pre-trained ResNet-12, nearest centroid by the cosine", told))
    for name, words in METHODS.items():
        lines.append(_line(words, [_result(folder / f"{name}_{shots}") for shots in SHOTS]))
    for words, values in PUBLISHED.items():
        lines.append(f"| published: {words} | {' | '.join(values)} | | | |")
    if "accuracy" in result:
        accuracy = f"{100 * result['accuracy']:.2f} ± {100 * result['accuracy_half_width']:.2f}"
        lines += [
            "",
            f"Held-out images of the {result['classes']} base classes: {accuracy} "
            f"({result['images']} images); {result['epochs']:g} epochs, "
            f"{result['images_per_second']:.0f} images/s on {result['device']}, seed "
            f"{result['seed']}, weights sha256 {result['weights_sha256'][:12]}.",
        ]
    return "\n".join(lines)


def _result(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _line(words: str, found: list[dict[str, Any]]) -> str:
    def each(name: str, shown: slice = slice(None)) -> str:
        values = dict.fromkeys(str(one[name])[shown] for one in found if one)
        return ", ".join(values)

    cells = [_accuracy(one) for one in found]
    about = [each("episodes"), each("norm_policy"), each("manifest_hash", slice(12))]
    return f"| {' | '.join([words, *cells, *about])} |"


def _accuracy(one: Mapping[str, Any]) -> str:
    if not one:
        return MISSING
    return f"{100 * one['accuracy']:.2f} ± {100 * one['accuracy_half_width']:.2f}"


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/cifar_fs_gpu")))
