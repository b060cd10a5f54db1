"""The commands behind the tables of experiments/detection and experiments/segmentation.

    uv run python -m scripts.dense_runs detection              # prints them
    uv run python -m scripts.dense_runs segmentation --run     # runs what has not finished

Runs lie in `runs/`, one after another, each in a process of its own; one that was stopped goes on.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator

_BASE = "task=detection dataset=tiny_imagenet backbone=cifar_resnet backbone.depth=20"
_IMAGES = "images=imagenet images.size=32"
_FROM = f"{_BASE} backbone.norm=frozen {_IMAGES} head.weights=runs/t_base batching=loop"
_MEASURED = "episodes.shots=5 episodes.queries=5 evaluation.episodes=50"
_META = (
    "training.queries=3 training.meta_batch=2 training.steps=100 training.validate_every=50 "
    "evaluation.validation_episodes=10"
)
_STILL = "training.steps=1 training.meta_batch=1 training.queries=1 outer.optimizer.lr=0"
_LEFT = f"{_STILL} evaluation.validation_episodes=1 evaluation.untrained=false"
_SCENES = (
    "task=segmentation dataset=glyph_scenes backbone=conv4 backbone.filters=32 "
    "backbone.norm=group head.stride=2 head.width=32 "
    "batching=loop training.queries=3 training.meta_batch=4 training.validate_every=200 "
    "evaluation.validation_episodes=50 episodes.queries=5 evaluation.episodes=1000"
)

RUNS = {
    "detection": {
        "t_base": f"pretrain {_BASE} backbone.weights=DEFAULT {_IMAGES} precision=bf16 "
        "training.channels_last=true training.batch_size=32 training.clip_norm=10 "
        "pretrain/optimizer=adamw optimizer.lr=0.002 training.epochs=10",
        "t_drawn": f"train {_FROM} {_MEASURED} {_LEFT} algorithm=anil algorithm.steps=0",
        "t_tfa": f"train {_FROM} {_MEASURED} {_LEFT} algorithm=anil head.cosine=true "
        "algorithm.steps=20 inner=adam inner.rate=0.005",
        "t_proto": f"train {_FROM} {_MEASURED} {_META} algorithm=protonet "
        "algorithm.distance=cosine algorithm.temperature=0.1 algorithm.learn_temperature=true "
        "outer.optimizer.lr=0.0005",
        "t_anil": f"train {_FROM} {_MEASURED} {_META} algorithm=anil head.cosine=true "
        "algorithm.steps=5 inner=adam inner.rate=0.01 outer.optimizer.lr=0.0001 "
        "evaluation.untrained=false",
    },
    "segmentation": {
        "s_proto": f"train {_SCENES} algorithm=protonet algorithm.distance=cosine "
        "algorithm.temperature=0.05 training.steps=500 outer.optimizer.lr=0.002",
    },
}
"""By experiment, by the name of a run: what comes after `metalearn`."""
SHOTS = (1, 10)
"""Of the detectors that are measured again; each is trained at 5."""


def commands(experiment: str) -> Iterator[list[str]]:
    """The words of each, in order."""
    for name, words in RUNS[experiment].items():
        yield [*shlex.split(words), f"run_dir=runs/{name}"]
        if experiment == "detection" and name != "t_base":
            for shots in SHOTS:
                yield ["evaluate", f"run=runs/{name}", f"episodes.shots={shots}"]


def main(arguments: list[str]) -> None:
    """`<experiment> [--run]`."""
    parser = argparse.ArgumentParser(prog="scripts.dense_runs")
    parser.add_argument("experiment", choices=list(RUNS))
    parser.add_argument("--run", action="store_true", help="run them")
    asked = parser.parse_args(arguments)
    for words in commands(asked.experiment):
        print("metalearn", shlex.join(words), flush=True)
        if asked.run:
            subprocess.run([sys.executable, "-m", "metalearn.cli", *words], check=True)
    print("python -m scripts.dense_table", f"experiments/{asked.experiment}", end="")
    names = [name for name in RUNS[asked.experiment] if name != "t_base"]
    print("", *(f"runs/{name}" for name in names))


if __name__ == "__main__":
    main(sys.argv[1:])
