"""The one evaluation: finite episodes to a mean, its interval, and every episode's value."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch

from metalearn import tree
from metalearn.engine import Engine
from metalearn.engine.ranks import Ranks
from metalearn.episodes import Manifest
from metalearn.errors import UsageError, check_whole
from metalearn.evaluation.average_precision import judged
from metalearn.evaluation.running import Running
from metalearn.evaluation.statistics import SHARES, Interval, mean_interval, measure_of
from metalearn.functional.precision import computing_in
from metalearn.inner.labels import check_labels
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Meta


@dataclass(frozen=True)
class EvalReport:
    """Query metrics of finite episodes.

    by_step: name of a metric (`loss`, `accuracy`) to values `[episodes, steps + 1]`, after
        0, 1, ..., steps inner steps, or after those alone that were asked for.
    manifest_hash: of the episodes; None where they came as plain batches.
    """

    by_step: dict[str, np.ndarray] = field(repr=False)
    manifest_hash: str | None = None

    def interval(self, name: str, step: int = -1) -> Interval:
        """Mean and 95% interval of one metric after one step, by default the last."""
        return mean_interval(self.by_step[name][:, step])

    @property
    def measure(self) -> str:
        """The main metric: one of `SHARES`, or "loss" in regression."""
        return measure_of(self.by_step)

    @property
    def accuracy(self) -> Interval:
        """Query accuracy after the last inner step, a fraction. KeyError in regression."""
        return self.interval("accuracy")

    @property
    def loss(self) -> Interval:
        """Query loss after the last inner step."""
        return self.interval("loss")

    @property
    def accuracies(self) -> np.ndarray:
        """`[episodes]`, after the last inner step."""
        return self.by_step["accuracy"][:, -1]

    @property
    def losses(self) -> np.ndarray:
        """`[episodes]`, after the last inner step."""
        return self.by_step["loss"][:, -1]

    @property
    def not_finite(self) -> int:
        """Episodes of which a metric after the last inner step is NaN or infinite; their queries
        whose loss is not finite count as wrong."""
        finite = [np.isfinite(rows[:, -1]) for rows in self.by_step.values()]
        return int((~np.logical_and.reduce(finite)).sum())

    @property
    def score(self) -> float:
        """What model selection maximises: the mean of one of `SHARES`, or minus the mean loss."""
        mean = self.interval(self.measure).mean
        return mean if self.measure in SHARES else -mean


def check_evaluation_steps(algo: MetaAlgorithm, steps: int | None) -> None:
    """Raise UsageError where a method without inner steps is to be evaluated after some."""
    if steps and not algo.steps:
        raise UsageError("this algorithm has no inner steps; leave out evaluation.steps")


def evaluate(
    algo: MetaAlgorithm,
    meta: Meta,
    episodes: Episodes | Iterable[Episodes] | Manifest,
    steps: int | None = None,
    engine: Engine | None = None,
    device: torch.device | str | None = None,
    at: Sequence[int] | None = None,
    together: int = 32,
    coming: int | None = None,
) -> EvalReport:
    """Adapt to every episode and measure its queries after each inner step.

    episodes: a `Manifest`, one `Episodes` `[T, ...]`, or batches of them.
    steps: inner steps, by default the algorithm's own. engine: whose batching is used, by default
        a loop on a CPU and `vmap` on a GPU, never in a low precision. Where its batching is `auto`
        or compiled, a long evaluation on a CPU is compiled too, and tasks run side by side. Its
        ranks, if there are any, share the episodes of a manifest, and every one has the whole
        report.
    device: where to move the episodes.
    at: the inner steps to measure after, ascending, in the place of `steps`; by default after
        each, which costs a pass over the queries.
    together: episodes of a manifest that are made at a time.
    coming: episodes that this engine measures for this algorithm in all, by which a long evaluation
        is known; by default these.
    Dropout is off. Raises UsageError for no episodes, for steps of a method without any, or for
    classes that are not 0 to N - 1 in every task.
    """
    if steps is not None:
        check_whole("evaluation.steps", steps)
    if at is None:
        at = range((algo.steps if steps is None else steps) + 1)
    check_evaluation_steps(algo, max(at))
    manifest = episodes if isinstance(episodes, Manifest) else None
    engine = Engine() if engine is None else engine
    ranks = engine.ranks if manifest and engine.ranks else Ranks()
    batches = episodes
    if manifest:
        batches = manifest.batches(together, ranks.share(manifest.episodes))
    elif isinstance(batches, Episodes):
        batches = [batches]

    these = manifest.episodes if manifest else getattr(episodes, "tasks", 0)
    running = Running(algo, meta, tuple(at), engine, these if coming is None else coming)
    values: dict[str, list[np.ndarray]] = {}
    with torch.no_grad(), algo.net.evaluating():
        for batch in cast(Iterable[Episodes], batches):
            if not batch.tasks:
                continue
            check_labels(algo, batch.support, batch.query)
            if device is not None:
                batch = batch.map(lambda t: t.to(device))
            # A list, so that every task of the batch is computed in full precision.
            with computing_in("fp32", batch.support.device):
                results = running.of(batch)
            start = 0
            for count, by_step in results:
                stacked = tree.map(lambda *m: torch.stack(m, -1), *by_step)
                end = start + (count or 1)
                stacked = judged(stacked, batch.query.map(lambda t, of=slice(start, end): t[of]))
                start = end
                for name, value in stacked.items():
                    rows = value.unsqueeze(0) if count is None else value
                    values.setdefault(name, []).append(rows.double().cpu().numpy())
    digest = manifest.hash if manifest else None
    parts = ranks.gathered((digest, {name: np.concatenate(rows) for name, rows in values.items()}))
    other = next((rank for rank, part in enumerate(parts) if part[0] != parts[0][0]), None)
    if other is not None:
        raise UsageError(
            f"rank {other} draws other episodes than rank 0: its data differ; give every machine "
            "the same files"
        )
    found = [rows for _, rows in parts if rows]  # fewer episodes than ranks leave some without
    if not found:
        raise UsageError("no episodes to evaluate; use evaluation.episodes of 1 or more")
    return EvalReport({n: np.concatenate([rows[n] for rows in found]) for n in found[0]}, digest)
