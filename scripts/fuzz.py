"""Random combinations of all config groups, each a whole tiny run in this process.

    uv run python -m scripts.fuzz [count=3000] [seed=0] [start=0] [seconds=60]

A combination must end in a result whose every number is finite, or in one line that says why not;
never in a traceback, in a NaN that no line tells of, in more than `seconds` of the processor
without a line, or, refused, in a folder that would refuse the corrected command. Prints each that
did not, with the command that repeats it, then the counts and the seconds; exits with 1 where
there was one. Plots, which are most of the time of so small a run, are left out, and so is the
compiler. Combination i of a seed is the same whatever the count.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from rich.console import Console

from metalearn.commands.building.config import compose, conf_folder
from metalearn.commands.building.words import read_options
from metalearn.commands.train import run
from metalearn.errors import DataError, Diverged, UsageError
from metalearn.evaluation import plots

MADE = ("glyphs", "glyphs", "glyphs", "sinusoid", "harmonic")  # data sets without a download
NORMS = ("transductive", "support", "running", "frozen", "group", "none")
NETWORKS: dict[str, tuple[str, ...]] = {
    "conv4": ("backbone.filters=4",),
    "conv4_strided": ("backbone.filters=4",),
    "mlp": ("backbone.hidden=[8]",),
    "cifar_resnet": ("backbone.depth=8",),
    "resnet12": ("backbone.widths=[2,2,4,4]",),
    "wide_resnet": ("backbone.depth=10", "backbone.width=1"),
    "vit_tiny": ("+backbone.options.depth=1", "+backbone.options.embed_dim=12"),
    "timm": ("backbone.name=test_resnet",),
    "torchvision": ("backbone.name=mobilenet_v3_small", "+backbone.options.width_mult=0.25"),
}
"""Every backbone, as small as it goes."""

GROUPS = (
    *("gradient", "engine", "inner", "adaptation", "head", "loss", "sampling", "augmentation"),
    *("images", "outer", "outer/schedule"),
)
VALUES: dict[str, tuple[object, ...]] = {
    "episodes.ways": (1, 2, 3, 5),
    "episodes.shots": (1, 2, 4),
    "episodes.queries": (1, 3),
    "training.steps": (1, 2, 4),
    "training.meta_batch": (1, 2, 3),
    "training.validate_every": (1, 2),
    "training.queries": (1, 4),
    "training.clip_norm": (0.1, 10),
    "training.patience": (1,),
    "algorithm.steps": (0, 1, 2, 5),
    "algorithm.proximal": (0, 0.5, 3),
    "gradient.solver": ("cg", "neumann"),
    "gradient.last": (0, 1, 3),
    "inner.rate": (0, 0.001, 0.1, 3, 1e4, 1e30),
    "inner.batch_size": (1, 2, 100),
    "inner.weight_decay": (0.1,),
    "inner.clip_norm": (1.0,),
    "outer.optimizer.lr": (0, 1e-3, 0.1, 1e3, 1e20),
    "outer.optimizer.weight_decay": (0.1,),
    "evaluation.steps": (0, 1, 7),
    "evaluation.untrained": ("true",),
    "head.scale": (0.1, 1000),
    "loss.gamma": (0, 5),
    "loss.smoothing": (0, 1),
    "adaptation.k": (1, 99),
    "adaptation.rank": (1, 50),
    "sampling.sizes.min_ways": (2, 3),
    "sampling.within_superclass": ("true", "false"),
    "backbone.norm": NORMS,
    "backbone.hidden": ("[]", "[4,4]"),
    "backbone.drop_rate": (0.3,),
    "backbone.last_map": ("mean",),
    "batching": ("loop", "vmap", "2", "vmap+im2col", "loop+forward_over_reverse", "auto"),
    "precision": ("fp32", "tf32", "bf16", "bf16-all", "fp16"),
    "capture": ("none", "none", "none", "graph"),
    "lite": ("null", 1, 4, 100),
    "dataset.size": (8, 16, 19),
    "images.size": (12,),
    "images.channels": (3,),
    "seed": (1, 2**40),
    "resume": ("never",),
}
ADAPTING = ("maml", "anil", "imaml", "reptile")
METRIC = ("protonet", "r2d2", "meta_baseline", "metric", "soft_kmeans", "in_context")
UNFIT: dict[str, tuple[str, ...]] = {
    "gradient": ("imaml", "reptile", *METRIC),
    "adaptation": ("reptile", *METRIC),
    "inner": ("reptile",),
    "engine": (*ADAPTING, *METRIC, "proto_maml"),  # it sets `batching`, which is among VALUES
    "head": (*METRIC, "proto_maml"),
    "augmentation": (),
    "images": (),
    "sampling": (),
    "loss": (),
}
"""Groups that an algorithm has a choice of its own for, or none."""
OF_IMAGES = ("head", "loss", "sampling", "augmentation", "images")

ALWAYS = (
    *("training.steps=2", "training.meta_batch=2", "training.validate_every=1"),
    *("evaluation.episodes=3", "evaluation.validation_episodes=2", "evaluation.untrained=false"),
    *("episodes.queries=2", "training.queries=2", "batching=loop", "tracker=disabled"),
)


def combination(number: int, seed: int, heavy: bool = True) -> list[str]:
    """The overrides of combination `number`. heavy: networks of other packages too."""
    rng = random.Random(f"{seed} {number}")
    dataset = rng.choice(MADE)
    words = dict(word.split("=", 1) for word in ALWAYS)
    words["dataset"] = dataset
    words["algorithm"] = algorithm = rng.choice(_choices("algorithm"))
    careless = rng.random() < 0.2  # of what goes with what: mistakes are to be told too
    if dataset != "glyphs" and not careless:
        words["algorithm"] = algorithm = rng.choice(ADAPTING)
    if dataset == "glyphs":
        words |= {"dataset.classes": "60", "dataset.size": "16"}
        names = [n for n in NETWORKS if heavy or n not in ("timm", "torchvision", "vit_tiny")]
        words["backbone"] = name = rng.choice(["conv4", "conv4_strided", "mlp", *names])
        words |= dict(word.split("=", 1) for word in NETWORKS[name])
    for group in GROUPS:
        if rng.random() < 0.25:
            words[group] = rng.choice(_choices(group))
    if not careless:
        for group, wrong in UNFIT.items():
            if algorithm in wrong or (dataset != "glyphs" and group in OF_IMAGES):
                words.pop(group, None)
        if words.get("sampling") == "meta_dataset":
            words |= {"episodes.ways": "3", "sampling.sizes.min_ways": "2"}
    if words.get("sampling") == "meta_dataset":
        words["sampling.sizes.max_support"] = "60"  # its 500 would be no tiny run
    if words.get("gradient") == "evolution":
        words["gradient.pairs"] = "2"  # its 20 are 160 adaptations in a run of two steps
    fitting = _keys(words)
    for key in rng.sample(sorted(VALUES), 8):
        # Keys that the chosen groups lack are refused alike: a few of them are enough.
        if key in fitting or rng.random() < 0.01:
            words[key] = str(rng.choice(VALUES[key]))
    return [f"{key}={value}" for key, value in words.items()]


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("[!_]*.yaml"))


def _keys(words: dict[str, str]) -> set[str]:
    """Which of VALUES the chosen groups have."""
    try:
        config: Any = compose([f"{key}={value}" for key, value in words.items()])
    except UsageError:
        return set(VALUES)

    def there(name: str) -> bool:
        node = config
        for part in name.split("."):
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        return True

    return {key for key in VALUES if there(key)}


class Tried(NamedTuple):
    """end: finished, refused, failed or a fault. told: what was printed, or the fault."""

    end: str
    told: str
    seconds: float

    @property
    def fault(self) -> bool:
        """Whether it may not be."""
        return self.end not in ("finished", "refused", "failed")


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds of the processor."""

    def out_of_time(*_: object) -> None:
        raise TimeoutError(f"over {seconds:g} s")

    before = signal.signal(signal.SIGPROF, out_of_time)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tried(words: list[str], folder: Path, seconds: float = 60.0) -> Tried:
    """One run in `folder`, which is not there before."""
    printed, started = io.StringIO(), time.process_time()
    told = ""
    try:
        with contextlib.ExitStack() as stack:
            for plot in ("plot_learning_curve", "plot_accuracy_by_step"):
                stack.enter_context(mock.patch.object(plots, plot))
            stack.enter_context(contextlib.redirect_stderr(printed))
            stack.enter_context(limited(seconds))
            run(compose([*words, f"run_dir={folder}"]), Console(file=printed, width=300))
        end = "finished"
    except (UsageError, DataError) as error:
        end, told = "failed" if isinstance(error, Diverged) else "refused", str(error)
        if "\n" in told:
            end = "several lines"
        elif end == "refused" and folder.exists():
            end = "a folder of a refusal"
    except TimeoutError as error:
        end, told = "too long", str(error)
        if "times as long for it as for fp32" in printed.getvalue():
            end, told = "finished", printed.getvalue()  # slow, and said so
    except Exception:
        end, told = "traceback", traceback.format_exc(limit=-4)
    if end == "finished" and _not_finite(folder):
        told = printed.getvalue()
        if not any(word in told for word in ("not finite", "overflowed", "the metric")):
            end = "NaN untold"
    return Tried(end, told or printed.getvalue(), time.process_time() - started)


