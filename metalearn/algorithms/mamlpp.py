"""MAML++: MAML with four parts that make it train steadily, each an option of MAML alone too.

    min over theta, alpha of  sum over k of  v_k(t) * L_query(theta_k)          (eq. 3, multi_step)
    theta^l_{k+1} = theta^l_k - alpha[l, k] * grad_l L_support(theta_k)     (section 4, inner=lslr)
    scale[k], shift[k] of every batch norm learned for each inner step k            (step_norms)

v(t) goes from equal shares to the last step's alone in the first `multi_step` meta-steps t. The
statistics of step k are those of the batch at hand, by the norm policy. Of the rest,
gradient=annealed goes from first to second order and outer/schedule=cosine lowers the outer rate.

Antoniou, Edwards, Storkey: How to train your MAML, 2019.
"""

from torch import nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.inner.learned import lslr
from metalearn.inner.rules import InnerRule


def MAMLpp(  # a method of the field, named as the others are
    module: nn.Module,
    steps: int = 5,
    rule: InnerRule = lslr(0.1),
    loss: Loss = cross_entropy,
    multi_step: int = 5000,
    step_norms: bool = True,
) -> MAML:
    """MAML that weighs the query loss of every step and has norms for each.

    multi_step: meta-steps until the last step's query loss counts alone; 0 for from the start.
    step_norms: whether batch norm has weights `[K + 1, C]`, one row a step, in `hyper` under
        their own names; they do not adapt. Raises UsageError where there is no batch norm.
    """
    return MAML(module, steps, rule, loss, step_norms=step_norms, multi_step=multi_step)
