"""Inner rules: the optimizer of the inner loop as pure functions of one task's weights.

A rule is differentiable in everything it is given, so that a strategy can carry the
meta-gradient through it: to the starting weights, and to the rates where these are learned.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from metalearn import tree
from metalearn.types import Params

State = Params
"""What a rule remembers between steps: float tensors only, so that it can be differentiated."""


class InnerRule(NamedTuple):
    """One task's optimizer.

    init: fast weights to the state before the first step.
    update: `(grads, state, fast, hyper) -> (updates, state)`; the next weights are
        `fast + updates`.
    hyper: `(fast, steps) ->` starting values of the tensors that the rule learns (may be none).
    batch_size: None for the whole support set in every step; n takes the examples n at a time,
        in order and starting over at the end (Reptile's inner minibatches).
    """

    init: Callable[[Params], State]
    update: Callable[[Params, State, Params, Params], tuple[Params, State]]
    hyper: Callable[[Params, int], Params]
    batch_size: int | None = None


def sgd(rate: float, batch_size: int | None = None) -> InnerRule:
    """Gradient descent with a fixed rate: theta <- theta - rate * grad (MAML, eq. 1)."""

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        return tree.scale(grads, -rate), state

    return InnerRule(lambda fast: {}, update, lambda fast, steps: {}, batch_size)


def meta_sgd(rate: float, batch_size: int | None = None) -> InnerRule:
    """A learned rate for every single weight: theta <- theta - alpha * grad, elementwise.

    rate: where every entry of alpha starts. hyper: `rate.<weight>`, shaped like the weight.

    Li, Zhou, Chen, Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017, eq. 2.
    """

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        return {name: -hyper[f"rate.{name}"] * grad for name, grad in grads.items()}, state

    def hyper(fast: Params, steps: int) -> Params:
        return {f"rate.{name}": torch.full_like(weight, rate) for name, weight in fast.items()}

    return InnerRule(lambda fast: {}, update, hyper, batch_size)


def lslr(rate: float, batch_size: int | None = None) -> InnerRule:
    """A learned rate for every layer and step: theta_l <- theta_l - alpha[l, k] * grad_l.

    rate: where every entry starts. hyper: `rate.<layer>`, `[steps]`, a layer being a module
    that holds weights itself. Steps beyond those learned use the last one's rate.

    Antoniou, Edwards, Storkey: How to train your MAML, 2019, section 4 (LSLR).
    """

    def layer(name: str) -> str:
        return "rate." + (name.rpartition(".")[0] or "module")

    def init(fast: Params) -> State:
        return {"step": next(iter(fast.values())).new_zeros(())}

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        def at(rates: torch.Tensor) -> torch.Tensor:
            step = state["step"].detach().clamp(max=len(rates) - 1).long()
            return rates.index_select(0, step.view(1)).view(())

        current = {name: at(rates) for name, rates in hyper.items() if name.startswith("rate.")}
        updates = {name: -current[layer(name)] * grad for name, grad in grads.items()}
        return updates, {"step": state["step"] + 1}

    def hyper(fast: Params, steps: int) -> Params:
        return {
            layer(name): weight.new_full((max(steps, 1),), rate) for name, weight in fast.items()
        }

    return InnerRule(init, update, hyper, batch_size)
