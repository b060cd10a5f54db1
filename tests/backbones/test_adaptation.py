"""What adapts, what is learned and what stays, against a plain float64 loop."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn.algorithms import ANIL, MAML
from metalearn.backbones import Conv4, adaptation, timm_model
from metalearn.backbones.adapters import FiLM, ResidualAdapter
from metalearn.backbones.heads import cosine
from metalearn.backbones.lora import LowRank
from metalearn.commands.building.config import reopen
from metalearn.commands.building.meta_training import build
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from metalearn.inner import meta_sgd, sgd
from metalearn.training.folder import load_weights
from tests.command import FAST, metalearn
from tests.gradients import reference
from tests.tasks import apart, classification, generator, network, on, randomised

ADAPTATIONS = {
    "all": adaptation.everything,
    "head": adaptation.head,
    "last_k": lambda **how: adaptation.last_k(2, **how),
    "norm": adaptation.norm,
    "bitfit": adaptation.bitfit,
    "lora": lambda **how: adaptation.lora(2, 3.0, **how),
    "tsa": adaptation.tsa,
    "film": adaptation.film,
    "url": adaptation.url,
}


def vit() -> nn.Module:
    options = {"patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return timm_model("vit_tiny_patch16_224", 3, 1, 16, options=options)


NETWORKS = {
    "conv4": lambda: Conv4(3, filters=4, size=16),
    "conv4-cosine": lambda: cosine(Conv4(3, filters=4, size=16), "head", 3.0),
    "vit": vit,
}


def moved(net: nn.Module) -> nn.Module:
    """What is inserted away from its start, where half of the gradient of LoRA is zero."""
    g = generator(5)
    with torch.no_grad():
        for path, weight in net.named_parameters():
            if path.endswith(("up.weight", "adapter.weight", "align.weight", "scale", "shift")):
                weight.add_(0.2 * torch.randn(weight.shape, generator=g))
    return net


class Dense(nn.Module):
    """A low-rank path as one dense weight."""

    def __init__(self, path: LowRank):
        super().__init__()
        self.base, self.down, self.up, self.scale = path.base, path.down, path.up, path.scale

    def forward(self, x):
        base, down, up = self.base, self.down.weight, self.up.weight
        if isinstance(base, nn.Linear):
            return F.linear(x, base.weight + self.scale * up @ down, base.bias)
        weight = base.weight + self.scale * torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
        return F.conv2d(x, weight, base.bias, base.stride, base.padding, base.dilation)


class DenseAdapter(nn.Module):
    """A residual adapter at the centre of one kernel."""

    def __init__(self, adapted: ResidualAdapter):
        super().__init__()
        self.base, self.adapter = adapted.base, adapted.adapter

    def forward(self, x):
        weight = self.base.weight.clone()
        weight[:, :, 1, 1] = weight[:, :, 1, 1] + self.adapter.weight[:, :, 0, 0]
        return F.conv2d(x, weight, self.base.bias, self.base.stride, self.base.padding)


class Modulated(nn.Module):
    """Scale and shift of the channels in torch's own words."""

    def __init__(self, film: FiLM):
        super().__init__()
        self.base, self.scale, self.shift = film.base, film.scale, film.shift

    def forward(self, x):
        h = self.base(x)
        if h.ndim < 4:
            return torch.addcmul(self.shift, h, self.scale)
        return torch.einsum("bchw,c->bchw", h, self.scale) + self.shift[:, None, None]


class Cosine(nn.Module):
    """The cosine head in torch's own words."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.weight, self.scale = head.weight, head.scale

    def forward(self, x):
        return self.scale * F.cosine_similarity(x.unsqueeze(1), self.weight.unsqueeze(0), dim=2)


def plain(net: nn.Module) -> nn.Module:
    """A copy of torch's own layers, under the same names."""
    net = copy.deepcopy(net)
    for path, part in list(net.named_modules()):
        parent, _, name = path.rpartition(".")
        new = None
        if isinstance(part, LowRank):
            new = Dense(part)
        elif isinstance(part, ResidualAdapter):
            new = DenseAdapter(part)
        elif isinstance(part, FiLM):
            new = Modulated(part)
        elif type(part).__name__ == "CosineHead":
            new = Cosine(part)
        elif type(part).__name__ == "BatchNorm":
            new = nn.BatchNorm2d(len(part.weight), part.eps, track_running_stats=False)
            new.weight, new.bias = part.weight, part.bias
        if new is not None:
            setattr(net.get_submodule(parent), name, new)
    return net


CASES = [
    (name, kind, outer)
    for name in NETWORKS
    for kind in ADAPTATIONS
    for outer in ("all", "adapted")
    if (kind, outer) != ("all", "adapted")
    and (kind, name) != ("tsa", "vit")
    # What is inserted is the same whatever the head is, and what is learned whatever adapts.
    and (kind not in ("tsa", "film", "url") or outer == "adapted" or name == "conv4")
    and (kind != "film" or name != "conv4-cosine")
]


