"""One outer step: torch's own optimizers, schedules and clipping on all that is learned."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from torch.optim import lr_scheduler as schedules

from metalearn import tree
from metalearn.algorithms import ANIL, MAML
from metalearn.engine import Engine
from metalearn.functional.norms import BatchNorm
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import lslr, meta_sgd, sgd
from metalearn.training import Outer, meta_step
from metalearn.training.checkpoint import load_checkpoint, save_checkpoint
from metalearn.types import Meta
from tests.tasks import classification, generator, network


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def vectors(seed: int = 0):
    return classification(tasks=3, shape=(4,), seed=seed)


ALGORITHMS = {
    "maml": lambda: MAML(network(mlp), 2, sgd(0.1)),
    "meta_sgd": lambda: MAML(network(mlp), 2, meta_sgd(0.1)),
    "anil": lambda: ANIL(network(mlp), 2, lslr(0.1)),
}


def random_like(meta: Meta, seed: int) -> dict:
    g = generator(seed)
    return {
        part: {n: torch.randn(t.shape, generator=g, dtype=t.dtype) for n, t in meta[part].items()}
        for part in ("init", "hyper")
    }


def learned(meta: Meta) -> dict[str, torch.Tensor]:
    return {f"{part}/{n}": t for part in ("init", "hyper") for n, t in meta[part].items()}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_step_of_sgd(name) -> None:
    algo = ALGORITHMS[name]()
    meta = algo.init()
    kept = learned(meta)
    before = tree.clone(kept)
    gradient, want_metrics = Unroll()(algo, meta, vectors())
    outer = Outer(meta, lambda weights: SGD(weights, lr=0.7))
    metrics = meta_step(Engine("loop"), Unroll(), algo, outer, meta, vectors())
    for key, weight in learned(meta).items():
        part, _, n = key.partition("/")
        step = gradient[part][n]
        assert step.norm() > 1e-6, key
        assert torch.allclose(weight, before[key] - 0.7 * step, rtol=1e-12, atol=1e-14), key
        assert weight is kept[key], "weights are to be updated in place"
        assert weight.grad is None
    assert ("hyper/rate.2" in kept) == (name == "anil")
    squares = sum(float((t * t).sum()) for p in gradient.values() for t in p.values())
    assert float(metrics["grad_norm"]) == pytest.approx(squares**0.5, rel=1e-12)
    assert torch.equal(metrics["loss"], want_metrics["loss"]) and metrics["loss"].shape == (3,)


def test_the_order_of_a_gradients_names_does_not_matter() -> None:
    meta = ALGORITHMS["meta_sgd"]().init()
    other = tree.map_meta(torch.clone, meta)
    gradient = random_like(meta, 0)
    Outer(meta, lambda w: SGD(w, lr=1.0)).step(gradient)  # type: ignore[arg-type]
    backwards = {part: dict(reversed(gradient[part].items())) for part in ("hyper", "init")}
    Outer(other, lambda w: SGD(w, lr=1.0)).step(backwards)  # type: ignore[arg-type]
    for key, weight in learned(meta).items():
        assert torch.equal(weight, learned(other)[key])


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e6, None])
def test_clipping_bounds_the_norm_of_all_together(clip) -> None:
    meta = ALGORITHMS["meta_sgd"]().init()
    before = tree.clone(learned(meta))
    gradient = random_like(meta, 1)
    # A copy: the clipped gradient is scaled in place.
    parts = tree.clone(learned({**gradient, "buffers": {}}))  # type: ignore[typeddict-item]
    norm = torch.stack([t.norm() for t in parts.values()]).norm()
    assert norm > 1
    returned = Outer(meta, lambda w: SGD(w, lr=1.0), clip_norm=clip).step(gradient)  # type: ignore[arg-type]
    assert float(returned) == pytest.approx(float(norm), rel=1e-12)
    factor = 1.0 if clip is None else min(1.0, clip / float(norm))
    for key, weight in learned(meta).items():
        assert torch.allclose(before[key] - weight, factor * parts[key], rtol=1e-5, atol=1e-12)


OUTERS = {
    "adam_cosine": (lambda w: Adam(w, lr=0.01), lambda o: schedules.CosineAnnealingLR(o, 9)),
    "amsgrad_onecycle": (
        lambda w: AdamW(w, lr=0.01, amsgrad=True),
        lambda o: schedules.OneCycleLR(o, 0.1, total_steps=9),
    ),
    "momentum_multistep": (
        lambda w: SGD(w, lr=0.1, momentum=0.9, nesterov=True),
        lambda o: schedules.MultiStepLR(o, [2, 4, 4, 7], gamma=0.3),
    ),
    "rmsprop_sequential": (
        lambda w: RMSprop(w, lr=0.01, momentum=0.5, centered=True),
        lambda o: schedules.SequentialLR(
            o, [schedules.LinearLR(o, 0.1, 1.0, 3), schedules.ExponentialLR(o, 0.8)], [3]
        ),
    ),
    "adagrad_linear": (
        lambda w: Adagrad(w, lr=0.1),
        lambda o: schedules.LinearLR(o, 1.0, 0.0, total_iters=9),
    ),
    "sgd_constant": (lambda w: SGD(w, lr=0.1), None),
}


@pytest.mark.parametrize("name", OUTERS)
def test_eight_steps_are_torchs_own(name) -> None:
    make, make_schedule = OUTERS[name]
    meta = ALGORITHMS["meta_sgd"]().init()
    theirs = {n: nn.Parameter(t.clone()) for n, t in learned(meta).items()}
    optimizer = make(list(theirs.values()))
    schedule = make_schedule(optimizer) if make_schedule else None
    outer = Outer(meta, make, make_schedule)
    rates = set()
    for step in range(8):
        gradient = random_like(meta, step)
        assert outer.learning_rate == optimizer.param_groups[0]["lr"]
        rates.add(outer.learning_rate)
        outer.step(gradient)  # type: ignore[arg-type]
        for key, weight in theirs.items():
            part, _, n = key.partition("/")
            weight.grad = gradient[part][n]
        optimizer.step()
        if schedule:
            schedule.step()
        for key, weight in learned(meta).items():
            assert torch.allclose(weight, theirs[key], rtol=1e-13, atol=1e-15)
    assert len(rates) > 1 or schedule is None


@pytest.mark.parametrize("name", OUTERS)
def test_a_checkpoint_between_steps_changes_nothing(name, tmp_path) -> None:
    make, make_schedule = OUTERS[name]

    def steps(meta, outer, numbers):
        for step in numbers:
            outer.step(random_like(meta, step))

    whole = ALGORITHMS["meta_sgd"]().init()
    steps(whole, Outer(whole, make, make_schedule), range(8))

    for cut in (1, 4, 7):
        meta = ALGORITHMS["meta_sgd"]().init()
        outer = Outer(meta, make, make_schedule)
        steps(meta, outer, range(cut))
        path = save_checkpoint(tmp_path, cut, {"meta": meta, "outer": outer.state()})
        saved = load_checkpoint(path)
        resumed = Outer(saved["meta"], make, make_schedule)
        resumed.load(saved["outer"])
        assert resumed.learning_rate == outer.learning_rate
        steps(saved["meta"], resumed, range(cut, 8))
        for key, weight in learned(whole).items():
            assert torch.equal(weight, learned(saved["meta"])[key]), (cut, key)


def test_running_averages_follow_the_support_examples() -> None:
    """As torch's batch norm in train mode would, under the new weights."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), BatchNorm(6, "running"), nn.Linear(6, 3))

    algo = MAML(network(build), 2, sgd(0.1))
    meta = algo.init()
    outer = Outer(meta, lambda w: SGD(w, lr=0.5))
    theirs = nn.BatchNorm1d(6, dtype=torch.float64)
    theirs.running_mean.copy_(meta["buffers"]["1.running_mean"])  # type: ignore[union-attr]
    theirs.running_var.copy_(meta["buffers"]["1.running_var"])  # type: ignore[union-attr]
    for seed in range(3):
        before = tree.clone(meta["buffers"])
        episodes = vectors(seed)
        meta_step(Engine("loop"), Adjoint(), algo, outer, meta, episodes)
        x = episodes.support.x.flatten(0, 1)
        with torch.no_grad():
            theirs(x @ meta["init"]["0.weight"].T + meta["init"]["0.bias"])
        for kind in ("mean", "var"):
            got = meta["buffers"][f"1.running_{kind}"]
            assert torch.allclose(got, getattr(theirs, f"running_{kind}"), rtol=1e-10)
            assert not torch.allclose(got, before[f"1.running_{kind}"], rtol=1e-3)


