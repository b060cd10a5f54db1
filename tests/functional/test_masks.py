"""Pruned weights have no gradient and no update, in every strategy and however it runs."""

import pytest
import torch

from metalearn import gradients, tree
from metalearn.algorithms import ANIL, MAML, ProtoNet, Reptile
from metalearn.backbones import MLP, Conv4
from metalearn.backbones.heads import head_name
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.functional.masks import (
    held,
    kept_highest,
    magnitudes,
    masks_of,
    ones,
    prunable,
    sparsity_of,
    with_masks,
)
from metalearn.inner import adam, lslr, meta_curvature, meta_sgd, sgd
from metalearn.inner.loop import adapt
from metalearn.training.folder import load_weights, save_weights
from metalearn.training.outer import Outer, meta_step
from metalearn.training.pruning import SNIP, IterativeHardThresholding, Magnitude
from metalearn.types import Given, Meta
from tests.gradients import reference
from tests.tasks import apart, classification, network

EPISODES = classification()
RULE = sgd(reference.RATE)


def conv() -> torch.nn.Module:
    return network(lambda: Conv4(3, filters=4, size=16, norm="support"))


def pruned(algo, sparsity: float = 0.6) -> Meta:
    meta = algo.init()
    names = prunable(meta, head_name(algo.module) if algo.steps else None)
    return with_masks(meta, kept_highest(magnitudes(meta, names), sparsity))


def reference_gradient(meta: Meta, **how):
    plain = reference.PlainConv4("support", "pool", 3, 4).double()
    plain.load_state_dict(meta["init"], strict=False)
    masks = masks_of(meta["buffers"])
    for part in plain.modules():  # the reference calls layers: let them multiply
        for key in ("weight",):
            name = next((n for n, p in plain.named_parameters() if p is getattr(part, key, 0)), "")
            if name in masks:
                own = type(part).forward
                hold = masks[name]

                def forward(x, part=part, own=own, hold=hold):
                    kept = part._parameters["weight"]
                    part._parameters["weight"] = kept * hold
                    try:
                        return own(part, x)
                    finally:
                        part._parameters["weight"] = kept

                part.forward = forward
    return reference.meta_gradient(plain, {}, EPISODES, 2, **how)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_masked_meta_gradient_is_that_of_the_task_loop(batching: str) -> None:
    algo = MAML(conv(), 2, RULE)
    meta = pruned(algo)
    want = reference_gradient(meta)
    for strategy in (gradients.Unroll(), gradients.Adjoint(), gradients.Checkpointed()):
        got, _ = Engine(batching)(strategy, algo, meta, EPISODES)
        assert apart(got, want) < 1e-10
    short, _ = Engine(batching)(gradients.FirstOrder(), algo, meta, EPISODES)
    assert apart(short, reference_gradient(meta, second_order=False)) < 1e-10


@pytest.mark.parametrize(
    "strategy, algorithm",
    [
        (gradients.Unroll(), lambda: MAML(conv(), 2, meta_sgd(0.1))),
        (gradients.Adjoint(), lambda: MAML(conv(), 2, adam(0.1))),
        (gradients.Adjoint(), lambda: MAML(conv(), 2, meta_curvature(0.1))),
        (gradients.Checkpointed(), lambda: MAML(conv(), 2, lslr(0.1))),
        (gradients.Truncated(1), lambda: MAML(conv(), 2, RULE)),
        (gradients.Implicit(), lambda: MAML(conv(), 2, RULE, proximal=2.0)),
        (gradients.Displacement(), lambda: Reptile(conv(), 2, RULE)),
        (gradients.Evolution(pairs=2), lambda: MAML(conv(), 1, RULE)),
        (gradients.Bootstrapped(), lambda: MAML(conv(), 1, RULE)),
        (gradients.Adjoint(), lambda: ANIL(conv(), 2, RULE)),
        (gradients.Adjoint(), lambda: ProtoNet(network(lambda: Conv4(None, filters=4, size=16)))),
    ],
)
def test_a_pruned_weight_has_no_gradient_and_no_update(strategy, algorithm) -> None:
    algo = algorithm()
    meta, masks = pruned(algo), None
    masks = masks_of(meta["buffers"])
    assert sparsity_of(meta) == pytest.approx(0.6, abs=0.01) and masks
    for batching in ("loop", "vmap"):
        got, _ = Engine(batching)(strategy, algo, meta, EPISODES)
        assert all(t.isfinite().all() for t in got["init"].values())
        for name, mask in masks.items():
            assert got["init"][name][mask == 0].abs().max() == 0, name
            assert got["init"][name][mask == 1].abs().max() > 0 or not algo.steps
    given = Given(EPISODES.support.map(lambda t: t[0]))
    fast = adapt(algo, meta, given)
    for name in masks.keys() & fast.keys():
        assert fast[name][masks[name] == 0].abs().max() == 0
    outer = Outer(meta, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1))
    for _ in range(2):
        meta_step(Engine("loop"), strategy, algo, outer, meta, EPISODES)
    assert masks_of(meta["buffers"]).keys() == masks.keys()
    for name, mask in masks.items():
        assert meta["init"][name][mask == 0].abs().max() == 0


