"""Reptile: move the starting point towards the weights that each task ends at.

    theta_K = K steps of the inner rule on minibatches of the task, from theta
    theta <- theta + epsilon * mean over tasks of (theta_K - theta)                  (alg. 2)

Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018. One task is MAML's;
the rule lives in the strategy `metalearn.gradients.Displacement`, whose gradient `theta - theta_K`
an outer SGD of rate epsilon turns into the update above. No backward pass leaves the inner loop.
"""

from torch import nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.inner.rules import InnerRule, sgd


def Reptile(  # a method of the field, named as the others are
    module: nn.Module,
    steps: int = 5,
    rule: InnerRule = sgd(0.1, batch_size=10),
    loss: Loss = cross_entropy,
) -> MAML:
    """MAML's task, held to the strategy `Displacement`.

    rule: its minibatches matter. On one fixed batch the K steps follow one loss, and the
        inner products between gradients of different minibatches, from which Reptile learns
        to generalise (section 5.1 there), do not appear.
    """
    return MAML(module, steps, rule, loss, kinds=("displacement",))
