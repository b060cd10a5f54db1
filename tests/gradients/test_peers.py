"""learn2learn and higher behind the interface: their meta-gradient is ours, to 1e-10."""

import sys

import pytest
import torch
from torch.nn.utils import prune

from metalearn.algorithms import ANIL, MAML, ProtoNet
from metalearn.backbones import MLP, Conv4
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, FirstOrder, Unroll
from metalearn.gradients.peers import Higher, Learn2learn
from metalearn.gradients.peers.base import adapting, fixed_rate, imported
from metalearn.inner import InnerRule, lslr, meta_sgd, sgd
from tests.gradients import reference
from tests.preloaded import Process
from tests.tasks import apart, classification, network, on

PEERS = (Learn2learn, Higher)
STEPS = 3


@pytest.fixture(autouse=True)
def _installed() -> None:
    for package in ("learn2learn", "higher"):
        try:
            imported(package)
        except UsageError as error:
            pytest.skip(str(error))


def conv4() -> torch.nn.Module:
    """Plain layers, nn.BatchNorm2d in train mode without running averages."""
    plain = reference.PlainConv4("transductive", "pool", 5, 8)
    return torch.nn.Sequential(*plain.features, torch.nn.Flatten(), plain.head)


def episodes():
    return classification(tasks=2, ways=5, shots=1, queries=10)


def algorithm(kind=MAML, rule=None, build=conv4):
    return kind(network(build), steps=STEPS, rule=rule or sgd(0.1))


