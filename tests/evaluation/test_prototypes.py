"""Fine-tuning by prototypes against a plain loop; its augmented copies; its choice of a rate."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metalearn.backbones import Conv4
from metalearn.commands.compare import setting_of
from metalearn.commands.parts.compare_plan import plan
from metalearn.data import glyphs
from metalearn.episodes import Augmentation, FewShotEpisodes
from metalearn.episodes.augmentation import NUMBERS, with_copies
from metalearn.episodes.sizes import ImbalancedSizes
from metalearn.episodes.source import generator
from metalearn.errors import UsageError
from metalearn.evaluation import evaluate
from metalearn.evaluation.comparison.prototypes import PrototypeTuning, adapted
from metalearn.functional import pure
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import adam, sgd
from metalearn.inner.loop import adapt
from metalearn.types import Batch, Episodes
from tests.tasks import apart, on
from tests.test_compare import SMALL, accuracies, compare

STEPS, COPIES, WAYS, SHOTS = 3, 2, 3, 2


def network(kind: str):
    torch.manual_seed(0)
    net = pure(Conv4(None, 1, 4, 16, norm="group").double())
    module, adapting = adapted(net, kind, (1, 16, 16))
    return module, adapting


def episodes(copies: int) -> Episodes:
    g = torch.Generator().manual_seed(1)

    def batch(size: int) -> Batch:
        x = torch.rand(2, size, 1, 16, 16, generator=g, dtype=torch.float64)
        return Batch(x, torch.arange(size).remainder(WAYS).expand(2, -1).contiguous())

    return Episodes(batch(WAYS * SHOTS * (1 + copies)), batch(6))


def prototypes(features: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([features[y == n].mean(0) for n in range(WAYS)])


def logits(net, support, y, x) -> torch.Tensor:
    means = prototypes(net(support), y)
    return 10 * F.cosine_similarity(net(x).unsqueeze(1), means.unsqueeze(0), dim=2)


@pytest.mark.parametrize(("kind", "copies"), [("pmf", COPIES), ("tsa", 0), ("film", COPIES)])
def test_it_descends_as_in_a_plain_loop(kind: str, copies: int) -> None:
    module, adapting = network(kind)
    algo = PrototypeTuning(module, STEPS, sgd(0.3), adapting, copies)
    for p in module.parameters():
        p.requires_grad_(adapting is None)
    for name, p in module.named_parameters():
        p.requires_grad_(adapting is None or name in adapting)
    task = episodes(copies)
    support, query = (part.map(lambda t: t[0]) for part in task[:2])
    x, y = support.x[: WAYS * SHOTS], support.y[: WAYS * SHOTS]
    net = copy.deepcopy(module)
    learned = [p for p in net.parameters() if p.requires_grad]
    assert adapting is None or len(learned) == len(adapting)
    for step in range(STEPS):
        block = 1 + step % copies if copies else 0
        rows = slice(block * len(x), (block + 1) * len(x))
        loss = F.cross_entropy(logits(net, x, y, support.x[rows]), support.y[rows])
        for p, grad in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            p.data -= 0.3 * grad
    fast = adapt(algo, algo.init(), support)
    found = algo.predict(algo.init(), fast, query.x)[:, :WAYS]
    torch.testing.assert_close(found, logits(net, x, y, query.x), rtol=1e-9, atol=1e-10)


def test_its_meta_gradient_is_exact_however_it_is_run() -> None:
    module, _ = network("pmf")
    algo, task = PrototypeTuning(module, 2, sgd(0.3), None, COPIES), episodes(COPIES)
    meta = algo.init()
    want, _ = on(Unroll(), "loop")(algo, meta, task)
    assert any(t.abs().sum() > 0 for t in want["init"].values())
    for batching in ("loop", "vmap"):
        assert apart(on(Adjoint(), batching)(algo, meta, task)[0], want) < 1e-10


def test_copies_are_of_the_support_images_alone_and_the_same_again() -> None:
    source = FewShotEpisodes(glyphs(size=16, classes=60, drawings=10), 3, 2, 4, 5)
    how = Augmentation(crop=2, flip=0.5, jitter=0.4)
    made = with_copies(source, how, 3)
    plain, found = source.batch("val", [4, 1]), made.batch("val", [4, 1])
    assert found.support.x.shape == (2, 24, 1, 16, 16)
    assert torch.equal(found.support.x[:, :6], plain.support.x)
    assert torch.equal(found.query.x, plain.query.x)
    assert torch.equal(found.support.y, plain.support.y.repeat(1, 4))
    assert made.fingerprint("val", 4) == source.fingerprint("val", 4)
    alone = made.batch("val", [1]).support.x
    assert torch.equal(alone[0], found.support.x[1])
    rng = generator(f"{source.dataset.digest}/fine-tuning", "val", 5, 1)
    numbers = torch.from_numpy(rng.random((18, NUMBERS), np.float32))
    want = how(plain.support.x[1].repeat(3, 1, 1, 1), torch.zeros(18).long(), numbers)
    assert torch.equal(alone[0, 6:], want)
    assert len({block.numpy().tobytes() for block in alone[0].split(6)}) == 4
    uneven = with_copies(replace(source, sizes=ImbalancedSizes(1, 2)), how, 2).batch("val", [0])
    assert torch.equal(uneven.support.weight, uneven.support.weight[:, :6].repeat(1, 3))
    assert uneven.support.weight.sum() == 3 * 5 and uneven.support.shape[1] == 3 * 6
    assert with_copies(source, None, 3) is source is with_copies(source, how, 0)
    with pytest.raises(UsageError, match="the support set shows as they are; use augmentation.su"):
        with_copies(source, Augmentation(turn=True), 1)


FEW = ["methods=[pmf,tsa]", "tuning.prototype_steps=2", "tuning.copies=2", "episodes.shots=[2]"]


def test_the_rate_is_chosen_on_val_and_what_is_measured_is_the_network(workplace: Path) -> None:
    asked = [*FEW, "tuning.prototype_rates=[0,0.01,1]"]
    outcome = compare(*asked)
    assert outcome.code == 0, outcome.err
    chosen = json.loads(Path("run/comparison.json").read_text())["chosen"]["pmf"]["2"]
    here = setting_of(plan([*SMALL, *asked]))
    here = replace(here, copies=2)
    module = here.bare().net.module

    def reached(rate: float, split: str, count: int) -> np.ndarray:
        algo = PrototypeTuning(module, 2, adam(rate), None, 2)
        return evaluate(algo, algo.init(), here.images(2, split, count)).accuracies

    by_rate = {rate: reached(rate, "val", 2).mean() for rate in (0.0, 0.01, 1.0)}
    assert chosen["accuracy"] == pytest.approx(max(by_rate.values()))
    assert by_rate[chosen["rate"]] == max(by_rate.values())
    assert accuracies("pmf", 2) == pytest.approx(reached(chosen["rate"], "test", 3))


def test_without_a_rate_it_is_the_cosine_of_class_means(workplace: Path) -> None:
    cosine = "+classifiers.cosine={_target_:metalearn.classifiers.Cosine,of_unit_length:false}"
    asked = ["methods=[pmf,tsa,film,cosine]", *FEW[1:], "tuning.prototype_rates=[0]", cosine]
    outcome = compare(*asked)
    assert outcome.code == 0, outcome.err
    for method in ("pmf", "tsa", "film"):
        assert accuracies(method, 2) == pytest.approx(accuracies("cosine", 2)[:3])


MISTAKES = {
    "tuning.prototype_rates=[]": "tuning.prototype_rates=[] is empty",
    "tuning.copies=0": "tuning.copies=0 must be above 0",
    "augmentation=rotations": "use augmentation.support.turn=false",
}


def test_a_mistake_is_one_line(workplace: Path) -> None:
    for override, line in MISTAKES.items():
        assert line in compare("methods=[pmf]", override).mistake
    assert not Path("run").exists()