@pytest.mark.parametrize(("name", "kind", "outer"), CASES)
def test_the_meta_gradient_of_every_adaptation(name, kind, outer):
    chosen = ADAPTATIONS[kind](**({} if kind == "all" else {"outer": outer}))
    net = moved(chosen.prepare(network(NETWORKS[name]), "head"))
    adapting = chosen.adapting(net, "head")
    algo = MAML(net, steps=2, rule=meta_sgd(0.1), adapting=adapting)
    meta = algo.init()
    learned = {n for n, p in net.named_parameters() if p.requires_grad}
    fast = learned if adapting is None else adapting
    assert set(meta["init"]) == learned and set(meta["hyper"]) == {f"rate.{n}" for n in fast}
    assert (learned == fast) == (outer == "adapted" or kind == "all")
    meta["hyper"] = randomised(meta["hyper"])
    episodes = classification(2, ways=3, shots=1, queries=4)
    with sdpa_kernel(SDPBackend.MATH):
        want = reference.meta_gradient(
            plain(net),
            meta["hyper"],
            episodes,
            2,
            rates=reference.per_weight,
            adapts=lambda n: n in fast,
        )
    pairs = ((Adjoint, "loop"), (Adjoint, "vmap"), (Unroll, "loop"), (Checkpointed, "vmap"))
    for strategy, batching in pairs:
        got, _ = on(strategy(), batching)(algo, meta, episodes)
        assert apart(got, want) < 1e-10


def test_the_head_alone_is_anil_to_the_bit():
    net = network(NETWORKS["conv4"])
    chosen = adaptation.head()
    prepared = chosen.prepare(net, "head")
    ours = MAML(prepared, 2, sgd(0.1), adapting=chosen.adapting(prepared, "head"))
    theirs = ANIL(net, 2, sgd(0.1))
    for batching in ("loop", "vmap"):
        gradients = [
            on(Adjoint(), batching)(algo, algo.init(), classification())[0]["init"]
            for algo in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_the_names_that_adapt():
    net = Conv4(3, filters=4, size=16)
    head = {"head.weight", "head.bias"}

    def names(kind: str) -> set[str]:
        return set(ADAPTATIONS[kind]().adapting(net, "head")) - head

    last = {f"features.{i}.{p}" for i in (8, 9, 12, 13) for p in ("weight", "bias")}
    assert [isinstance(net.features[i], nn.Conv2d) for i in (8, 12)] == [True, True]
    assert names("head") == set()
    assert names("last_k") - last == set() and names("last_k") == last
    assert names("norm") == {f"features.{i}.{p}" for i in (1, 5, 9, 13) for p in ("weight", "bias")}
    assert names("bitfit") == {f"features.{i}.bias" for i in (0, 1, 4, 5, 8, 9, 12, 13)}
    lora = adaptation.lora()
    prepared = lora.prepare(net, "head")
    paths = {f"features.{i}.{p}.weight" for i in (0, 4, 8, 12) for p in ("down", "up")}
    assert lora.adapting(prepared, "head") == paths | head


def test_what_a_transformer_adapts():
    net = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 3))
    body = {"1.linear2.weight", "1.linear2.bias", "1.norm1.weight", "1.norm1.bias"}
    body |= {"1.norm2.weight", "1.norm2.bias", "2.weight", "2.bias"}
    assert adaptation.last_k(1).adapting(net, "2") == body
    three = set(adaptation.last_k(3).adapting(net, "2")) - body
    attention = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    linear = {"1.linear1.weight", "1.linear1.bias"}
    assert three == {f"1.self_attn.{n}" for n in attention} | linear
    assert "1.self_attn.in_proj_bias" in adaptation.bitfit().adapting(net, "2")
    prepared = adaptation.lora().prepare(net, "2")
    inserted = {n for n, part in prepared.named_modules() if isinstance(part, LowRank)}
    assert inserted == {"0", "1.linear1", "1.linear2"}


def test_norms_of_every_library():
    from timm.layers import BatchNormAct2d, LayerNorm2d, RmsNorm

    parts = (nn.GroupNorm(2, 4), nn.RMSNorm(4), LayerNorm2d(4), RmsNorm(4), BatchNormAct2d(4))
    net = nn.Sequential(nn.Linear(4, 4), *parts, nn.Linear(4, 3))
    names = {n for n, _ in net.named_parameters() if n[0] != "0"}
    assert adaptation.norm().adapting(net, "6") == names