@pytest.mark.parametrize("kind", [MAML, ANIL])
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("strategy", [Unroll, Adjoint, FirstOrder])
def test_same_gradient_and_metrics(peer, strategy, kind) -> None:
    algo = algorithm(kind)
    meta = algo.init()
    want, told = on(strategy(), "loop")(algo, meta, episodes())
    got, said = peer(first_order=strategy is FirstOrder)(algo, meta, episodes())
    assert apart({**got, "hyper": {}}, want) < 1e-10
    assert {n: t.shape for n, t in said.items()} == {n: t.shape for n, t in told.items()}
    for name in told:
        torch.testing.assert_close(said[name], told[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("norm", ["running", "group"])
def test_weights_and_buffers_come_from_meta(peer, norm) -> None:
    algo = algorithm(build=lambda: Conv4(5, filters=8, size=16, norm=norm))
    before = {n: t.clone() for n, t in algo.module.state_dict().items()}
    meta = algo.init()
    for held in (meta["init"], meta["buffers"]):
        held.update({n: t * 1.3 for n, t in held.items()})
    asked = {part: dict(meta[part]) for part in ("init", "hyper", "buffers")}
    want, _ = on(Unroll(), "loop")(algo, meta, episodes())
    got, _ = peer()(algo, meta, episodes())
    assert apart(got, want) < 1e-10
    assert all(asked[part][n] is t for part in asked for n, t in meta[part].items())
    assert all(torch.equal(before[n], t) for n, t in algo.module.state_dict().items())


@pytest.mark.parametrize("peer", PEERS)
def test_frozen_and_unused_weights(peer) -> None:
    class Net(MLP):
        def __init__(self) -> None:
            super().__init__(256, 5, (8,))
            self.features[0].bias.requires_grad_(False)
            self.unused = torch.nn.Parameter(torch.ones(2))

    algo = algorithm(build=Net)
    want, _ = on(Unroll(), "loop")(algo, algo.init(), episodes())
    got, _ = peer()(algo, algo.init(), episodes())
    assert apart(got, want) < 1e-10
    assert got["init"]["unused"].tolist() == [0, 0]


class Attends(torch.nn.Module):
    """Attention and pruned weights: what torch's own kernels or copies do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 8, 0.0, batch_first=True)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x):
        return {"logits": self.head(self.layer(x.flatten(1, 2)).mean(1))}


@pytest.mark.parametrize("peer", PEERS)
def test_attention_is_the_exact_one(peer) -> None:
    net = network(Attends)
    prune.l1_unstructured(net.layer.linear1, "weight", 0.5)
    algo = MAML(net, steps=STEPS, rule=sgd(0.1))
    want, _ = on(Unroll(), "loop")(algo, algo.init(), episodes())
    got, _ = peer()(algo, algo.init(), episodes())
    assert apart(got, want) < 1e-10


@pytest.mark.parametrize("peer", PEERS)
def test_no_grad_outside_does_not_matter(peer) -> None:
    algo = algorithm()
    with torch.no_grad():
        got, said = peer()(algo, algo.init(), episodes())
    assert apart(got, on(Unroll(), "loop")(algo, algo.init(), episodes())[0]) < 1e-10
    assert not said["loss"].requires_grad and not any(g.requires_grad for g in got["init"].values())


def momentum(rate: float) -> InnerRule:
    """Not gradient descent: it remembers."""

    def update(grads, state, fast, hyper):
        moved = {n: 0.9 * state[n] + g for n, g in grads.items()}
        return {n: -rate * m for n, m in moved.items()}, moved

    def init(fast):
        return {n: torch.zeros_like(w) for n, w in fast.items()}

    return InnerRule(init, update, lambda fast, steps: {})


def decayed(rate: float) -> InnerRule:
    """Not gradient descent: it looks at the weights."""

    def update(grads, state, fast, hyper):
        return {n: -rate * (g + 0.1 * fast[n]) for n, g in grads.items()}, state

    return sgd(rate)._replace(update=update)


def sign(rate: float) -> InnerRule:
    """Not gradient descent: it is not linear."""
    return sgd(rate)._replace(
        update=lambda grads, state, fast, hyper: (
            {n: -rate * g.sign() for n, g in grads.items()},
            state,
        )
    )


def test_the_rate_is_found() -> None:
    weights = {"a": torch.ones(2, 3), "b": torch.ones(())}
    assert fixed_rate(sgd(0.3), weights) == 0.3
    assert fixed_rate(sgd(0.0), weights) == 0.0


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    "rule", [lslr(0.1), meta_sgd(0.1), momentum(0.1), decayed(0.1), sign(0.1), sgd(0.1, 2)]
)
def test_other_rules_are_refused(peer, rule) -> None:
    algo = algorithm(rule=rule)
    with pytest.raises(UsageError, match="use inner=sgd"):
        peer()(algo, algo.init(), episodes())


@pytest.mark.parametrize("peer", PEERS)
def test_what_a_peer_cannot_do_is_one_line(peer) -> None:
    algo, tasks = algorithm(), episodes()
    name = peer.__name__.lower()
    padded = tasks._replace(query=tasks.query._replace(weight=torch.ones(2, 10)))
    support = algorithm(build=lambda: Conv4(5, filters=8, size=16, norm="support"))
    proto = ProtoNet(network(lambda: Conv4(None, filters=8, size=16)))
    none = tasks.map(lambda t: t[:0])
    for strategy, asked, given, line in (
        (peer(), algo, padded, f"gradient={name} knows no padding"),
        (on(peer(), precision="bf16"), algo, tasks, f"gradient={name} has no precision=bf16"),
        (on(peer(), "vmap"), algo, tasks, f"gradient={name} loops over tasks"),
        (peer(), support, tasks, f"gradient={name} has no norm=support"),
        (peer(), proto, tasks, "runs MAML and ANIL, not Metric"),
        (peer(), algo, none, "no episodes in the meta-batch"),
    ):
        with pytest.raises(UsageError, match=line):
            strategy(asked, asked.init(), given)


@pytest.mark.parametrize("peer", PEERS)
def test_a_missing_package_is_one_line(peer, monkeypatch) -> None:
    package = peer.__name__.lower()
    monkeypatch.setitem(sys.modules, package, None)
    algo = algorithm()
    with pytest.raises(UsageError, match=f"needs the package {package} .*uv sync --group peers"):
        peer()(algo, algo.init(), episodes())


def test_they_are_silent() -> None:
    code = (
        "import sys, torch\n"
        "from metalearn import Batch, Episodes, algorithms, backbones, gradients, inner\n"
        "from metalearn.gradients import peers\n"
        "assert not {'learn2learn', 'higher'} & set(sys.modules)\n"
        "algo = algorithms.MAML(backbones.MLP(3, 2, (4,)), steps=1)\n"
        "batch = Batch(torch.rand(2, 4, 3), torch.tensor([[0, 0, 1, 1]] * 2))\n"
    )
    for peer in PEERS:
        code += (
            f"peers.{peer.__name__}()(algo, algo.init(), Episodes(batch, batch))\n"
            f"assert '{peer.__name__.lower()}' in sys.modules\n"
        )
    with Process(code) as process:
        printed = process.communicate()
    assert (process.returncode, *printed) == (0, "", "")


def adapted(algo: MAML) -> str:
    plain = algo.plain()
    assert plain is not None
    return adapting(plain, algo.net)


def test_what_adapts_is_one_submodule() -> None:
    net = Conv4(5, filters=8, size=16)
    assert adapted(MAML(net)) == ""
    assert adapted(ANIL(net)) == "head"
    first = ["features.0.weight", "features.0.bias"]
    assert adapted(MAML(net, adapting=first)) == "features.0"
    with pytest.raises(UsageError, match="adapt one submodule; use adaptation=all or head"):
        adapted(MAML(net, adapting=["head.bias"]))
