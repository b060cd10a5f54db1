"""The classes of a task are 0 to N - 1, for every algorithm and through every door."""

import re

import pytest
import torch
from torch import nn

from metalearn import Batch, Episodes, adapt, evaluate
from metalearn.algorithms import ANIL, MAML, R2D2, Metric, ProtoMAML, ProtoNet, SoftKMeans
from metalearn.classifiers import LogisticRegression
from metalearn.data import glyphs
from metalearn.episodes import FewShotEpisodes
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Checkpointed, Implicit, Truncated
from metalearn.inner import sgd
from tests.tasks import classification, network, on, task

ALGORITHMS = {
    "MAML": lambda net: MAML(net, 1),
    "ANIL": lambda net: ANIL(net, 1),
    "ProtoMAML": lambda net: ProtoMAML(net, 1),
    "ProtoNet": ProtoNet,
    "R2D2": R2D2,
    "SoftKMeans": SoftKMeans,
    "Metric": lambda net: Metric(net, LogisticRegression()),
}


def net() -> nn.Module:
    """As many outputs as any of the numbers below."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 9))


def renumbered(numbers: tuple[int, ...], of: tuple[str, ...] = ("support", "query")) -> Episodes:
    """Episodes whose classes 0, 1, 2 are called otherwise."""
    episodes, names = classification(shape=(4,)), torch.tensor(numbers)
    parts = {name: getattr(episodes, name) for name in of}
    return episodes._replace(**{n: part._replace(y=names[part.y]) for n, part in parts.items()})


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 2, 4), (-1, 0, 1), (0, 1, 10**9)], ids=str)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_rule(name, numbers):
    algo = ALGORITHMS[name](network(net))
    meta, episodes = algo.init(), renumbered(numbers)
    told = ", ".join(map(str, numbers))
    line = f"the support set of task 0 has the classes {told}; number those of a task from 0 on"
    for act in (
        lambda: Adjoint()(algo, meta, episodes),
        lambda: on(Adjoint(), "vmap")(algo, meta, episodes),
        lambda: evaluate(algo, meta, episodes),
        lambda: adapt(algo, meta, task(episodes, 0).support),
    ):
        with pytest.raises(UsageError, match=re.escape(line)):
            act()


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("lost", [2, 7, -1])
def test_a_query_class_needs_a_support_example(name, lost):
    algo = ALGORITHMS[name](network(net))
    episodes = classification(shape=(4,), ways=2)
    episodes.query.y[1, 3] = lost
    with pytest.raises(UsageError, match=f"class {lost} of the queries of task 1 has no support"):
        evaluate(algo, algo.init(), episodes)


def test_a_classifier_that_was_told_fewer_classes_refuses_the_task():
    episodes = classification(shape=(4,))
    few, enough = (Metric(network(net), LogisticRegression(ways=n)) for n in (2, 3))
    assert evaluate(enough, enough.init(), episodes)
    line = "task 0 has 3 classes, more than the classifier's ways=2; use ways=3"
    for act in (
        lambda: Adjoint()(few, few.init(), episodes),
        lambda: evaluate(few, few.init(), episodes),
    ):
        with pytest.raises(UsageError, match=re.escape(line)):
            act()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_order_padding_and_type_do_not_matter(dtype):
    episodes = classification(shape=(4,))
    want, _ = Adjoint()(algo := MAML(network(net), 1), algo.init(), episodes)

    def padded(batch: Batch) -> Batch:
        y = torch.cat([batch.y, torch.full((3, 1), 77)], 1).to(dtype)
        x = torch.cat([batch.x, batch.x[:, :1]], 1)
        return Batch(x, y.where(y != 77, 0), torch.ones(y.shape).double().index_fill(1, last, 0))

    last = torch.tensor([episodes.support.y.shape[1]])
    support = padded(episodes.support)
    got, _ = Adjoint()(algo, algo.init(), episodes._replace(support=support))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_whole_numbers_are_a_loss_of_ones_own_to_read():
    """Counts are no classes: nothing is asked of them."""

    def poisson(outputs, batch):
        loss = (outputs[:, 0].exp() - batch.y * outputs[:, 0]).mean()
        return loss, {"loss": loss.detach()}

    algo = MAML(network(net), 1, loss=poisson)
    _, metrics = Adjoint()(algo, algo.init(), renumbered((4, 9, 30)))
    assert metrics["loss"].isfinite().all()


def test_under_a_transform_there_are_no_values_to_look_at():
    algo = MAML(network(net), 1)
    support = classification(shape=(4,)).support
    fast = torch.func.vmap(lambda x, y: adapt(algo, algo.init(), Batch(x, y)))(*support[:2])
    alone = adapt(algo, algo.init(), support.map(lambda t: t[1]))
    for name, weight in alone.items():
        torch.testing.assert_close(fast[name][1], weight)


@pytest.mark.parametrize("steps", [1.5, 1.0, -1, "2", True, None], ids=str)
def test_steps_are_whole(steps):
    module, episodes = network(net), classification(shape=(4,))
    algo = MAML(module, 1)
    meta = algo.init()
    acts = [
        lambda: MAML(module, steps),
        lambda: ProtoMAML(module, steps),
        lambda: Implicit(iterations=steps),
        lambda: Truncated(steps),
        lambda: sgd(0.1, batch_size=steps),
        lambda: FewShotEpisodes(glyphs(classes=24, size=8), steps, 1, 1),
        lambda: evaluate(algo, meta, episodes, steps),
        lambda: adapt(algo, meta, task(episodes, 0).support, steps),
    ]
    for act in acts if steps is not None else acts[:4]:
        with pytest.raises(UsageError, match=f"={steps} must be (a whole number|[01] or more)"):
            act()


class Lost(MAML):
    """Its `begin` forgets to return."""

    def begin(self, meta, given):
        super().begin(meta, given)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("strategy", [Adjoint(), Checkpointed(), Truncated(1)], ids=str)
def test_a_begin_that_returns_nothing_is_named(strategy, steps):
    algo = Lost(network(net), steps)
    for act in (
        lambda: strategy(algo, algo.init(), classification(shape=(4,))),
        lambda: on(strategy, "vmap")(algo, algo.init(), classification(shape=(4,))),
        lambda: evaluate(algo, algo.init(), classification(shape=(4,))),
    ):
        with pytest.raises(UsageError, match="Lost.begin returned NoneType; return the fast"):
            act()
