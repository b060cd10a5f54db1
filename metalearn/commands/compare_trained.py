"""The methods of a comparison that a `metalearn train` has meta-learned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms import MAML, MetaAlgorithm, ProtoNet
from metalearn.backbones.heads import head_name
from metalearn.commands.build import build
from metalearn.commands.train import run
from metalearn.evaluation.comparison.methods import Fitted, Measured, on_features, on_images
from metalearn.evaluation.comparison.setting import Network, Setting
from metalearn.evaluation.heads import Head
from metalearn.training.folder import load_weights
from metalearn.training.run import finished
from metalearn.types import Meta


def train(config: dict[str, Any], console: Console) -> bool:
    """Train, or go on; False where SIGTERM stopped it."""
    run({**config, "resume": "auto"}, console)
    return finished(Path(config["run_dir"])) is not None


def measure(setting: Setting, name: str) -> Measured:
    """What the finished run of method `name` reaches on the episodes of the comparison."""
    config = setting.plan.runs[name]
    folder = Path(config["run_dir"])
    result = finished(folder)
    assert result is not None
    _, stage = build(config, trained=True)
    meta = load_weights(folder / "weights.safetensors", stage.meta)
    measured = _measure(setting, stage.algo, meta, stage.evaluation_steps)
    measured.learned = sum(t.numel() for part in ("init", "hyper") for t in meta[part].values())
    measured.training = {
        "seconds": result["seconds"],
        "steps": result["steps"],
        "tasks": result["steps"] * config["training"]["meta_batch"],
        "selected_step": result["selected_step"],
        "validation_score": result["validation_score"],
        "peak_memory_bytes": result["peak_memory_bytes"],
        "weights_sha256": result["weights_sha256"],
        "config_hash": result["config_hash"],
    }
    measured.notes.append(
        f"{result['steps']} meta-steps of {config['training']['meta_batch']} tasks at "
        f"{config['episodes']['shots']} shots in {result['seconds']:.0f} s, validation included; "
        f"the weights of step {result['selected_step']} were best there"
    )
    return measured


def _measure(setting: Setting, algo: MetaAlgorithm, meta: Meta, steps: int | None) -> Measured:
    steps = algo.steps if steps is None else steps
    network = Network(algo.net, setting.placed({**meta["buffers"], **meta["init"]}))
    head = None
    if network.inductive and type(algo) is ProtoNet:
        hyper = tree.map(torch.Tensor.cpu, meta["hyper"])
        head = Head(replace(algo, module=nn.Flatten()), Meta(init={}, hyper=hyper, buffers={}))
    elif network.inductive and isinstance(algo, MAML) and algo.adapting is not None:
        network, head = _of_head(setting, algo, meta)
    if head is not None:
        return on_features(setting, network, lambda *_: Fitted(head, steps))
    return on_images(setting, algo, meta, lambda _: (algo, steps, None))


def _of_head(setting: Setting, algo: MAML, meta: Meta) -> tuple[Network, Head | None]:
    """The body as a network and the head as an algorithm on its features, which do not change
    while the head adapts; no head where more adapts than a linear layer on top of the backbone."""
    everything = {**meta["buffers"], **meta["init"]}
    body = setting.network(setting.plan.bare).net
    path = head_name(algo.net.module)
    top = {name: t for name, t in meta["init"].items() if name.startswith(f"{path}.")}
    names = {**body.params, **body.buffers}
    linear = isinstance(algo.net.module.get_submodule(path), nn.Linear)
    alone = set(algo.adapting or ()) == set(top)
    if not path or not linear or not alone or set(names) | set(top) != set(everything):
        return Network(algo.net, everything), None
    network = Network(body, setting.placed({name: everything[name] for name in names}))
    layer = algo.net.module.get_submodule(path)
    on_host = Meta(
        init=tree.map(torch.Tensor.cpu, top),
        hyper=tree.map(torch.Tensor.cpu, meta["hyper"]),
        buffers={},
    )
    return network, Head(replace(algo, module=Under(path, layer)), on_host)


class Under(nn.Module):
    """A layer alone, at the place that it has in a larger network: its weights keep their names."""

    def __init__(self, path: str, layer: nn.Module):
        super().__init__()
        self.path = path
        *folders, last = path.split(".")
        inner: nn.Module = self
        for name in folders:
            inner.add_module(name, nn.Module())
            inner = inner.get_submodule(name)
        inner.add_module(last, layer)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, D]` to what the layer makes of it."""
        return self.get_submodule(self.path)(x)
