"""`metalearn export`: a run's network, adapted to a user's classes, as a file for plain torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from metalearn.backbones.norms import describe
from metalearn.commands.building.episodes import read_data
from metalearn.commands.building.trained import Asked, Trained, asked, open_run
from metalearn.commands.predict import of_calibration
from metalearn.data import ImageDataset, Mixture
from metalearn.data.own_images import alike, read_images
from metalearn.errors import UsageError, nearest
from metalearn.evaluation.own_images.adapter import Adapter
from metalearn.evaluation.own_images.answers import calibrated
from metalearn.evaluation.own_images.calibration import Calibration
from metalearn.evaluation.own_images.exporting import FILES, WAYS, left_in_place, traced
from metalearn.evaluation.report import write_json
from metalearn.functional.outputs import tensor_of
from metalearn.training.folder import check_writable
from metalearn.training.stage import teller

_OWN = ("run", "support", "images", "out", "format")
_CHECKED = 16  # images that what is written is tried on


def main(arguments: list[str], console: Console) -> None:
    """`metalearn export run=<folder> [support=<folder>] [out=export] [format=torch,onnx]`."""
    told, say = asked(arguments, "export", _OWN), teller(console)
    formats = told.own.get("format", "torch").strip("[]").split(",")
    for name in formats:
        if name not in FILES:
            raise UsageError(f"format={name} is not known{nearest(name, FILES)}; use torch or onnx")
    out = Path(told.own.get("out", "export"))
    check_writable(out, "out")
    # A file for one device would not load where there is none.
    told = Asked(told.own, told.trust, [*told.overrides, "device=cpu"])
    trained = open_run(told.own.get("run"), told, "export", say)
    own, calibration = None, None
    if "support" in told.own or trained.kept is not None:
        own, calibration = trained.support(told.own.get("support"), say)
    ways = len(own.classes) if own else trained.config["outputs"] or 2
    adapter = trained.adapter(ways, len(own.labels) if own else ways, queries=2)
    _check(adapter, own is not None)
    fast, temperature = None, 1.0
    if own:
        pixels, labels = own.images.pixels, own.labels
        if calibration is None:
            calibration = calibrated(adapter, pixels, labels, alike(own.images), ways)
        temperature = calibration.temperature if calibration else 1.0
        fast = adapter.adapted(adapter.prepared(pixels), labels)
    else:
        pixels = _some(trained, told.own.get("images"))
    some = pixels[np.linspace(0, len(pixels) - 1, min(_CHECKED, len(pixels))).astype(int)]
    x = torch.from_numpy(some.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    want = _own_answers(adapter, fast, some, ways) / temperature
    # Two at least: of one torch.export would make a constant.
    program = traced(adapter, fast, ways, temperature, torch.cat([x, x])[: max(2, len(x))])
    written = {name: WAYS[name][0](program) for name in formats}
    worst = {}
    for name, data in written.items():
        path = out / FILES[name]
        worst[name] = left_in_place(path, data, WAYS[name][1](data), x, want)
        size = f"{len(data) / 1e6:.1f} MB"
        say(f"{path}: {size}, within {worst[name]:.1e} of predict's own logits on {len(x)} images")
    write_json(out / "network.json", _about(trained, adapter, own and own.classes, calibration,
                                            temperature, worst))  # fmt: skip
    if own:
        say(f"adapted to {ways} classes: {', '.join(own.classes)}")
        say(of_calibration(calibration))
    else:
        say("no classes were given: the network before adapting; support=<folder of class folders>")
    say(f"export folder: {out}; network.json says what it takes and gives")


def _check(adapter: Adapter, adapted: bool) -> None:
    """Raise UsageError where the answer to an image is no function of it alone."""
    norm = describe(adapter.algo.net.module)
    if adapter.algo.transductive and adapted:
        raise UsageError(
            "a transductive algorithm answers the images of one call together, which no file does; "
            "use metalearn predict"
        )
    if "transductive" in norm.split("+"):
        raise UsageError(
            f"norm policy {norm}: what is exported would answer each image by those beside it; add "
            "backbone.norm=support for the support set's statistics, or use metalearn predict"
        )
    if "support" in norm.split("+") and not adapted:
        raise UsageError(
            "the network takes the statistics of a support set; give support=<folder of class "
            "folders>"
        )


def _some(trained: Trained, images: str | None) -> np.ndarray:
    """uint8 `[n, H, W, C]`: images to try the network on, the user's or of the run's data set."""
    if images is not None:
        return read_images(Path(images).expanduser(), trained.look).pixels[:_CHECKED]
    dataset = read_data(trained.config).dataset
    if not isinstance(dataset, ImageDataset | Mixture):
        raise UsageError("export needs images to be tried on; give images=<folder>")
    member = dataset if isinstance(dataset, ImageDataset) else next(iter(dataset.sets.values()))
    return np.asarray(member.store.images[:_CHECKED])


def _own_answers(adapter: Adapter, fast: Any, pixels: np.ndarray, ways: int) -> np.ndarray:
    if fast is not None:
        return adapter.answers(fast, adapter.prepared(pixels), ways)
    net, meta = adapter.algo.net, adapter.meta
    with torch.no_grad(), net.evaluating():
        y = net.apply({**meta["buffers"], **meta["init"]}, adapter.inputs(pixels))
        return tensor_of(y).flatten(1).numpy()


def _about(
    trained: Trained, adapter: Adapter, classes: list[str] | None,
    calibration: Calibration | None, temperature: float, worst: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """What stands beside the network: what it takes, what it gives, where it comes from."""
    look = trained.look
    return {
        "classes": classes,
        "outputs": "logits; their softmax is the confidence" if classes else
                   "logits before adapting" if trained.config["outputs"] else "features",
        "calibrated": calibration is not None,
        "mode": "L" if look.channels == 1 else "RGB",
        "size": [look.size, look.size],
        "fit": "the middle square" if look.fit == "crop" else "stretched",
        "resampling": "bicubic",
        "inverted": look.invert,
        "values": "pixels / 255, float32, [batch, channels, height, width]",
        "inside": {name: value for name, value in vars(trained.transform).items() if value},
        "temperature": temperature,
        "calibration": calibration and calibration._asdict(),
        "norm_policy": describe(adapter.algo.net.module),
        "inner_steps": adapter.steps,
        "run": str(trained.run),
        "weights_sha256": trained.result.get("weights_sha256"),
        "largest_difference": worst,
        "torch": torch.__version__,
    }  # fmt: skip
