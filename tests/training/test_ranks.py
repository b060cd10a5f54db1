"""Runs on several ranks: they end as one process does, stop at one step, and lose no work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors.torch import load_file

from metalearn.commands import pretrain, train
from metalearn.commands.building.config import compose
from metalearn.engine.ranks import Ranks
from metalearn.errors import Diverged, RankLost, UsageError
from metalearn.tracking import Tracker, read_records
from metalearn.training.checkpoint import digest_of
from metalearn.training.episodic import Episodic
from metalearn.training.ranks import check_start
from metalearn.training.supervised import Supervised
from tests.command import metalearn
from tests.rank_processes import on_ranks, succeed
from tests.tasks import distance

IMAGES = [
    "dataset=glyphs", "dataset.classes=24", "dataset.size=16", "dataset.drawings=8",
    "backbone.filters=4", "episodes.ways=3", "episodes.queries=2",
    "tracker=disabled", "tracker.plots=false", "device=cpu",
]  # fmt: skip
TRAIN = [
    *IMAGES, "algorithm=maml", "algorithm.steps=2", "inner=lslr", "inner.rate=0.05",
    "backbone.norm=running", "backbone.downsample=stride", "outer=adam", "training.clip_norm=1.0",
    "training.steps=8", "training.meta_batch=3", "training.checkpoint_every=5",
    "training.validate_every=4", "evaluation.episodes=7", "evaluation.validation_episodes=3",
    "evaluation.untrained=false",
]  # fmt: skip
PRETRAIN = [
    *IMAGES, "held_out.val=0.2", "held_out.test=0.1", "training.batch_size=17",
    "training.record_every=1", "training.validate_every=2", "training.steps=8",
    "evaluation.episodes=7", "evaluation.validation_episodes=5",
]  # fmt: skip
METRIC = ["algorithm=protonet", "training.steps=2", "evaluation.episodes=60", "batching=loop"]
EVERYTHING = [
    "augmentation=standard", "training.mixup=0.4", "training.rotation=0.5", "training.ema=0.5",
    "training.label_smoothing=0.1", "training.clip_norm=1", "seed=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def place(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return workplace


def here(name: str) -> str:
    """The name of a function of this file, for `on_ranks`."""
    return f"{__name__}:{name}"


def job(command: str, folder: Path, *more: str) -> float | None:
    """The command through its shell."""
    module, words = (train, TRAIN) if command == "train" else (pretrain, PRETRAIN)
    if "algorithm=protonet" in more:
        words = [word for word in words if "steps" not in word]
    asked = [*words, *more, f"run_dir={folder}"]
    return module.run(compose(asked, command), Console(width=200))


def at_step(stage: type, number: int, act: Any) -> None:
    """Let `act`, given the step's batch, stand before step `number` in this process."""
    real = stage.step

    def step(self: Any, now: int, batch: Any, tracker: Tracker) -> Any:
        return real(self, now, act(batch) if now == number else batch, tracker)

    stage.step = step  # type: ignore[method-assign]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*"))


def flat(value: Any) -> Iterator[Any]:
    """The numbers of nested lists and dicts; texts as they are."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from flat(part)
    else:
        yield value if isinstance(value, int | float) else str(value)


def same(got: Path, want: Path, weights: str) -> None:
    """The same episodes and accuracies, and weights that differ by rounding."""
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (got, want))
    varying = ("seconds", "tasks_per_second", "images_per_second", "peak_memory_bytes", "ranks")
    varying += ("weights_sha256", "last_weights_sha256", "weights", "command", "threads")
    assert ours.keys() - set(varying) == theirs.keys() - set(varying)
    for name in ours.keys() - set(varying):
        for a, b in zip(flat(ours[name]), flat(theirs[name]), strict=True):
            assert a == (b if isinstance(b, str) else pytest.approx(b, rel=1e-4)), name
    assert (got / "episodes.csv").read_text().count("\n") == theirs.get("episodes", 7) + 1
    assert distance(load_file(got / weights), load_file(want / weights)) < 1e-4
    old, new = (list(read_records(f / "metrics.jsonl")) for f in (want, got))
    assert [(r["kind"], r["step"], r.get("index")) for r in old] == [
        (r["kind"], r["step"], r.get("index")) for r in new
    ]


def known(path: Path) -> None:
    """A plan in the place of what would be measured."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"plan": "loop", "seconds": {"loop": 0.5}}))


def told_to_stop(ranks: Ranks, folder: Path) -> None:
    """A signal to the second rank alone: all stop after the same step."""
    if ranks.first:
        known(folder / "run" / "engine-2-ranks.json")
    if ranks.rank == 1:
        at_step(Episodic, 6, lambda batch: (os.kill(os.getpid(), signal.SIGTERM), batch)[1])
    with pytest.raises(SystemExit) as stopped:
        job("train", folder / "run")
    assert stopped.value.code == 128 + signal.SIGTERM


def a_run_of_pretraining(ranks: Ranks, folder: Path) -> None:
    job("pretrain", folder / "pre")


