"""A network whose forward cannot be run again is refused at the first call, by the name of the
layer, once for each network."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from metalearn.algorithms import ANIL, MAML, ProtoNet
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, FirstOrder, Unroll
from metalearn.inner import sgd
from tests.functional.test_double_backward import Calls, Cube, OldCube
from tests.tasks import classification, network, on


def tasks():
    return classification(tasks=2, shots=1, queries=3, shape=(4,))


def around(layer: nn.Module) -> nn.Module:
    """`layer` at the place `1.1`, above which values are changed in place."""
    return network(
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.Sequential(nn.Tanh(), layer), nn.ReLU(inplace=True), nn.Linear(8, 3)
        )
    )


class Own(nn.Module):
    """Draws from a generator that it holds."""

    def __init__(self, generator, draw):
        super().__init__()
        self.generator, self.draw = generator, draw

    def forward(self, x):
        return x * float(self.draw(self.generator))


class Counts(nn.Module):
    """Gives other numbers each time, without drawing any."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Moves(nn.Module):
    """Keeps running averages of its own, as timm's EvoNorm does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        if self.training:
            self.var.lerp_(x.detach().var(0), 0.1)
        return x / self.var.sqrt()


def spectral(norm) -> nn.Module:
    return norm(nn.Linear(8, 8))


_COUNT = itertools.count()
NOT_REPEATABLE = [
    (Calls(lambda x: x if random.random() < 0.5 else x.tanh()), r"draws from Python's random"),
    (Calls(lambda x: x * (1 + np.random.rand())), r"draws from NumPy's generator"),
    (Own(np.random.default_rng(0), lambda g: g.random()), "draws from its own generator gen"),
    (Own(random.Random(0), lambda g: g.random()), "draws from its own generator generator"),
    (Own(torch.Generator(), lambda g: torch.rand(1, generator=g)), "its own generator"),
    (Counts(), "gives other numbers when it is called again"),
    (Calls(lambda x: x + next(_COUNT)), "gives other numbers when it is"),
    (Calls(lambda x: x + torch.poisson(x.exp())), "torch.poisson cannot repeat what it drew"),
    (Moves(), "changes var in its forward; make it a constant, or call eval() on it"),
]


@pytest.mark.parametrize("layer, line", NOT_REPEATABLE)
def test_named_at_the_first_call(layer, line):
    algo = MAML(around(layer), 2, sgd(0.1))
    meta = algo.init()
    before = {n: t.clone() for n, t in meta["buffers"].items()}
    for strategy in (Adjoint(), FirstOrder()):
        with pytest.raises(UsageError) as error:
            strategy(algo, meta, tasks())
        said = str(error.value)
        assert line in said and "\n" not in said
        assert said.startswith("1.1 (") or "poisson" in said
    assert all(torch.equal(t, before[n]) for n, t in meta["buffers"].items())
    with pytest.raises(UsageError, match="1.1|poisson"):
        ProtoNet(around(layer)) and Adjoint()(ProtoNet(around(layer)), meta, tasks())


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.spectral_norm")
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_is_refused_in_train_mode_alone(norm):
    algo = MAML(around(spectral(norm)), 2, sgd(0.1))
    meta = algo.init()
    before = {n: t.clone() for n, t in meta["buffers"].items()}
    for batching in ("loop", "vmap"):
        with pytest.raises(UsageError, match="1.1.* changes .*_?u in its forward"):
            on(Adjoint(), batching)(algo, meta, tasks())
    assert before and all(torch.equal(t, before[n]) for n, t in meta["buffers"].items())
    still = MAML(around(spectral(norm)).eval(), 2, sgd(0.1))
    first, again = (Adjoint()(still, still.init(), tasks())[0]["init"] for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first)


class Watches(nn.Module):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return x * 1


def test_once_for_each_network():
    algo = MAML(around(Watches()), 1, sgd(0.1))
    counted = []
    for engine in (Engine("loop"), Engine("loop"), Engine("loop")):
        Watches.calls = 0
        engine(Unroll(), algo, algo.init(), tasks())
        counted.append(Watches.calls)
    assert counted[0] > counted[1] == counted[2] == 2 * 2


def test_the_check_shows_in_nothing_that_is_drawn_later():
    net = nn.Sequential(around(nn.Dropout(0.5)))
    first, again = MAML(net, 2, sgd(0.1)), MAML(net, 2, sgd(0.1))
    random.seed(0), np.random.seed(0)
    states = random.getstate(), np.random.get_state()[1].tolist()
    torch.manual_seed(3)
    one = Adjoint()(first, first.init(), tasks())[0]["init"]
    Adjoint()(again, again.init(), tasks())
    torch.manual_seed(3)
    two = Adjoint()(again, again.init(), tasks())[0]["init"]
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


def test_derivatives_are_checked_as_often_as_they_are_taken():
    line = r"1.1 \(Calls\) cannot be differentiated twice: .*; replace it or use gradient=first_"
    algo = MAML(around(Calls(Cube.apply)), 2, sgd(0.1))
    with pytest.raises(UsageError, match=line):
        Adjoint()(algo, algo.init(), tasks())
    FirstOrder()(algo, algo.init(), tasks())
    Adjoint()(head := ANIL(around(Calls(Cube.apply)), 2, sgd(0.1)), head.init(), tasks())
    Adjoint()(proto := ProtoNet(around(Calls(Cube.apply))), proto.init(), tasks())


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_full_backward_hook(lambda *_: None)
    return layer


class Chooses(nn.Module):
    def forward(self, x):
        return x * 2 if (x > 0).any() else x


class Writes(nn.Module):
    def forward(self, x):
        y = torch.zeros(x.shape, dtype=x.dtype)
        y[:, ::2] = x[:, ::2]
        return y


@pytest.mark.parametrize(
    "layer, line",
    [
        (Calls(OldCube.apply), r"^1.1 \(Calls\) cannot be differentiated by torch.func: In order"),
        (hooked(nn.Linear(8, 8)), r"^1.1 \(Linear\) has a hook on its backward pass.*remove it"),
    ],
)
def test_the_innermost_layer_is_named_and_none_that_works_in_place(layer, line):
    algo = MAML(around(layer), 2, sgd(0.1))
    with pytest.raises(UsageError, match=line):
        Adjoint()(algo, algo.init(), tasks())


@pytest.mark.parametrize(
    "layer",
    [
        Chooses(),
        Writes(),
        Calls(lambda x: x[x[:, 0] > -torch.inf]),
        Calls(lambda x: x * float(x.detach()[0, 0].item() > -99)),
    ],
)
def test_what_vmap_cannot_runs_as_a_loop_where_batching_is_open(layer, monkeypatch, tmp_path):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    algo = MAML(around(layer), 1, sgd(0.1))
    want = on(Adjoint(), "loop")(algo, algo.init(), tasks())[0]["init"]
    line = rf"^1.1 \({type(layer).__name__}\) cannot be differentiated under vmap: .*batching=loop"
    with pytest.raises(UsageError, match=line):
        on(Adjoint(), "vmap")(algo, algo.init(), tasks())
    engine = Engine()
    assert engine.autotune(Adjoint(), algo, algo.init(), tasks(), coming=4).plan.tasks is None
    got = engine.with_plan(engine.autotune(Adjoint(), algo, algo.init(), tasks(), coming=4).plan)(
        Adjoint(), algo, algo.init(), tasks()
    )[0]["init"]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: around(nn.Tanh()).half(), "float16"),
        (lambda: around(Watches()).bfloat16(), "bfloat16"),
        (lambda: around(nn.Tanh()), "float64"),
    ],
)
def test_types_that_differ_are_told(build, said):
    algo = MAML(build(), 1, sgd(0.1))
    few = classification(tasks=1, shots=1, queries=3, shape=(4,), dtype=torch.float32)
    line = rf"weights are {said} and the inputs float32; call .float\(\) on the network"
    with pytest.raises(UsageError, match=line):
        Adjoint()(algo, algo.init(), few)
