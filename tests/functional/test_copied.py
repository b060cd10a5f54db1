"""Networks behind wrappers and hooks have the meta-gradient of what they are made of; what cannot
be unwrapped is named; what they return is found."""

import copy
import threading
import warnings
from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from metalearn import evaluate
from metalearn.algorithms import MAML, ProtoMAML, ProtoNet
from metalearn.algorithms.losses import label_smoothed, mean_squared
from metalearn.errors import UsageError
from metalearn.functional import pure
from metalearn.functional.copied import copied
from metalearn.functional.norm_functions import weight_norm
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import sgd
from tests.gradients import reference
from tests.tasks import apart, classification, distance, network, on


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def tasks():
    return classification(tasks=2, shots=1, queries=3, shape=(4,))


def gradient(net: nn.Module, strategy=None, batching: str = "loop"):
    algo = MAML(net, steps=2, rule=sgd(reference.RATE))
    return on(strategy or Adjoint(), batching)(algo, algo.init(), tasks())[0]


def lazy() -> nn.Module:
    net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3)).double()
    net(torch.zeros(2, 4, dtype=torch.float64))
    net.load_state_dict(network(mlp).state_dict())
    return net


def compiled_in_place() -> nn.Module:
    net = network(mlp)
    net.compile(backend="eager")
    return net


WRAPPED = {
    "parallel": lambda: nn.DataParallel(network(mlp)),
    "parallel inside": lambda: nn.Sequential(nn.DataParallel(nn.DataParallel(network(mlp)))),
    "lazy, called once": lazy,
    "compiled": lambda: torch.compile(network(mlp), backend="eager"),
    "compiled in place": compiled_in_place,
    "compiled and parallel": lambda: nn.DataParallel(torch.compile(network(mlp), backend="eager")),
}
# The compiler is seconds of import.
SLOW = [pytest.param(n, marks=[pytest.mark.slow] if "compiled" in n else []) for n in WRAPPED]


@pytest.mark.parametrize("name", SLOW)
def test_wrappers_are_taken_off(name):
    net = WRAPPED[name]()
    want = reference.meta_gradient(network(mlp), {}, tasks(), 2)["init"]
    got = gradient(net)["init"]
    prefix = "0." if name == "parallel inside" else ""
    assert distance(got, {f"{prefix}{n}": g for n, g in want.items()}) < 1e-12


def pruned() -> nn.Module:
    net = network(mlp)
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.random_unstructured(net[0], "weight", 0.2)
    prune.random_unstructured(net[2], "bias", 0.3)
    return net


class Normed(nn.Module):
    """A linear layer under weight norm, written out: torch's own is wrong in second order."""

    def __init__(self):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(8, 1))
        self.weight_v = nn.Parameter(torch.ones(8, 4))
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        length = self.weight_v.square().sum(1, keepdim=True).sqrt()
        return F.linear(x, self.weight_g * self.weight_v / length, self.bias)


@pytest.mark.parametrize("old", [True, False])
def test_weight_norm_has_the_second_derivative_of_its_formula(old):
    norm = nn.utils.weight_norm if old else parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = network(lambda: nn.Sequential(norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 3)))
    plain = nn.Sequential(Normed(), nn.Tanh(), nn.Linear(8, 3)).double()
    names = {"0.parametrizations.weight.original0": "0.weight_g"}
    names["0.parametrizations.weight.original1"] = "0.weight_v"
    plain.load_state_dict({names.get(n, n): t for n, t in net.state_dict().items()})
    want = reference.meta_gradient(plain, {}, tasks(), 2)["init"]
    for batching in ("loop", "vmap"):
        got = gradient(net, batching=batching)["init"]
        assert distance({names.get(n, n): g for n, g in got.items()}, want) < 1e-10
    g, v = (torch.rand(n, dtype=torch.float64, requires_grad=True) for n in ((3, 1), (3, 2)))
    for given, dim in ((g, 0), (g.sum(), -1)):
        assert torch.autograd.gradgradcheck(lambda v, d=dim, g=given: weight_norm(v, g, d), v)


class Transposed(nn.Module):
    """Reads the weight of a pruned layer without calling it."""

    def __init__(self):
        super().__init__()
        self.encode, self.head = nn.Linear(4, 8, bias=False), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.encode(x)) @ self.encode.weight)


def pruned_and_read() -> nn.Module:
    net = network(Transposed)
    prune.l1_unstructured(net.encode, "weight", 0.5)
    return net


def pruned_lstm() -> nn.Module:
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.rnn(x.unsqueeze(2))[0][:, -1])

    net = network(Last)
    prune.l1_unstructured(net.rnn, "weight_hh_l0", 0.5)
    return net


COMPUTED = {
    "pruned": pruned,
    "pruned and read": pruned_and_read,
    "pruned lstm": pruned_lstm,
    "orthogonal": lambda: network(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 3))
    ),
    "spectral norm in evaluation": lambda: network(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 8)), nn.Linear(8, 3))
    ).eval(),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_are_computed(name):
    net = COMPUTED[name]()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    want = reference.meta_gradient(net, {}, tasks(), 2)
    for batching in ("loop", "vmap") if name != "orthogonal" else ("loop",):
        assert apart(gradient(net, batching=batching), want) < 1e-10
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert {n for n, _ in net.named_parameters()} == set(pure(net).params)
    assert copied(copied(net)) is not None


