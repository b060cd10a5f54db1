"""MAML++ (Antoniou, Edwards, Storkey 2019) as a researcher would write it, on the public protocol:
learned rates per layer and step, the query loss of every step with annealed weights, and batch norm
with statistics and weights of its own for each step; held to a plain float64 loop."""

import shutil
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.losses import cross_entropy
from metalearn.functional import PureModule, pure
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from metalearn.inner import InnerRule, at_step, lslr
from metalearn.types import META_STEP, Meta
from tests.tasks import apart, classification, network, on, randomised

ANNEALED, NORMS = 10, ("1.weight", "1.bias")


@dataclass(eq=False)
class MAMLPlusPlus:
    module: nn.Module
    steps: int
    rule: InnerRule = field(default_factory=lambda: lslr(0.1))
    kinds = ("exact", "truncated")
    transductive = False

    def __post_init__(self) -> None:
        self.net: PureModule = pure(self.module)

    def init(self) -> Meta:
        init = {n: t.clone() for n, t in self.net.params.items() if n not in NORMS}
        each = {n: self.net.params[n].expand(self.steps + 1, -1).clone() for n in NORMS}
        hyper = {**self.rule.hyper(init, self.steps), **each}  # [K + 1, C]: norm weights by step
        return Meta(init=init, hyper=hyper, buffers={META_STEP: torch.tensor(0.0)})

    def begin(self, meta, given):
        return meta["init"]

    def norms(self, meta, step):
        return {n: at_step(meta["hyper"][n], step) for n in NORMS}

    def inner_loss(self, meta, fast, given, step):
        x, _, weight = given.support  # batch norm takes the statistics of this very pass
        logits = self.net.apply({**fast, **self.norms(meta, step)}, x, weight)
        return cross_entropy(logits, given.support)[0]

    def finish(self, meta, fast, given, step):
        return {**fast, **self.norms(meta, step)}

    def outer_loss(self, meta, fast, query):
        return cross_entropy(self.net.apply(fast, query.x, query.weight), query)

    def step_weights(self, meta) -> Tensor:  # from equal shares to the last step's alone
        share = (1 - meta["buffers"][META_STEP] / ANNEALED).clamp(min=0) / self.steps
        return torch.cat([share.new_zeros(1), share.expand(self.steps - 1),
                          (1 - share * (self.steps - 1)).view(1)])  # fmt: skip

    def predict(self, meta, fast, x):
        return self.net.apply(fast, x)


def plain_loss(meta, tasks, steps, weights) -> Tensor:
    def logits(fast, k, x):
        moments = (x := F.conv2d(x, fast["0.weight"], fast["0.bias"])).var_mean((0, 2, 3), False)
        x = (x - moments[1].view(1, -1, 1, 1)) / (moments[0].view(1, -1, 1, 1) + 1e-5).sqrt()
        weight, bias = (meta["hyper"][n][k].view(1, -1, 1, 1) for n in NORMS)
        return F.linear(torch.tanh(x * weight + bias).flatten(1), fast["4.weight"], fast["4.bias"])

    total = torch.zeros((), dtype=torch.float64)
    for x, y, qx, qy in zip(*tasks.support[:2], *tasks.query[:2], strict=True):
        fast = dict(meta["init"])
        for k in range(steps):
            loss = F.cross_entropy(logits(fast, k, x), y)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            rates = {n: meta["hyper"][f"rate.{n.partition('.')[0]}"][k] for n in fast}
            fast = {n: w - rates[n] * g for (n, w), g in zip(fast.items(), grads, strict=True)}
            query = F.cross_entropy(logits(fast, k + 1, qx), qy)
            total = total + weights[k + 1] * query / len(tasks.query.y)
    return total


@pytest.mark.parametrize("meta_step, weights", [(0, [0, 1 / 3, 1 / 3, 1 / 3]), (99, [0, 0, 0, 1])])
def test_its_meta_gradient_is_that_of_the_plain_loop(meta_step, weights):
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)]
    algo = MAMLPlusPlus(network(lambda: nn.Sequential(*layers)), 3)
    tasks, meta = classification(shape=(1, 4, 4)), algo.init()
    meta["buffers"][META_STEP] += meta_step
    meta["hyper"] = randomised(meta["hyper"])
    learned = [t.requires_grad_() for part in ("init", "hyper") for t in meta[part].values()]
    grads = iter(torch.autograd.grad(plain_loss(meta, tasks, 3, weights), learned))
    want = {p: {n: next(grads) for n in meta[p]} for p in ("init", "hyper")}
    compiled = ["loop+compile", "vmap+compile"] if shutil.which("g++") else []
    for strategy in (Adjoint(), Unroll(), Checkpointed()):
        for batching in ("loop", "vmap", *(compiled if strategy == Adjoint() else [])):
            assert apart(on(strategy, batching)(algo, meta, tasks)[0], want) < 1e-10, batching
