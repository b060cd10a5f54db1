"""What every algorithm keeps to whatever the episodes: unequal tasks in one batch, the order of the
support set, numbers of classes, labels of queries, weights of steps; and that it learns."""

import pytest
import torch
from torch import nn

from metalearn import Batch, Episodes, adapt, evaluate
from metalearn.engine import Engine
from metalearn.engine.task import tasks_of
from metalearn.gradients import Adjoint, Checkpointed, Displacement, Unroll
from metalearn.training import Outer, meta_step
from metalearn.types import Given
from tests.algorithms.test_contract import ALGORITHMS, WAYS, net
from tests.tasks import apart, classification, generator, network, on, task

SIZES = ((3, 2, 5), (2, 3, 3), (3, 1, 4))
"""Ways, shots and queries of each task."""
IN_ORDER = ("Reptile",)  # its minibatches are the support examples in their order
BY_NUMBER = ("MeTAL",)  # its loss sees the mean output of each class


@pytest.fixture(params=ALGORITHMS)
def name(request) -> str:
    return request.param


@pytest.fixture
def algo(name):
    return ALGORITHMS[name](network(net))


def strategy(algo):
    return Unroll() if "exact" in algo.kinds else Displacement()


def padded(batches: list[Batch]) -> Batch:
    """One batch of all, filled with loud noise of weight 0."""
    size, rows, g = max(b.x.shape[1] for b in batches), [], generator(9)
    for batch in batches:
        x, y, count = batch.x[0], batch.y[0], batch.x.shape[1]
        noise = 50 * torch.randn(size - count, 4, generator=g, dtype=torch.float64)
        labels = torch.randint(WAYS, (size - count,), generator=g)
        weight = (torch.arange(size) < count).double()
        rows.append((torch.cat([x, noise]), torch.cat([y, labels]), weight))
    return Batch(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def test_tasks_of_unequal_ways_and_shots_share_a_batch_and_padding_has_no_part(algo):
    alone = [classification(1, *size, (4,), seed=t) for t, size in enumerate(SIZES)]
    meta = algo.init()
    found = [on(strategy(algo), "loop")(algo, meta, one) for one in alone]
    want = {p: {n: sum(g[p][n] for g, _ in found) / 3 for n in meta[p]} for p in ("init", "hyper")}
    together = Episodes(padded([t.support for t in alone]), padded([t.query for t in alone]))
    got, metrics = on(strategy(algo), "vmap")(algo, meta, together)
    assert apart(got, want) < 1e-10
    for key, value in metrics.items():
        torch.testing.assert_close(value, torch.cat([m[key] for _, m in found]))


def answers(algo, meta, support, query):
    unlabelled = query._replace(y=torch.zeros_like(query.y)) if algo.transductive else None
    return algo.predict(meta, adapt(algo, meta, Given(support, unlabelled)), query.x)


def test_the_order_of_the_support_set_changes_nothing(algo, name):
    support, query, _ = task(classification(1, WAYS, 2, 5, (4,)), 0)
    meta, order = algo.init(), torch.tensor([3, 0, 5, 1, 4, 2])
    want = answers(algo, meta, support, query)
    got = answers(algo, meta, support.map(lambda t: t[order]), query)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12) == (name not in IN_ORDER)


def test_the_numbers_of_the_classes_change_nothing(algo, name):
    """With the rows of a head that is learned permuted alike."""
    support, query, _ = task(classification(1, WAYS, 2, 5, (4,)), 0)
    meta, other = algo.init(), torch.tensor([2, 0, 1])
    want = answers(algo, meta, support, query)
    init = dict(meta["init"])
    for n in ("4.weight", "4.bias"):
        if n in init and len(init[n]) == WAYS and want.shape[1] == WAYS:
            init[n] = init[n][torch.argsort(other)]
    got = answers(algo, {**meta, "init": init}, support._replace(y=other[support.y]), query)
    same = torch.allclose(got[:, other], want[:, :WAYS], rtol=1e-9, atol=1e-12)
    assert same or name in BY_NUMBER


def test_the_labels_of_queries_reach_nothing_before_the_answer(algo):
    tasks, meta = classification(2, WAYS, 2, 5, (4,)), algo.init()
    noise = torch.randint(1000, tasks.query.y.shape, generator=generator(1))
    blind = tasks._replace(query=tasks.query._replace(y=noise))
    for t in range(2):
        seen = [
            algo.predict(meta, adapt(algo, meta, tasks_of(algo, e).at(t).given), tasks.query.x[t])
            for e in (tasks, blind)
        ]
        torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


class Weighed:
    """`algo` with a weight for the query loss of every step."""

    def __init__(self, algo):
        self.algo = algo

    def __getattr__(self, name):
        return getattr(self.algo, name)

    def step_weights(self, meta):
        return torch.linspace(0.5, 1.5, self.steps + 1, dtype=torch.float64)

    def on_features(self):
        return None


def test_steps_are_weighed_in_every_strategy(algo, name):
    if "exact" not in algo.kinds or name == "MAMLpp":  # whose own weights have a test
        return
    algo, tasks = Weighed(algo), classification(2, WAYS, 2, 5, (4,))
    meta = algo.init()
    learned = [t.requires_grad_() for p in ("init", "hyper") for t in meta[p].values()]
    weights, total = algo.step_weights(meta), 0
    for t in range(2):
        one = tasks_of(algo, tasks).at(t)
        for k in range(algo.steps + 1):
            fast = adapt(algo, meta, one.given, steps=k)
            total = total + weights[k] * algo.outer_loss(meta, fast, one.query)[0] / 2
    found = torch.autograd.grad(total, learned, allow_unused=True, materialize_grads=True)
    grads = iter(found)
    want = {p: {n: next(grads) for n in meta[p]} for p in ("init", "hyper")}
    for exact, batching in ((Adjoint(), "vmap"), (Unroll(), "loop"), (Checkpointed(), "loop")):
        assert apart(on(exact, batching)(algo, meta, tasks)[0], want) < 1e-10, exact


def test_it_learns_a_toy_family_in_twenty_meta_steps(name):
    """Classes are directions in the plane that the network has to find among noise."""
    torch.manual_seed(0)
    algo, g = ALGORITHMS[name](nn.Sequential(*net().children())), generator(5)

    def episodes(count: int) -> Episodes:
        centres = torch.randn(count, WAYS, 4, generator=g) * torch.tensor([2.0, 2.0, 0.0, 0.0])
        y = torch.arange(WAYS).repeat(count, 5)
        x = centres.gather(1, y.unsqueeze(2).expand(*y.shape, 4))
        x = x + torch.randn(x.shape, generator=g) * torch.tensor([0.3, 0.3, 2.0, 2.0])
        return Episodes(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))

    meta, test, engine = algo.init(), episodes(60), Engine("vmap")
    outer = Outer(meta, lambda tensors: torch.optim.Adam(tensors, 0.02))
    how = strategy(algo)
    before = evaluate(algo, meta, test, engine=engine).accuracy.mean
    for _ in range(20):
        meta_step(engine, how, algo, outer, meta, episodes(4))
    accuracy = evaluate(algo, meta, test, engine=engine).accuracy
    assert accuracy.mean - accuracy.half_width > 1 / WAYS and accuracy.mean > before + 0.05
