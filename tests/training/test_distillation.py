"""What a teacher adds to the loss, against plain floats; which teachers are taken."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from metalearn.backbones import Conv4
from metalearn.commands.building.config import compose
from metalearn.commands.pretrain import build
from metalearn.errors import UsageError
from metalearn.functional import pure
from metalearn.training.classification import loss_and_accuracy, restore, torch_norms
from metalearn.training.distillation import Teacher
from metalearn.training.mixing import Labelled
from tests.command import metalearn

SMALL = (
    "dataset.classes=24", "dataset.size=16", "dataset.drawings=10", "backbone.filters=4",
    "held_out.val=0.2", "held_out.test=0.1", "training.batch_size=16", "training.steps=2",
    "episodes.ways=3", "episodes.queries=2", "evaluation.episodes=2",
    "tracker=disabled", "tracker.plots=false",
    "evaluation.validation_episodes=2", "device=cpu",
)  # fmt: skip


def log_softmax(row: list[float]) -> list[float]:
    norm = math.log(sum(math.exp(v) for v in row))
    return [v - norm for v in row]


def divergence(told: torch.Tensor, logits: torch.Tensor, temperature: float) -> float:
    """T^2 KL(teacher || student) in Python's floats (Hinton et al. 2015, section 2)."""
    total = 0.0
    for row, own in zip(told.tolist(), logits.tolist(), strict=True):
        p, q = (log_softmax([v / temperature for v in values]) for values in (row, own))
        total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(told)


