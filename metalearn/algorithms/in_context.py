"""In context: a transformer reads the labelled support set and answers each query, with no inner
loop, on features that are frozen.

    h_i = A f(x_i) + B e_{y_i},   h_q = A f(x_q) + b
    h <- h + attention(norm h),   h <- h + perceptron(norm h),  layer by layer
    logits_n = <C norm h_q, e_n>

f(x) has length sqrt(D), and e_n is a unit vector that stands for class n in this episode alone:
random, drawn for each episode from what it holds, so that no number of classes is built in.
Attention is not causal: a support example sees the whole support set; a query sees that and itself,
and no other query.

Fifty, Duan, Junkins, Amid, Leskovec, Ré, Thrun: Context-Aware Meta-Learning, 2024 (CAML), whose
label vectors are fixed. Woerner, Oh, Baumgartner: Universal Algorithm-Implicit Learning, 2026
(TAIL), has random ones, and queries that stand inline.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.metric import Metric
from metalearn.classifiers.classes import absent, class_means, masked, membership
from metalearn.classifiers.protocol import drawn, number_of
from metalearn.errors import UsageError, check_whole
from metalearn.functional.draws import normal
from metalearn.functional.dropout import fold
from metalearn.functional.norm_functions import layer_norm
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
        tokens = _unit(support.x) @ hyper["A"].T + member.T @ labels @ hyper["B"].T
        state = {"labels": labels, "counts": member.sum(1)}
        return {**state, "tokens": tokens, "there": member.sum(0)}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        asked, size = _unit(features) @ hyper["A"].T + hyper["b"], len(state["tokens"])
        h = torch.cat([state["tokens"], asked])
        # Each sees the support set; a query itself, too.
        itself = torch.eye(len(h), dtype=torch.bool, device=h.device)
        sees = torch.cat([(state["there"] > 0).expand(len(h), -1), itself[:, size:]], 1)
        for layer in map(str, range(self.layers)):
            own = under_prefix(layer, hyper)
            query, key, value = (
                (_norm(h) @ own[name].T).unflatten(1, (self.heads, -1)).transpose(0, 1)
                for name in ("query", "key", "value")
            )
            scores = query @ key.mT / key.shape[2] ** 0.5
            seen = torch.where(sees, scores, absent(scores)).softmax(2) @ value
            h = h + seen.transpose(0, 1).flatten(1) @ own["out"].T
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
    found = normal(fold(episode, order), (size,), means.dtype)
    return found / found.square().sum(1, keepdim=True).sqrt()


def _norm(h: Tensor) -> Tensor:
    return layer_norm(h, h.shape[-1:])


def _unit(x: Tensor) -> Tensor:
    """Features of length sqrt(D), so that numbers are of the order of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-12).rsqrt()


def InContext(  # a method of the field, named as the others are
    module: nn.Module,
    features: int,
    layers: int = 3,
    heads: int = 4,
    width: int = 128,
    labels: int = 64,
    frozen: bool = True,
    seed: int = 0,
    loss: Loss = cross_entropy,
) -> Metric:
    """module: from `[B, *X]` to features `[B, D]`, with weights worth keeping. features: D.

    frozen: its weights stay as they come. seed: of the transformer's start and of the labels.
    Raises UsageError for sizes that cannot be.
    """
    for name, value in {"layers": layers, "heads": heads, "width": width, "labels": labels}.items():
        check_whole(f"algorithm.{name}", value, 1)
    if width % heads:
        raise UsageError(f"algorithm.width={width} is no multiple of algorithm.heads={heads}")
    body = copy.deepcopy(module).requires_grad_(False) if frozen else module
    return Metric(body, Transformer(layers, heads, width, labels, seed), loss, features)
