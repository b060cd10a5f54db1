"""`metalearn predict`: a finished run adapts to a user's own classes, and answers their images."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from metalearn.backbones.norms import describe
from metalearn.commands.building import words
from metalearn.commands.building.trained import asked, open_run
from metalearn.data.own_images import alike, copies_of, read_images, truth_of
from metalearn.errors import UsageError
from metalearn.evaluation.own_images.answers import Answers, answered, calibrated
from metalearn.evaluation.own_images.calibration import Calibration
from metalearn.evaluation.own_images.sheets import shots_sheet
from metalearn.evaluation.report import write_json
from metalearn.runtime.files import write_atomic
from metalearn.training.folder import check_writable
from metalearn.training.stage import teller

_OWN = ("run", "images", "support", "out", "invert")


def main(arguments: list[str], console: Console) -> None:
    """`metalearn predict run=<folder> images=<folder> support=<folder> [out=predictions]`; exits
    with 1 where an image could not be read, after all others."""
    told, say = asked(arguments, "predict", _OWN), teller(console)
    own = told.own
    if "images" not in own:
        raise UsageError("predict needs images=<folder of images>")
    invert = words.flag(own, "invert", None)
    out = Path(own.get("out", "predictions"))
    check_writable(out, "out")
    trained = open_run(own.get("run"), told, "predict", say, invert)
    support, calibration = trained.support(own.get("support"), say)
    (classes, labels, shots, _), ways = support, len(support.classes)
    images = read_images(Path(own["images"]).expanduser(), trained.look, shots.white)
    for line in images.broken:
        say(line)
    adapter = trained.adapter(ways, len(labels), len(images.names))
    if calibration is None:
        beside = images.pixels if adapter.algo.transductive else None
        calibration = calibrated(adapter, shots.pixels, labels, alike(shots), ways, beside)
    temperature = calibration.temperature if calibration else 1.0
    p = answered(adapter, shots.pixels, labels, images.pixels, ways, temperature)
    beside = 0 if adapter.alone else len(images.names) - 1
    seen, truth = copies_of(images, shots), truth_of(images.names, classes)
    answers = Answers(images.names, classes, p, calibration is not None, beside, seen, truth)
    write_atomic(out / "predictions.csv", answers.table())
    write_picture(out / "uncertain.png", answers.uncertain(images.pixels))
    write_picture(out / "support.png", shots_sheet(shots.pixels, labels, classes))
    accuracy, norm = answers.accuracy, describe(adapter.algo.net.module)
    write_json(out / "predictions.json", {
        "run": str(trained.run), "weights_sha256": trained.result.get("weights_sha256"),
        "classes": classes, "shots": np.bincount(labels).tolist(), "images": len(images.names),
        "not_read": images.broken + shots.broken, "inner_steps": adapter.steps,
        "norm_policy": norm, "transductive": adapter.algo.transductive,
        "calibration": calibration and calibration._asdict(),
        "accuracy": accuracy and accuracy._asdict(),
    })  # fmt: skip
    pairs = zip(classes, np.bincount(labels), strict=True)
    each = ", ".join(f"{' '.join(name.split())} {n}" for name, n in pairs)
    say(f"adapted to {ways} classes: {each}; answered {len(images.names)} images")
    say(of_calibration(calibration))
    if trained.config["outputs"] not in (None, ways):
        say(f"the head has {trained.config['outputs']} outputs; those of no class are left out")
    if accuracy:
        say(f"the images lie in folders named as the classes: {accuracy} are right")
    if seen.any():
        say(f"{seen.sum()} of the images are files of the support set, and no test of it")
    if adapter.algo.transductive:
        say("a transductive algorithm: each answer depends on all images of this call")
    elif not adapter.alone:
        say(
            f"norm policy {norm}: each answer depends on all images of this call, as in the run's "
            "test; backbone.norm=support takes the support set's statistics instead"
        )
    say(f"predictions folder: {out}")
    if images.broken or shots.broken:
        say(f"{len(images.broken) + len(shots.broken)} images could not be read, as told above")
        sys.exit(1)


def of_calibration(found: Calibration | None) -> str:
    """What is said of it."""
    if found is None:
        return "confidence is not calibrated: that takes two different images of every class"
    return (
        f"confidence calibrated by {found.count} held-out shots, of which {found.accuracy:.0%} are "
        f"right: temperature {found.temperature:.3g}, calibration error {found.error_before:.3f} "
        f"before and {found.error:.3f} after, on the same shots"
    )


def write_picture(path: Path, picture: Image.Image) -> None:
    """As PNG, atomically."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_atomic(path, data.getvalue())
