"""Encoders of transformers: exact in second order, blind to padding, and what is wrong told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import Batch, Episodes
from metalearn.algorithms import MAML
from metalearn.backbones import TextEncoder, adaptation
from metalearn.backbones.encoder_folder import encoder_default
from metalearn.backbones.text_encoder import pooled
from metalearn.backbones.weights import load_into, read_weights
from metalearn.data import DataError, intents
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint
from metalearn.inner import sgd
from tests.command import metalearn
from tests.packages import installed
from tests.tasks import apart, generator, on
from tests.texts import WORDS, encoder_folder, intents_folder, needs_transformers

RATE, STEPS, TASKS = 0.3, 2, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_transformers()
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "bert")


def texts(count: int, length: int, seed: int) -> dict[str, Tensor]:
    """For each task, of 2 to `length` tokens each."""
    g = generator(seed)
    shape = (TASKS, count)
    mask = torch.arange(length) < torch.randint(2, length + 1, shape, generator=g)[..., None]
    ids = torch.randint(4, len(WORDS), (*shape, length), generator=g)
    return {"ids": ids * mask, "mask": mask.long()}


def by_hand(net: nn.Module, adapting: set[str], episodes: Episodes) -> dict[str, Tensor]:
    """The meta-gradient by torch's own autograd, a task after another."""
    init = {n: t.detach().clone().requires_grad_() for n, t in net.named_parameters()}
    learned = [n for n, t in net.named_parameters() if t.requires_grad]
    losses = []

    def loss(weights: dict[str, Tensor], batch: Batch, task: int) -> Tensor:
        x = {n: t[task] for n, t in batch.x.items()}
        return F.cross_entropy(torch.func.functional_call(net, weights, (x,)), batch.y[task])

    for task in range(TASKS):
        fast = dict(init)
        for _ in range(STEPS):
            own = {n: fast[n] for n in adapting}
            found = loss(fast, episodes.support, task)
            grads = torch.autograd.grad(found, list(own.values()), create_graph=True)
            fast |= {n: w - RATE * g for (n, w), g in zip(own.items(), grads, strict=True)}
        losses.append(loss(fast, episodes.query, task))
    grads = torch.autograd.grad(torch.stack(losses).mean(), [init[n] for n in learned])
    return dict(zip(learned, grads, strict=True))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("how", ["all", "lora"])
def test_maml_through_an_encoder_is_exact(how: str, batching: str, folder: Path) -> None:
    torch.manual_seed(0)
    net: nn.Module = TextEncoder(2, folder).double()
    chosen = adaptation.lora(2, 4.0) if how == "lora" else adaptation.everything()
    net = chosen.prepare(net, "head")
    adapting = chosen.adapting(net, "head") or {n for n, _ in net.named_parameters()}
    with torch.no_grad():  # where half of LoRA's gradient is 0 at its start
        for name, weight in net.named_parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator(len(name))))
    labels = torch.tensor([[0, 1, 0, 1]] * TASKS)
    episodes = Episodes(Batch(texts(4, 7, 1), labels), Batch(texts(4, 5, 2), labels))
    want = {"init": by_hand(net, set(adapting), episodes), "hyper": {}}
    algo = MAML(net, steps=STEPS, rule=sgd(RATE), adapting=frozenset(adapting))
    got, _ = on(Adjoint(), batching)(algo, algo.init(), episodes)
    assert apart(got, want) < 1e-12
    assert all(g.abs().max() > 0 for n, g in got["init"].items() if n.startswith("head"))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(pooling: str, folder: Path) -> None:
    net = TextEncoder(None, folder, pooling).double()  # type: ignore[arg-type]
    x = {n: t[0] for n, t in texts(6, 9, 3).items()}
    x["mask"][0] = 1
    lengths = x["mask"].sum(1)
    with torch.no_grad():
        got = net(x)
        other = net({"ids": torch.where(x["mask"] > 0, x["ids"], 5), "mask": x["mask"]})
        for row, length in enumerate(lengths.tolist()):
            alone = net({n: t[row : row + 1, :length] for n, t in x.items()})
            states = net.body(input_ids=x["ids"][row : row + 1, :length])[0]
            assert (got[row] - alone[0]).abs().max() < 1e-14
            want = states[0].mean(0) if pooling == "mean" else states[0, 0]
            assert (got[row] - want).abs().max() < 1e-14
    assert torch.equal(got, other)
    nothing = pooled(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), "mean")
    assert not nothing.any()


