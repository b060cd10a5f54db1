"""A user's own algorithm, a plain class: neither hashable nor weakly referenceable, with inputs and
targets that are dicts, or with a look at the queries' inputs."""

import shutil
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import adapt, evaluate, tree
from metalearn.algorithms import MAML
from metalearn.algorithms.losses import mean
from metalearn.engine import Engine
from metalearn.engine.plan import Plan
from metalearn.engine.task import tasks_of
from metalearn.errors import UsageError
from metalearn.functional import pure
from metalearn.gradients import Adjoint, Checkpointed, FirstOrder, Unroll
from metalearn.inner import sgd
from metalearn.training import Outer, meta_step
from metalearn.types import Batch, Episodes, Given, Meta
from tests.spread import spread
from tests.tasks import apart, generator, network, on

STEPS = 2


class TwoInputs(nn.Module):
    """Tokens and a mask to scores and a size."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.score = nn.Linear(5, 3)
        self.size = nn.Linear(5, 1)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = inputs["mask"].unsqueeze(-1).to(self.embed.weight.dtype)
        pooled = (self.embed(inputs["ids"]) * mask).sum(1) / mask.sum(1)
        return {"score": self.score(pooled), "size": self.size(pooled).squeeze(1)}


class Own:
    """Everything adapts; a class and a size are predicted."""

    __slots__ = ("kinds", "net", "rule", "steps", "transductive")
    __hash__ = None

    def __init__(self, module: nn.Module):
        self.net, self.steps, self.rule = pure(module), STEPS, sgd(0.3)
        self.kinds, self.transductive = ("exact", "truncated"), False

    def __eq__(self, other):
        raise AssertionError("nobody compares algorithms")

    def init(self) -> Meta:
        return Meta(init=tree.clone(self.net.params), hyper={}, buffers={})

    def begin(self, meta, given):
        return meta["init"]

    def inner_loss(self, meta, fast, given, step):
        return self.outer_loss(meta, fast, given.support)[0]

    def finish(self, meta, fast, given, step):
        return fast

    def outer_loss(self, meta, fast, query):
        found = self.predict(meta, fast, query.x)
        log_p = found["score"].log_softmax(1).gather(1, query.y["label"].unsqueeze(1)).squeeze(1)
        error = (found["size"] - query.y["size"]) ** 2
        loss = mean(error - log_p, query.weight)
        return loss, {"loss": loss.detach(), "size_error": mean(error.detach(), query.weight)}

    def step_weights(self, meta):
        return None

    def predict(self, meta, fast, x):
        return self.net.apply(fast, x)


def episodes(tasks: int = 3, padded: bool = False) -> Episodes:
    g = generator()

    def batch(count: int) -> Batch:
        x = {
            "ids": torch.randint(7, (tasks, count, 4), generator=g),
            "mask": torch.arange(4) < torch.randint(1, 5, (tasks, count, 1), generator=g),
        }
        y = {
            "label": torch.randint(3, (tasks, count), generator=g),
            "size": torch.randn(tasks, count, generator=g, dtype=torch.float64),
        }
        weight = torch.ones(tasks, count, dtype=torch.float64)
        weight[:, -1] = 0
        return Batch(x, y, weight if padded else None)

    return Episodes(batch(6), batch(5))


def plain_gradient(algo: Own, meta: Meta, tasks: Episodes) -> dict:
    """A loop over tasks of the module itself, by torch.autograd.grad."""
    module = network(TwoInputs)
    init = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}

    def loss(weights, batch: Batch) -> Tensor:
        found = torch.func.functional_call(module, weights, (batch.x,))
        keep = slice(None) if batch.weight is None else batch.weight > 0
        errors = (found["size"] - batch.y["size"])[keep].square().mean()
        return F.cross_entropy(found["score"][keep], batch.y["label"][keep]) + errors

    total = torch.zeros((), dtype=torch.float64)
    for t in range(tasks.tasks):
        one, fast = tasks.map(lambda x, t=t: x[t]), dict(init)
        for _ in range(STEPS):
            grads = torch.autograd.grad(
                loss(fast, one.support), list(fast.values()), create_graph=True
            )
            fast = {n: w - 0.3 * g for (n, w), g in zip(fast.items(), grads, strict=True)}
        total = total + loss(fast, one.query) / tasks.tasks
    grads = torch.autograd.grad(total, list(init.values()))
    return {"init": dict(zip(init, grads, strict=True)), "hyper": {}}


WAYS = ["loop", "vmap", 2]
COMPILED = ["loop+compile", "vmap+compile+whole"] if shutil.which("g++") else []


@pytest.mark.parametrize(
    "padded, ways",
    [
        (False, WAYS),
        (True, WAYS),
        pytest.param(False, COMPILED[:1], marks=pytest.mark.slow, id="compiled"),
    ],
)
def test_named_inputs_and_targets_in_every_strategy_and_way_of_running(padded, ways):
    algo = Own(network(TwoInputs))
    with pytest.raises(TypeError):
        weakref.ref(algo)
    meta, tasks = algo.init(), episodes(padded=padded)
    want = plain_gradient(algo, meta, tasks)
    for strategy in (Adjoint(), Unroll(), Checkpointed()):
        for batching in ways if ways is WAYS or strategy == Adjoint() else ():
            engine = Engine(batching)
            for _ in range(2):  # the second finds what the first has made
                got, metrics = engine(strategy, algo, meta, tasks)
                assert apart(got, want) < 1e-10, (strategy, batching)
            assert set(metrics) == {"loss", "size_error"} and metrics["loss"].shape == (3,)


class Difference(nn.Module):
    """Two inputs of one shape that are not to be taken for each other."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.layer(inputs["plus"] - 0.5 * inputs["minus"])


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="no C++ compiler")
@pytest.mark.parametrize("batching, part", spread(COMPILED[::-1], ["query", "support"], share=4))
def test_what_is_compiled_knows_names_in_another_order(batching, part):
    algo, g = MAML(network(Difference), 1), generator()
    y = torch.arange(3).expand(2, 3)

    def batch() -> Batch:
        x = {n: torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for n in ("plus", "minus")}
        return Batch(x, y)

    meta, tasks, engine = algo.init(), Episodes(batch(), batch()), Engine(batching)
    want, _ = Unroll()(algo, meta, tasks)
    assert apart(engine(Adjoint(), algo, meta, tasks)[0], want) < 1e-10
    turned = getattr(tasks, part)
    turned = turned._replace(x=dict(reversed(turned.x.items())))
    other = tasks._replace(**{part: turned})
    for _ in range(2):
        assert apart(engine(Adjoint(), algo, meta, other)[0], want) < 1e-10


