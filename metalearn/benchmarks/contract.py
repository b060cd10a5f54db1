"""The contract of an algorithm as a function, for authors elsewhere and for `metalearn score`."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from metalearn.engine import Engine
from metalearn.engine.task import tasks_of
from metalearn.functional.norms import BatchNorm
from metalearn.gradients import Adjoint, Displacement, Implicit, Unroll
from metalearn.inner.loop import adapt
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Batch, Episodes, Meta, MetaGradients

WAYS, FEATURES = 3, 8
_STRATEGIES = {"exact": Unroll(), "implicit": Implicit(), "displacement": Displacement()}


def network(outputs: bool) -> nn.Sequential:
    """From `[B, 4]` to logits `[B, 3]`, or to features `[B, 8]`; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = [nn.Linear(4, 6), BatchNorm(6, "support"), nn.Tanh(), nn.Linear(6, FEATURES)]
        head = [nn.Linear(FEATURES, WAYS)] if outputs else []
        return nn.Sequential(*body, *head).double()


def contract(build: Callable[[nn.Module], MetaAlgorithm], outputs: bool = True) -> list[str]:
    """What an algorithm does not keep to, a line each; empty where it keeps all.

    build: makes it from a network. outputs: whether that has logits `[B, 3]`, or gives features
    `[B, 8]`. In float64, on three random tasks of two shots.
    """
    algo, (tasks, broken) = build(network(outputs)), (episodes(3), list[str]())
    meta = algo.init()

    def point(what: str, kept: bool) -> None:
        if not kept:
            broken.append(what)

    how = _STRATEGIES.get(algo.kinds[0], Unroll())
    looped, measured = Engine("loop")(how, algo, meta, tasks)
    point("two calls are equal", apart(Engine("loop")(how, algo, meta, tasks)[0], looped) == 0)
    point("vmap equals the loop", apart(Engine("vmap")(how, algo, meta, tasks)[0], looped) < 1e-10)
    one = Engine("loop")(how, algo, meta, tasks.map(lambda t: t[1:2]))[1]
    point("a task alone is as in a batch", _same(one["loss"][0], measured["loss"][1]))
    filled = Episodes(padded(tasks.support), padded(tasks.query))
    point(
        "padding of weight 0 has no part",
        apart(Engine("loop")(how, algo, meta, filled)[0], looped) < 1e-9,
    )
    if algo.kinds[0] == "exact":
        other = Engine("loop")(Adjoint(), algo, meta, tasks)[0]
        point("the adjoint is the unrolled gradient", apart(other, looped) < 1e-10)
        point(
            "the gradient is that of finite differences", _by_differences(algo, meta, tasks, looped)
        )
    noise = tasks.query._replace(y=tasks.query.y.roll(1, 1))
    blind = answers(algo, meta, tasks._replace(query=noise))
    point("labels of queries reach no answer", torch.equal(answers(algo, meta, tasks), blind))
    turned = tasks._replace(support=tasks.support.map(lambda t: t.flip(1)))
    if not algo.steps or algo.rule.batch_size is None:
        point("the order of the support set changes nothing",
              _same(answers(algo, meta, turned), answers(algo, meta, tasks)))  # fmt: skip
    return broken


def episodes(tasks: int) -> Episodes:
    """T tasks of 3 ways, 2 shots and 5 queries: noise around each class's centre."""
    g = torch.Generator().manual_seed(0)
    support = torch.arange(WAYS).repeat(tasks, 2)
    query = torch.randint(WAYS, (tasks, 5), generator=g)
    centres = torch.randn(tasks, WAYS, 4, generator=g, dtype=torch.float64)

    def batch(y: Tensor) -> Batch:
        x = centres.gather(1, y.unsqueeze(2).expand(*y.shape, 4))
        return Batch(x + torch.randn(x.shape, generator=g, dtype=torch.float64), y)

    return Episodes(batch(support), batch(query))


def padded(batch: Batch) -> Batch:
    """Two examples more, loud and of weight 0."""
    weight = torch.ones_like(batch.x[:, :, 0])
    return Batch(
        torch.cat([batch.x, 50 + batch.x[:, :2]], 1),
        torch.cat([batch.y, batch.y[:, :2]], 1),
        torch.cat([weight, 0 * weight[:, :2]], 1),
    )


def answers(algo: MetaAlgorithm, meta: Meta, tasks: Episodes) -> Tensor:
    """The predictions for the queries of every task."""
    found = []
    for t in range(tasks.tasks):
        one = tasks_of(algo, tasks).at(t)
        found.append(algo.predict(meta, adapt(algo, meta, one.given), one.query.x))
    return torch.stack(found)


def apart(a: MetaGradients, b: MetaGradients) -> float:
    """|a - b| / |b| over everything that is learned."""
    pairs = [(a[part][n], b[part][n]) for part in ("init", "hyper") for n in b[part]]
    off = torch.stack([(x - y).square().sum() for x, y in pairs]).sum()
    return float((off / torch.stack([y.square().sum() for _, y in pairs]).sum()).sqrt())


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-8, atol=1e-10)


def _by_differences(
    algo: MetaAlgorithm, meta: Meta, tasks: Episodes, gradient: MetaGradients
) -> bool:
    g, parts = torch.Generator().manual_seed(1), ("init", "hyper")
    along = {
        p: {n: torch.randn(t.shape, generator=g).to(t) for n, t in meta[p].items()} for p in parts
    }

    def loss(size: float) -> Tensor:
        there = copy.copy(meta)
        for p in parts:
            there[p] = {n: t + size * along[p][n] for n, t in meta[p].items()}
        given = [tasks_of(algo, tasks).at(t) for t in range(tasks.tasks)]
        ends = [
            algo.outer_loss(there, adapt(algo, there, one.given), one.query)[0] for one in given
        ]
        return torch.stack(ends).mean()

    if algo.step_weights(meta) is not None:
        return True  # the weighted sum is the strategies', and tested there
    quotient = (loss(1e-6) - loss(-1e-6)) / 2e-6
    product = torch.stack(
        [(gradient[p][n] * along[p][n]).sum() for p in parts for n in meta[p]]
    ).sum()
    return bool((quotient - product).abs() <= 1e-4 * product.abs() + 1e-7)
