"""RandAugment of a batch, every image with operations of its own: ours, torchvision's, kornia's.

    uv run --with kornia python -m scripts.randaugment

Prints and writes `experiments/episodes/randaugment.md`. One thread, medians of repeats in turns.
kornia draws one policy for a whole batch; that row is there for its cost, not for its meaning.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from metalearn.benchmarks import machine
from metalearn.benchmarks.report import markdown_table
from metalearn.episodes.randaugment import randaugment
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import keep_freed_memory

OPERATIONS, MAGNITUDE, REPEATS = 2, 9, 7
SHAPES = ((80, 3, 32, 32), (300, 3, 32, 32), (300, 3, 84, 84))
PAGE = Path("experiments/episodes/randaugment.md")


def makers() -> dict[str, Callable[[Tensor], object]]:
    """By name, what changes a float batch `[B, 3, H, W]`."""
    rng = np.random.default_rng(0)
    theirs = v2.RandAugment(OPERATIONS, MAGNITUDE)

    def ours(x: Tensor) -> Tensor:
        return randaugment(x, MAGNITUDE, rng.random((OPERATIONS, len(x), 2), np.float32))

    made: dict[str, Callable[[Tensor], object]] = {
        "ours": ours,
        "torchvision, image by image": lambda x: torch.stack([theirs(image) for image in x]),
    }
    try:
        from kornia.augmentation.auto import RandAugment
    except ImportError:
        return made
    kornia = RandAugment(OPERATIONS, MAGNITUDE)
    return {
        **made,
        "kornia, image by image": lambda x: torch.cat([kornia(image[None]) for image in x]),
        "kornia, one policy for all": kornia,
    }


def main() -> None:
    """Time every maker on every shape."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    made = makers()
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for shape in SHAPES:
        x = torch.rand(shape)
        times: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(REPEATS + 1):
            for name, make in made.items():
                started = time.perf_counter()
                make(x)
                times[name].append(time.perf_counter() - started)
        for name, taken in times.items():
            seconds[name].append(statistics.median(taken[1:]))
    head = ["ms", *("x".join(map(str, shape)) for shape in SHAPES)]
    body = [[name, *(f"{s * 1e3:.1f}" for s in row)] for name, row in seconds.items()]
    table = markdown_table(head, body)
    about = (
        f"{machine.describe('cpu')['cpu']}, 1 thread, torch {machine.version('torch')}, "
        f"torchvision {machine.version('torchvision')}, kornia {machine.version('kornia')}; "
        f"{OPERATIONS} operations of magnitude {MAGNITUDE}, medians of {REPEATS}"
    )
    write_atomic(PAGE, f"# RandAugment\n\n{about}\n\n{table}\n")
    print(table)


if __name__ == "__main__":
    main()
