"""MAML++ (Antoniou, Edwards, Storkey 2019) as a researcher would write it, on the public protocol:
learned rates per layer and step, the query loss of every step with annealed weights, and batch norm
with statistics and weights of its own for each step; held to a plain float64 loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn.algorithms.losses import cross_entropy
from metalearn.functional import pure
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from metalearn.inner import at_step, lslr
from metalearn.types import META_STEP, Meta
from tests.tasks import apart, classification, network, on, randomised

ANNEALED, NORMS = 10, ("1.weight", "1.bias")


class MAMLPlusPlus:
    kinds, transductive = ("exact", "truncated"), False

    def __init__(self, module, steps):
        self.net, self.steps = pure(module), steps
        self.rule = lslr(0.1)  # a learned rate for each layer and step

    def init(self):
        init = {n: t.clone() for n, t in self.net.params.items() if n not in NORMS}
        each = {n: self.net.params[n].expand(self.steps + 1, -1).clone() for n in NORMS}
        hyper = {**self.rule.hyper(init, self.steps), **each}  # [K + 1, C]: norm weights by step
        return Meta(init=init, hyper=hyper, buffers={META_STEP: torch.tensor(0.0)})

    def begin(self, meta, given):
        return meta["init"]

    def inner_loss(self, meta, fast, given, step):
        return self.outer_loss(meta, self.finish(meta, fast, given, step), given.support)[0]

    def finish(self, meta, fast, given, step):  # batch norm's statistics are those of each pass
        return {**fast, **{n: at_step(meta["hyper"][n], step) for n in NORMS}}

    def outer_loss(self, meta, fast, query):
        return cross_entropy(self.net.apply(fast, query.x, query.weight), query)

    def step_weights(self, meta):  # from equal shares to the last step's alone
        share = (1 - meta["buffers"][META_STEP].double() / ANNEALED).clamp(min=0) / self.steps
        last = 1 - share * (self.steps - 1)
        return torch.cat([share.new_zeros(1), share.expand(self.steps - 1), last.view(1)])

    def predict(self, meta, fast, x):
        return self.net.apply(fast, x)


def plain_loss(meta, tasks, steps, weights):
    def loss(fast, k, x, y):
        x = F.conv2d(x, fast["0.weight"], fast["0.bias"])
        x = (x - x.mean((0, 2, 3), True)) / (x.var((0, 2, 3), False, True) + 1e-5).sqrt()
        weight, bias = (meta["hyper"][n][k].view(1, -1, 1, 1) for n in NORMS)
        x = torch.tanh(x * weight + bias).flatten(1)
        return F.cross_entropy(F.linear(x, fast["4.weight"], fast["4.bias"]), y)

    total = torch.zeros((), dtype=torch.float64)
    for support, query in zip(zip(*tasks.support[:2]), zip(*tasks.query[:2])):  # noqa: B905
        fast = dict(meta["init"])
        for k in range(steps):
            given = loss(fast, k, *support), list(fast.values())
            grads = torch.autograd.grad(*given, create_graph=True)
            rates = {n: meta["hyper"][f"rate.{n.partition('.')[0]}"][k] for n in fast}
            fast = {n: w - rates[n] * g for (n, w), g in zip(fast.items(), grads, strict=True)}
            total = total + weights[k + 1] * loss(fast, k + 1, *query) / len(tasks.query.y)
    return total


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("meta_step, weights", [(0, [0, 1 / 3, 1 / 3, 1 / 3]), (99, [0, 0, 0, 1])])
def test_its_meta_gradient_is_that_of_the_plain_loop(meta_step, weights, compiled):
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)]
    algo = MAMLPlusPlus(network(lambda: nn.Sequential(*layers)), 3)
    tasks, meta = classification(shape=(1, 4, 4)), algo.init()
    meta["buffers"][META_STEP] += meta_step
    meta["hyper"] = randomised(meta["hyper"])
    learned = [t.requires_grad_() for part in ("init", "hyper") for t in meta[part].values()]
    grads = iter(torch.autograd.grad(plain_loss(meta, tasks, 3, weights), learned))
    want = {p: {n: next(grads) for n in meta[p]} for p in ("init", "hyper")}
    ways = ["loop+compile", "vmap+compile"] if compiled else ["loop", "vmap"]
    for strategy in (Adjoint(), Unroll(), Checkpointed())[: 1 if compiled else 3]:
        for batching in ways:
            assert apart(on(strategy, batching)(algo, meta, tasks)[0], want) < 1e-10, batching
