"""A trained algorithm that adapts to a user's own classes, and answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from metalearn.backbones.norms import describe, inductive
from metalearn.episodes import ImageTransform
from metalearn.episodes.gather import scaled
from metalearn.errors import UsageError
from metalearn.evaluation.features import extract
from metalearn.evaluation.on_features import Head, head_on_host
from metalearn.functional.outputs import tensor_of
from metalearn.inner import protocol
from metalearn.inner.loop import adapt, detached_gradient
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Batch, Given, Meta, Params

TOGETHER = 128  # images that pass at a time


@dataclass(frozen=True, eq=False)
class Adapter:
    """steps: of the inner loop. transform: of images in [0, 1]."""

    algo: MetaAlgorithm
    meta: Meta
    transform: ImageTransform
    steps: int
    device: torch.device

    @property
    def alone(self) -> bool:
        """Whether the answer to an image is the same whatever images are asked beside it."""
        return not self._by_batch and not self.algo.transductive

    @property
    def _by_batch(self) -> bool:
        """Whether a norm layer takes the statistics of the images asked."""
        return "transductive" in describe(self.algo.net.module).split("+")

    @cached_property
    def _head(self) -> Head | None:
        """The algorithm on features of single images, where no inner step changes them."""
        found = protocol.on_features(self.algo)
        if found is None or found.path is not None or not inductive(self.algo.net.module):
            return None
        return head_on_host(found.algo, self.meta)

    def inputs(self, pixels: np.ndarray) -> Tensor:
        """uint8 `[n, H, W, C]` as the network was trained on them, `[n, C, H, W]`."""
        x = scaled(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
        return (x if self.transform.is_identity else self.transform(x)).to(self.device)

    def prepared(self, pixels: np.ndarray) -> Tensor:
        """What `logits` takes: features, each image through the network once, or images."""
        if self._head is None:
            return self.inputs(pixels)
        weights = {**self.meta["buffers"], **self.meta["init"]}
        return extract(self.algo.net, weights, self._batches(pixels))

    def _batches(self, pixels: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(pixels), TOGETHER):
            yield self.inputs(pixels[start : start + TOGETHER])

    def logits(
        self,
        support: Tensor,
        labels: np.ndarray,
        x: Tensor,
        ways: int,
        beside: Tensor | None = None,
    ) -> np.ndarray:
        """`answers` after adapting to `support` `[S, *X]` and its classes `[S]`.

        beside: further inputs that a transductive algorithm sees.
        """
        return self.answers(self.adapted(support, labels, self._seen(x, beside)), x, ways)

    def answers(self, fast: Params, x: Tensor, ways: int) -> np.ndarray:
        """`[n, ways]` logits of `x` `[n, *X]`, after what `adapted` gave.

        Raises UsageError where they are no numbers.
        """
        algo, meta = self._head or (self.algo, self.meta)
        with torch.no_grad(), algo.net.evaluating():
            # Of a network that looks at its batch, all at once, as the run was tested.
            size = len(x) if self._by_batch else TOGETHER
            parts = [tensor_of(algo.predict(meta, fast, x[i : i + size]))
                     for i in range(0, len(x), size)]  # fmt: skip
        found = torch.cat(parts)[:, :ways].double().cpu().numpy()
        if not np.isfinite(found).all():
            raise UsageError(
                "the adapted network answers with what is no number; lower inner.rate, or give "
                "fewer evaluation.steps"
            )
        return found

    def _seen(self, x: Tensor, beside: Tensor | None) -> Batch | None:
        if not self.algo.transductive:
            return None
        every = x if beside is None else torch.cat([x, beside])
        return Batch(every, torch.zeros(len(every), dtype=torch.int64, device=every.device))

    def adapted(self, support: Tensor, labels: np.ndarray, seen: Batch | None = None) -> Params:
        """What adapting to `support` gives."""
        algo, meta = self._head or (self.algo, self.meta)
        order = shot_by_shot(labels)
        y = torch.from_numpy(labels[order]).to(support.device)
        given = Given(Batch(support[torch.from_numpy(order)], y), seen)
        with torch.no_grad(), algo.net.evaluating():
            return adapt(algo, meta, given, self.steps, gradient=detached_gradient)

    def held_out(
        self, support: Tensor, labels: np.ndarray, folds: list[np.ndarray], ways: int,
        beside: Tensor | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The logits of what each fold holds out, after adapting to the rest, and its labels."""
        found = []
        for held in folds:
            rest = np.delete(np.arange(len(labels)), held)
            x = support[torch.from_numpy(held)]
            given = support[torch.from_numpy(rest)], labels[rest]
            found.append(self.logits(*given, x, ways, beside))
        return np.concatenate(found), np.concatenate([labels[held] for held in folds])


def shot_by_shot(labels: np.ndarray) -> np.ndarray:
    """The order of an episode: one of every class, then the next."""
    number = np.zeros_like(labels)
    for c in np.unique(labels):
        number[labels == c] = np.arange((labels == c).sum())
    return np.lexsort((labels, number))
