"""Where the head alone adapts, the body is computed once, and nothing else changes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metalearn import Batch, Episodes, evaluate
from metalearn.algorithms import ANIL, MAML
from metalearn.backbones import Conv4
from metalearn.engine import Engine
from metalearn.engine.frozen_body import frozen_body
from metalearn.engine.task import tasks_of
from metalearn.gradients import Adjoint, Checkpointed, FirstOrder, Truncated, Unroll
from metalearn.inner import lslr, sgd
from tests.tasks import apart, classification, network, on, randomised

STEPS = 3


class Net(nn.Module):
    """Two layers and a head; `change` stands between the body and the head, `after` behind it."""

    def __init__(self, change: nn.Module | None = None, after: nn.Module | None = None):
        super().__init__()
        self.body = nn.Linear(256, 6)
        self.change = change or nn.Tanh()
        self.head = nn.Linear(6, 3)
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(self.change(self.body(x.flatten(1)))))


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x.flatten(1))
        return self.head(features) + self.head(features.tanh())


class Tied(Net):
    """The body reads the head's weights."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x.flatten(1))
        return self.head(features + self.head.weight.sum(0))


class Own(MAML):
    """A user's, with an inner loss of its own."""

    def inner_loss(self, meta, fast, given, step):
        return 2 * super().inner_loss(meta, fast, given, step)


def found(algo, meta, episodes):
    return frozen_body(algo, meta, tasks_of(algo, episodes))