class Checkpoints(nn.Module):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.body, self.head, self.reentrant = mlp()[:2], nn.Linear(8, 3), reentrant

    def forward(self, x):
        x = checkpoint_sequential(self.body, 2, x, use_reentrant=self.reentrant)
        return checkpoint(self.head, x, use_reentrant=self.reentrant)


class Plainly(Checkpoints):
    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_inside_are_plain_calls(reentrant):
    net = network(lambda: Checkpoints(reentrant))
    want = reference.meta_gradient(network(lambda: Plainly(reentrant)), {}, tasks(), 2)
    for batching in ("loop", "vmap"):
        assert apart(gradient(net, batching=batching), want) < 1e-12
    # Outside of a network of ours torch's own goes on.
    x = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    net(x).sum().backward()
    kept = x.grad.clone()
    x.grad = None
    network(lambda: Plainly(reentrant))(x).sum().backward()
    torch.testing.assert_close(kept, x.grad)


class Keeps(nn.Module):
    """A tensor with a history, that no hook computes anew."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.scale = self.layer.weight.square().mean()

    def forward(self, x):
        return self.scale * self.layer(x)


def locked() -> nn.Module:
    net = mlp()
    net.lock = threading.Lock()
    return net


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(
    "build, line",
    [
        (lambda: print, "the network is print, not an nn.Module"),
        (lambda: torch.zeros(3), "the network is a Tensor, not an nn.Module"),
        (lambda: nn.Linear, "the network is Linear, not an nn.Module"),
        (lambda: torch.jit.script(mlp()), "is scripted; give the module before torch.jit"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
            r"1 \(LazyLinear\) has no weights yet; call the network on one batch first",
        ),
        (Keeps, "Keeps keeps scale, which was computed from weights; compute it in the forward"),
        (locked, "the network cannot be copied: cannot pickle '_thread.lock' object"),
    ],
)
def test_what_cannot_be_copied_is_one_line(build, line):
    with pytest.raises(UsageError, match=line) as error:
        MAML(build())
    assert "\n" not in str(error.value)


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = mlp(), wrap

    def forward(self, x):
        return self.wrap(self.body(x))


class ModelOutput(OrderedDict):
    """As transformers': entries that are no tensors too."""


Scored = namedtuple("Scored", "logits auxiliary")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y},
        lambda y: {"scores": y},
        lambda y: {"logits": y, "hidden": y.sin(), "past": None},
        lambda y: ModelOutput(logits=y, hidden_states=(y, y)),
        lambda y: UserDict(logits=y),
        lambda y: (y, None),
        lambda y: [y],
        lambda y: (y, {"attention": y}),
        lambda y: Scored(y, y.sin()),
    ],
)
def test_the_logits_are_found_in_what_a_network_returns(wrap):
    want = reference.meta_gradient(network(mlp), {}, tasks(), 2)["init"]
    net = network(lambda: Returns(wrap))
    for batching in ("loop", "vmap"):
        got = gradient(net, batching=batching)["init"]
        assert distance({n.removeprefix("body."): g for n, g in got.items()}, want) < 1e-12


def test_other_algorithms_losses_and_evaluation_find_them_too():
    wrapped, plain = network(lambda: Returns(lambda y: ModelOutput(logits=y))), network(mlp)
    for build in (
        lambda net: ProtoNet(net),
        lambda net: ProtoMAML(net, 2, sgd(0.1)),
        lambda net: MAML(net, 2, sgd(0.1), loss=label_smoothed),
        lambda net: MAML(net, 2, sgd(0.1), loss=mean_squared),
    ):
        reports = []
        for net in (wrapped, plain):
            algo = build(net)
            reports.append(evaluate(algo, algo.init(), tasks()).losses)
        assert reports[0] == pytest.approx(reports[1], rel=1e-12)


@pytest.mark.parametrize(
    "wrap, line",
    [
        (lambda y: (y, y), "the network returns a tuple of 2 tensors; return the logits, or a di"),
        (lambda y: None, "the network returns a NoneType; return the logits"),
        (lambda y: {"a": y, "b": y}, "returns a, b; call one of them logits, or give a loss of yo"),
        (lambda y: {"a": None}, "the network returns a dict; return the logits"),
        (lambda y: float(y.detach().sum()), "the network returns a float; return the logits"),
    ],
)
def test_where_there_are_none_one_line_says_so(wrap, line):
    with pytest.raises(UsageError, match=line):
        gradient(network(lambda: Returns(wrap)))


def test_the_users_module_stays_as_it_was():
    net = pruned()
    before = copy.copy(vars(net[0]))
    gradient(net, Unroll())
    assert vars(net[0]) == before and type(net[0]) is nn.Linear
    assert prune.is_pruned(net)