@pytest.mark.slow
def test_masks_hold_in_compiled_pieces() -> None:
    algo = MAML(network(lambda: MLP(16, 3, (8,))), 2, RULE)
    meta, given = pruned(algo), classification(shape=(16,))
    want, _ = Engine("loop")(gradients.Adjoint(), algo, meta, given)
    engine = Engine("loop+compile")
    got, _ = engine(gradients.Adjoint(), algo, meta, given)
    assert apart(got, want) < 1e-12
    outer = Outer(meta, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1))
    meta_step(engine, gradients.Adjoint(), algo, outer, meta, given)
    for name, mask in masks_of(meta["buffers"]).items():
        assert got["init"][name][mask == 0].abs().max() == 0
        assert meta["init"][name][mask == 0].abs().max() == 0
        assert meta["init"][name][mask == 1].abs().min() > 0


def test_momentum_of_before_moves_nothing() -> None:
    algo = MAML(conv(), 1, RULE)
    meta = algo.init()
    meta = with_masks(meta, ones(meta, prunable(meta, "head")))
    outer = Outer(meta, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    meta_step(Engine("loop"), gradients.Adjoint(), algo, outer, meta, EPISODES)
    names = list(masks_of(meta["buffers"]))
    found = kept_highest(magnitudes(meta, names), 0.9)
    meta["buffers"] = with_masks(meta, found)["buffers"]
    held(meta)
    meta_step(Engine("loop"), gradients.Adjoint(), algo, outer, meta, EPISODES)
    assert sum(int((meta["init"][n] != 0).sum()) for n in names) == sum(
        int(mask.sum()) for mask in found.values()
    )


def test_saved_and_loaded(tmp_path) -> None:
    algo = MAML(conv(), 1, RULE)
    meta = pruned(algo)
    save_weights(tmp_path / "weights.safetensors", meta)
    first = algo.init()
    like = with_masks(first, ones(first, prunable(first, "head")))
    back = load_weights(tmp_path / "weights.safetensors", like)
    assert sparsity_of(back) == sparsity_of(meta)
    assert all(torch.equal(back["init"][n], t) for n, t in meta["init"].items())
    with pytest.raises(UsageError, match="weights that the network lacks: buffers/mask of"):
        load_weights(tmp_path / "weights.safetensors", algo.init())


def test_the_lowest_scores_go() -> None:
    scores = {"a": torch.tensor([[1.0, 5.0], [2.0, 2.0]]), "b": torch.tensor([0.5, 9.0, 8.0, 7.0])}
    whole = kept_highest(scores, 0.5)
    assert whole["a"].tolist() == [[0, 1], [0, 0]] and whole["b"].tolist() == [0, 1, 1, 1]
    each = kept_highest(scores, 0.5, per_layer=True)
    assert each["a"].tolist() == [[0, 1], [0, 1]] and each["b"].tolist() == [0, 1, 1, 0]
    assert kept_highest(scores, 0.0)["a"].min() == 1
    with pytest.raises(UsageError, match=r"pruning.sparsity=1.0 must be 0 or more, and below 1"):
        kept_highest(scores, 1.0)


def test_schedules_are_functions_of_the_step() -> None:
    how = Magnitude(0.8, begin=3, end=11, every=4)
    assert [step for step in range(1, 20) if how.due(step)] == [3, 7, 11]
    assert [how.at(step) for step in (3, 7, 11)] == pytest.approx([0, 0.8 * (1 - 0.5**3), 0.8])
    once = Magnitude(0.8, begin=5, end=5)
    assert [step for step in range(1, 9) if once.due(step)] == [5] and once.at(5) == 0.8
    turns = IterativeHardThresholding(0.5, end=21, turns=2, dense=0.3)
    assert [step for step in range(1, 40) if turns.due(step)] == [1, 8, 11, 18, 21]
    algo = MAML(conv(), 1, RULE)
    meta = pruned(algo, 0.0)
    for step, sparsity in ((1, 0.5), (8, 0), (11, 0.5), (21, 0.5)):
        masks = turns.masks(step, meta, None)
        found = with_masks(meta, masks)
        assert sparsity_of(found) == pytest.approx(sparsity, abs=0.01)
    assert tree.leaves(meta["init"])


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: Magnitude(sparsity=1.0), "pruning.sparsity=1.0 must be 0 or more, and below 1"),
        (lambda: Magnitude(begin=9, end=3), "pruning.end=3 must be pruning.begin=9 or more"),
        (lambda: IterativeHardThresholding(dense=1.0), "pruning.dense=1.0 must be 0 or more"),
        (lambda: prunable(Meta(init={}, hyper={}, buffers={}), None), "pruning finds no matrix"),
    ],
)
def test_mistakes_are_one_line(make, told) -> None:
    with pytest.raises(UsageError, match=told):
        make()


def test_snip_keeps_what_the_loss_feels() -> None:
    algo = MAML(conv(), 2, RULE)
    meta = pruned(algo, 0.0)
    gradient, _ = Engine("loop")(gradients.Adjoint(), algo, meta, EPISODES)
    masks = SNIP(0.7).masks(1, meta, gradient)
    felt = {n: (meta["init"][n] * reference_gradient(meta)["init"][n]).abs() for n in masks}
    limit = min(float(felt[n][mask == 1].min()) for n, mask in masks.items())
    assert all(felt[n][mask == 0].max() <= limit + 1e-9 for n, mask in masks.items())
    assert SNIP().due(1) and not SNIP().due(2)
