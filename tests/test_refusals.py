"""What a run cannot do is one line before it starts, and leaves no folder behind."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn.algorithms import MAML
from metalearn.commands.building.config import compose
from metalearn.commands.building.episodes import read_data
from metalearn.commands.building.meta_training import read_method
from metalearn.commands.parts.pretrain_network import optimizer_of
from metalearn.engine import room
from metalearn.engine.batching import at_once
from metalearn.engine.plan import parse
from metalearn.engine.task import tasks_of
from metalearn.episodes import Manifest, write_manifest
from metalearn.errors import UsageError
from metalearn.gradients import Implicit
from metalearn.inner import sgd
from metalearn.training import run as shell
from metalearn.types import Batch
from tests.command import FAST, metalearn
from tests.tasks import classification, network

SMALL = ("train", *FAST, "dataset.size=16", "batching=loop", "run_dir=r")
METRIC = ("algorithm=protonet", "gradient=unroll")
MILESTONES = "+outer.schedule={_target_: torch.optim.lr_scheduler.MultiStepLR, _partial_: true}"
ONE_CYCLE = (
    "+outer.schedule={_target_: torch.optim.lr_scheduler.OneCycleLR, _partial_: true, "
    "max_lr: 0.1, total_steps: 3}"
)
REFUSED = {
    ("outer.optimizer._target_=torch.optim.LBFGS",): "LBFGS.step() missing",
    ("outer.optimizer._target_=torch.optim.SparseAdam",): "does not support dense gradients",
    ("outer/schedule=constant", MILESTONES): "argument: 'milestones'; correct outer.optimizer",
    ("outer/schedule=constant", ONE_CYCLE, "training.steps=9"): "outer: Tried to step 4 times",
    ("outer.schedule.T_max=0",): "outer.schedule.T_max=0 must be 1 or more",
    ("outer/schedule=step", "outer.schedule.step_size=0"): "step_size=0 must be 1 or more",
    ("seed=18446744073709551616",): "seed=18446744073709551616 must be below 2**63",
    ("dataset.seed=9223372036854775808",): "dataset.seed=9223372036854775808 must be below 2**63",
    ("outer.optimizer.lr=1e300",): "outer.optimizer.lr=1e+300 is more than float32 holds",
    ("inner.rate=1e39",): "inner.rate=1e+39 is more than float32 holds",
    ("algorithm.proximal=1e200",): "algorithm.proximal=1e+200 is more than float32 holds",
    ("sampling=meta_dataset", "sampling.queries=dirichlet"): "classes of a task may have no query",
    ("algorithm=imaml", "inner.weight_decay=0.1"): "use inner=sgd, inner.weight_decay=0",
    (*METRIC, "evaluation.steps=3"): "no inner steps; leave out evaluation.steps",
    (*METRIC, "backbone=mlp", "backbone.hidden=[]"): "nothing is learned",
    ("algorithm=proto_maml", "backbone=mlp", "backbone.hidden=[]"): "nothing is learned",
}


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(words)[:60])
def test_refused_before_it_starts(workplace: Path, words: tuple[str, ...]) -> None:
    given = [w for w in SMALL if "filters" not in w or "backbone=mlp" not in words]
    outcome = metalearn(*given, *words)
    assert REFUSED[words] in outcome.mistake
    assert not Path("r").exists()


def test_a_class_without_a_query_can_still_be_answered(workplace: Path) -> None:
    """And is wrong: which classes have queries is not for the network to know."""
    sampled = ("sampling.queries=dirichlet", "episodes.ways=5")
    for words in (("sampling=imbalanced",), ("sampling=meta_dataset", *METRIC)):
        loss = read_method(compose([*FAST, *words, *sampled])).task.loss
        logits = torch.zeros(4, 5)
        logits[:, 4] = 1.0
        metrics = loss(logits, Batch(logits, torch.tensor([0, 1, 0, 1])))[1]
        assert metrics["accuracy"] == 0
    # Where tasks may lack classes, a network with outputs is told which are there.
    loss = read_method(compose([*FAST, "sampling=meta_dataset"])).task.loss
    assert loss(torch.ones(2, 9), Batch(None, torch.tensor([0, 1])))[1]["loss"] < 0.7


def test_which_manifests_a_network_with_outputs_takes(workplace: Path) -> None:
    few = (*FAST, "dataset.size=16", "episodes.ways=6", "episodes.queries=1")

    def written(name: str, *words: str) -> str:
        data = read_data(compose([*few, "outputs=null", *words]))
        write_manifest(Manifest(data.source("test"), "test", 9), Path(name))
        return f"evaluation.manifest={name}"

    varied = ("sampling=meta_dataset", "sampling.sizes.max_support=30", "episodes.ways=6")
    fewer = written("fewer.json", *varied)
    without = written("without.json", *varied, "sampling.queries=dirichlet")
    uneven = written("uneven.json", "sampling=imbalanced", "sampling.queries=dirichlet")
    taken = ((varied, fewer), (("sampling=imbalanced",), uneven), ((), uneven))
    for words, manifest in (*taken, ((*varied, "outputs=null"), without)):
        assert read_data(compose([*few, *words, manifest])).test().episodes == 9
    for words, manifest, told in (
        (varied, without, "classes of a task may have no query"),
        (("sampling=imbalanced",), fewer, "episodes of fewer ways too"),
    ):
        with pytest.raises(UsageError, match=told):
            read_data(compose([*few, *words, manifest])).test()


@pytest.mark.parametrize(
    "optimizer, said",
    [(torch.optim.LBFGS, "'closure'"), (torch.optim.SparseAdam, "dense gradients")],
)
def test_pretraining_tries_its_optimizer_too(optimizer, said: str) -> None:
    learned = [{"params": [nn.Parameter(torch.ones(3, 3))]}]
    with pytest.raises(shell.UsageError, match=f"optimizer: .*{said}.*; correct optimizer, which"):
        optimizer_of(optimizer, learned)
    kept = optimizer_of(partial(torch.optim.SGD, lr=1.0), learned)
    assert kept.param_groups[0]["initial_lr"] == 1.0 and (learned[0]["params"][0] == 1).all()


def test_a_schedule_may_be_left_out(workplace: Path) -> None:
    outcome = metalearn(*SMALL, "~outer.schedule", *METRIC, "training.steps=1")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    "error, before", [(shell.UsageError("cannot"), {"notes.txt"}), (RuntimeError("a bug"), set())]
)
def test_what_fails_in_its_first_step_does_not_refuse_the_corrected_command(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, before: set[str]
) -> None:
    """Also in a folder where something of the user's lies, which stays."""
    folder, words = Path("r"), (*SMALL, *METRIC, "training.steps=1")
    for name in before:
        folder.mkdir()
        (folder / name).write_text("kept")
    with monkeypatch.context() as patch:
        patch.setattr(shell, "fit", lambda *_: (_ for _ in ()).throw(error))
        if before:
            assert metalearn(*words).mistake == "cannot"
        else:
            with pytest.raises(RuntimeError):
                metalearn(*words)
    assert {path.name for path in folder.glob("*")} == before and folder.exists() == bool(before)
    assert metalearn(*words, "training.queries=4").code == 0
    held = metalearn(*words, "training.queries=3").mistake
    assert "holds a run with training.queries=4, not 3" in held
    assert (folder / "result.json").exists()


def test_memory_that_is_not_there_is_told_before_it_is_gone(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_memory_bytes", lambda device: 2**30)
    monkeypatch.setattr(room, "peak_memory_bytes", lambda device: 2**40)
    words = (*SMALL, "training.meta_batch=4", "training.steps=1")
    told = metalearn(*words, "batching=vmap").mistake
    assert "batching=vmap would need" in told and "for 4 tasks at once, and 1.0 are free" in told
    assert not Path("r").exists()
    assert metalearn(*words, "batching=2", *METRIC).code == 0  # two were measured: they fit


def test_the_whole_step_as_one_compiled_piece_hides_what_lies_between() -> None:
    """A search that asks between its pieces whether it is done cannot ask there (iMAML)."""
    algo = MAML(network(lambda: nn.Linear(4, 3)), 2, sgd(0.1), proximal=2.0)
    meta, episodes = algo.init(), classification(shape=(4,))
    seen = []

    def gradient(algo, meta, task, run):
        seen.append(run.fused)
        return Implicit().task(algo, meta, task, run)

    for name in ("vmap+compile+whole", "vmap+whole"):
        plan = parse(name)
        at_once(algo, meta, tasks_of(algo, episodes), gradient=gradient, plan=plan)
    assert seen == [False, True]
