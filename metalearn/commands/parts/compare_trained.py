"""The methods of a comparison that a `metalearn train` has meta-learned."""

from pathlib import Path
from typing import Any

from rich.console import Console

from metalearn.algorithms.adversarial import natural
from metalearn.commands.building.meta_training import build
from metalearn.commands.train import run
from metalearn.evaluation.comparison.curves import Subject
from metalearn.evaluation.comparison.methods import Fitted, Measured, on_features, on_images
from metalearn.evaluation.comparison.setting import Network, Setting
from metalearn.evaluation.on_features import head_on_host, makes_the_whole
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.training.folder import load_weights
from metalearn.training.run import finished
from metalearn.types import Meta

_KEPT = (
    *("seconds", "steps", "tasks_per_second", "selected_step", "validation_score"),
    *("peak_memory_bytes", "weights_sha256", "config_hash"),
)


def train(config: dict[str, Any], console: Console | None) -> None:
    """Train, or go on."""
    run({**config, "resume": "auto"}, console or Console(emoji=False))


def measure(setting: Setting, name: str) -> Measured:
    """What the finished run of method `name` reaches on the episodes of the comparison."""
    config = setting.plan.runs[name]
    folder = Path(config["run_dir"])
    result = finished(folder)
    assert result is not None
    _, stage = build(config, trained=True)
    meta = load_weights(folder / "weights.safetensors", stage.meta, result["weights_sha256"])
    algo, steps = natural(stage.algo), stage.evaluation_steps
    measured = _measure(setting, algo, meta, steps)
    measured.subject = Subject(algo, meta, algo.steps if steps is None else steps)
    measured.learned = sum(t.numel() for part in ("init", "hyper") for t in meta[part].values())
    measured.training = {name: result[name] for name in _KEPT}
    measured.training["tasks"] = result["steps"] * config["training"]["meta_batch"]
    measured.notes.append(
        f"{result['steps']} meta-steps of {config['training']['meta_batch']} tasks at "
        f"{config['episodes']['shots']} shots in {result['seconds']:.0f} s, validation included; "
        f"the weights of step {result['selected_step']} were best there"
    )
    return measured


def _measure(setting: Setting, algo: MetaAlgorithm, meta: Meta, steps: int | None) -> Measured:
    """On features where no inner step changes them, nor an image those of another."""
    steps = algo.steps if steps is None else steps
    first = setting.images(setting.shots[0], setting.split, 1).source.batch(setting.split, [0])
    found = makes_the_whole(algo, meta, first.map(lambda t: t.to(setting.device)))
    if found is None:
        return on_images(setting, algo, meta, lambda _: (algo, steps, None))
    weights = setting.placed({**meta["buffers"], **meta["init"]})
    head = head_on_host(found.algo, meta)
    network = Network(algo.net, weights, path=found.path)
    return on_features(setting, network, lambda *_: Fitted(head, steps))
