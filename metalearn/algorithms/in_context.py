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

from torch import nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.metric import Metric
from metalearn.classifiers.transformer import Transformer
from metalearn.errors import UsageError, check_whole


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
