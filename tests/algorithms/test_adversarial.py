"""The attack's gradient for the pixels, through fast weights, against float64 autograd; adversarial
querying against a task loop on queries that were attacked by hand."""

import functools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metalearn import gradients
from metalearn.algorithms import MAML, ProtoNet
from metalearn.algorithms.adversarial import PGD, AdversarialQuerying
from metalearn.backbones import Conv4
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.evaluation import evaluate
from metalearn.inner import sgd
from metalearn.inner.loop import adapt
from metalearn.types import Batch, Episodes, Given
from tests.command import FAST, metalearn
from tests.gradients import reference
from tests.tasks import apart, classification, network

SIZE, EPSILON, STEPS = 0.02, 0.05, 3


def images() -> Episodes:
    """In [0, 1]."""
    return classification(tasks=2).map(lambda t: t.sigmoid() if t.is_floating_point() else t)


def plain_attack(net, fast, x, y) -> torch.Tensor:
    """By hand, from the image itself."""
    x0, x = x, x.clone()
    for _ in range(STEPS):
        x.requires_grad_()
        loss = F.cross_entropy(reference.call(net, fast, x), y)
        slope = torch.autograd.grad(loss, x)[0]
        x = x.detach() + SIZE * slope.sign()
        x = torch.minimum(torch.maximum(x, x0 - EPSILON), x0 + EPSILON).clamp(0, 1)
    return x


@functools.cache
def problem(norm: str = "group"):
    net = network(lambda: Conv4(3, filters=4, size=16, norm=norm))
    plain = reference.PlainConv4(norm, "pool", 3, 4).double()
    plain.load_state_dict(net.state_dict())
    algo = MAML(net, 2, sgd(reference.RATE))
    episodes, attacked = images(), []
    init = {n: p.detach().requires_grad_() for n, p in plain.named_parameters()}
    for t in range(2):
        support = episodes.support.x[t], episodes.support.y[t]
        fast = reference.adapted(
            plain,
            init,
            {},
            support,
            2,
            reference.fixed,
            lambda _: True,
            F.cross_entropy,
            False,
            None,
        )
        fast = {n: w.detach() for n, w in fast.items()}
        attacked.append(plain_attack(plain, fast, episodes.query.x[t], episodes.query.y[t]))
    found = episodes._replace(query=episodes.query._replace(x=torch.stack(attacked)))
    return algo, plain, episodes, found


ATTACK = PGD(EPSILON, STEPS, SIZE, start="natural")


@pytest.mark.parametrize("norm", ["group", "transductive"])
def test_pixels_move_along_the_gradient_through_the_adapted_network(norm: str) -> None:
    algo, _, episodes, want = problem(norm)
    meta = algo.init()
    for t in range(2):
        support, query = (part.map(lambda x, t=t: x[t]) for part in episodes.parts)
        fast = adapt(algo, meta, Given(support))
        got = ATTACK(algo, meta, fast, query)
        torch.testing.assert_close(got.x, want.query.x[t], rtol=0, atol=1e-12)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_meta_gradient_is_that_of_the_attacked_queries(batching: str) -> None:
    algo, plain, episodes, attacked = problem()
    judged = AdversarialQuerying(algo, ATTACK)
    want = reference.meta_gradient(plain, {}, attacked, 2)
    for strategy in (gradients.Adjoint(), gradients.Unroll()):
        got, metrics = Engine(batching)(strategy, judged, algo.init(), episodes)
        assert apart(got, want) < 1e-10
    assert (metrics["robust_loss"] > metrics["loss"]).all()
    none, _ = Engine(batching)(gradients.Unroll(), algo, algo.init(), episodes)
    assert apart(got, none) > 1e-3


def test_what_is_normalised_moves_by_pixels() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    algo = ProtoNet(network(lambda: Conv4(None, channels=3, filters=4, size=16, norm="group")))
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    centre, scale = (torch.tensor(t, dtype=torch.float64).view(-1, 1, 1) for t in (mean, std))
    batch = Batch((x - centre) / scale, torch.arange(6) % 3)
    fast = adapt(algo, algo.init(), batch)
    for start in ("random", "natural"):
        attack = PGD(EPSILON, STEPS, start=start, mean=mean, std=std)
        got = attack(algo, algo.init(), fast, batch).x * scale + centre
        assert (got - x).abs().max() == pytest.approx(EPSILON, abs=1e-6)
        assert got.min() > -1e-9 and got.max() < 1 + 1e-9
    assert attack.step == pytest.approx(2.5 * EPSILON / STEPS)


def test_evaluation_has_both_accuracies() -> None:
    algo, _, episodes, _ = problem()
    report = evaluate(AdversarialQuerying(algo, ATTACK), algo.init(), episodes, steps=1)
    natural = evaluate(algo, algo.init(), episodes, steps=1)
    assert (report.by_step["accuracy"] == natural.by_step["accuracy"]).all()
    assert report.interval("robust_accuracy").mean <= report.accuracy.mean


def test_a_run_trains_and_tells_both(workplace: Path) -> None:
    asked = ["algorithm=anil", "adversarial=pgd", "adversarial.steps=1", "augmentation=augmix"]
    assert metalearn("train", *asked, *FAST, "run_dir=run").code == 0
    result = json.loads((workplace / "run" / "result.json").read_text(encoding="utf-8"))
    assert 0 <= result["robust_accuracy"] <= result["accuracy"]


@pytest.mark.parametrize(
    "given, told",
    [
        ({"steps": 0}, "adversarial.steps=0 must be"),
        ({"epsilon": 0.0}, "adversarial.epsilon=0.0 must be above 0, and 1 or less"),
        ({"epsilon": 8.0}, "adversarial.epsilon=8.0 must be above 0, and 1 or less"),
        ({"start": "zero"}, "adversarial.start=zero is not known; use random or natural"),
    ],
)
def test_mistakes_are_one_line(given: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        PGD(**given)


def test_curves_cannot_be_attacked(workplace: Path) -> None:
    asked = ["dataset=sinusoid", "loss=mean_squared", "adversarial=pgd"]
    told = "adversarial is of images with classes; use adversarial=null"
    assert metalearn("train", *asked).mistake == told
