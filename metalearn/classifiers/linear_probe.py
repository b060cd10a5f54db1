"""A linear layer from zero, by gradient descent on the support set.

    w_0 = 0,  b_0 = 0,   (w, b)_{k+1} = rule(grad of the cross-entropy of w_k f(x) + b_k)

With SGD this is the Baseline of Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot
Classification, 2019, section 3.2, whose feature extractor stays as it was pre-trained.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import tree
from metalearn.classifiers.classes import masked, membership, shares, widened
from metalearn.classifiers.descent import SHUT
from metalearn.errors import UsageError, check_whole
from metalearn.inner.loop import minibatch
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Given, Params


@dataclass(frozen=True)
class LinearProbe:
    """`steps` steps of `rule`, differentiated through where it is meta-trained.

    rule: what rates it learns are one for w and one for b, as the layer is as wide as a task has
        classes.
    ways: N where it is known, the most of all tasks; None takes S for it, which costs more.
    Raises UsageError for fewer than 0 steps, or for a rule that learns matrices.
    """

    rule: InnerRule = sgd(0.1)
    steps: int = 10
    ways: int | None = None
    transductive: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_whole("steps", self.steps)
        wide = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
        try:
            self.rule.update(wide, self.rule.init(wide), wide, tree.map(_single, self.hyper()))
        except RuntimeError:
            raise UsageError(
                "the inner rule learns matrices, and a linear probe has no fixed size; "
                "use inner=meta_sgd, lslr or sgd"
            ) from None

    def hyper(self, features: int | None = None) -> Params:
        """The rule's learned rates."""
        layer = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
        return self.rule.hyper(tree.map(torch.Tensor.double, layer), self.steps)

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`weight` `[S, D]` and `bias` `[S]`, a row a class, and `counts` `[S]`, the support
        examples of each class; the rows from N on are 0."""
        x, size = support.x, len(support.x)
        ways = min(self.ways or size, size)
        counts = membership(support, x.dtype).sum(1)
        classes = torch.arange(ways, device=x.device)

        shut = SHUT * (counts[:ways, None] == 0)

        def of(batch: Batch) -> tuple[Tensor, Tensor]:
            hot = (batch.labels == classes.unsqueeze(1)).to(x.dtype)
            return batch.x, hot * shares(batch)

        whole = None if self.rule.batch_size else of(support)
        layer = {"weight": x.new_zeros(ways, x.shape[1]), "bias": x.new_zeros(ways)}
        state = self.rule.init(layer)
        for step in range(self.steps):
            # The gradient written out: a third of the work of autograd's.
            given = minibatch(Given(support), self.rule.batch_size, step).support
            inputs, hot = whole or of(given)
            scores = layer["weight"] @ inputs.T + layer["bias"].unsqueeze(1)
            slope = (scores + shut).softmax(0) * hot.sum(0) - hot
            grads = {"weight": slope @ inputs, "bias": slope.sum(1)}
            updates, state = self.rule.update(grads, state, layer, hyper)
            layer = tree.add(layer, updates)
        weight = widened(layer["weight"].T, size).T
        return {"weight": weight, "bias": widened(layer["bias"], size), "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return masked(F.linear(features, state["weight"], state["bias"]), state["counts"])


def _single(t: Tensor) -> Tensor:
    return t.float()
