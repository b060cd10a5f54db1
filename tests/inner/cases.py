"""Every inner rule once, and the options that all of them take."""

import torch

from metalearn.inner import (
    adam,
    adamw,
    lslr,
    meta_curvature,
    meta_sgd,
    momentum,
    rmsprop,
    sgd,
)
from tests.tasks import generator

EPSILON = 0.01

# name -> (rule, its arguments beside the options)
RULES = {
    "sgd": (sgd, {"rate": 0.2}),
    "momentum": (momentum, {"rate": 0.1, "momentum": 0.8}),
    "dampened": (momentum, {"rate": 0.1, "momentum": 0.8, "dampening": 0.3}),
    "nesterov": (momentum, {"rate": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": (adam, {"rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": EPSILON}),
    "adam_no_mean": (adam, {"rate": 0.05, "beta1": 0.0, "beta2": 0.95, "epsilon": EPSILON}),
    "adamw": (adamw, {"rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": EPSILON}),
    "rmsprop": (rmsprop, {"rate": 0.02, "alpha": 0.9, "epsilon": EPSILON}),
    "rmsprop_momentum": (
        rmsprop,
        {"rate": 0.02, "alpha": 0.9, "epsilon": EPSILON, "momentum": 0.5},
    ),
    "meta_sgd": (meta_sgd, {"rate": 0.1}),
    "lslr": (lslr, {"rate": 0.1}),
    "meta_curvature": (meta_curvature, {"rate": 0.1}),
}
OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.3},
    "clipped": {"clip_norm": 0.5},
    "decay_clipped": {"weight_decay": 0.3, "clip_norm": 0.5},
}


def built(rule: str, options: str = "plain", **changes):
    """The rule of that name with those options, `changes` taking the place of its arguments."""
    make, arguments = RULES[rule]
    return make(**{**arguments, **OPTIONS[options], **changes})


def moved(hyper, seed: int = 0, size: float = 0.1):
    """`hyper` away from its start, so that no entry equals another."""
    g = generator(seed)
    return {
        n: t + size * torch.rand(t.shape, generator=g, dtype=torch.float64).to(t)
        for n, t in hyper.items()
    }
