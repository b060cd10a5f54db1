"""A detector trained by supervision on pictures of the base classes, as a stage: the first half of
TFA, whose second fine-tunes the last layer on K shots of novel classes.

Wang, Huang, Darrell, Gonzalez, Yu: Frustratingly Simple Few-Shot Object Detection, 2020, section 3.
"""

import hashlib
import json
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from metalearn.algorithms.detection import Detection
from metalearn.backbones.norms import describe
from metalearn.backbones.weights import Report
from metalearn.engine.ranks import Ranks
from metalearn.episodes.prefetch import prefetched
from metalearn.errors import Diverged
from metalearn.evaluation.average_precision import average_precision
from metalearn.evaluation.report import pretraining_table, write_json
from metalearn.functional.precision import computing_in
from metalearn.runtime.files import write_atomic
from metalearn.tracking import Tracker
from metalearn.training.base_pictures import BasePictures
from metalearn.training.classification import restore, state
from metalearn.training.held_out_split import SPLIT, HeldOutSplit
from metalearn.training.rates import Schedule, check_finite, pace, stepped
from metalearn.training.result import last_word, surroundings
from metalearn.training.settings import PretrainingSettings
from metalearn.training.stage import (
    Pace,
    Position,
    Validation,
    tell,
    teller,
    trained,
    warn_of_emulation,
)
from metalearn.training.supervised_result import WEIGHTS
from metalearn.types import Batch, Params

_MEASURED = 256  # held-out pictures


@dataclass
class BaseDetector:
    """module: a `DenseNetwork` with a column for each base class, updated in place. held_out: with
    images of the base classes, of which pictures are made to select by and to test on. The weights
    of the least loss on the first are kept; the newest, where there are none, or select=last.
    precision: bf16 for the passes of the network; its weights and its loss stay in float32.
    """

    pictures: BasePictures
    held_out: HeldOutSplit
    loss: Detection
    schedule: Schedule
    settings: PretrainingSettings
    device: torch.device
    module: nn.Module
    optimizer: Optimizer
    starting: Report | None = None
    precision: str = "fp32"
    best: Params = field(init=False)
    unit = "pictures"
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        self.best = state(self.module)

    @property
    def size(self) -> int:
        """Pictures in one batch."""
        return self.settings.batch_size

    @property
    def pace(self) -> Pace:
        """As the settings say; an epoch has as many pictures as hold every image once."""
        return pace(self.settings, self.pictures.epoch)

    def begin(self, folder: Path, console: Console) -> None:
        """Tell of the precision and the starting weights."""
        say = teller(console)
        warn_of_emulation(self.precision, self.device, say)
        tell(self.starting, folder, say)

    def batches(self, steps: range, workers: int) -> Generator[Batch, None, None]:
        """The pictures of each step."""
        return prefetched(self.pictures, steps, workers)

    def step(self, number: int, batch: Batch, tracker: Tracker) -> Mapping[str, Tensor | float]:
        """One step of the optimizer."""
        batch = batch.map(lambda t: t.to(self.device))
        self.module.train()
        with computing_in(self.precision, self.device):
            loss, metrics = self.loss(self._outputs(batch.x), batch)
            loss.backward()
        factor = self.schedule(number - 1, self.pace.steps, self.pictures.epoch)
        return {**metrics, **stepped(self.optimizer, factor, self.settings.clip_norm)}

    def _outputs(self, x: Tensor) -> Tensor:
        narrow = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        layout = torch.channels_last if self.settings.channels_last else torch.preserve_format
        with narrow:
            return self.module(x.to(self.device, memory_format=layout)).float()

    def check(self, values: Mapping[str, float], number: int) -> None:
        """Raise Diverged where the loss or its gradient is not finite."""
        check_finite(values, number)

    def _answers(self, name: str) -> tuple[dict[str, Tensor], Batch, float] | None:
        """Of pictures of held-out images: answers, the pictures, the mean loss."""
        subset = getattr(self.held_out, name)
        if not len(subset):
            return None
        count = max(1, min(_MEASURED, len(subset) // self.pictures.objects))
        held = self.pictures.of(subset, count, f"{SPLIT}-{name}")
        pieces = held.x.split(self.size)
        self.module.eval()
        with torch.no_grad(), computing_in(self.precision, self.device):
            outputs = torch.cat([self._outputs(x).cpu() for x in pieces])
        return self.loss.answers(outputs), held, float(self.loss(outputs, held)[0])

    def validate(self, number: int, tracker: Tracker) -> Validation:
        """Minus the loss on pictures of held-out images."""
        found = self._answers("val")
        if found is None:
            return Validation(math.nan, last=True)
        if not math.isfinite(found[2]):
            raise Diverged(f"the loss on held-out pictures is not finite at step {number}")
        record = {"held_out_loss": found[2]}
        return Validation(-found[2], record, last=self.settings.select == "last")

    def select(self) -> None:
        """Keep a copy of the weights."""
        self.best = state(self.module)

    def dump(self) -> dict[str, Any]:
        """The network, the selected weights and the optimizer."""
        networks = {"module": self.module.state_dict(), "best": self.best}
        return {**networks, "optimizer": self.optimizer.state_dict()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `dump` returned."""
        restore(self.module, saved["module"])
        self.best = {name: saved["best"][name].to(t.device) for name, t in self.best.items()}
        self.optimizer.load_state_dict(saved["optimizer"])

    def finish(
        self, config: Mapping[str, Any], position: Position, folder: Path, tracker: Tracker
    ) -> dict[str, Any]:
        """Measure the selected weights on pictures of held-out images, and write them."""
        restore(self.module, self.best)
        dataset, found = self.pictures.dataset, self._answers("test")
        told = {
            "detector": True,
            "classes": dataset.class_count(SPLIT),
            "class_names": dataset.class_names(SPLIT),
            "dataset": dataset.name,
            "steps": position.best_step,
        }
        kept = {n: t.cpu().contiguous() for n, t in self.best.items() if "num_batches" not in n}
        data = save(kept, {"metalearn": json.dumps(told, sort_keys=True)})
        write_atomic(folder / WEIGHTS, data)
        measured = {"base_ap50": None, "held_out_loss": None, "pictures": 0}
        if found is not None:
            answers, held, loss = found
            value = average_precision(answers, held)
            measured = {"base_ap50": value, "held_out_loss": loss, "pictures": len(held.x)}
        result: dict[str, Any] = {
            **measured,
            "task": "detection",
            "precision": self.precision,
            "select": "last" if self.settings.select == "last" else "held_out_loss",
            "classes": told["classes"],
            "epochs": position.step / self.pictures.epoch,
            "norm_policy": describe(self.module.eval()),
            "backbone": config["backbone"].get("name") or last_word(config["backbone"]["_target_"]),
            "dataset": last_word(config["dataset"]["_target_"]),
            **trained(self, position),
            **surroundings(config, self.device),
            "weights_sha256": hashlib.sha256(data).hexdigest(),
            "weights": str(folder / WEIGHTS),
            "command": f"metalearn train task=detection head.weights={folder} ...",
        }
        write_json(folder / "result.json", result)
        return result

    def table(self, result: Mapping[str, Any]) -> Table:
        """A result for people."""
        return pretraining_table(result)
