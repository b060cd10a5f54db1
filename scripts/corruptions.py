"""Our common corruptions beside those of the package `imagecorruptions`, on the same images.

    python -m scripts.corruptions [python=<one that imports imagecorruptions>] [folder=<of tables>]

The package wants numpy below 1.24 and scikit-image 0.19, so it may stand in an environment of its
own. Where nothing is drawn, pixels are compared; a motion blur by the angle that the package drew;
the others by the mean and the deviation of what they add to an image. Its elastic transform is not
that of ImageNet-C, and our frost is drawn: they are left out. ImageNet-C's numbers, 64 pixels.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from metalearn.episodes.corruptions import CORRUPTIONS, Corruption, blur
from metalearn.episodes.corruptions.constants import constants
from metalearn.runtime.files import write_atomic

PIXELS = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
OMITTED = ("elastic_transform", "frost")
SEVERITIES = (1, 3, 5)
_THEIRS = """
import sys, numpy as np
from imagecorruptions import corrupt
given = np.load(sys.argv[1]); names = sys.argv[3].split(","); made = {}
for name in names:
    for severity in (1, 3, 5):
        made[f"{name}/{severity}"] = np.stack([
            (np.random.seed(i), corrupt(x, severity=severity, corruption_name=name))[1]
            for i, x in enumerate(given)])
np.savez(sys.argv[2], **made)
"""


def pictures(count: int, side: int = 64) -> torch.Tensor:
    """Smooth colours with edges, of 8 bits."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, 9, 9, generator=draw)
    x = torch.nn.functional.interpolate(x, (side, side), mode="bilinear")
    x[:, :, 10:30, 20:50] = torch.rand(count, 3, 1, 1, generator=draw)
    return (x.clamp(0, 1) * 255).round() / 255


def theirs(python: str, x: torch.Tensor, names: list[str]) -> dict[str, np.ndarray]:
    """By "name/severity", uint8 `[B, H, W, 3]`. Raises CalledProcessError where it does not run."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.npy"), Path(folder, "made.npz")
        np.save(given, (x * 255).round().byte().permute(0, 2, 3, 1).numpy())
        command = [python, "-W", "ignore", "-c", _THEIRS, str(given), str(made), ",".join(names)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return dict(np.load(made))


def ours(name: str, severity: int, x: torch.Tensor) -> torch.Tensor:
    """`[B, 3, H, W]`, with the angles that numpy draws first from the seeds 0, 1, ..."""
    if name == "motion_blur":
        angles = [np.random.RandomState(i).uniform(-45, 45) for i in range(len(x))]
        how = constants(name, severity, 224)
        return blur.moved(x, *how, torch.tensor(angles)).clamp(0, 1)
    return Corruption(name, severity, sizes="imagenet")(x, torch.arange(len(x)))


def rows(python: str, count: int = 24) -> list[dict]:
    """A row for each corruption and severity. error: the mean difference of pixels, of 255; of what
    is drawn, that of the mean and of the deviation that are added, in shares of the deviation."""
    x = pictures(count)
    names = [name for name in CORRUPTIONS if name not in OMITTED]
    found = theirs(python, x, names)
    lines = []
    for name in names:
        for severity in SEVERITIES:
            want = torch.from_numpy(found[f"{name}/{severity}"]).permute(0, 3, 1, 2).double()
            got = (ours(name, severity, x) * 255).double()
            if name in (*PIXELS, "motion_blur"):
                value, kind = (got - want).abs().mean().item(), "pixels, of 255"
            else:
                clean = (x * 255).double()
                a, b = got - clean, want - clean
                scale = b.std()
                moved = ((a.mean() - b.mean()) / scale).abs()
                value = max(moved.item(), (a.std() / scale - 1).abs().item())
                kind = "mean and deviation"
            lines.append({"name": name, "severity": severity, "compared": kind, "error": value})
    return lines


def main() -> None:
    """Print the table; and the reason where the package is not there."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    try:
        made = rows(options.get("python", sys.executable))
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        print(f"skipped: imagecorruptions does not run there ({lines[-1]})")
        return
    head = "| corruption | severity | compared | difference |\n| --- | ---: | --- | ---: |\n"
    body = "\n".join(
        f"| {r['name']} | {r['severity']} | {r['compared']} | {r['error']:.3f} |" for r in made
    )
    print(head + body)
    if folder := options.get("folder"):
        told = "# Our corruptions beside those of imagecorruptions 1.1.2\n\n"
        told += (__doc__ or "").strip().split("\n\n", 1)[1].split("\n\n", 1)[1]
        write_atomic(Path(folder, "corruptions.md"), f"{told}\n\n{head}{body}\n")
        write_atomic(Path(folder, "corruptions.json"), json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