def test_other_buffers_stay() -> None:
    module = network(mlp)
    module.register_buffer("constant", torch.arange(3.0))
    algo = MAML(module, 1, sgd(0.1))
    meta = algo.init()
    outer = Outer(meta, lambda w: SGD(w, lr=0.5))
    meta_step(Engine("loop"), Unroll(), algo, outer, meta, vectors())
    assert list(meta["buffers"]) == ["constant"]
    assert torch.equal(meta["buffers"]["constant"], torch.arange(3.0))


def test_a_step_that_overflows_is_skipped_where_that_is_asked():
    algo = ALGORITHMS["maml"]()
    meta, kept = algo.init(), algo.init()
    outer = Outer(meta, lambda learned: Adam(learned, lr=0.1), skip_overflow=True)
    for count in (1, 2):
        overflowed = random_like(meta, 1)  # a step scales what it is given, in place
        next(iter(overflowed["init"].values())).div_(0)
        assert not outer.step(overflowed).isfinite()
        assert outer.skipped == count
    torch.testing.assert_close(learned(meta), learned(kept), rtol=0, atol=0)
    assert not outer.optimizer.state
    assert outer.step(random_like(meta, 1)).isfinite() and outer.skipped == 0
    plain = Outer(kept, lambda learned: Adam(learned, lr=0.1))
    plain.step(random_like(meta, 1))
    torch.testing.assert_close(learned(meta), learned(kept), rtol=0, atol=0)