def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no algorithm had a head."""
    monkeypatch.setattr(Engine, "body", lambda *_: None)


@pytest.mark.parametrize("strategy", [Unroll(), Adjoint(), Checkpointed(), FirstOrder()])
def test_images_pass_through_the_body_once(strategy) -> None:
    engine = Engine("loop")
    algo, episodes = ANIL(network(Net), STEPS), classification()
    meta, passed = algo.init(), []
    engine(strategy, algo, meta, episodes)  # the parts are tried once in each mode
    evaluate(algo, meta, episodes, engine=engine)
    algo.net.module.body.register_forward_hook(lambda _, x, y: passed.append(len(x[0])))
    engine(strategy, algo, meta, episodes)
    sizes = [len(part.y[0]) for part in episodes[:2]]
    assert passed == sizes * len(episodes.support.x)
    passed.clear()
    evaluate(algo, meta, episodes, engine=engine)
    assert sorted(passed) == sorted(sizes * len(episodes.support.x))


NOT_DIVIDED: dict[str, Callable[[], MAML]] = {
    "something behind the head": lambda: ANIL(Net(after=nn.LogSoftmax(1)), STEPS),
    "the head called twice": lambda: ANIL(Twice(), STEPS, head="head"),
    "a body that reads the head": lambda: ANIL(Tied(), STEPS),
    "dropout": lambda: ANIL(Net(nn.Dropout(0.5)), STEPS),
    "more than the head": lambda: MAML(
        Net(), STEPS, adapting=["body.bias", "head.weight", "head.bias"]
    ),
    "all of it": lambda: MAML(Net(), STEPS),
    "inner minibatches": lambda: ANIL(Net(), STEPS, sgd(0.1, batch_size=2)),
    "a subclass": lambda: Own(Net(), STEPS, adapting=["head.weight", "head.bias"]),
    "no body": lambda: ANIL(nn.Linear(256, 3), STEPS),
}


@pytest.mark.parametrize("what", NOT_DIVIDED)
def test_what_is_not_divided(what: str) -> None:
    algo, episodes = NOT_DIVIDED[what](), classification().map(_single)
    if what == "no body":
        episodes = Episodes(*(part._replace(x=part.x.flatten(2)) for part in episodes[:2]))
    assert found(algo, algo.init(), episodes) is None


def test_dropout_that_is_off_is_no_obstacle_and_that_is_not_kept_for_when_it_is_on() -> None:
    algo, episodes = ANIL(Net(nn.Dropout(0.5)), STEPS), classification().map(_single)
    meta = algo.init()
    with algo.net.evaluating():
        assert found(algo, meta, episodes) is not None
    assert found(algo, meta, episodes) is None


def _single(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() else t


def test_a_head_that_adapts_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    algo, episodes = MAML(network(Net), STEPS, adapting=["head.bias"]), classification()
    meta = algo.init()
    meta["init"] = randomised(meta["init"])  # not what the module holds
    assert found(algo, meta, episodes) is not None
    got = [strategy(algo, meta, episodes)[0] for strategy in (Unroll(), on(Adjoint(), "vmap"))]
    losses = evaluate(algo, meta, episodes).by_step["loss"]
    whole(monkeypatch)
    want, _ = Unroll()(algo, meta, episodes)
    assert all(apart(gradient, want) < 1e-12 for gradient in got)
    assert abs(losses - evaluate(algo, meta, episodes).by_step["loss"]).max() < 1e-12


@pytest.mark.parametrize("norm", ["transductive", "support", "running"])
@pytest.mark.parametrize("rule", [sgd(0.1), lslr(0.1)])
def test_evaluation_is_the_same(norm: str, rule, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(lambda: Conv4(3, filters=4, size=16, norm=norm))
    algo, episodes = ANIL(net, STEPS, rule), classification()
    meta = algo.init()
    assert found(algo, meta, episodes) is not None
    got = [
        evaluate(algo, meta, episodes, engine=Engine(b)).by_step["loss"] for b in ("loop", "vmap")
    ]
    whole(monkeypatch)
    want = evaluate(algo, meta, episodes, engine=Engine("loop")).by_step["loss"]
    for losses in got:
        assert abs(losses - want).max() < 1e-12


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-all", "fp16"])
@pytest.mark.parametrize("strategy", [Unroll, Adjoint, FirstOrder])
def test_precisions(strategy, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(lambda: Conv4(3, filters=4, size=16)).float()
    algo, episodes = ANIL(net, STEPS), classification().map(_single)
    meta = algo.init()
    assert found(algo, meta, episodes) is not None
    got, metrics = on(strategy(), precision=precision)(algo, meta, episodes)
    whole(monkeypatch)
    want, expected = on(strategy(), precision=precision)(algo, meta, episodes)
    # The support features' gradient is summed over steps before it is rounded, not after.
    close = {"fp32": 1e-5, "fp16": 5e-3}.get(precision, 3e-2)
    assert apart(got, want) < close
    assert torch.equal(metrics["loss"], expected["loss"])


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(on(Unroll(), "loop+compile"), marks=pytest.mark.slow),
        pytest.param(on(Adjoint(), "vmap+compile+whole"), marks=pytest.mark.slow),
        pytest.param(on(Adjoint(), "loop+compile+forward_over_reverse"), marks=pytest.mark.slow),
        on(Truncated(2), "vmap"),
    ],
)  # fmt: skip
def test_however_it_is_run(strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    algo, episodes = ANIL(network(Net), STEPS), classification()
    meta = algo.init()
    got, _ = strategy(algo, meta, episodes)
    whole(monkeypatch)
    want, _ = strategy.args[0](algo, meta, episodes)
    assert apart(got, want) < 1e-12


def test_padding_and_a_frozen_body() -> None:
    net = network(Net)
    net.body.requires_grad_(False)
    algo, (support, query) = ANIL(net, STEPS), classification()[:2]
    meta = algo.init()
    assert found(algo, meta, Episodes(support, query)) is not None
    want, _ = Adjoint()(algo, meta, Episodes(support, query))

    def padded(batch: Batch) -> Batch:
        x, y = (torch.cat([t, t[:, :2]], 1) for t in batch[:2])
        weight = torch.ones(y.shape, dtype=x.dtype)
        weight[:, -2:] = 0
        return Batch(x, y, weight)

    got, _ = Adjoint()(algo, meta, Episodes(padded(support), padded(query)))
    assert set(got["init"]) == {"head.weight", "head.bias"}
    assert apart(got, want) < 1e-12