def _not_finite(folder: Path) -> bool:
    """Whether a number in the run's records or result is not finite."""
    files = (folder / "metrics.jsonl", folder / "result.json")
    text = "".join(path.read_text() for path in files if path.exists())
    return any(word in text for word in ('"nan"', '"inf"', '"-inf"'))


@dataclass(frozen=True)
class Options:
    """Of the command line. start: the number of the first combination."""

    count: int = 3000
    seed: str = "0"
    start: str = "0"
    seconds: float = 60.0


def main(arguments: list[str]) -> int:
    """Try them all; 1 where one was at fault."""
    asked = read_options(arguments, Options(), "fuzz")
    ends: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    slowest, started = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        os.environ["METALEARN_CACHE"] = place
        for number in range(int(asked.start), int(asked.start) + asked.count):
            words = combination(number, int(asked.seed))
            found = tried(words, Path(place) / str(number), asked.seconds)
            ends[found.end] += 1
            slowest = max(slowest, found.seconds)
            if found.end in ("refused", "failed"):
                lines[found.told[:60]] += 1
            if found.fault:
                command = " ".join(json.dumps(w) if " " in w else w for w in words)
                print(f"{number}: {found.end}: {command}\n{found.told.rstrip()}", flush=True)
    faults = sum(
        count for end, count in ends.items() if end not in ("finished", "refused", "failed")
    )
    print(f"{asked.count} combinations of seed {asked.seed}: {dict(ends)}, {faults} at fault")
    took = time.perf_counter() - started
    print(f"{len(lines)} different lines; {took:.0f} s, the slowest {slowest:.1f} s")
    for line, count in lines.most_common(5):
        print(f"  {count}: {line} ...")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
