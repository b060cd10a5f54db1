"""Meta-training as a stage: meta-steps on episodes, validation by a manifest, a test at the end."""

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metalearn import tree
from metalearn.backbones.weights import Report
from metalearn.engine import Engine
from metalearn.engine.autotune import Autotuned
from metalearn.engine.plan import Plan
from metalearn.engine.ranks import Ranks
from metalearn.engine.room import ROOM_FOR, at_once, check_room
from metalearn.engine.strategy import ForeignStrategy, Scheduled, Strategy
from metalearn.episodes import EpisodeSource, Manifest
from metalearn.episodes.prefetch import prefetched
from metalearn.errors import Diverged, UsageError
from metalearn.evaluation.on_features import evaluate_once
from metalearn.evaluation.protocol import EvalReport, evaluate
from metalearn.evaluation.report import result_table
from metalearn.functional.masks import sparsity_of
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.files import write_atomic
from metalearn.tracking import Tracker
from metalearn.training.folder import save_weights, weights_sha256
from metalearn.training.outer import Outer, meta_step
from metalearn.training.pruning import Pruning, prune_
from metalearn.training.result import plotted, repeating, write_result
from metalearn.training.settings import TrainingSettings
from metalearn.training.stage import (
    Pace,
    Position,
    Validation,
    tell,
    teller,
    trained,
    warn_of_emulation,
)
from metalearn.types import Episodes, Meta

_OVERFLOWS = 20  # steps in a row that float16 may skip before a run is taken for lost


