"""ALFA: MAML with rates and weight decays that are produced for each task, layer and step.

    theta_{k+1} = beta_k(tau_k) * theta_k - alpha_k(tau_k) * grad L_support(theta_k)     (eq. 5)

with tau_k the means of the weights and gradients of every layer; `metalearn.inner.alfa` is the
rule, and any other algorithm takes it as inner=alfa.

Baik, Choi, Choi, Kim, Lee: Meta-Learning with Adaptive Hyperparameters, 2020.
"""

from torch import nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.inner.alfa import alfa


def ALFA(  # a method of the field, named as the others are
    module: nn.Module,
    steps: int = 5,
    rate: float = 0.01,
    decay: float = 5e-4,
    loss: Loss = cross_entropy,
) -> MAML:
    """MAML by the rule `alfa`; rate, decay: where the learned ones start."""
    return MAML(module, steps, alfa(rate, decay), loss)
