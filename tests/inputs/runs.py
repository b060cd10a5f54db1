"""Run folders, places and sweeps that cannot be gone on with, given to the command `metalearn`."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from metalearn.commands.building.config import compose
from metalearn.training.checkpoint import save_checkpoint
from metalearn.training.folder import held
from tests.command import Outcome, metalearn
from tests.inputs.case import Case, Place

TRAIN = (
    "dataset=sinusoid",
    "debug=fast",
    "batching=loop",
    "tracker=disabled",
    "tracker.plots=false",
    "run_dir=run",
)
RUN = Path("run")


def begun(*overrides: str) -> None:
    """A run folder as it is before the first step."""
    with held(RUN, compose([*TRAIN, *overrides]), "auto"):
        pass


def run(
    given: str,
    said: str,
    spoil: Callable[[], object],
    *words: str,
    act: str = "train",
    begins: bool = True,
) -> Case:
    """A command on a run folder that was spoilt. begins: it began with `words` too."""

    def ready(place: Place) -> None:
        begun(*(words if begins else ()))
        spoil()

    asked = ("evaluate", "run=run") if act == "evaluate" else (act, *TRAIN)
    return Case(f"`metalearn {act}` in {given}", said, lambda _: metalearn(*asked, *words), ready)


def written(name: str, text: str | bytes) -> Callable[[], object]:
    data = text.encode() if isinstance(text, str) else text
    return lambda: (RUN / name).write_bytes(data)


def naming(target: str, **values: Any) -> Callable[[], object]:
    """A configuration that names something else as its algorithm."""

    def spoil() -> None:
        path = RUN / "config.yaml"
        config = yaml.safe_load(path.read_text()) | {"algorithm": {"_target_": target, **values}}
        path.write_text(yaml.safe_dump(config))

    return spoil


def other_weights() -> None:
    (RUN / "weights.safetensors").write_bytes(b"x")
    result = {"weights_sha256": "0" * 64, "validation_score": 0.5}
    (RUN / "result.json").write_text(json.dumps(result))


def command(given: str, said: str, *words: str, **variables: str) -> Case:
    """A command in another environment."""

    def act(place: Place) -> Outcome:
        with mock.patch.dict(os.environ, variables):
            return metalearn(*words)

    return Case(f"`metalearn {' '.join(words)}`{given}", said, act)


def others_checkpoint() -> None:
    save_checkpoint(RUN / "checkpoints", 1, {"config_hash": "0" * 64, "seed": 7})


SWEEP = ("train", "-m", "dataset=sinusoid")
RUNS: tuple[Case, ...] = (
    run(
        "a folder whose config.yaml is cut",
        "run/config.yaml is damaged",
        written("config.yaml", "seed: ["),
    ),
    run(
        "a folder whose config.yaml is empty",
        "run/config.yaml is damaged",
        written("config.yaml", ""),
    ),
    run(
        "a folder whose config.yaml is no text",
        "run/config.yaml is damaged",
        written("config.yaml", b"\xff\xfe\x00"),
    ),
    run(
        "a folder whose result.json is cut",
        "run/result.json is damaged",
        written("result.json", "{"),
    ),
    run(
        "a folder whose result.json is no result",
        "run/result.json is damaged",
        written("result.json", "[1]"),
    ),
    run(
        "a folder whose engine.json is cut",
        "run/engine.json is damaged",
        written("engine.json", "{"),
        "batching=auto",
    ),
    run(
        "a folder whose engine.json is no plan",
        "run/engine.json is damaged",
        written("engine.json", "[1]"),
        "batching=auto",
    ),
    run(
        "a folder with another run's checkpoints",
        "the checkpoints in run are another run's (seed 7",
        others_checkpoint,
    ),
    run(
        "a folder of another seed",
        "run holds a run with seed=0, not 1",
        lambda: None,
        "seed=1",
        begins=False,
    ),
    run(
        "a folder whose metrics.jsonl is a folder",
        "run/metrics.jsonl (Is a directory)",
        lambda: (RUN / "metrics.jsonl").mkdir(),
    ),
    run(
        "a folder whose weights are not those of result.json",
        "is not what the run wrote",
        other_weights,
        act="evaluate",
    ),
    run(
        "a folder whose config.yaml names os.system",
        "add trust=os, or trust=true",
        naming("os.system", command="ls"),
        act="evaluate",
    ),
    run(
        "a folder whose config.yaml names what torch.nn imported",
        "add trust=torch",
        naming("torch.nn.functional.importlib.import_module", name="x"),
        act="evaluate",
    ),
    run(
        "a folder whose config.yaml names a function that writes",
        "add trust=metalearn",
        naming("metalearn.runtime.files.write_atomic", path="x", content="x"),
        act="evaluate",
    ),
    command(
        ", a rank without a place to meet",
        "does not say where the ranks meet",
        "train",
        RANK="0",
        WORLD_SIZE="2",
    ),
    command(
        ", two processes under torchrun",
        "compare is one process; start it without torchrun",
        "compare",
        RANK="0",
        WORLD_SIZE="2",
    ),
    command(
        ", two processes under torchrun",
        "processes for one run, and -m asks for several",
        *SWEEP,
        "seed=0,1",
        RANK="0",
        WORLD_SIZE="2",
    ),
    command(
        " without srun",
        "needs Slurm, and there is no srun here",
        *SWEEP,
        "hydra/launcher=submitit_slurm",
        PATH="",
    ),
    command("", "has nothing to search", *SWEEP, "hydra/sweeper=optuna", "seed=0,1"),
    command(
        "",
        "cannot be searched",
        *SWEEP,
        "hydra/sweeper=optuna",
        "inner.rate=tag(log,interval(0,1))",
    ),
    command(
        "",
        "storage=nowhere cannot be used",
        *SWEEP,
        "hydra/sweeper=optuna",
        "inner.rate=interval(0.1,1)",
        "hydra.sweeper.storage=nowhere",
    ),
)
