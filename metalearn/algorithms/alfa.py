"""ALFA: MAML with rates and weight decays that are produced for each task, layer and step.

    theta_{k+1} = beta_k(tau_k) * theta_k - alpha_k(tau_k) * grad L_support(theta_k)     (eq. 5)

with tau_k the means of the weights and gradients of every layer. The rule, `metalearn.inner.alfa`,
is any other algorithm's too, as inner=alfa.

Baik, Choi, Choi, Kim, Lee: Meta-Learning with Adaptive Hyperparameters, 2020.
"""

from torch import nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.inner.alfa import alfa
from metalearn.inner.rules import InnerRule


def ALFA(  # a method of the field, named as the others are
    module: nn.Module,
    steps: int = 5,
    rule: InnerRule = alfa(0.01),
    loss: Loss = cross_entropy,
    proximal: float = 0.0,
) -> MAML:
    """MAML by a rule whose rates and decays are produced."""
    return MAML(module, steps, rule, loss, proximal)
