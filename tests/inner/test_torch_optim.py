"""Rules that torch.optim has walk its trajectory, and the curvature is learn2learn's.

In float64 over 8 steps, to 1e-12 of the distance walked. The rules that divide have their epsilon
in another place: with 1e-8 they are within 1e-5 of torch's, with 1e-14 within 1e-11, and with an
epsilon that matters they follow their own formula, written out in numpy here.
"""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, RMSprop

from metalearn.inner import adam, adamw, meta_curvature, momentum, rmsprop, sgd
from tests.tasks import distance, generator

STEPS = 8
OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "clipped": {"clip_norm": 1.1},
    "decay_clipped": {"weight_decay": 0.1, "clip_norm": 1.1},
}
FIXED = {
    "sgd": (sgd, {"rate": 0.3}, SGD, {"lr": 0.3}),
    "momentum": (momentum, {"rate": 0.2}, SGD, {"lr": 0.2, "momentum": 0.9}),
    "momentum_0": (momentum, {"rate": 0.2, "momentum": 0.0}, SGD, {"lr": 0.2}),
    "dampening": (
        momentum,
        {"rate": 0.2, "momentum": 0.8, "dampening": 0.4},
        SGD,
        {"lr": 0.2, "momentum": 0.8, "dampening": 0.4},
    ),
    "nesterov": (
        momentum,
        {"rate": 0.2, "momentum": 0.8, "nesterov": True},
        SGD,
        {"lr": 0.2, "momentum": 0.8, "nesterov": True},
    ),
}
ADAPTIVE = {
    "adam": (adam, {"rate": 0.1}, Adam, {"lr": 0.1}),
    "adam_betas": (
        adam,
        {"rate": 0.1, "beta1": 0.0, "beta2": 0.9},
        Adam,
        {"lr": 0.1, "betas": (0.0, 0.9)},
    ),
    "adamw": (adamw, {"rate": 0.1}, AdamW, {"lr": 0.1}),
    "rmsprop": (rmsprop, {"rate": 0.05}, RMSprop, {"lr": 0.05}),
    "rmsprop_momentum": (
        rmsprop,
        {"rate": 0.05, "alpha": 0.9, "momentum": 0.5},
        RMSprop,
        {"lr": 0.05, "alpha": 0.9, "momentum": 0.5},
    ),
}


def problem():
    """Starting weights, and a loss with curvature that changes on the way."""
    g = generator(0)
    start = {
        "layer.weight": torch.randn(3, 4, generator=g, dtype=torch.float64),
        "layer.bias": torch.randn(3, generator=g, dtype=torch.float64),
    }
    x = torch.randn(7, 4, generator=g, dtype=torch.float64)
    y = torch.randn(7, 3, generator=g, dtype=torch.float64)

    def loss(weights):
        outputs = torch.tanh(x @ weights["layer.weight"].T + weights["layer.bias"])
        return (outputs - y).square().sum() / 4

    return start, loss


def gradient(loss, weights):
    weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    grads = torch.autograd.grad(loss(weights), list(weights.values()))
    return dict(zip(weights, grads, strict=True))


def walked(rule):
    """How far the rule has gone from the start after every step."""
    start, loss = problem()
    fast, state, path = start, rule.init(start), []
    for _ in range(STEPS):
        updates, state = rule.update(gradient(loss, fast), state, fast, {})
        fast = {name: weight + updates[name] for name, weight in fast.items()}
        path.append({name: fast[name] - start[name] for name in fast})
    return path


def walked_by_torch(optimizer, arguments, clip_norm=None, **options):
    start, loss = problem()
    weights = {name: weight.clone().requires_grad_() for name, weight in start.items()}
    stepping, path = optimizer(weights.values(), **arguments, **options), []
    for _ in range(STEPS):
        stepping.zero_grad()
        loss(weights).backward()
        if clip_norm is not None:
            clip_grad_norm_(weights.values(), clip_norm)
        stepping.step()
        path.append({name: weights[name].detach() - start[name] for name in weights})
    return path


def furthest(path, other) -> float:
    return max(distance(got, want) for got, want in zip(path, other, strict=True))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", FIXED)
