"""ALFA: rates and weight decays that a learned network gives anew for each task and step.

    theta^l_{k+1} = (1 - beta[l, k]) * theta^l_k - alpha[l, k] * grad^l_k                (eq. 5)
    alpha[l, k] = alpha0[l, k] * (1 + a_l),   beta[l, k] = beta0[l, k] * (1 + b_l)
    (a, b) = g([mean(theta^l_k) for each l, mean(grad^l_k) for each l])              (eqs. 7 and 8)

with l a weight tensor and g a network of two layers that returns 0 at the start, so that training
begins as MAML with a little weight decay. alpha0, beta0 and g are learned.

Baik, Choi, Choi, Kim, Lee: Meta-Learning with Adaptive Hyperparameters, 2020.
"""

import torch

from metalearn.inner.perceptron import means, perceptron, perceptron_start
from metalearn.inner.rules import (
    InnerRule,
    State,
    at_step,
    check_not_negative,
    complete,
    first_step,
    under_prefix,
    with_prefix,
)
from metalearn.types import Params


def alfa(
    rate: float,
    decay: float = 5e-4,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> InnerRule:
    """Rates and decays of each weight tensor and step, scaled by what the weights and gradients
    are at that step.

    rate, decay: where every alpha0 and beta0 start. hyper: `rate.<weight>` and `decay.<weight>`,
    `[steps]`, and `generator.*`, g. Steps beyond those learned use the last one's.
    """
    check_not_negative(rate=rate, decay=decay)

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        step = state["step"].detach().long()
        seen = torch.cat([means(fast), means({name: grads[name] for name in fast})])
        a, b = 1 + perceptron(hyper, "generator", seen).view(2, -1)
        rates, decays = under_prefix("rate", hyper), under_prefix("decay", hyper)
        updates = {
            name: -b[i] * at_step(decays[name], step) * weight
            - a[i] * at_step(rates[name], step) * grads[name]
            for i, (name, weight) in enumerate(fast.items())
        }
        return updates, {"step": state["step"] + 1}

    def hyper(fast: Params, steps: int) -> Params:
        count, size, like = max(steps, 1), 2 * len(fast), next(iter(fast.values()))
        each = {name: like.new_full((count,), rate) for name in fast}
        decays = {name: like.new_full((count,), decay) for name in fast}
        generator = perceptron_start("generator", (size, size, size), like)
        return {**with_prefix("rate", each), **with_prefix("decay", decays), **generator}

    return complete(InnerRule(first_step, update, hyper, batch_size), weight_decay, clip_norm)