def not_finite(ranks: Ranks, folder: Path) -> None:
    """A number that is none in the second rank's tasks ends both, at the same step."""
    if ranks.rank == 1:
        spoilt = lambda batch: batch.map(lambda t: t * float("nan") if t.is_floating_point() else t)  # noqa: E731
        at_step(Episodic, 3, spoilt)
    with pytest.raises(Diverged, match="not finite at step 3"):
        job("train", folder / "lost", "batching=loop")


def a_run_of_protonet(ranks: Ranks, folder: Path) -> None:
    """Of so many episodes that each image passes through the network once."""
    job("train", folder / "metric", *METRIC)


def own_mistake(ranks: Ranks, folder: Path) -> None:
    """What one rank alone cannot do, the first one tells."""
    ranks.store = dist.FileStore(str(folder / "words"), 2)
    if ranks.rank == 1:
        real = compose([*TRAIN, f"run_dir={folder / 'own'}"])
        with pytest.raises(UsageError, match="^device=cuda:7"):
            train.run({**real, "device": "cuda:7"}, Console(width=200))
        os._exit(0)  # as its connections are gone
    with pytest.raises(UsageError, match="^rank 1: device=cuda:7"):
        job("train", folder / "own", "batching=loop")
    os._exit(0)


def other_weights(ranks: Ranks, folder: Path) -> None:
    real = Episodic.__post_init__

    def drawn(self: Episodic) -> None:
        for t in self.meta["init"].values():
            t.data.add_(0.1 * ranks.rank)
        real(self)

    Episodic.__post_init__ = drawn  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="rank 1 starts from other weights than rank 0"):
        job("train", folder / "other", "batching=loop")


def test_a_run_stops_on_two_ranks_and_ends_in_one_process(place: Path) -> None:
    jobs = [(2, "told_to_stop"), (2, "a_run_of_pretraining"), (2, "a_run_of_protonet")]
    first, second = succeed(place, *((size, here(name)) for size, name in jobs))
    assert "engine: loop" in first
    stop = "stopped at step 6 of 8 after a checkpoint; the same command goes on from there"
    assert stop in first and "val at step 4" in first and not second
    assert checkpoints(place / "run")[-1] == 6

    for folder in ("whole", "run"):
        known(place / folder / "engine.json")
    assert metalearn("train", *TRAIN, "run_dir=whole").code == 0
    torch.set_num_threads(2)  # a rank had one, which is no reason to go on so
    resumed = metalearn("train", *TRAIN, "run_dir=run")
    torch.set_num_threads(1)
    assert json.loads((place / "run" / "result.json").read_text())["threads"] == 2
    line = "this run went on with 2 ranks, and goes on with one process: sums round otherwise"
    assert resumed.code == 0 and line in resumed.out and "at step 6" in resumed.out
    same(place / "run", place / "whole", "weights.safetensors")
    assert "ranks" not in json.loads((place / "run" / "result.json").read_text())

    metric = [word for word in TRAIN if "steps" not in word]
    assert metalearn("train", *metric, *METRIC, "run_dir=one").code == 0
    same(place / "metric", place / "one", "weights.safetensors")
    assert metalearn("pretrain", *PRETRAIN, "run_dir=alone").code == 0
    same(place / "pre", place / "alone", "backbone.safetensors")
    assert json.loads((place / "pre" / "result.json").read_text())["ranks"] == 2


def pretrained(ranks: Ranks | None, *more: str) -> tuple[Supervised, dict[str, torch.Tensor]]:
    """Three steps in float64, and what is left."""
    _, stage = pretrain.build(compose([*PRETRAIN, *EVERYTHING, *more, "run_dir=x"], "pretrain"))
    for part in stage._networks().values():
        part.double()
    for number, batch in enumerate(stage.batches(range(3), 0)):
        stage.step(number + 1, batch._replace(x=batch.x.double()), Tracker([]))
    return stage, {f"{n}.{k}": t for n, m in stage._networks().items() for k, t in state_of(m)}


def state_of(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(n, t) for n, t in module.state_dict().items() if t.is_floating_point()]


def three_steps(ranks: Ranks, folder: Path) -> None:
    stage, found = pretrained(ranks)
    assert len(set(ranks.gathered(digest_of(stage.dump())))) == 1
    if ranks.first:
        torch.save(found, folder / f"{ranks.size}.pt")
    else:
        assert len(next(stage.batches(range(1), 0)).x) < 17 / ranks.size + 1


def test_pre_training_is_that_of_one_process(place: Path) -> None:
    """Batch norm included, whose moments are those of the whole batch."""
    jobs = (4, "three_steps"), (2, "three_steps"), (2, "not_finite"), (2, "other_weights")
    succeed(place, *((size, here(name)) for size, name in (*jobs, (2, "own_mistake"))))
    _, want = pretrained(None)
    for size in (2, 4):
        assert distance(torch.load(place / f"{size}.pt"), want) < 1e-10


def lose_second(ranks: Ranks, folder: Path) -> None:
    lose(ranks, folder, 1)


