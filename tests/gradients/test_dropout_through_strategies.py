"""In train mode every strategy and batching drops the same, each task and inner step its own."""

import functools

import pytest
import torch
from torch import nn

from metalearn import evaluate
from metalearn.algorithms import ANIL, MAML
from metalearn.engine import Engine
from metalearn.gradients import Adjoint, Checkpointed, FirstOrder, Truncated, Unroll
from metalearn.inner import lslr, sgd
from tests.tasks import apart, classification, network, on, randomised

EXACT = {
    "unroll": Unroll,
    "adjoint": Adjoint,
    "checkpointed": Checkpointed,
    "truncated-all": functools.partial(Truncated, 3),
}


def dropping() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 12), nn.ReLU(), nn.Dropout(0.4), nn.Linear(12, 8), nn.Dropout(0.2),
        nn.Linear(8, 3),
    )  # fmt: skip


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Dropout2d(0.3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)
    )


def drawn(strategy, algo, meta, episodes, seed: int = 5):
    torch.manual_seed(seed)
    return strategy(algo, meta, episodes)


@pytest.mark.parametrize("build, shape", [(dropping, (4,)), (images, (1, 8, 8))])
@pytest.mark.parametrize("algorithm", [MAML, ANIL])
@pytest.mark.parametrize("steps", [1, 3])
def test_exact_strategies_and_batchings_agree(steps, algorithm, build, shape):
    algo, episodes = algorithm(network(build), steps, lslr(0.1)), classification(shape=shape)
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    want, measured = drawn(on(Unroll(), "loop"), algo, meta, episodes)
    batchings = ("loop", "vmap", 2, "vmap+im2col")
    batchings += ("2+forward_over_reverse", "loop+forward_over_reverse")
    for place, strategy in enumerate(EXACT.values()):
        for batching in batchings[(place + steps // 2) % 2 :: 2]:
            got, metrics = drawn(on(strategy(), batching), algo, meta, episodes)
            assert apart(got, want) < 1e-10
            torch.testing.assert_close(metrics, measured, rtol=1e-10, atol=0)
    other, _ = drawn(on(Unroll(), "loop"), algo, meta, episodes, seed=6)
    assert apart(other, want) > 1e-3


def test_the_approximations_drop_as_the_exact_ones_do():
    algo, episodes = MAML(network(dropping), 3, sgd(0.1)), classification(shape=(4,))
    _, measured = drawn(Unroll(), algo, algo.init(), episodes)
    for batching in ("loop", "vmap"):
        for strategy in (on(FirstOrder(), batching), on(Truncated(1), batching)):
            _, metrics = drawn(strategy, algo, algo.init(), episodes)
            torch.testing.assert_close(metrics, measured, rtol=1e-10, atol=0)


class Watched(nn.Module):
    """A layer that notes which of its inputs were dropped."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x):
        kept = self.drop(torch.ones_like(x))
        self.seen.append(kept.detach() != 0)
        return self.scale * x * kept

    def __deepcopy__(self, memo):
        twin = Watched().double()
        twin.seen = self.seen
        return twin


def test_masks_differ_between_tasks_and_steps_and_repeat_with_the_seed():
    watched = Watched()
    algo = MAML(nn.Sequential(watched, nn.Linear(40, 3)).double(), 3, sgd(0.1))
    episodes = classification(tasks=2, queries=6, shape=(40,))

    def masks(seed: int) -> list[torch.Tensor]:
        watched.seen.clear()
        drawn(on(FirstOrder(), "loop"), algo, algo.init(), episodes, seed)
        return [mask.clone() for mask in watched.seen]

    masks(0)  # with those of the check that a network has once
    first, again, other = masks(1), masks(1), masks(2)
    assert len(first) == 2 * (3 + 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for i, mask in enumerate(first):
        assert 0.4 < mask.double().mean() < 0.6
        assert not any(torch.equal(mask, b) for b in [*first[:i], *first[i + 1 :], *other])
    # One pass drops apart for each example.
    assert len({tuple(row) for row in first[0].tolist()}) == 6


def test_evaluation_drops_nothing():
    net, episodes = network(dropping), classification(shape=(4,))
    bare = network(dropping)
    bare[2], bare[4] = nn.Identity(), nn.Identity()
    for batching in ("loop", "vmap"):
        reports = [
            evaluate(algo, algo.init(), episodes, engine=Engine(batching))
            for algo in (MAML(net, 3, sgd(0.1)), MAML(bare, 3, sgd(0.1)))
        ]
        assert abs(reports[0].by_step["loss"] - reports[1].by_step["loss"]).max() < 1e-12
