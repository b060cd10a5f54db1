"""Folders of CIFAR-FS test images, as a user would have them, and how honest `try` is on such.

    python -m scripts.own_pictures folders <place> [shots=5] [images=50]
    python -m scripts.own_pictures honest <out.json> [draws=25] [shots=5] [images=100]

`honest` draws five test classes and their shots again and again, lets the code of `try` choose and
estimate, and compares with the accuracy on the other of the first `images` of those classes.
Features are those of `try`'s own default network.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metalearn.algorithms import Metric
from metalearn.classifiers import Cosine
from metalearn.commands.parts import try_backbone
from metalearn.data import cifar_fs
from metalearn.evaluation.own_images.adapter import Adapter
from metalearn.evaluation.own_images.calibration import calibration_error, probabilities
from metalearn.evaluation.own_images.selecting import answers, choose, held_out
from metalearn.evaluation.report import write_json

WAYS = 5


def folders(place: Path, shots: int, images: int, seed: int = 0) -> None:
    """`classes/<class>/<n>.png`, and `pictures/<class>/<n>.png` of other images."""
    dataset = cifar_fs()
    names = dataset.class_names("test")
    rng = np.random.default_rng(seed)
    for c in rng.choice(len(names), WAYS, replace=False):
        drawn = rng.permutation(dataset.sizes["test"][c])[: shots + images]
        for n, pixels in enumerate(dataset.images("test", np.array(c), drawn)):
            folder = place / ("classes" if n < shots else "pictures") / names[c].split("/")[-1]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{drawn[n]:03d}.png")


def features(images: int) -> list[torch.Tensor]:
    """Of the first images of every test class, by the network that `try` takes."""
    words = ["backbone=cifar_resnet", "backbone.weights=DEFAULT", "device=cpu"]
    config, weights = try_backbone.configured(try_backbone.Chosen(words, ""), ())
    module, _, transform = try_backbone.network(config, weights)
    algo, dataset = Metric(module, Cosine()), cifar_fs()
    adapter = Adapter(algo, algo.init(), transform, 0, torch.device("cpu"))
    every = []
    for c in range(dataset.class_count("test")):
        pixels = dataset.images("test", np.array(c), np.arange(images)).transpose(0, 2, 3, 1)
        every.append(adapter.prepared(pixels))
    return every


def honest(draws: int, shots: int, images: int) -> dict[str, Any]:
    """What each draw estimated, and what was true."""
    every, rng, rows = features(images), np.random.default_rng(0), []
    labels, groups = np.repeat(np.arange(WAYS), shots), np.arange(WAYS * shots)
    for draw in range(draws):
        x, rest = [], []
        for c in rng.choice(len(every), WAYS, replace=False):
            order = torch.from_numpy(rng.permutation(len(every[c])))
            x.append(every[c][order[:shots]])
            rest.append(every[c][order[shots:]])
        x, asked = torch.cat(x), torch.cat(rest)
        truth = np.repeat(np.arange(WAYS), [len(part) for part in rest])
        held = held_out(x, labels, groups, WAYS, draw, 1)
        estimate, choice = held.estimate(groups), choose(x, labels, groups, WAYS, draw)
        logits = answers(choice.candidate.classifier, x, labels, asked, WAYS)
        right = logits.argmax(1) == truth
        errors = [
            calibration_error(probabilities(logits, t).max(1), right)
            for t in (1.0, choice.temperature)
        ]
        true = float(right.mean())
        rows.append({
            "chosen": choice.candidate.kind, "best_of_candidates": max(choice.accuracies.values()),
            "estimate": estimate.accuracy, "low": estimate.low, "high": estimate.high,
            "true": true, "inside": bool(estimate.low <= true <= estimate.high),
            "calibration_error_before": errors[0], "calibration_error": errors[1],
        })  # fmt: skip
        print(draw, rows[-1], flush=True)
    names = ("best_of_candidates", "estimate", "true", "inside", "calibration_error_before",
             "calibration_error")  # fmt: skip
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    told = {"draws": draws, "ways": WAYS, "shots": shots, "images": images, "seed": 0}
    return {**told, "means": means, "rows": rows}


def main() -> None:
    """See above."""
    what, place, *words = sys.argv[1:]
    given = {name: int(value) for name, _, value in (word.partition("=") for word in words)}
    if what == "folders":
        folders(Path(place), given.get("shots", 5), given.get("images", 50))
    else:
        how = (given.get("draws", 25), given.get("shots", 5), given.get("images", 100))
        write_json(place, honest(*how))


if __name__ == "__main__":
    main()
