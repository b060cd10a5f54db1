"""Every inner rule through the exact strategies equals a plain float64 loop, to 1e-10.

The rules are written once more here, for one weight and from all its past gradients, and
differentiated by torch.autograd.grad with create_graph.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn.algorithms import MAML
from metalearn.gradients import Adjoint, Unroll
from tests.gradients.reference import call
from tests.inner.cases import EPSILON, OPTIONS, RULES, built, moved
from tests.spread import spread
from tests.tasks import apart, classification, network, on

TASKS, STEPS = 2, 3
STRATEGIES = {"unroll": Unroll, "adjoint": Adjoint}
NETS = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        ),
        (5,),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, (2, 3), bias=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (1, 8, 8),
    ),
}


def descent(past, name, hyper):
    return 0.2 * past[-1]


def heavy_ball(past, dampening=0.0):
    """The buffer as a sum over the past, the first gradient counting undampened."""
    last = len(past) - 1
    later = [0.8 ** (last - t) * (1 - dampening) * past[t] for t in range(1, last + 1)]
    return sum(later, 0.8**last * past[0])


def with_momentum(past, name, hyper):
    return 0.1 * heavy_ball(past)


def dampened(past, name, hyper):
    return 0.1 * heavy_ball(past, 0.3)


def nesterov(past, name, hyper):
    return 0.1 * (past[-1] + 0.8 * heavy_ball(past))


def summed(values, keep):
    """sum_t (1 - keep) keep^(T - t) value_t."""
    last = len(values) - 1
    return sum((1 - keep) * keep ** (last - t) * value for t, value in enumerate(values))


def adam(past, name, hyper, beta1=0.8):
    mean = summed(past, beta1) / (1 - beta1 ** len(past))
    square = summed([g * g for g in past], 0.95) / (1 - 0.95 ** len(past))
    return 0.05 * mean / (square + EPSILON**2) ** 0.5


def adam_no_mean(past, name, hyper):
    return adam(past, name, hyper, beta1=0.0)


def divided(past):
    return past[-1] / (summed([g * g for g in past], 0.9) + EPSILON**2) ** 0.5


def rmsprop(past, name, hyper):
    return 0.02 * divided(past)


def rmsprop_momentum(past, name, hyper):
    count = len(past)
    return 0.02 * sum(0.5 ** (count - t) * divided(past[:t]) for t in range(1, count + 1))


def meta_sgd(past, name, hyper):
    return hyper["rate." + name] * past[-1]


def lslr(past, name, hyper):
    return hyper["rate." + name.split(".")[0]][len(past) - 1] * past[-1]


def meta_curvature(past, name, hyper):
    grad = past[-1]
    if grad.dim() == 1:
        return 0.1 * hyper[f"curvature.{name}.diagonal"] * grad
    left, right = (hyper[f"curvature.{name}.{side}"] for side in ("out", "in"))
    if grad.dim() == 2:
        return 0.1 * torch.einsum("ao,bi,oi->ab", left, right, grad)
    h, w = grad.shape[2:]
    patch = hyper[f"curvature.{name}.filter"].reshape(h, w, h, w)
    return 0.1 * torch.einsum("ao,bi,cdhw,oihw->abcd", left, right, patch, grad)


BY_HAND = {
    "sgd": descent,
    "momentum": with_momentum,
    "dampened": dampened,
    "nesterov": nesterov,
    "adam": adam,
    "adam_no_mean": adam_no_mean,
    "adamw": adam,
    "rmsprop": rmsprop,
    "rmsprop_momentum": rmsprop_momentum,
    "meta_sgd": meta_sgd,
    "lslr": lslr,
    "meta_curvature": meta_curvature,
}


def adapted(net, init, hyper, x, y, rule, weight_decay=None, clip_norm=None):
    """The weights of one task after the steps, and each step's norm of the inner gradient."""
    fast, past, norms = dict(init), {name: [] for name in init}, []
    if weight_decay is None:
        weight_decay = 0.01 if rule == "adamw" else 0.0
    for _ in range(STEPS):
        value = F.cross_entropy(call(net, fast, x), y)
        grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        norms.append(float(norm.detach()))
        for name, grad in zip(init, grads, strict=True):
            if clip_norm is not None and norm + 1e-6 > clip_norm:
                grad = grad / (norm + 1e-6) * clip_norm
            before = fast[name]
            past[name].append(grad if rule == "adamw" else grad + weight_decay * before)
            fast[name] = before - BY_HAND[rule](past[name], name, hyper)
            if rule == "adamw":
                fast[name] = fast[name] - 0.05 * weight_decay * before
    return fast, norms


@functools.cache
def problem(rule: str, options: str, net: str):
    """The algorithm, its meta, the episodes, the plain loop's gradient and the norms it met."""
    build, shape = NETS[net]
    module = network(build)
    episodes = classification(tasks=TASKS, shape=shape)
    algo = MAML(module, steps=STEPS, rule=built(rule, options))
    meta = algo.init()
    meta["hyper"] = moved(meta["hyper"])
    learned = {
        part: {n: t.detach().clone().requires_grad_() for n, t in meta[part].items()}
        for part in ("init", "hyper")
    }
    losses, norms = [], []
    for t in range(TASKS):
        support = episodes.support.x[t], episodes.support.y[t]
        fast, met = adapted(module, *learned.values(), *support, rule, **OPTIONS[options])
        losses.append(F.cross_entropy(call(module, fast, episodes.query.x[t]), episodes.query.y[t]))
        norms += met
    flat = [tensor for part in learned.values() for tensor in part.values()]
    grads = iter(torch.autograd.grad(torch.stack(losses).mean(), flat))
    want = {part: {n: next(grads) for n in tensors} for part, tensors in learned.items()}
    return algo, meta, episodes, want, norms


@pytest.mark.parametrize(
    "strategy, batching, rule, options, net",
    spread(STRATEGIES, ["loop", "vmap"], RULES, OPTIONS, NETS, share=3),
)
def test_exact(strategy, batching, rule, options, net):
    algo, meta, episodes, want, _ = problem(rule, options, net)
    got, _ = on(STRATEGIES[strategy](), batching)(algo, meta, episodes)
    assert apart(got, want) < 1e-10


def test_every_rule_is_here_and_none_equals_another():
    assert set(BY_HAND) == set(RULES)
    for net in NETS:
        found = [problem(rule, options, net)[3]["init"] for rule in RULES for options in OPTIONS]
        sizes = {round(float(sum(g.norm() for g in init.values())), 9) for init in found}
        assert len(sizes) == len(found)


def test_clipping_clips_some_steps_and_spares_others():
    norms = [n for net in NETS for rule in RULES for n in problem(rule, "clipped", net)[4]]
    assert min(norms) < OPTIONS["clipped"]["clip_norm"] < max(norms)
