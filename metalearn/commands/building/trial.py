"""Whether a network fits its tasks, tried on one of them before anything is trained."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.engine.task import tasks_of
from metalearn.episodes import EpisodeSource
from metalearn.errors import UsageError
from metalearn.functional.norms import BatchNorm
from metalearn.functional.torch_private import BatchNormBase
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.memory import free_memory_bytes
from metalearn.types import Batch, Episodes, Inputs, Meta


def evaluated(module: nn.Module, x: Inputs) -> Any:
    """What `module` gives for `x` in evaluation; its modes are as before."""
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            return module.eval()(x)
    finally:
        for part, training in modes.items():
            part.training = training


def check_memory(shape: Sequence[int], source: EpisodeSource, tasks: int, split: str) -> None:
    """Raise UsageError where the inputs of so many tasks at once are more than the memory that is
    free, of which an episode of them is to be made. shape: of one input, float32."""
    ways, shots, queries = source.shape
    count = tasks * (ways or 1) * ((shots or 1) + queries)
    needed, free = 4 * count * math.prod(shape), free_memory_bytes(torch.device("cpu"))
    if free is not None and needed > free:
        raise UsageError(
            f"{count} {split} inputs of {'x'.join(map(str, shape))} at once take "
            f"{needed / 2**30:,.0f} GiB, and {free / 2**30:,.0f} GiB are free; use smaller images, "
            "or fewer ways, shots, queries or tasks"
        )


def check_outputs(module: nn.Module, x: Inputs, outputs: int | None) -> None:
    """Raise UsageError where `module` gives logits for another number of classes."""
    y = evaluated(module, x)
    if outputs is not None and isinstance(y, Tensor) and y.shape[1:] != (outputs,):
        raise UsageError(
            f"the backbone gives {list(y.shape[1:])} for one input, and is to have outputs="
            f"{outputs}; correct its head, or leave it to outputs"
        )


def check_norms(module: nn.Module, x: Inputs, episodes: Iterable[Episodes]) -> None:
    """Raise UsageError where a batch norm would normalise one value by itself, which gives 0
    whatever the value: one example, of which one position is left.

    x: one input or more. episodes: whose sizes count.
    """
    alone: dict[nn.Module, str] = {}

    def note(part: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].ndim >= 2 and given[0][0, 0].numel() == 1:
            alone.setdefault(part, names[part])

    names = {part: path for path, part in module.named_modules() if _by_batch(part)}
    hooks = [part.register_forward_pre_hook(note) for part in names]
    try:
        evaluated(module, x)
    finally:
        for hook in hooks:
            hook.remove()
    if not alone:
        return
    by_queries = any(getattr(p, "statistics", "transductive") != "support" for p in alone)
    for episode in episodes:
        batches = (episode.support, episode.query) if by_queries else (episode.support,)
        if min(map(_examples, batches)) == 1:
            raise UsageError(
                f"the batch norm {next(iter(alone.values()))} would see one value a channel, of 1 "
                "image that is 1x1 there; use more ways, shots or queries, larger images, or norms "
                "of averages (backbone.norm=frozen)"
            )


def _by_batch(part: nn.Module) -> bool:
    if isinstance(part, BatchNorm):
        return part.statistics != "running"
    return isinstance(part, BatchNormBase) and part.training


def _examples(batch: Batch) -> int:
    """Of the task that has least, padding left out. batch: of tasks, `[T, B, *X]`."""
    if batch.weight is not None:
        return int((batch.weight > 0).sum(1).min())
    return batch.shape[1]


def check_logits(algo: MetaAlgorithm, meta: Meta, episodes: Episodes, name: str) -> None:
    """Raise UsageError where an algorithm without outputs takes the features for logits.

    name: of the algorithm, in words.
    """
    if isinstance(episodes.query.y, dict) and "label" not in episodes.query.y:
        return  # of boxes or masks
    task = tasks_of(algo, episodes).at(0)
    x = task.query.x
    with torch.no_grad(), algo.net.evaluating():
        fast = algo.begin(meta, task.given)
        logits = algo.predict(meta, algo.finish(meta, fast, task.given, 0), x)
        features = algo.net.apply({**meta["buffers"], **meta["init"]}, x)
    if not (isinstance(logits, Tensor) and isinstance(features, Tensor)):
        return
    same = logits.shape == features.shape and torch.equal(logits, features)
    # A classifier on features may have a place for each example of the support set.
    if same or not int(episodes.query.labels.max()) < logits.shape[-1]:
        raise UsageError(
            f"algorithm={name} takes what the network gives for logits, and outputs=null leaves "
            "its head away; leave out outputs, or use algorithm=protonet"
        )