@pytest.mark.parametrize("inside", [False, True])
def test_the_loss_against_plain_floats(inside: bool) -> None:
    torch.manual_seed(0)
    student, other = (
        torch_norms(Conv4(5, 1, 4, 16, norm="frozen")).double().eval() for _ in range(2)
    )
    teacher = Teacher(other, 0.3, 2.5, "")
    x, y = torch.rand(6, 1, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    share, partner = (0.7, torch.tensor([3, 0, 5, 1, 2, 4])) if inside else (1.0, None)
    batch = Labelled(x, y, y if partner is None else y[partner], share, partner, 0.99)
    layers = ["features.0", "head"]
    loss, _ = loss_and_accuracy(student, batch, teacher=teacher, layers=layers)
    without, _ = loss_and_accuracy(student, batch, layers=layers)
    with torch.no_grad():
        logits, told = student(x), other(x)
        if partner is not None:  # the head is linear
            logits = share * logits + (1 - share) * logits[partner]
        want = share * divergence(told, logits, 2.5)
        if partner is not None:
            want += (1 - share) * divergence(told[partner], logits, 2.5)
    assert loss.item() == pytest.approx(0.7 * without.item() + 0.3 * want, rel=1e-10)
    loss.backward()
    assert all(p.grad is None for p in other.parameters())
    # The answers of the teacher itself are nothing to learn.
    assert Teacher(student, 1.0, 4.0, "").loss(student(x), batch._replace(partner=None)) < 1e-12


def rewrite(change: Callable[[dict], dict]) -> None:
    """Change what the teacher's file says of itself, as if the run had written that."""
    path = Path("teacher/backbone.safetensors")
    with safe_open(path, "pt") as opened:
        told = json.loads(opened.metadata()["metalearn"])
    data = save(load_file(path), {"metalearn": json.dumps(change(told))})
    path.write_bytes(data)
    result = json.loads(Path("teacher/result.json").read_text())
    result["weights_sha256"] = hashlib.sha256(data).hexdigest()
    Path("teacher/result.json").write_text(json.dumps(result))


@pytest.fixture
def taught(workplace: Path) -> Path:
    outcome = metalearn("pretrain", *SMALL, "run_dir=teacher")
    assert outcome.code == 0, outcome.err
    return workplace


def test_a_student_learns_from_the_file_of_the_run(taught: Path) -> None:
    asked = [*SMALL, "distillation.teacher=teacher", "backbone.filters=8", "run_dir=student"]
    config, stage = build(compose(asked, "pretrain"))
    result = json.loads(Path("teacher/result.json").read_text())
    assert config["distillation"]["sha256"] == result["weights_sha256"] == stage.teacher.sha256
    assert not any(part.training for part in stage.teacher.module.modules())
    frozen = Conv4(16, 1, 4, 16, norm="frozen")
    restore(frozen, load_file("teacher/backbone.safetensors"))
    net, x = pure(frozen), torch.rand(3, 1, 16, 16)
    told = net.apply({**net.params, **net.buffers}, x)
    torch.testing.assert_close(stage.teacher(x), told)
    outcome = metalearn("pretrain", *asked)
    assert outcome.code == 0, outcome.err
    # Another teacher under the same name is another run.
    rewrite(lambda told: {**told, "steps": 7})
    assert "a run with distillation.sha256=" in metalearn("pretrain", *asked).mistake


MISTAKES = {
    "distillation.weight=1.5": "distillation.weight=1.5 must be 0 to 1",
    "distillation.temperature=0": "distillation.temperature=0.0 must be above 0, and finite",
    "distillation.teacher=nowhere": "=nowhere is not a run folder (no config.yaml)",
    "distillation.sha256=00000000": "not 00000000; correct distillation.sha256",
    "dataset.classes=30": "knows other classes (16 of glyphs, not these 20 of glyphs)",
    "images.channels=3": "sees other images; use images.channels=1, as it did",
    "images.std=0.5": "sees other images; use images.std=null, as it did",
    "held_out.seed=1": "use its held_out.val=0.2 held_out.test=0.1 held_out.seed=0",
}


def test_which_teachers_are_refused(taught: Path) -> None:
    def mistake(*more: str) -> str:
        asked = [*SMALL, "distillation.teacher=teacher", "run_dir=student", *more]
        last = dict(word.split("=", 1) for word in asked)
        line = metalearn("pretrain", *(f"{name}={value}" for name, value in last.items())).mistake
        assert not Path("student").exists()
        return line

    for override, line in MISTAKES.items():
        assert line in mistake(override), override
    config = Path("teacher/config.yaml")
    result = Path("teacher/result.json")
    before = result.read_bytes()
    # What its configuration names is not imported, unless this run names it or trusts it.
    rewrite(lambda told: {**told, "backbone": {"_target_": "os.system", "command": "touch bad"}})
    assert "would call backbone._target_=os.system" in mistake()
    assert "add distillation.trust=os, or distillation.trust=true" in mistake()
    assert not Path("bad").exists()
    result.write_bytes(before)
    assert "is not what the run wrote (sha256 " in mistake()
    rewrite(lambda told: {**told, "backbone": None})
    assert "teacher/backbone.safetensors does not say its backbone" in mistake()
    config.write_text("held_out: [")
    assert "teacher/config.yaml is damaged" in mistake()
    result.unlink()
    assert "has not finished; the command that started it goes on with it" in mistake()
    Path("teacher/weights.safetensors").touch()
    assert "is a run of train, which has no base classes; name one of pretrain" in mistake()


def test_the_backbone_of_a_command_may_be_a_teachers_too(workplace, monkeypatch) -> None:
    Path("a_teachers_own.py").write_text("from metalearn.backbones import Conv4 as Net\n")
    monkeypatch.syspath_prepend(str(workplace))
    asked = [*SMALL, "backbone._target_=a_teachers_own.Net"]
    assert metalearn("pretrain", *asked, "run_dir=teacher").code == 0

    def teacher(*given: str) -> Teacher | None:
        asked = compose([*given, "distillation.teacher=teacher", "run_dir=student"], "pretrain")
        return build(asked)[1].teacher

    with pytest.raises(UsageError, match="add distillation.trust=a_teachers_own, or"):
        teacher(*SMALL)
    for given in (
        asked,
        [*SMALL, "distillation.trust=a_teachers_own"],
        [*SMALL, "distillation.trust=true"],
    ):
        assert isinstance(teacher(*given).module, Conv4)
