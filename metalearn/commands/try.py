"""`metalearn try`: from a folder of class folders to a classifier with an honest estimate."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from metalearn.algorithms import Metric
from metalearn.backbones.norms import describe
from metalearn.classifiers import Cosine
from metalearn.commands.building import words
from metalearn.commands.building.meta_training import read_method
from metalearn.commands.parts import try_backbone
from metalearn.commands.predict import write_picture
from metalearn.data.folder import Look
from metalearn.data.own_images import OwnClasses, alike, read_classes
from metalearn.errors import UsageError
from metalearn.evaluation.own_images.adapter import Adapter
from metalearn.evaluation.own_images.calibration import calibration_error
from metalearn.evaluation.own_images.kept import Kept, write_kept
from metalearn.evaluation.own_images.plots import confusion_matrix, reliability_diagram
from metalearn.evaluation.own_images.selecting import Candidate, Choice, Held, choose, held_out
from metalearn.evaluation.own_images.sheets import answers_sheet, shots_sheet
from metalearn.evaluation.report import write_json
from metalearn.runtime.device import torch_device
from metalearn.runtime.files import write_atomic
from metalearn.training.folder import check_writable, commit, config_hash, save_weights
from metalearn.training.stage import teller

_OWN = ("out", "repeats")
_OVERRIDES = ("backbone", "images", "dataset", "device", "seed")
_FEW = 5  # images of a class


def main(arguments: list[str], console: Console) -> None:
    """`metalearn try <folder of class folders> [backbone=...] [out=try] [repeats=3] [seed=0]`."""
    folder, own, trust, overrides = _asked(arguments)
    say, out = teller(console), Path(own.get("out", "try"))
    check_writable(out, "out")
    if (out / "config.yaml").exists() and not (out / "support.json").exists():
        raise UsageError(f"{out} holds another run; choose another out=<folder>")
    repeats = words.whole(own, "repeats")
    chosen = try_backbone.choose_backbone(overrides, folder)
    say(f"backbone: {chosen.why}")
    config, weights = try_backbone.configured(chosen, trust)
    dataset = config["dataset"]
    look = Look(*(dataset[name] for name in ("size", "channels", "fit", "invert")))
    support = read_classes(folder, look)
    for line in (*support.notes, *support.images.broken):
        say(line)
    groups = alike(support.images)
    for line in _doubtful(support, groups):
        say(line)
    module, report, transform = try_backbone.network(config, weights)
    say(str(report) if report else "the network has random weights: give backbone.weights=<file>")
    (classes, labels, images, _), ways = support, len(support.classes)
    algo, device = Metric(module, Cosine()), torch_device(config["device"])
    meta = algo.init()
    on_device = {part: {n: t.to(device) for n, t in meta[part].items()} for part in meta}
    adapter = Adapter(algo, on_device, transform, 0, device)  # type: ignore[arg-type]
    x, seed = adapter.prepared(images.pixels), config["seed"]
    held = held_out(x, labels, groups, ways, seed, repeats)
    choice = choose(x, labels, groups, ways, seed)
    final = _final(config, choice.candidate, folder, out, ways)
    method = read_method(final)
    module, adapting = method.task.network(module)
    sha256 = save_weights(out / "weights.safetensors", method.algo(module, adapting).init())
    write_atomic(out / "config.yaml", yaml.safe_dump(final, sort_keys=False))
    write_kept(out, Kept(support, choice.calibration))
    told = _result(support, held, choice, groups, chosen.why)
    more = {"weights_sha256": sha256, "image_shape": [look.channels, look.size, look.size],
            "norm_policy": describe(algo.net.module), "seed": seed,
            "config_hash": config_hash(final), "commit": commit()}  # fmt: skip
    _pictures(support, held, out)
    write_json(out / "result.json", {**told, **more})
    _show(console, told, choice, held, classes)
    say(f"folder: {out}; metalearn predict run={out} images=<folder>, metalearn export run={out}")
    if images.broken:
        say(f"{len(images.broken)} images could not be read, as told above")
        raise SystemExit(1)


def _asked(arguments: list[str]) -> tuple[Path, dict[str, str], list[str], list[str]]:
    """The folder, our options, what is trusted, and overrides of `metalearn train`."""
    trust, rest = words.trusted(arguments)
    prefixes = tuple(f"{group}." for group in ("backbone", "images", "dataset"))
    folders, options = words.split(rest, "try", (*_OWN, *_OVERRIDES), prefixes)
    if len(folders) != 1:
        raise UsageError("try needs one folder: metalearn try <folder of class folders>")
    own = {name: value for name, value in options.items() if name in _OWN}
    overrides = [f"{name}={value}" for name, value in options.items() if name not in own]
    return folders[0].expanduser(), own, trust, overrides


def _doubtful(support: OwnClasses, groups: np.ndarray) -> list[str]:
    """What makes an estimate doubtful. Raises UsageError where there is none."""
    classes, labels, images, _ = support
    lines = []
    for number in np.unique(groups):
        same = np.flatnonzero(groups == number)
        if len(same) < 2:
            continue
        told = ", ".join(images.names[i] for i in same[:3])
        more = f" and {len(same) - 3} more" if len(same) > 3 else ""
        if len({*labels[same]}) > 1:
            lines.append(f"warning: {told}{more} look the same and are of different classes")
        else:
            lines.append(f"warning: {told}{more} look the same; they are held out together")
    for c, name in enumerate(classes):
        if len(np.unique(groups[labels == c])) < 2:
            copies = ", and copies of it" if (labels == c).sum() > 1 else ""
            raise UsageError(
                f"class {name} has one picture{copies}; an estimate takes two or more of every "
                "class: give more, or remove it"
            )
    counts = np.bincount(labels)
    if counts.min() < _FEW:
        few = ", ".join(f"{classes[c]} {counts[c]}" for c in np.flatnonzero(counts < _FEW)[:4])
        lines.append(f"warning: few images ({few}): the interval is wide, and more would help most")
    return lines


def _final(
    config: dict[str, Any], candidate: Candidate, folder: Path, out: Path, ways: int
) -> dict[str, Any]:
    """The configuration that `predict` and `export` open: the network with what was chosen."""
    rate = {} if candidate.rate is None else {"rate": candidate.rate}
    return {
        **config,
        "name": "try",
        "run_dir": str(out),
        "backbone": {**config["backbone"], "rename": None},
        "classifier": candidate.node,
        "inner": {**config["inner"], **rate},
        "dataset": {**config["dataset"], "root": str(folder.resolve()), "fractions": [0, 0, 1]},
        "episodes": {**config["episodes"], "ways": ways},
    }


def _result(
    support: OwnClasses, held: Held, choice: Choice, groups: np.ndarray, why: str
) -> dict[str, Any]:
    estimate = held.estimate(groups)
    confidence, right = held.p.max(1), held.p.argmax(1) == held.labels
    found = choice.calibration
    return {
        "accuracy": estimate.accuracy,
        "accuracy_interval": [estimate.low, estimate.high],
        "interval": "Wilson, 95%, over different pictures",
        "pictures": estimate.count,
        "estimate": "nested cross-validation",
        "folds": held.folds,
        "repeats": held.repeats,
        "calibration_error": calibration_error(confidence, right),
        "classes": support.classes,
        "images": np.bincount(support.labels).tolist(),
        "not_read": support.images.broken,
        "alike": int(len(groups) - len(np.unique(groups))),
        "backbone": why,
        "classifier": f"{choice.candidate.kind}, {choice.candidate.told}",
        "chosen_in_folds": dict(held.chosen),
        "accuracy_of_candidates": choice.accuracies,
        "calibration": found and found._asdict(),
        "validation_score": estimate.accuracy,
    }


def _pictures(support: OwnClasses, held: Held, out: Path) -> None:
    classes, labels, images, _ = support
    names, right, mean = held.of_images()
    reliability_diagram(
        held.p.max(1), held.p.argmax(1) == held.labels, out / "reliability.png", held.repeats
    )
    answered = np.zeros_like(mean)
    np.add.at(answered, (np.searchsorted(names, held.images), held.p.argmax(1)), 1 / held.repeats)
    confusion_matrix(labels[names], answered, classes, out / "confusion.png")
    write_picture(out / "support.png", shots_sheet(images.pixels, labels, classes))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "truth", "class", "confidence", "share_right"])
    for row, place in enumerate(names):
        first = int(mean[row].argmax())
        told = [images.names[place], classes[labels[place]], classes[first]]
        told = [t.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for t in told]
        writer.writerow([*told, f"{mean[row, first]:.6f}", f"{right[row]:.4f}"])
    write_atomic(out / "held_out.csv", text.getvalue())
    wrong = [row for row in np.argsort(right, kind="stable") if right[row] < 0.5]
    (out / "errors.png").unlink(missing_ok=True)  # of an earlier call
    if wrong:
        lines = [[f"{mean[row].max():.0%} {classes[mean[row].argmax()]}",
                  images.names[names[row]].rpartition("/")[2],
                  f"is {classes[labels[names[row]]]}"] for row in wrong]  # fmt: skip
        title = f"{len(wrong)} of {len(names)} held-out images are answered wrong"
        sheet = answers_sheet(images.pixels[names[wrong]], lines, title, [True] * len(wrong))
        write_picture(out / "errors.png", sheet)


def _show(
    console: Console, told: dict[str, Any], choice: Choice, held: Held, classes: list[str]
) -> None:
    say = teller(console)
    table = Table(title="Chosen among (the best of these is no estimate)")
    table.add_column("classifier")
    table.add_column("held-out shots right", justify="right")
    for name, accuracy in choice.accuracies.items():
        mark = "[bold]" if name == told["classifier"] else ""
        table.add_row(f"{mark}{name}", f"{mark}{accuracy:.1%}")
    if choice.accuracies:
        console.print(table)
    low, high = told["accuracy_interval"]
    say(
        f"estimate: {told['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%}, Wilson, "
        f"{told['pictures']} pictures; chance {1 / len(classes):.1%}), by nested cross-validation: "
        f"{held.folds} folds, {held.repeats} times, the choice made anew in each"
    )
    say(f"calibration error {told['calibration_error']:.3f}; the classifier: {told['classifier']}")
