"""The transformer of `algorithms/in_context.py`, as a classifier on features."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers.classes import class_means, masked, membership
from metalearn.classifiers.protocol import drawn, number_of
from metalearn.functional.draws import normal
from metalearn.functional.dropout import fold
from metalearn.functional.norm_functions import layer_norm
from metalearn.functional.overrides import attention
from metalearn.inner.perceptron import perceptron, perceptron_start
from metalearn.inner.rules import under_prefix, with_prefix
from metalearn.types import Batch, Params

_PLANES = 16  # whose sides say which episode it is


@dataclass(frozen=True)
class Transformer:
    """`layers` of `heads` on `width` numbers; a class is a unit vector of `labels` numbers.

    It starts as a soft nearest neighbour: keys and queries are the tokens themselves, and C is the
    transpose of B.
    """

    layers: int
    heads: int
    width: int
    labels: int
    seed: int
    transductive: bool = field(default=False, init=False)

    def hyper(self, features: int | None = None) -> Params:
        """A, B, C and b, and `<layer>.*`: `query`, `key`, `value` and `out` `[M, M]` and a
        perceptron of 2M hidden units, with M the width."""
        draw, size, wide = drawn(self.seed), number_of(features, "InContext"), self.width
        eye = torch.eye(wide, dtype=torch.float64)
        b = draw(wide, self.labels, bound=(3 / wide) ** 0.5)
        found = {"A": draw(wide, size, bound=(3 / size) ** 0.5), "B": b * wide**0.5}
        found |= {"C": b.T.clone(), "b": torch.zeros_like(eye[0])}
        for layer in range(self.layers):
            new = {name: eye.clone() for name in ("query", "key", "value", "out")}
            new |= perceptron_start("mlp", (wide, 2 * wide, wide), eye)
            found |= with_prefix(str(layer), new)
        return found

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """The support set's `tokens` `[S, M]` and `there` `[S]`, 0 for padding; `labels` `[S, E]`
        and `counts` `[S]` of the classes."""
        member = (membership(support, support.x.dtype) > 0).to(support.x.dtype)
        labels = episode_labels(support, self.labels, self.seed)
        tokens = _tokens(hyper, support.x) + member.T @ labels @ hyper["B"].T
        state = {"labels": labels, "counts": member.sum(1)}
        return {**state, "tokens": tokens, "there": member.sum(0)}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        size = len(state["tokens"])
        h = torch.cat([state["tokens"], _tokens(hyper, features) + hyper["b"]])
        # Each sees the support set; a query itself, too.
        itself = torch.eye(len(h), dtype=torch.bool, device=h.device)
        sees = torch.cat([(state["there"] > 0).expand(len(h), -1), itself[:, size:]], 1)
        for layer in map(str, range(self.layers)):
            own = under_prefix(layer, hyper)
            query, key, value = (
                (_norm(h) @ own[name].T).unflatten(1, (self.heads, -1)).transpose(0, 1)
                for name in ("query", "key", "value")
            )
            h = h + attention(query, key, value, sees).transpose(0, 1).flatten(1) @ own["out"].T
            h = h + perceptron(own, "mlp", _norm(h))
        return masked(_norm(h[size:]) @ hyper["C"].T @ state["labels"].T, state["counts"])


def episode_labels(support: Batch, size: int, seed: int) -> Tensor:
    """Random unit vectors `[S, size]`, a row a class, of a support set's features `[S, D]`.

    What is drawn follows from where the class means lie, on which side of random planes, and the
    class from their order: from the episode, not from how it numbers its classes.
    """
    means, counts = class_means(support.x, support)
    start = torch.full((), seed, device=means.device, dtype=torch.int64)
    planes = normal(start, (_PLANES, means.shape[1]), means.dtype)
    places = (means - counts / counts.sum() @ means) @ planes.T
    sides = ((places > 0).long() << torch.arange(_PLANES, device=means.device)).sum(1)
    each = fold(start, sides) & (2**32 - 1)
    episode = torch.where(counts > 0, each, 0).sum()
    order = torch.where(counts > 0, places[:, 0], torch.inf).argsort().argsort()
    return unit(normal(fold(episode, order), (size,), means.dtype))


def _norm(h: Tensor) -> Tensor:
    return layer_norm(h, h.shape[-1:])


def _tokens(hyper: Params, x: Tensor) -> Tensor:
    """A f(x): of features of length sqrt(D), so that numbers are of the order of 1."""
    return x.shape[1] ** 0.5 * unit(x) @ hyper["A"].T