FAMILIES = {
    "Roberta": {"pad_token_id": 1},  # positions that count from behind the padding
    "T5": {"d_model": 8, "d_kv": 4, "d_ff": 12},  # the encoder of a pair
    "SqueezeBert": {"embedding_size": 8},  # cannot be without its pooler
    "Electra": {"embedding_size": 8, "dtype": "bfloat16"},  # in half precision
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_other_families(kind: str, tmp_path: Path) -> None:
    needs_transformers()
    own = FAMILIES[kind]
    place = encoder_folder(tmp_path / kind, kind, **own)
    net = TextEncoder(3, place)
    report = load_into(net, encoder_default(place))
    assert report.share == 1 and not report.missing and not report.unexpected
    assert net.positions == (14 if kind == "Roberta" else 16)
    length = net.positions or 40
    x = {"ids": torch.full((2, length), 5), "mask": torch.ones(2, length, dtype=torch.int64)}
    assert net(x).shape == (2, 3) and not any("decoder" in n for n in net.state_dict())


def test_the_folders_weights_and_those_of_a_file(folder: Path) -> None:
    import transformers

    net, again = TextEncoder(2, folder), TextEncoder(2, folder)
    found = encoder_default(folder)
    assert found.form == "safetensors" and found.sha256 == read_weights(
        folder / "model.safetensors"
    ).sha256  # fmt: skip
    for module, weights in ((net, found), (again, read_weights(folder / "model.safetensors"))):
        assert load_into(module, weights).share == 1
    theirs = transformers.AutoModel.from_pretrained(folder)
    x = {n: t[0] for n, t in texts(3, 6, 4).items()}
    with torch.no_grad():
        states = theirs(input_ids=x["ids"], attention_mask=x["mask"])[0]
        want = pooled(states, x["mask"], "mean")
        net.head = again.head = nn.Identity()
        assert torch.allclose(net.eval()(x), want, atol=1e-6)
        assert torch.equal(net(x), again.eval()(x))


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    needs_transformers()
    place = encoder_folder(tmp_path / "bare", save=False)
    (tmp_path / "empty").mkdir()
    config = json.loads((place / "config.json").read_text())
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text(json.dumps({**config, "model_type": "brt"}))
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))
    long = {n: torch.ones(1, 17, dtype=torch.int64) for n in ("ids", "mask")}
    for act, said in (
        (lambda: TextEncoder(2), "needs backbone.folder="),
        (lambda: TextEncoder(2, tmp_path / "none"), "is no folder"),
        (lambda: TextEncoder(2, tmp_path / "empty"), "holds no config.json"),
        (lambda: TextEncoder(2, strange), "holds no encoder that transformers can make"),
        (lambda: TextEncoder(2, wrong), "holds no encoder that transformers can make"),
        (lambda: TextEncoder(2, place, "max"), "backbone.pooling=max is not known"),  # type: ignore[arg-type]
        (lambda: TextEncoder(2, place, dropout=1.0), "backbone.dropout=1.0 must be"),
        (lambda: encoder_default(place), "holds no model.safetensors or pytorch_model.bin"),
        (lambda: TextEncoder(2, place)(long), "a text has 17 tokens, more than the 16 positions"),
        (lambda: TextEncoder(2, place)(torch.ones(1, 3)), "takes texts, ids and a mask"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said) as caught:
            act()
        assert "\n" not in str(caught.value)
    (place / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="can make") as caught:
        encoder_default(place)
    assert "\n" not in str(caught.value)
    (place / "model.safetensors").unlink()
    encoder_folder(tmp_path / "other", num_hidden_layers=1)
    (tmp_path / "other/model.safetensors").rename(place / "model.safetensors")
    with pytest.raises(UsageError, match="lack encoder.layer.1.*more of the encoder") as caught:
        encoder_default(place)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_words_is_refused(folder: Path, tmp_path: Path) -> None:
    """transformers makes one that knows no word of a folder that has none."""
    root = intents_folder(tmp_path / "in")
    data = intents(root=root, tokenizer=folder, length=6)
    row = data.x["ids"][data.x["mask"].sum(1).argmax()]
    assert row[-1] == WORDS.index("[SEP]") and row[0] == WORDS.index("[CLS]")  # cut before the end
    assert WORDS.index("[UNK]") not in data.x["ids"].unique().tolist()
    for name in (None, "config.json", "tokenizer_config.json"):
        other = tmp_path / str(name)
        other.mkdir()
        for copied in ("config.json", name) if name else ():
            (other / copied).write_bytes((folder / copied).read_bytes())
        with pytest.raises(DataError, match="holds no tokenizer") as caught:
            intents(root=root, tokenizer=other)
        assert "\n" not in str(caught.value)


def test_a_run_reads_the_folder_and_an_evaluation_too(
    folder: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = intents_folder(workplace / "in")
    words = [
        *("train", "dataset=intents", f"dataset.root={root}", "backbone=transformers"),
        *("episodes.ways=2", "training.steps=1", "training.meta_batch=1", "training.queries=1"),
        *("evaluation.validation_episodes=1", "evaluation.episodes=2", "episodes.queries=1"),
        *(
            "batching=loop",
            "tracker=disabled",
            "tracker.plots=false",
            "device=cpu",
            "evaluation.untrained=false",
        ),
        *("training.validate_every=1", "algorithm=maml", "adaptation=lora", "run_dir=run"),
    ]
    for more, said in (
        ([], "needs backbone.folder="),
        ([f"backbone.folder={workplace / 'none'}"], "is no folder"),
        ([f"backbone.folder={folder}", "dataset.tokenizer=words"], "numbers words by their hash"),
    ):
        assert said in metalearn(*words, *more).mistake
    small = encoder_folder(workplace / "small", vocab_size=9, max_position_embeddings=4)
    line = metalearn(*words, f"backbone.folder={small}", f"dataset.tokenizer={folder}").mistake
    assert "the tokens of the texts go up to" in line and "knows 9 of them" in line
    short = encoder_folder(workplace / "short", max_position_embeddings=4)
    line = metalearn(*words, f"backbone.folder={short}").mistake
    assert "more than the 4 positions of the encoder" in line and "dataset.length=4" in line
    assert not Path("run").exists()

    place = installed(monkeypatch, workplace / "site", "carries_an_encoder")
    shutil.copytree(folder, place, dirs_exist_ok=True)
    ran = metalearn(*words, "backbone.folder=carries_an_encoder")
    assert ran.code == 0, ran.err
    assert "weights: carries_an_encoder" in ran.out and "tensors matched, 100.0%" in ran.out
    assert "carries_an_encoder" in Path("run/config.yaml").read_text()
    told = json.loads(Path("run/result.json").read_text())
    assert told["backbone"] == "TextEncoder" and 0 <= told["accuracy"] <= 1
    again = metalearn("evaluate", "run=run", "evaluation.episodes=2", "device=cpu")
    assert again.code == 0, again.err


def test_a_comparison_of_texts(folder: Path, workplace: Path) -> None:
    root = intents_folder(workplace / "in")
    words = [
        *("compare", "dataset=intents", f"dataset.root={root}", "backbone=transformers"),
        *("episodes.ways=2", "episodes.shots=[1]", "episodes.queries=1", "evaluation.episodes=2"),
        *(
            "methods=[untrained,nearest_centroid]",
            "tracker=disabled",
            "tracker.plots=false",
            "device=cpu",
        ),
        *("isolate=false", "evaluation.timed=1", "run_dir=compared"),
    ]
    short = encoder_folder(workplace / "short", max_position_embeddings=4)
    assert "the 4 positions" in metalearn(*words, f"backbone.folder={short}").mistake
    ran = metalearn(*words, f"backbone.folder={folder}")
    assert ran.code == 0, ran.err
    rows = json.loads(Path("compared/comparison.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["untrained", "nearest_centroid"]
