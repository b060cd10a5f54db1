"""UNICORN-MAML: the head starts, in every task, as one learned vector for all classes.

    w_n = w,  b_n = b  at theta_0, for every class n;  then MAML                     (section 5)

Which class has which number then changes nothing: permuted labels give permuted answers. The head
is the sum of w, which does not adapt, and of a part of each class, which does, from 0.

Ye, Chao: How to Train Your MAML to Excel in Few-Shot Classification, 2022.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.inserted import prepared
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.backbones.heads import head_name, learned, within
from metalearn.errors import UsageError
from metalearn.inner.rules import InnerRule, sgd


class SharedHead(nn.Module):
    """A linear layer whose rows are one learned `weight` `[1, D]` and each one's own part.

    linear: gives N, and its first row.
    """

    own_weight: Tensor
    own_bias: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight[:1].detach().clone())
        self.bias = nn.Parameter(linear.weight.new_zeros(1))
        self.register_buffer("own_weight", linear.weight.new_zeros(linear.weight.shape))
        self.register_buffer("own_bias", linear.weight.new_zeros(linear.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to logits `[..., N]`."""
        return F.linear(x, self.weight + self.own_weight, self.bias + self.own_bias)


def UnicornMAML(
    module: nn.Module,
    steps: int = 15,
    rule: InnerRule = sgd(0.05),
    loss: Loss = cross_entropy,
    proximal: float = 0.0,
) -> MAML:
    """MAML from a head that knows no class.

    Raises UsageError where the network does not end in a linear layer.
    """
    module, head = prepared(module), head_name(module)
    linear = module.get_submodule(head)
    if not isinstance(linear, nn.Linear):
        kind = type(linear).__name__
        raise UsageError(f"algorithm=unicorn_maml needs a linear head, not {kind}; use head=linear")
    own = [f"{head}.own_weight" if head else "own_weight"]
    own.append(own[0].replace("own_weight", "own_bias"))
    body = [name for name in learned(module) if not within(name, head)]
    if head:
        module.set_submodule(head, SharedHead(linear))
    else:
        module = SharedHead(linear)
    return MAML(module, steps, rule, loss, proximal, [*body, *own])