def test_fixed_rates(name, options):
    make, arguments, optimizer, its_arguments = FIXED[name]
    got = walked(make(**arguments, **OPTIONS[options]))
    want = walked_by_torch(optimizer, its_arguments, **OPTIONS[options])
    assert furthest(got, want) < 1e-12


@pytest.mark.parametrize("epsilon, apart", [(1e-8, 1e-5), (1e-14, 1e-11)])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_rates(name, options, epsilon, apart):
    make, arguments, optimizer, its_arguments = ADAPTIVE[name]
    got = walked(make(**arguments, epsilon=epsilon, **OPTIONS[options]))
    want = walked_by_torch(optimizer, {**its_arguments, "eps": epsilon}, **OPTIONS[options])
    assert furthest(got, want) < apart


def test_the_clipping_clips_some_steps_and_spares_others():
    start, loss = problem()
    lengths = []
    for gone in [dict.fromkeys(start, 0), *walked(sgd(0.3))]:
        grads = gradient(loss, {name: start[name] + gone[name] for name in start})
        lengths.append(torch.stack([g.norm() for g in grads.values()]).norm().item())
    assert min(lengths) < OPTIONS["clipped"]["clip_norm"] < max(lengths)


def by_hand(step):
    """The way of `step(past gradients, oldest first) -> how far to go`, in numpy."""
    start, loss = problem()
    fast, past, path = {n: w.numpy() for n, w in start.items()}, {n: [] for n in start}, []
    for _ in range(STEPS):
        grads = gradient(loss, {n: torch.tensor(w) for n, w in fast.items()})
        for name in fast:
            past[name].append(grads[name].numpy())
            fast[name] = fast[name] - step(np.stack(past[name]))
        path.append({n: torch.tensor(fast[n]) - start[n] for n in fast})
    return path


def average(values, keep):
    """The exponentially weighted mean of `values`, the weights summing to 1."""
    weights = keep ** np.arange(len(values) - 1.0, -1, -1)
    return np.einsum("t,t...->...", weights, values) / weights.sum()


@pytest.mark.parametrize("beta1", [0.0, 0.8])
def test_adam_is_its_formula(beta1):
    def step(past):
        return 0.1 * average(past, beta1) / np.sqrt(average(past**2, 0.95) + 0.03**2)

    want = by_hand(step)
    assert furthest(walked(adam(0.1, beta1, 0.95, 0.03)), want) < 1e-12
    theirs = walked_by_torch(Adam, {"lr": 0.1, "betas": (beta1, 0.95), "eps": 0.03})
    assert 1e-3 < furthest(theirs, want) < 0.3


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rmsprop_is_its_formula(momentum):
    def step(past):
        total = 0.0
        for t in range(len(past)):
            so_far = past[: t + 1] ** 2
            square = average(so_far, 0.9) * (1 - 0.9 ** len(so_far))
            total = momentum * total + past[t] / np.sqrt(square + 0.03**2)
        return 0.05 * total

    want = by_hand(step)
    assert furthest(walked(rmsprop(0.05, 0.9, 0.03, momentum)), want) < 1e-12


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 3, 2, 5)])
def test_curvature_is_that_of_learn2learn(shape):
    """Theirs has the transposes, and calls the two sides of a matrix the other way round."""
    g = generator(1)
    grad = torch.randn(*shape, generator=g)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # gym's banner
        warnings.simplefilter("ignore")
        learn2learn = pytest.importorskip("learn2learn")
    peer = learn2learn.optim.transforms.MetaCurvatureTransform(grad)
    with torch.no_grad():
        for factor in peer.parameters():
            factor.copy_(torch.randn(factor.shape, generator=g))
        want = peer(grad)
    rule = meta_curvature(0.3)
    hyper = rule.hyper({"w": grad}, 3)
    theirs = {"diagonal": "mc", "out": "mc_in", "in": "mc_out", "filter": "mc_f"}
    for name in hyper:
        kind = name.removeprefix("curvature.w.")
        factor = getattr(peer, theirs[kind]).detach()
        hyper[name] = factor.T if kind == "in" else factor
    updates, _ = rule.update({"w": grad}, {}, {"w": grad}, hyper)
    torch.testing.assert_close(updates["w"], -0.3 * want, rtol=1e-4, atol=1e-5)
