"""Several backbones as one: exact in second order, frozen members shared, weights of each task."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms import MAML, Metric
from metalearn.backbones import MLP, Ensemble
from metalearn.backbones.ensemble import MemberHeads, Prepared
from metalearn.classifiers import Cosine, MemberWeights
from metalearn.errors import UsageError
from metalearn.functional import pure
from metalearn.gradients import Adjoint
from metalearn.inner import sgd
from metalearn.types import Batch
from tests.gradients import reference
from tests.tasks import apart, classification, network, on, randomised

WIDTHS = [6, 4]


def ensemble(ways: int | None, combine: str, frozen=False) -> Ensemble:
    members = {f"m{width}": MLP(9, None, (5, width)) for width in WIDTHS}
    return Ensemble(members, WIDTHS, ways, combine, frozen)


class Plain(nn.Module):
    """The same by its formulas, with the same names of weights."""

    def __init__(self, combine: str) -> None:
        super().__init__()
        made = ensemble(3, combine)
        self.members, self.head, self.combine = made.members, made.head, combine

    def forward(self, x: Tensor) -> Tensor:
        each = [member(x) for member in self.members.values()]
        each = [f / f.norm(dim=1, keepdim=True) for f in each]
        head = self.head
        if self.combine == "concat":
            return torch.cat(each, 1) @ head.weight.T + head.bias
        first, second = head.weight[:, :6], head.weight[:, 6:]
        logits = [each[0] @ first.T + head.bias[0], each[1] @ second.T + head.bias[1]]
        share = [0.5, 0.5] if self.combine == "logits" else head.mix.exp() / head.mix.exp().sum()
        return share[0] * logits[0] + share[1] * logits[1]


@pytest.mark.parametrize("combine", ["concat", "logits", "weighted"])
@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_maml_over_it_is_exact(combine: str, batching: str) -> None:
    net = network(lambda: ensemble(3, combine))
    plain = network(lambda: Plain(combine))
    plain.load_state_dict(net.state_dict())
    episodes = classification(shape=(9,))
    want = reference.meta_gradient(plain, {}, episodes, 2)
    got, _ = on(Adjoint(), batching)(
        MAML(net, steps=2, rule=sgd(reference.RATE)), _meta(net), episodes
    )
    assert apart(got, want) < 1e-10
    if combine == "weighted":
        assert got["init"]["head.mix"].abs().max() > 1e-4


def _meta(net: nn.Module):
    return MAML(net, steps=2, rule=sgd(reference.RATE)).init()


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("frozen", [False, ["m6"], True])
def test_weights_of_the_members_by_the_support_set_are_exact(batching: str, frozen) -> None:
    net = network(lambda: ensemble(None, "concat", frozen))
    algo = Metric(net, MemberWeights().with_members(net.widths))
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    episodes = classification(shape=(9,))
    got, metrics = on(Adjoint(), batching)(algo, meta, episodes)
    init = {n: t.detach().clone().requires_grad_() for n, t in meta["init"].items()}
    hyper = {n: t.detach().clone().requires_grad_() for n, t in meta["hyper"].items()}
    assert set(hyper) == {"offset", "slope", "log_temperature"}
    losses = []
    for t in range(3):
        weights = {**dict(net.state_dict()), **init}

        def features(x: Tensor, weights=weights) -> list[Tensor]:
            found = torch.func.functional_call(net, weights, (x,))
            return [F.normalize(f, dim=1) for f in found.split(WIDTHS, 1)]

        y, scores, close = episodes.support.y[t], [], []
        for m, (z, q) in enumerate(
            zip(features(episodes.support.x[t]), features(episodes.query.x[t]), strict=True)
        ):
            means = torch.stack([z[y == n].mean(0) for n in range(3)])
            cos = z @ F.normalize(means, dim=1).T
            own = torch.stack([cos[i, y[i]] for i in range(len(y))]).mean()
            other = torch.stack(
                [cos[i, n] for i in range(len(y)) for n in range(3) if n != y[i]]
            ).mean()
            scores.append(hyper["offset"][m] + hyper["slope"][0] * own + hyper["slope"][1] * other)
            close.append(q @ F.normalize(means, dim=1).T / hyper["log_temperature"][m].exp())
        share = torch.stack(scores).softmax(0)
        logits = sum(w * c for w, c in zip(share, close, strict=True))
        losses.append(F.cross_entropy(logits, episodes.query.y[t]))
    value = torch.stack(losses).mean()
    learned = [*init.values(), *hyper.values()]
    grads = iter(torch.autograd.grad(value, learned))
    want = {part: {n: next(grads) for n in of} for part, of in (("init", init), ("hyper", hyper))}
    assert apart(got, want) < 1e-10
    torch.testing.assert_close(metrics["loss"].mean(), value.detach(), rtol=0, atol=1e-12)
    names = {True: 0, False: 8}.get(frozen if isinstance(frozen, bool) else None, 4)
    assert len(init) == names  # weights and biases of two layers of each member that learns


def test_a_member_that_tells_the_support_set_apart_counts_more() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(5)
    good = torch.eye(3)[y] + 0.1 * torch.randn(15, 3, generator=g)
    noise = torch.randn(15, 4, generator=g) + 3
    classifier = MemberWeights(widths=[3, 4])
    hyper = {n: t.float() for n, t in classifier.hyper(7).items()}
    state = classifier.fit(hyper, Batch(torch.cat([good, noise], 1), y))
    assert state["log_weights"].exp()[0] > 0.95
    # One member alone is the cosine classifier.
    alone, other = MemberWeights(temperature=0.4), Cosine(temperature=0.4)
    batch, hyper = Batch(good, y), {n: t.float() for n, t in alone.hyper(3).items()}
    ours = alone.logits(hyper, alone.fit(hyper, batch), noise[:, :3])
    theirs = other.logits({}, other.fit({}, batch), noise[:, :3])
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(
        UsageError, match="classifier.widths=\\[3, 3\\] are not those of 7 features"
    ):
        MemberWeights(widths=[3, 3]).fit(MemberWeights([3, 3]).hyper(), Batch(torch.ones(15, 7), y))


def test_one_module_under_two_names_has_one_set_of_weights() -> None:
    body = MLP(9, None, (5, 4))
    members = {"a": body, "b": Prepared(body, mean=[0.5], std=[2.0])}
    net = pure(Ensemble(members, [4, 4], 3))
    assert sum(t.numel() for t in (*net.params.values(), *net.buffers.values())) == (
        sum(t.numel() for t in body.parameters()) + 8 * 3 + 3 + 2
    )
    assert set(net.params) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (({}, [], 3), "backbone.members is empty"),
        (({"a": MLP(9, None)}, [40], 3, "mean"), "backbone.combine=mean is not known"),
        (({"a": MLP(9, None)}, [40], None, "logits"), "this algorithm works on features; use"),
        (({"a": MLP(9, None)}, [40], 3, "concat", ["b"]), "backbone.frozen: no member b"),
    ],
)
def test_mistakes(arguments, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Ensemble(*arguments)


def test_average_of_heads() -> None:
    heads = MemberHeads(WIDTHS, 3, weighted=True)
    x = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    plain = MemberHeads(WIDTHS, 3, weighted=False)
    plain.load_state_dict({n: t for n, t in heads.state_dict().items() if n != "mix"})
    torch.testing.assert_close(heads(x), plain(x))  # equal weights, as they start
