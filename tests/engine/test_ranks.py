"""The meta-gradient of ranks is that of one process, to 1e-10, and so is all that goes with it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from metalearn import Batch, Engine, Episodes, Outer, algorithms, meta_step, tree
from metalearn.backbones import Conv4
from metalearn.engine.ranks import Ranks
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Displacement, Evolution, Unroll
from metalearn.inner import lslr, sgd
from metalearn.types import Meta
from tests.rank_processes import succeed
from tests.tasks import apart, classification, distance, network, regression

TASKS = 5  # of which 2 and 4 ranks have unequal shares


def conv(norm: str = "transductive") -> nn.Module:
    return network(lambda: Conv4(3, filters=4, size=16, downsample="stride", norm=norm))


def vectors(*more: nn.Module) -> nn.Module:
    return network(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *more, nn.Linear(6, 3)))


class Drifting(algorithms.MAML):
    """Moves a buffer by the mean of its support sets, itself."""

    def track(self, meta: Meta, support: Batch) -> dict[str, Tensor]:
        return {**meta["buffers"], "drift": meta["buffers"]["drift"] + support.x.mean()}


def drifting() -> algorithms.MAML:
    module = vectors()
    module.register_buffer("drift", torch.zeros((), dtype=torch.float64))
    return Drifting(module, 1, sgd(0.1))


CASES = {
    "MAML": (Adjoint(), lambda: algorithms.MAML(conv("running"), 2, lslr(0.1)), "images"),
    "ProtoNet": (Unroll(), lambda: algorithms.ProtoNet(conv("running")), "images"),
    "MAML++": (Adjoint(), lambda: algorithms.MAMLpp(conv(), 2, lslr(0.1), multi_step=3), "images"),
    "dropout": (Unroll(), lambda: algorithms.MAML(vectors(nn.Dropout(0.5)), 2, sgd(0.1)), "points"),
    "noise": (Evolution(pairs=2), lambda: algorithms.MAML(vectors(), 1, sgd(0.1)), "points"),
    "LITE": (Unroll(), lambda: algorithms.ProtoNet(vectors()), "points"),
    "Reptile": (Displacement(), lambda: algorithms.Reptile(vectors(), 2, sgd(0.1)), "points"),
    "its own buffers": (Unroll(), drifting, "points"),
}


IDLE = ("ProtoNet", "dropout", "its own buffers")  # also with fewer tasks than ranks


def episodes(kind: str, tasks: int, seed: int = 0) -> Episodes:
    shape = (1, 16, 16) if kind == "images" else (4,)
    return classification(tasks, shape=shape, seed=seed)


def steps(name: str, ranks: Ranks | None, tasks: int, own: bool = False):
    """Two meta-steps: by how much each moved what is learned, its metrics, and the buffers in the
    end. own: the engine is handed this rank's tasks alone."""
    strategy, make, kind = CASES[name]
    algo = make()
    torch.manual_seed(3)
    meta = tree.map_meta(torch.clone, algo.init())
    outer = Outer(meta, lambda weights: SGD(weights, lr=0.1))
    engine = Engine("loop", lite=2 if name == "LITE" else None, ranks=ranks)
    seen = []
    for number in range(2):
        batch, total = episodes(kind, tasks, number), None
        if own and ranks:
            batch, total = ranks.part(batch), tasks
        before = tree.map_meta(torch.clone, meta)
        metrics = meta_step(engine, strategy, algo, outer, meta, batch, total)
        moved = {p: tree.map(torch.sub, meta[p], before[p]) for p in ("init", "hyper")}
        seen.append((moved, metrics))
    return seen, meta["buffers"]


def same_as_alone(ranks: Ranks, folder: Path) -> None:
    for name in CASES:
        for tasks, own in ((TASKS, True), (ranks.size - 1, False))[: 1 + (name in IDLE)]:
            got, ours = steps(name, ranks, tasks, own)
            if not ranks.first:
                continue
            want, theirs = steps(name, None, tasks)
            for (moved, metrics), (alone, measured) in zip(got, want, strict=True):
                assert apart(moved, alone) < 1e-10, (name, tasks)
                assert metrics["loss"].shape == (tasks,)
                assert distance(metrics, measured) < 1e-10, (name, tasks)
            assert distance(ours, theirs) < 1e-10, (name, tasks)
            assert bool(theirs) == (name in ("MAML", "ProtoNet", "MAML++", "its own buffers"))


def test_two_and_four_ranks_and_one_process(tmp_path: Path) -> None:
    succeed(tmp_path, *((size, f"{__name__}:same_as_alone") for size in (4, 2)))


def test_the_shares_are_neighbours_and_nearly_equal() -> None:
    for total in (0, 1, 5, 8, 600):
        for size in (1, 2, 4, 7):
            shares = [Ranks(rank, size).share(total) for rank in range(size)]
            assert [i for share in shares for i in share] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            assert len(shares[0]) == max(map(len, shares))
            work = [range(max(total, 1))[Ranks(rank, size).work(total)] for rank in range(size)]
            assert all(w == (share or range(1)) for w, share in zip(work, shares, strict=True))


def test_one_rank_is_a_process_alone() -> None:
    algo, batch = algorithms.MAML(vectors(), 1, sgd(0.1)), episodes("points", 3)
    want, _ = Engine("loop")(Unroll(), algo, algo.init(), batch)
    got, _ = Engine("loop", ranks=Ranks())(Unroll(), algo, algo.init(), batch)
    assert all(torch.equal(got["init"][n], want["init"][n]) for n in want["init"])
    assert regression(2).tasks == 2 and Ranks().gathered("x") == ["x"]
    assert Ranks().told(lambda: 1) == 1 and not Ranks().agreed()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 without MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 name no rank"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x and WORLD_SIZE=2 name no rank"),
    ],
)
def test_an_environment_that_is_not_whole(monkeypatch, given, said) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        Ranks.joined()


def test_a_process_alone_joins_nothing(monkeypatch) -> None:
    for given in ({}, {"WORLD_SIZE": "4"}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}):
        with monkeypatch.context() as patch:
            for name in ("RANK", "WORLD_SIZE"):
                patch.delenv(name, raising=False)
            for name, value in given.items():
                patch.setenv(name, value)
            assert Ranks.joined() is None
