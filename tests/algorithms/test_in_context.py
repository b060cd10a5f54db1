"""In context: the transformer against one that reads a whole sequence, and an episode's labels."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn import Batch, Episodes, adapt, algorithms, evaluate
from metalearn.classifiers.transformer import episode_labels
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.gradients import Unroll
from metalearn.training import Outer, meta_step
from tests.command import FAST, metalearn
from tests.tasks import apart, classification, generator, network, on, task

LAYERS, HEADS, LABELS = 2, 2, 6


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 5))


def method(module: nn.Module, **options) -> algorithms.Metric:
    return algorithms.InContext(module, 5, LAYERS, HEADS, 8, LABELS, **options)


def plain(init, hyper, support: Batch, query: Batch, labels):
    """The loss of one sequence of all examples, with a mask of who sees whom."""

    def features(x):
        h = F.layer_norm((x @ init["0.weight"].T + init["0.bias"]).tanh(), (8,), init["2.weight"],
                         init["2.bias"])  # fmt: skip
        f = h @ init["3.weight"].T + init["3.bias"]
        return 5**0.5 * F.normalize(f, dim=1)

    s, q = len(support.y), len(query.y)
    words = [*(hyper["B"] @ labels[n] for n in support.y), *(hyper["b"] for _ in range(q))]
    h = features(torch.cat([support.x, query.x])) @ hyper["A"].T + torch.stack(words)
    sees = torch.zeros(s + q, s + q, dtype=torch.bool)
    sees[:, :s] = True
    sees |= torch.eye(s + q, dtype=torch.bool)
    for layer in range(LAYERS):
        own = {name: hyper[f"{layer}.{name}"] for name in ("query", "key", "value", "out")}
        tokens = F.layer_norm(h, (8,))
        parts = [
            (tokens @ own[name].T).view(-1, HEADS, 4).transpose(0, 1)
            for name in ("query", "key", "value")
        ]
        seen = F.scaled_dot_product_attention(*parts, attn_mask=sees)
        h = h + seen.transpose(0, 1).reshape(-1, 8) @ own["out"].T
        inside = F.layer_norm(h, (8,)) @ hyper[f"{layer}.mlp.in"].T + hyper[f"{layer}.mlp.bias"]
        h = h + inside.relu() @ hyper[f"{layer}.mlp.out"].T + hyper[f"{layer}.mlp.shift"]
    logits = F.layer_norm(h[s:], (8,)) @ hyper["C"].T @ labels[:3].T
    return F.cross_entropy(logits, query.y)


def test_it_is_one_sequence_with_a_mask_in_value_and_gradient() -> None:
    algo, tasks = method(network(net), frozen=False), classification(2, 3, 2, 5, (4,))
    meta, g = algo.init(), generator(1)
    for part in ("init", "hyper"):  # nothing is where it starts
        meta[part] = {
            n: t + 0.3 * torch.randn(t.shape, generator=g, dtype=t.dtype)
            for n, t in meta[part].items()
        }
    learned = {
        p: {n: t.clone().requires_grad_() for n, t in meta[p].items()} for p in ("init", "hyper")
    }
    losses = []
    for t in range(2):
        support, query, _ = task(tasks, t)
        labels = adapt(algo, meta, support)["labels"]
        losses.append(plain(learned["init"], learned["hyper"], support, query, labels))
    leaves = [t for part in learned.values() for t in part.values()]
    grads = iter(torch.autograd.grad(sum(losses) / 2, leaves))
    want = {p: {n: next(grads) for n in learned[p]} for p in learned}
    for batching in ("loop", "vmap"):
        got, metrics = on(Unroll(), batching)(algo, meta, tasks)
        torch.testing.assert_close(
            metrics["loss"], torch.stack(losses).detach(), rtol=1e-12, atol=0
        )
        assert apart(got, want) < 1e-10


def labels_of(x, y, weight=None, size: int = 64, seed: int = 0):
    return episode_labels(Batch(x, y, weight), size, seed)


def test_labels_belong_to_an_episode_and_not_to_numbers() -> None:
    g = generator()
    x, y = torch.randn(80, 7, generator=g).double().abs(), torch.arange(40).repeat(2)
    found = labels_of(x, y)[:40]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(40).double())
    cosines = (found @ found.T)[~torch.eye(40, dtype=torch.bool)]
    # Of random directions in 64 dimensions: mean 0, deviation 1/8.
    assert abs(cosines.mean()) < 0.02 and 0.11 < cosines.std() < 0.14
    # In another order, under other numbers, and with padding: the class keeps its own.
    order, other = torch.randperm(80, generator=g), torch.randperm(40, generator=g)
    same = labels_of(x[order], other[y][order])
    torch.testing.assert_close(same[other], found, rtol=0, atol=0)
    loud = torch.cat([x, 100 * torch.randn(9, 7, generator=g).double()])
    weight = (torch.arange(89) < 80).double()
    same = labels_of(loud, torch.cat([y, torch.full((9,), 3)]), weight)[:40]
    torch.testing.assert_close(same, found, rtol=0, atol=0)
    # Another episode of the same classes, another seed: others.
    for unlike in (
        labels_of(x + 0.3 * torch.randn(x.shape, generator=g), y),
        labels_of(x, y, seed=1),
    ):
        assert (unlike[:40] * found).sum(1).abs().max() < 0.6


def test_features_of_zero_and_two_classes_alike_are_finite() -> None:
    algo = method(nn.Flatten(), frozen=True)
    x, y = torch.zeros(4, 5), torch.arange(4)
    meta = algo.init()
    assert algo.predict(meta, adapt(algo, meta, Batch(x, y)), x).isfinite().all()


def centres(count: int, ways: int, g: torch.Generator) -> Episodes:
    """Classes are directions in the plane among noise that the features do not see less of."""
    middle = torch.randn(count, ways, 5, generator=g) * 2
    y = torch.arange(ways).repeat(count, 7)
    x = middle.gather(1, y.unsqueeze(2).expand(*y.shape, 5))
    x = x + torch.randn(x.shape, generator=g)
    return Episodes(
        Batch(x[:, : 2 * ways], y[:, : 2 * ways]), Batch(x[:, 2 * ways :], y[:, 2 * ways :])
    )


def test_it_learns_on_a_frozen_network_and_takes_more_classes_than_it_was_trained_on() -> None:
    module = nn.Sequential(nn.Linear(5, 5))
    nn.init.orthogonal_(module[0].weight)
    algo, g, engine = algorithms.InContext(module, 5, 2, 2, 32, 32), generator(4), Engine("vmap")
    meta, test = algo.init(), {ways: centres(50, ways, g) for ways in (3, 6)}
    assert not meta["init"] and set(meta["buffers"]) == {"0.weight", "0.bias"}
    assert all(t.dtype == torch.float32 for t in meta["hyper"].values())
    before = {
        ways: evaluate(algo, meta, e, engine=engine).accuracy.mean for ways, e in test.items()
    }
    outer = Outer(meta, lambda tensors: torch.optim.Adam(tensors, 0.003))
    for _ in range(60):
        meta_step(engine, Unroll(), algo, outer, meta, centres(8, 3, g))
    torch.testing.assert_close(
        meta["buffers"]["0.weight"], module[0].weight.detach(), rtol=0, atol=0
    )
    for ways, episodes in test.items():
        accuracy = evaluate(algo, meta, episodes, engine=engine).accuracy
        assert accuracy.mean - accuracy.half_width > max(1.5 / ways, before[ways] + 0.05)


@pytest.mark.parametrize(
    "options, line",
    [
        ({"heads": 3}, "algorithm.width=128 is no multiple of algorithm.heads=3"),
        ({"layers": 0}, "algorithm.layers=0 must be 1 or more"),
        ({"width": 1.5}, "algorithm.width=1.5 must be a whole number, 1 or more"),
        ({"labels": -1}, "algorithm.labels=-1 must be 1 or more"),
    ],
)
def test_sizes_that_cannot_be(options, line) -> None:
    with pytest.raises(UsageError) as error:
        algorithms.InContext(net(), 5, **options)
    assert str(error.value) == line


def test_a_run_is_measured_with_more_classes_than_it_was_trained_on(workplace: Path) -> None:
    small = ("algorithm.width=16", "algorithm.labels=8", "algorithm.layers=1", "batching=loop")
    outcome = metalearn("train", *FAST, "algorithm=in_context", *small, "run_dir=run")
    assert outcome.code == 0, outcome.err
    outcome = metalearn("evaluate", "run=run", "episodes.ways=7")
    assert outcome.code == 0 and "7-way" in outcome.out, outcome
