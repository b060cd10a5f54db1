"""BANKING77 and CLINC150: texts as ids, the published class splits, and what is wrong told."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metalearn.algorithms import MAML
from metalearn.backbones import WordVectors
from metalearn.data import DataError, data_folder, intents
from metalearn.data.intents import VOCABULARY, words
from metalearn.episodes import make_episodes
from metalearn.gradients import Adjoint
from metalearn.inner import sgd
from tests.command import metalearn
from tests.tasks import apart, on

SPLITS = {"train": ["a", "b"], "val": ["c"], "test": ["d", "e"]}


def made(root: Path, change: Callable[[Path], object] = lambda place: None) -> Path:
    """Five classes of four texts, in the layout of the folder `intents`."""
    place = root / "banking77"
    (place / "splits" / "02").mkdir(parents=True)
    rows = [
        {"sentence": f"Is {label.upper()} {'very ' * n}good, {n}?", "label": label}
        for n in range(4)
        for label in "abcde"
    ]
    (place / "full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, labels in SPLITS.items():
        (place / "splits" / "02" / f"{split}.txt").write_text("\n".join(labels))
    change(place)
    return root


def test_texts_become_ids_and_a_mask(tmp_path: Path) -> None:
    data = intents(fold=2, root=made(tmp_path), length=6)
    assert data.class_names("test") == ["d", "e"] and data.sizes["train"].tolist() == [4, 4]
    x, targets = data.examples("test", np.array([0, 0]), np.array([0, 3]))
    assert x["mask"].tolist() == [[1] * 6, [1] * 6] and not targets  # is d good , 0 ? | cut
    said = ["is", "d", "good", ",", "0", "?"]
    want = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in said]
    assert x["ids"][0].tolist() == want == words("Is D good, 0?")
    whole = intents(fold=2, root=tmp_path)
    assert whole.x["ids"].shape == (20, 9) and whole.x["mask"].sum(1).tolist()[:5] == [6] * 5
    assert (whole.x["ids"][0, 6:] == 0).all() and whole.digest != data.digest


def line(text: str) -> Callable[[Path], object]:
    def added(place: Path) -> None:
        path = place / "full.jsonl"
        path.write_text(path.read_text() + text + "\n")

    return added


BAD = {
    "an empty text": (
        line('{"sentence": " ", "label": "a"}'),
        "line 21 .* of class a, is an empty",
    ),
    "no label": (line('{"sentence": "hello"}'), "line 21 .* is no sentence with a label"),
    "a number": (line('{"sentence": 3, "label": "a"}'), "line 21 .* is no sentence with a label"),
    "no JSON": (line("hello"), "line 21 .* is no sentence with a label"),
    "no texts": (lambda place: (place / "full.jsonl").write_text("\n"), "holds no texts"),
    "no file": (
        lambda place: (place / "full.jsonl").unlink(),
        "there is no intents/banking77/full",
    ),
    "bytes": (lambda place: (place / "full.jsonl").write_bytes(b"\xff\xfa"), "is no text in UTF-8"),
    "a class of no texts": (
        lambda place: (place / "splits/02/val.txt").write_text("c z"),
        "class z of .*val.txt has no texts",
    ),
    "a class in two splits": (
        lambda place: (place / "splits/02/test.txt").write_text("d a"),
        "class a is in train and in .*test.txt; keep one",
    ),
    "no split": (lambda place: (place / "splits/02/val.txt").unlink(), "cannot read .*val.txt"),
}


@pytest.mark.parametrize("given", BAD)
def test_it_is_refused_in_one_line(given: str, tmp_path: Path, one_line) -> None:
    change, said = BAD[given]
    with pytest.raises(DataError, match=said) as caught:
        intents(fold=2, root=made(tmp_path, change))
    assert one_line(caught)


def test_a_wrong_choice_is_told(tmp_path: Path, one_line) -> None:
    for choice, said in (
        ({"name": "bank77"}, "did you mean banking77"),
        ({"fold": 6}, "dataset.fold=6 must be 1 to 5"),
        ({"length": 0}, "dataset.length=0 must be 1 token or more"),
        ({"tokenizer": "nowhere"}, "dataset.tokenizer=nowhere is no folder; use words"),
        ({"tokenizer": tmp_path}, "needs the package transformers|holds no tokenizer"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            intents(**{"fold": 2, "root": tmp_path / "in", **choice})
        assert one_line(caught)
        if not (tmp_path / "in").exists():
            made(tmp_path / "in")


def test_maml_through_word_vectors_is_exact(tmp_path: Path) -> None:
    data = intents(fold=2, root=made(tmp_path))
    source = make_episodes(data, ways=2, shots=1, queries=2, seed=0)
    episodes = source.batch("train", [0, 1])
    torch.manual_seed(0)
    net = WordVectors(2, width=3).double()
    algo = MAML(net, steps=2, rule=sgd(0.5))
    init = {n: t.detach().clone().requires_grad_() for n, t in net.named_parameters()}
    losses = []
    for t in range(2):
        x, y = ({n: of[t] for n, of in episodes.support.x.items()}, episodes.support.y[t])
        fast = dict(init)
        for _ in range(2):
            loss = F.cross_entropy(torch.func.functional_call(net, fast, (x,)), y)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: w - 0.5 * g for (n, w), g in zip(fast.items(), grads, strict=True)}
        query = {n: of[t] for n, of in episodes.query.x.items()}
        out = torch.func.functional_call(net, fast, (query,))
        losses.append(F.cross_entropy(out, episodes.query.y[t]))
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(init.values()))
    for batching in ("loop", "vmap"):
        got, _ = on(Adjoint(), batching)(algo, algo.init(), episodes)
        want = {"init": dict(zip(init, grads, strict=True)), "hyper": {}}
        assert apart(got, want) < 1e-10


def test_prototypes_of_real_intents(workplace: Path) -> None:
    place = data_folder()
    if place is None or not (place / "intents/clinc150/full.jsonl").is_file():
        pytest.skip("no intents/clinc150 in METALEARN_DATA or ../shared/data")
    ran = metalearn(
        "train", "dataset=intents", "dataset.name=clinc150", "dataset.fold=3", "algorithm=protonet",
        "training.steps=1", "training.meta_batch=1", "training.validate_every=1", "device=cpu",
        "evaluation.validation_episodes=1", "evaluation.episodes=20", "batching=loop",
        "outer.optimizer.lr=0.01",
        "tracker=disabled", "tracker.plots=false", "run_dir=run", "evaluation.untrained=false",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(Path("run/result.json").read_text())["accuracy"] > 0.4  # chance is 0.2
