"""Every classifier meta-trained with a network: its gradient, and what 20 steps teach it."""

import pytest
import torch
from torch import Tensor, nn

from metalearn import Batch, Episodes, evaluate
from metalearn.algorithms import Metric
from metalearn.classifiers import Relation
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.gradients import Unroll
from metalearn.training import Outer, meta_step
from tests.classifiers.test_contract import CLASSIFIERS, SIZE
from tests.tasks import apart, classification, generator, network, on, task

WAYS = 3
ONE_OF_EACH = sorted({name.partition("-")[0] for name in CLASSIFIERS} | {"Matching-full-context"})


def net() -> nn.Module:
    return network(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, SIZE)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_meta_gradient_is_that_of_a_plain_loop(name: str) -> None:
    classifier, module, tasks = CLASSIFIERS[name], net(), classification(2, WAYS, 2, 5, (4,))
    algo = Metric(module, classifier, features=SIZE)
    meta = algo.init()
    hyper = {n: t.clone().requires_grad_() for n, t in meta["hyper"].items()}
    losses = []
    for number in range(2):
        support, query, _ = task(tasks, number)
        given = support._replace(x=module(support.x))
        seen = module(query.x)
        rest = query._replace(x=seen) if classifier.transductive else None
        logits = classifier.logits(hyper, classifier.fit(hyper, given, rest), seen)
        losses.append(nn.functional.cross_entropy(logits, query.y))
    learned = {**dict(module.named_parameters()), **hyper}
    values = torch.autograd.grad(
        torch.stack(losses).mean(), list(learned.values()), allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    grads = dict(zip(learned, values, strict=True))
    want = {part: {n: grads[n] for n in meta[part]} for part in ("init", "hyper")}
    if not any(t.any() for t in want["hyper"].values()):
        want["hyper"] = {}
    for batching in ("loop", "vmap"):
        got, _ = on(Unroll(), batching)(algo, meta, tasks)
        if not want["hyper"]:
            assert not any(t.any() for t in got["hyper"].values())
            got = {**got, "hyper": {}}
        assert apart(got, want) < 1e-9, batching


def toy(tasks: int, seed: int) -> Episodes:
    """Classes around random places in the first two of four dimensions; the rest is noise."""
    g = generator(seed)
    places = 2 * torch.randn(tasks, WAYS, 4, generator=g) * torch.tensor([1, 1, 0, 0])

    def batch(each: int) -> Batch:
        y = torch.arange(WAYS).repeat(tasks, each)
        noise = torch.randn(tasks, WAYS * each, 4, generator=g) * torch.tensor([0.3, 0.3, 2, 2])
        return Batch(places.gather(1, y.unsqueeze(2).expand(-1, -1, 4)) + noise, y)

    return Episodes(batch(2), batch(4))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_twenty_steps_take_it_above_chance_and_repeat(name: str) -> None:
    classifier = Relation(width=32, ways=WAYS) if name == "Relation" else CLASSIFIERS[name]

    def trained(steps: int) -> tuple[list[Tensor], float]:
        module = network(lambda: nn.Linear(4, SIZE), dtype=torch.float32)
        algo = Metric(module, classifier, features=SIZE)
        meta, weights = algo.init(), list[Tensor]()
        outer = Outer(meta, lambda tensors: torch.optim.Adam(tensors, 0.05))
        for step in range(steps):
            meta_step(Engine("vmap"), Unroll(), algo, outer, meta, toy(8, step))
            weights.append(torch.cat([t.flatten() for t in meta["init"].values()]).clone())
        return weights, evaluate(algo, meta, toy(64, 99), engine=Engine("vmap")).accuracy.mean

    weights, accuracy = trained(20)
    assert accuracy > 0.6
    for again, first in zip(trained(3)[0], weights, strict=False):
        torch.testing.assert_close(again, first, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["FEAT", "Matching-full-context", "Relation"])
def test_weights_for_features_need_their_number(name: str) -> None:
    with pytest.raises(UsageError, match=r"learns weights for D features; give Metric\(features=D"):
        Metric(net(), CLASSIFIERS[name]).init()