def lose_first(ranks: Ranks, folder: Path) -> None:
    lose(ranks, folder, 0)


def lose(ranks: Ranks, folder: Path, which: int) -> None:
    """A rank is killed before its step 3; another tells of it, and leaves a checkpoint."""
    if ranks.rank == which:
        at_step(Episodic, 3, lambda batch: os.kill(os.getpid(), signal.SIGKILL))
    line = r"after step 2 of 8 \(.*\); the same command goes on from step 2, with any number of"
    with pytest.raises(RankLost, match=line) as lost:
        job("train", folder / "run", "batching=loop")
    assert lost.value.speaks
    os._exit(7)  # as its connections are gone


@pytest.mark.parametrize("name", ["lose_second", "lose_first"])
def test_a_rank_is_killed(place: Path, name: str) -> None:
    ended = on_ranks(place, (2, here(name)))
    assert sorted(code or 0 for code, *_ in ended) == [-signal.SIGKILL, 7], ended
    assert checkpoints(place / "run") == [2]


def test_what_ranks_cannot_do_is_one_line(monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Ranks, "joined", classmethod(lambda cls: Ranks(0, 20)))
        for more, said in (
            (
                ["manifold_mixup.alpha=2", "training.batch_size=20"],
                "manifold_mixup mixes the images of a whole batch",
            ),
            ([], "training.batch_size=17 is less than an image for each of the 20 ranks"),
        ):
            with pytest.raises(UsageError, match=said):
                pretrain.build(compose([*PRETRAIN, *more, "run_dir=x"], "pretrain"))
    with pytest.raises(UsageError, match="object is for one process; start it without torchrun"):
        check_start(Ranks(0, 2), object())  # a stage that knows no ranks
    for given, words, said in (
        ("0", ["compare"], "2 processes, and compare is one process; start it without torchrun"),
        ("0", ["evaluate", "run=x"], "2 processes, and evaluate is one process"),
        ("0", ["train", "-m", "seed=0,1"], "2 processes for one run, and -m asks for several"),
        ("1", ["compare"], None),
        ("1", ["train", "--cfg", "job"], None),
    ):
        monkeypatch.setenv("RANK", given)
        monkeypatch.setenv("WORLD_SIZE", "2")
        outcome = metalearn(*words)
        assert said in outcome.mistake if said else outcome == (0, "", ""), outcome


def test_a_gpu_for_each_rank(monkeypatch) -> None:
    from metalearn.runtime.device import torch_device

    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert torch_device("auto") == torch_device("cuda") == torch.device("cuda:1")
    assert chosen == [1, 1] and torch_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="device=cuda:0 is one GPU for all ranks"):
        torch_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="more processes here than the 2 GPUs"):
        torch_device("auto")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert torch_device("cuda:0") == torch.device("cuda:0")


def torchrun(ranks: int, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(ranks), "-m", "metalearn", *words],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def lines(err: str) -> list[str]:
    """Ours, of all that stands there: torchrun has its own report of what failed."""
    return [line for line in err.splitlines() if line.startswith("metalearn:")]


def processes_of(parent: int) -> dict[int, int]:
    """The children that have a rank, by it."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and int((path / "stat").read_text().split()[3]) == parent:
                told = (path / "environ").read_bytes().split(b"\0")
                found |= {int(t[5:]): int(path.name) for t in told if t.startswith(b"RANK=")}
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.slow
def test_torchrun_a_kill_and_another_number_of_ranks(place: Path) -> None:
    words = ["train", *TRAIN, "batching=loop", "training.steps=30"]
    assert metalearn(*words, "run_dir=whole").code == 0
    with torchrun(2, *words, "run_dir=two") as whole:
        out, err = whole.communicate()
    assert whole.returncode == 0 and not lines(err) and "run folder: two" in out
    same(place / "two", place / "whole", "weights.safetensors")

    with torchrun(2, *words, "run_dir=killed") as broken:
        metrics, limit = place / "killed" / "metrics.jsonl", time.monotonic() + 600
        while not (metrics.exists() and '"step": 7,' in metrics.read_text()):
            assert time.monotonic() < limit and broken.poll() is None
            time.sleep(0.01)
        os.kill(processes_of(broken.pid)[1], signal.SIGKILL)
        out, err = broken.communicate()
    (line,) = lines(err)
    assert broken.returncode != 0 and "a rank ended, or no longer answers, after step" in line
    assert checkpoints(place / "killed")[-1] >= 7
    with torchrun(3, *words, "run_dir=killed") as resumed:
        out, err = resumed.communicate()
    assert resumed.returncode == 0 and "with 2 ranks, and goes on with 3 ranks" in out
    same(place / "killed", place / "whole", "weights.safetensors")

    with torchrun(2, *words, "algorithm.steps=3", "run_dir=two") as refused:
        out, err = refused.communicate()
    (line,) = lines(err)
    assert refused.returncode != 0 and "holds a run with algorithm.steps=2, not 3" in line
