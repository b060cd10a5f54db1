"""Inner rules that are meta-learned themselves: rates, and a curvature for every layer."""

import torch
from torch import Tensor

from metalearn import tree
from metalearn.inner.rules import (
    InnerRule,
    State,
    at_step,
    check_not_negative,
    complete,
    first_step,
    no_state,
    under_prefix,
    with_prefix,
)
from metalearn.types import Params


def meta_sgd(
    rate: float,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> InnerRule:
    """A learned rate for every single weight.

        theta_{k+1} = theta_k - alpha * grad L_support(theta_k),   elementwise           (eq. 2)

    rate: where every entry of alpha starts. hyper: `rate.<weight>`, shaped like the weight.

    Li, Zhou, Chen, Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, 2017, eq. 2.
    """
    check_not_negative(rate=rate)

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        return {name: -hyper[f"rate.{name}"] * grad for name, grad in grads.items()}, state

    def hyper(fast: Params, steps: int) -> Params:
        return with_prefix("rate", tree.map(lambda w: torch.full_like(w, rate), fast))

    return complete(InnerRule(no_state, update, hyper, batch_size), weight_decay, clip_norm)


def lslr(
    rate: float,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> InnerRule:
    """A learned rate for every layer and step.

        theta^l_{k+1} = theta^l_k - alpha[l, k] * grad_l L_support(theta_k)

    rate: where every entry starts. hyper: `rate.<layer>`, `[steps]`, a layer being a module
    that holds weights itself. Steps beyond those learned use the last one's rate.

    Antoniou, Edwards, Storkey: How to train your MAML, 2019, section 4 (LSLR).
    """
    check_not_negative(rate=rate)

    def layer(name: str) -> str:
        return name.rpartition(".")[0] or "module"

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        step = state["step"].detach().long()
        current = tree.map(lambda rates: at_step(rates, step), under_prefix("rate", hyper))
        updates = {name: -current[layer(name)] * grad for name, grad in grads.items()}
        return updates, {"step": state["step"] + 1}

    def hyper(fast: Params, steps: int) -> Params:
        count = max(steps, 1)
        return with_prefix("rate", {layer(n): w.new_full((count,), rate) for n, w in fast.items()})

    return complete(InnerRule(first_step, update, hyper, batch_size), weight_decay, clip_norm)


def meta_curvature(
    rate: float,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> InnerRule:
    """A learned linear map of every layer's gradient: theta <- theta - rate * MC(grad).

        MC(G) = G x_3 M_filter x_2 M_in x_1 M_out,   (G x_1 M)[p, i, f] = sum_o M[p, o] G[o, i, f]

    with G a convolution's gradient as `[O, I, h*w]`. A linear layer's, `[O, I]`, has M_out and
    M_in alone; anything of one dimension or none is multiplied elementwise.

    rate: fixed. hyper, all starting at the identity: `curvature.<weight>.out` `[O, O]`,
    `curvature.<weight>.in` `[I, I]`, `curvature.<weight>.filter` `[h*w, h*w]`, or
    `curvature.<weight>.diagonal` shaped like the weight.

    Park, Oliva: Meta-Curvature, 2019, section 3.
    """
    check_not_negative(rate=rate)

    def curved(name: str, grad: Tensor, hyper: Params) -> Tensor:
        factors = under_prefix(f"curvature.{name}", hyper)
        if grad.dim() < 2:
            return factors["diagonal"] * grad
        if grad.dim() == 2:
            return factors["out"] @ grad @ factors["in"].mT
        modes = torch.einsum("po,oif->pif", factors["out"], grad.flatten(2))
        return (factors["in"] @ modes @ factors["filter"].mT).reshape(grad.shape)

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        return {n: -rate * curved(n, grad, hyper) for n, grad in grads.items()}, state

    def identity(weight: Tensor) -> Params:
        if weight.dim() < 2:
            return {"diagonal": torch.ones_like(weight)}
        modes = ("out", "in", "filter")
        sizes = weight.flatten(2).shape if weight.dim() > 2 else weight.shape
        eyes = (torch.eye(n, dtype=weight.dtype, device=weight.device) for n in sizes)
        return dict(zip(modes, eyes, strict=False))

    def hyper(fast: Params, steps: int) -> Params:
        return {
            name: factor
            for weight, value in fast.items()
            for name, factor in with_prefix(f"curvature.{weight}", identity(value)).items()
        }

    return complete(InnerRule(no_state, update, hyper, batch_size), weight_decay, clip_norm)