def test_a_frozen_weight_is_neither_learned_nor_adapts():
    net = Conv4(3, filters=4, size=16)
    net.features[13].requires_grad_(False)
    for kind in set(ADAPTATIONS) - {"all"}:
        chosen = ADAPTATIONS[kind](outer="adapted")
        prepared = chosen.prepare(net, "head")
        assert not {"features.13.weight", "features.13.bias"} & chosen.adapting(prepared, "head")
        named = prepared.get_submodule("features.13").named_parameters()
        assert not any(p.requires_grad for n, p in named if n.endswith(("weight", "bias")))
    assert all(p.requires_grad for p in net.features[9].parameters()), (
        "the network given is changed"
    )


def test_features_without_a_head():
    net = Conv4(None, filters=4, size=16)
    assert adaptation.head().adapting(net, None) == frozenset()
    names = adaptation.norm().adapting(net, None)
    assert names == {f"features.{i}.{p}" for i in (1, 5, 9, 13) for p in ("weight", "bias")}


PLAIN = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
MISTAKES = {
    "adaptation.outer=none is not known; use all or adapted": lambda: adaptation.head("none"),
    "adaptation.k=0 must be 1 or more": lambda: adaptation.last_k(0),
    "adaptation.rank=0 must be 1 or more": lambda: adaptation.lora(0),
    "adaptation.alpha=0 above 0": lambda: adaptation.lora(1, 0),
    "adaptation.k=2, but the network has 1 layers": lambda: adaptation.last_k(2).prepare(
        PLAIN, "1"
    ),
    "adaptation=norm finds no norm layer": lambda: adaptation.norm().prepare(PLAIN, "1"),
    "adaptation=bitfit finds no bias": lambda: adaptation.bitfit().prepare(PLAIN, "1"),
    "adaptation=lora finds no linear layer": lambda: adaptation.lora().prepare(PLAIN[1], ""),
    "nothing to learn; use adaptation.outer=all": lambda: adaptation.head("adapted").prepare(
        PLAIN, None
    ),
    "0.bias adapts, but is no weight that is learned (did you mean 1.bias?)": lambda: MAML(
        PLAIN, adapting=["0.bias"]
    ),
    "no weight of the network adapts": lambda: MAML(PLAIN, adapting=[]),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(line):
    with pytest.raises(UsageError) as error:
        MISTAKES[line]()
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["adaptation=lora"],
        ["adaptation=norm", "adaptation.outer=adapted"],
        # A batch norm cancels the bias before it: that would move by rounding, or not at all.
        [
            *("adaptation=bitfit", "adaptation.outer=adapted", "algorithm=reptile"),
            "backbone.norm=group",
        ],
        ["adaptation=last_k", "adaptation.outer=adapted", "algorithm=protonet"],
        ["adaptation=lora", "algorithm=proto_maml", "backbone.norm=frozen"],
    ],
    ids=" ".join,
)
def test_what_is_frozen_does_not_move_in_a_run(overrides, workplace):
    outcome = metalearn("train", *FAST, *overrides, "batching=loop", "run_dir=run")
    assert outcome.code == 0, outcome.err
    start = build(reopen(Path("run"), []))[1].meta
    end = load_weights(Path("run/weights.safetensors"), start)
    assert len(start["buffers"]) >= 4
    torch.testing.assert_close(end["buffers"], start["buffers"], rtol=0, atol=0)
    moved = {n for n, t in end["init"].items() if not torch.equal(t, start["init"][n])}
    assert moved == set(start["init"])


def test_both_spellings_of_anil_train_to_the_same_weights(workplace):
    digests = []
    for overrides in (["algorithm=maml", "adaptation=head"], ["algorithm=anil"]):
        folder = f"run{len(digests)}"
        same = ["algorithm.steps=2", "batching=loop", f"run_dir={folder}"]
        outcome = metalearn("train", *FAST, *overrides, *same)
        assert outcome.code == 0, outcome.err
        digests.append(json.loads(Path(folder, "result.json").read_text())["weights_sha256"])
    assert digests[0] == digests[1]


REFUSED = {
    "adaptation=norm algorithm=protonet": "which this algorithm does not ask",
    "adaptation=head algorithm=reptile": "use adaptation.outer=adapted to learn nothing else",
    "adaptation=norm backbone.norm=none": "adaptation=norm finds no norm layer",
    "adaptation=nrm": "adaptation=nrm is not known (did you mean norm?)",
    "adaptation=last_k adaptation.k=a": "adaptation.k=a must be a whole number",
    "head=cosine algorithm=protonet": "head=cosine is of a network with outputs",
    "loss=focal loss.gamma=-1": "loss.gamma=-1 must be 0 or more",
    "loss=label_smoothed +loss.gama=1": "loss.gama is not known to metalearn.algorithms.losses",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_wrong_choice_is_one_line(overrides, workplace):
    outcome = metalearn("train", *FAST, *overrides.split(), "run_dir=run")
    assert REFUSED[overrides] in outcome.mistake