@dataclass
class Episodic:
    """What is meta-trained on what.

    train: endless training episodes. validation: the manifest that selects. test: the one that
    `finish` measures on. meta: what is learned, updated in place by `outer`. evaluation_steps:
    inner steps in evaluation, None for the algorithm's own. starting: what became of the weights
    that the network starts from. pruning: which weights go, and when; before the last of it, none
    are selected but the newest. best: the weights selected so far. tuned: the engine with the plan
    of the meta-steps; evaluation runs as `engine` says, and takes what was compiled for `tuned`.
    """

    algo: MetaAlgorithm
    gradient: Strategy | ForeignStrategy
    engine: Engine
    train: EpisodeSource
    validation: Manifest
    test: Manifest
    meta: Meta
    outer: Outer
    settings: TrainingSettings
    device: torch.device
    evaluation_steps: int | None = None
    measure_untrained: bool = True
    starting: Report | None = None
    pruning: Pruning | None = None
    best: Meta = field(init=False)
    untrained: Meta = field(init=False)
    tuned: Engine = field(init=False)
    unit = "tasks"

    def __post_init__(self) -> None:
        self._tell: Callable[[str], object] = print
        self._told: set[str] = set()
        self.best = self.untrained = tree.map_meta(torch.clone, self.meta)
        self.tuned = self.engine

    @property
    def size(self) -> int:
        """T."""
        return self.settings.meta_batch

    @property
    def pace(self) -> Pace:
        """As the settings say."""
        names = [part.name for part in dataclasses.fields(Pace) if part.name != "record_every"]
        return Pace(**{name: getattr(self.settings, name) for name in names})

    @property
    def ranks(self) -> Ranks | None:
        """Those of the engine."""
        return self.engine.ranks

    def begin(self, folder: Path, console: Console) -> None:
        """Tell of the starting weights and the precision, and choose the engine's plan.

        Raises UsageError where the memory that the plan needs is not there.
        """
        self._tell, ranks = teller(console), self.ranks or Ranks()
        if ranks.first:
            tell(self.starting, folder, self._tell)
            warn_of_emulation(self.engine.precision, self.device, self._tell)
        # Other shares of a meta-batch are other tasks at once.
        name = "engine.json" if ranks.size == 1 else f"engine-{ranks.size}-ranks.json"
        # The first alone measures, on all of the memory's speed: all run as it found fastest.
        plan = ranks.told(lambda: self._autotune(folder / name, console))
        self.tuned = self.engine if plan is None else self.engine.with_plan(plan)

    def _autotune(self, path: Path, console: Console) -> Plan | None:
        """The plan where `batching=auto`: as this run chose before, or measured now; else None."""
        if not hasattr(self.gradient, "task"):
            return None
        strategy = cast(Strategy, self.gradient)
        if self.engine.batching != "auto":
            if self.size > ROOM_FOR and at_once(self.engine):
                first = self._moved(self.train.batch("train", self._computed(0)))
                check_room(self.engine, strategy, self.algo, self.meta, first)
            return None
        if path.exists():
            try:
                answer = Autotuned.decode(path.read_text(encoding="utf-8"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(
                    f"{path} is damaged ({error}); remove it, and the same command goes on with "
                    "what it measures anew"
                ) from None
        else:
            episodes = self._moved(self.train.batch("train", self._computed(0)))
            coming = self.settings.steps * episodes.tasks
            with console.status("measuring how the engine runs this fastest; the answer is kept"):
                answer = self.engine.autotune(strategy, self.algo, self.meta, episodes, coming)
            write_atomic(path, answer.encode())
        self._tell(f"engine: {answer}")
        return answer.plan

    def batches(self, steps: range, workers: int) -> Generator[Episodes, None, None]:
        """Step s draws the training episodes [s * T, (s + 1) * T), each rank its own of them."""
        return prefetched(lambda s: self.train.batch("train", self._computed(s)), steps, workers)

    def _indices(self, step: int) -> range:
        return range(step * self.size, (step + 1) * self.size)

    def _computed(self, step: int) -> range:
        every = self._indices(step)
        return every[self.ranks.work(self.size)] if self.ranks else every

    def _moved(self, episodes: Episodes) -> Episodes:
        return episodes.map(lambda t: t.to(self.device))

    def step(self, number: int, batch: Episodes, tracker: Tracker) -> Mapping[str, Tensor | float]:
        """One meta-step; every task's metrics are recorded. A step that float16 skipped records
        what is finite, and `overflowed`."""
        rate, gradient = self.outer.learning_rate, self.gradient
        gradient = gradient.at(number) if isinstance(gradient, Scheduled) else gradient
        episodes = self._moved(batch)
        self._prune(number, gradient, episodes)
        given = self.algo, self.outer, self.meta, episodes, self.size
        metrics = meta_step(self.tuned, gradient, *given)
        norm = float(metrics.pop("grad_norm"))
        values: dict[str, list[float]] = {name: value.tolist() for name, value in metrics.items()}
        means = {name: sum(value) / len(value) for name, value in values.items()}
        record = {**means, "grad_norm": norm, "learning_rate": rate, **self.tuned.sample.record()}
        if self.pruning is not None:
            record["sparsity"] = sparsity_of(self.meta)
        if 0 < self.outer.skipped < _OVERFLOWS:
            record = {n: value for n, value in record.items() if math.isfinite(value)}
            values = {n: value for n, value in values.items() if n in record}
            record["overflowed"] = 1.0
            if self.outer.skipped == 1:
                self._tell(f"step {number}: overflowed in float16, and left out; as others may be")
        self.check(record, number)
        index = list(self._indices(number - 1))
        tracker.episodes(number, "train", {"index": index, **values})
        return record

    def _prune(self, number: int, gradient: Strategy | ForeignStrategy, episodes: Episodes) -> None:
        """As the schedule says, before meta-step `number`."""
        how = self.pruning
        if how is not None and how.due(number):
            found = None
            if how.wants_gradient:
                found, _ = self.tuned(gradient, self.algo, self.meta, episodes, self.size)
            prune_(how, number, self.meta, found)

    def check(self, values: Mapping[str, float], number: int) -> None:
        """Raise Diverged where the meta-gradient or the query loss is not finite; tell of any
        other metric once."""
        lost = {name for name, value in values.items() if not math.isfinite(value)}
        for name, told in (("grad_norm", "meta-gradient"), ("loss", "query loss")):
            if name in lost:
                raise Diverged(
                    f"the {told} is not finite at step {number}; lower inner.rate or "
                    "outer.optimizer.lr, or set training.clip_norm (earlier checkpoints are kept)"
                )
        for name in sorted(lost - self._told):
            self._told.add(name)
            self._tell(f"step {number}: the metric {name} is {values[name]}, and may be again")

    def validate(self, number: int, tracker: Tracker) -> Validation:
        """Mean accuracy, or minus the mean loss, on the validation episodes.

        Raises Diverged where none of them is finite.
        """
        steps = self.algo.steps if self.evaluation_steps is None else self.evaluation_steps
        report = self.evaluate(self.meta, self.validation, at=(steps,))
        if lost := report.not_finite:
            told = f"{lost} of {len(report.losses)} validation episodes are not finite"
            if lost == len(report.losses):
                use = "lower outer.optimizer.lr or inner.rate (earlier checkpoints are kept)"
                raise Diverged(f"{told} at step {number}; {use}")
            self._tell(f"step {number}: {told}")
        tracker.episodes(number, "val", last_step(report))
        early = self.pruning is not None and number < self.pruning.done()
        return Validation(math.nan if early else report.score)

    def evaluate(
        self, meta: Meta, manifest: Manifest, at: tuple[int, ...] | None = None
    ) -> EvalReport:
        """What `meta` reaches on the episodes of `manifest`."""
        given = self.algo, meta, manifest, self.evaluation_steps, self.engine, self.device
        if at is None:
            return evaluate_once(*given, self._coming)
        return evaluate(*given, at, coming=self._coming)

    @property
    def _coming(self) -> int:
        """Episodes of all validations and of the tests, where no clock ends the run before."""
        validated = self.settings.steps // self.settings.validate_every * self.validation.episodes
        return validated + (1 + self.measure_untrained) * self.test.episodes

    def select(self) -> None:
        """Keep a copy of the weights."""
        self.best = tree.map_meta(torch.clone, self.meta)

    def dump(self) -> dict[str, Any]:
        """The weights, those selected, and the outer loop's state."""
        return {"meta": self.meta, "best": self.best, "outer": self.outer.state()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `dump` returned."""
        with torch.no_grad():
            for part in ("init", "hyper"):
                for name, weight in self.meta[part].items():
                    weight.copy_(saved["meta"][part][name])
        self.meta["buffers"] = tree.map(lambda t: t.to(self.device), saved["meta"]["buffers"])
        self.best = tree.map_meta(lambda t: t.to(self.device), saved["best"])
        self.outer.load(saved["outer"])

    def finish(
        self, config: Mapping[str, Any], position: Position, folder: Path, tracker: Tracker
    ) -> dict[str, Any]:
        """Test the selected weights; write them, the result, every episode and the plots."""
        writes = self.ranks is None or self.ranks.first
        digest = save_weights(folder / "weights.safetensors", self.best) if writes else ""
        test = self.evaluate(self.best, self.test)
        tracker.episodes(position.step, "test", last_step(test))
        if repeat := repeating(config, position, self.tuned.batching):
            self._tell(f"a clock ended it; {repeat} takes the same steps again")
        if errors := self.tuned.sample.errors:
            self._tell(str(self.tuned.sample))
        extra: dict[str, Any] = {
            **trained(self, position),
            "repeat": repeat,
            **({"float64_errors": errors} if errors else {}),
            "weights_sha256": digest,
            "last_weights_sha256": weights_sha256(self.meta),
            **({"sparsity": sparsity_of(self.best)} if self.pruning is not None else {}),
        }
        if self.measure_untrained:
            before = self.evaluate(self.untrained, self.test).interval(test.measure)
            extra[f"untrained_{test.measure}"] = before.mean
            extra[f"untrained_{test.measure}_half_width"] = before.half_width
        if not writes:
            return {}
        if plotted(config):
            from metalearn.evaluation.dense_sheet import draw_answers  # imports matplotlib

            draw_answers(self, self.best, self.test, folder)
        return write_result(config, self.algo, self.test, self.device, test, folder, folder, extra)

    def table(self, result: Mapping[str, Any]) -> Table:
        """A result for people."""
        return result_table(result)


def last_step(report: EvalReport) -> dict[str, list[float]]:
    """Every episode's index and its metrics after the last inner step."""
    values = {name: rows[:, -1].tolist() for name, rows in report.by_step.items()}
    return {"index": list(range(len(report.losses))), **values}
