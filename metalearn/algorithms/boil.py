"""BOIL: the head stays as it was learned, so that the body has to change.

    body_{k+1} = body_k - alpha * grad_body L_support(body_k, head)                  (section 3)
    min over (body, head) of  sum over tasks of  L_query(body_K, head)

Oh, Yoo, Kim, Yun: BOIL: Towards Representation Change for Few-Shot Learning, 2021.
"""

from torch import nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.backbones.heads import head_name, learned, within
from metalearn.inner.rules import InnerRule, sgd


def BOIL(  # a method of the field, named as the others are
    module: nn.Module,
    steps: int = 5,
    rule: InnerRule = sgd(0.1),
    loss: Loss = cross_entropy,
    proximal: float = 0.0,
) -> MAML:
    """MAML whose body alone adapts. Raises UsageError for a network that is a head alone."""
    head = head_name(module)
    body = [name for name in learned(module) if not within(name, head)]
    return MAML(module, steps, rule, loss, proximal, body)
