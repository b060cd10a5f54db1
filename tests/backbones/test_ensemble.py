"""Several backbones as one: exact in second order, frozen members shared, weights of each task."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metalearn.algorithms import MAML, Metric
from metalearn.backbones import MLP, Conv4, Ensemble
from metalearn.backbones.ensemble import MemberHeads, Prepared
from metalearn.classifiers import Cosine, MemberWeights
from metalearn.errors import UsageError
from metalearn.functional import pure
from metalearn.gradients import Adjoint
from metalearn.inner import sgd
from metalearn.types import Batch
from tests.command import FAST, metalearn
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


def test_a_run_of_it_and_what_is_kept(workplace: Path) -> None:
    told = {"images": {"size": 16, "channels": 1, "mean": [0.25], "std": [0.5]}}
    torch.manual_seed(0)
    made = Conv4(ways=7, channels=1, size=16, filters=4, norm="frozen")
    save_file(made.state_dict(), "w.safetensors", metadata={"metalearn": json.dumps(told)})
    members = [
        *("backbone=ensemble", "backbone.norm=frozen"),
        *("+backbone@backbone.members.a=conv4", "backbone.members.a.filters=4"),
        "backbone.members.a.weights=w.safetensors",
        *("+backbone@backbone.members.b=conv4", "backbone.members.b.filters=4"),
        "backbone.members.b.weights=w.safetensors",
        *("+backbone@backbone.members.c=conv4_strided", "backbone.members.c.filters=4"),
    ]
    fast = [word for word in FAST if not word.startswith("backbone.")]
    meta = ["algorithm=metric", "classifier=member_weights", "training.steps=2"]
    ran = metalearn("train", *fast, *members, *meta, "run_dir=run")
    assert ran.code == 0, ran.err
    assert "w.safetensors (" not in ran.out and "26 of 26 tensors matched" not in ran.out
    assert "weights: w.safetensors: " in ran.out  # read once, for two members
    held = yaml.safe_load(Path("run/config.yaml").read_text())["backbone"]["members"]
    assert held["a"]["images"] == {"size": 16, "channels": 1, "mean": [0.25], "std": [0.5]}
    assert len(held["a"]["sha256"]) == 64 and held["c"]["images"] == {}
    weights = load_file("run/weights.safetensors")
    assert weights["hyper/offset"].shape == (3,)
    assert not any(name.startswith("init/") for name in weights)  # all members are frozen
    Path("w.safetensors").unlink()
    again = metalearn("evaluate", "run=run")
    assert again.code == 0, again.err
    (found,) = Path("run/evaluations").glob("*/result.json")
    before = json.loads(Path("run/result.json").read_text())
    assert json.loads(found.read_text())["accuracy"] == before["accuracy"]
    for words, said in (
        (["backbone.members.a.weights=gone.th"], "backbone.members.a: no weights at gone.th"),
        (["backbone.combine=logits"], "this algorithm works on features"),
        (["backbone.members.c.filters=0"], "backbone.members.c: "),
        (["backbone.frozen=[d]"], "backbone.frozen: no member d"),
    ):
        save_file(made.state_dict(), "w.safetensors")
        told = metalearn("train", *fast, *members, *meta, "run_dir=other", *words).mistake
        assert said in told, told
    empty = metalearn("train", *fast, "backbone=ensemble", "run_dir=other").mistake
    assert empty.startswith("backbone.members is empty; add one by +backbone@backbone.members")