def test_it_is_evaluated_trained_and_tuned():
    algo, tasks = Own(network(TwoInputs)), episodes()
    meta, engine = algo.init(), Engine()
    engine.autotune(FirstOrder(), algo, meta, tasks, coming=60)  # too few to compile for
    engine = engine.with_plan(Plan(tasks=0))
    outer = Outer(meta, lambda tensors: torch.optim.Adam(tensors, 0.05))
    before = evaluate(algo, meta, tasks, engine=engine)
    assert before.by_step["size_error"].shape == (3, STEPS + 1)
    for _ in range(20):
        meta_step(engine, FirstOrder(), algo, outer, meta, tasks)
    assert evaluate(algo, meta, tasks).loss.mean < before.loss.mean
    assert engine.explain().startswith("FirstOrder of Own: ")


class Peeking(Own):
    """Adapts on the support set, and then to the mean of the queries' inputs."""

    __slots__ = ("seen",)

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.transductive, self.seen = True, []

    def finish(self, meta, fast, given, step):
        self.seen.append(given)
        shift = given.unlabelled.x["ids"].to(torch.float64).mean()
        return {**fast, "size.bias": fast["size.bias"] + 0.01 * shift}


def test_a_transductive_algorithm_sees_the_queries_inputs_and_never_their_labels():
    algo = Peeking(network(TwoInputs))
    meta, tasks = algo.init(), episodes(padded=True)
    loop, _ = Adjoint()(algo, meta, tasks)
    for given in algo.seen:
        assert isinstance(given, Given) and not given.unlabelled.y["label"].any()
        assert not given.unlabelled.y["size"].any()
    torch.testing.assert_close(algo.seen[0].unlabelled.x["ids"], tasks.query.x["ids"][0])
    torch.testing.assert_close(algo.seen[0].unlabelled.weight, tasks.query.weight[0])
    assert apart(on(Unroll(), "vmap")(algo, meta, tasks)[0], loop) < 1e-10
    noise = {"label": 2 - tasks.query.y["label"], "size": -tasks.query.y["size"]}
    other = tasks._replace(query=tasks.query._replace(y=noise))
    for t in range(3):
        task, blind = (tasks_of(algo, e).at(t) for e in (tasks, other))
        seen = [algo.predict(meta, adapt(algo, meta, one.given), one.query.x)
                for one in (task, blind)]  # fmt: skip
        torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    inductive = Own(network(TwoInputs))
    assert tasks_of(inductive, tasks).given.unlabelled is None


def test_inputs_without_labels_are_joined_by_the_queries():
    algo = Peeking(network(TwoInputs))
    tasks = episodes()
    extra = episodes(padded=True).support
    given = tasks_of(algo, tasks._replace(unlabelled=extra)).given
    assert given.unlabelled.x["ids"].shape == (3, 6 + 5, 4)
    assert given.unlabelled.weight.sum() == 3 * (5 + 5)
    assert tasks_of(Own(network(TwoInputs)), tasks._replace(unlabelled=extra)).given == Given(
        tasks.support, extra
    )


def test_a_part_that_is_missing_is_named():
    class Half:
        steps, kinds = 1, ("exact",)

    with pytest.raises(UsageError, match=r"Half lacks rule, net, transductive, init, .*predict"):
        Adjoint()(Half(), {}, episodes())
