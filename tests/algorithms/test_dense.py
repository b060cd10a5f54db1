"""Detection and segmentation: exact in second order, and padding changes nothing."""

import functools
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metalearn import Batch, Episodes, adapt
from metalearn.algorithms import ANIL, MAML, ProtoNet, Reptile
from metalearn.algorithms.boxes import decoded, generalised_iou
from metalearn.algorithms.detection import Detection
from metalearn.algorithms.segmentation import Segmentation
from metalearn.backbones import CifarResNet, Conv4, ResNet12, WideResNet, dense
from metalearn.data import glyph_scenes
from metalearn.episodes import make_episodes
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Displacement, Unroll
from metalearn.inner import sgd
from metalearn.types import Given
from tests.algorithms import dense_reference as reference
from tests.tasks import apart, network, on

WAYS, RATE, STEPS = 2, 0.3, 2
TASKS = {"detection": Detection(), "segmentation": Segmentation()}
LOSSES = {
    "detection": functools.partial(reference.detection, gamma=2.0, radius=1.5),
    "segmentation": reference.segmentation,
}


@pytest.fixture(autouse=True)
def _cache(data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(data_cache))


@functools.cache
def episodes(task: str, tasks: int = 2, shots: int = 2) -> Episodes:
    scenes = glyph_scenes(size=32, glyph=16, objects=3, classes=24, drawings=6)
    shape = {"ways": WAYS, "shots": shots, "queries": 2, "seed": 0}
    found = make_episodes(scenes, task=task, **shape).batch("train", range(tasks))
    return found.map(lambda t: t.double() if t.is_floating_point() else t)


def net(task: str, ways: int | None = WAYS) -> nn.Module:
    def build() -> nn.Module:
        body = Conv4(ways, filters=4, size=32, norm="none")
        path = None if ways is None else "head"
        return getattr(dense, task)(body, path, torch.zeros(1, 1, 32, 32), stride=8, width=5)

    return network(build)


@functools.cache
def wanted(task: str, algorithm: str) -> dict:
    def adapts(name: str) -> bool:
        return algorithm == "maml" or name.startswith("head.")

    return reference.meta_gradient(net(task), episodes(task), STEPS, RATE, LOSSES[task], adapts)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("strategy", [Adjoint, Unroll])
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
@pytest.mark.parametrize("task", TASKS)
def test_second_order_is_that_of_a_plain_float64_loop(task, algorithm, strategy, batching):
    made = {"maml": MAML, "anil": ANIL}[algorithm]
    algo = made(net(task), steps=STEPS, rule=sgd(RATE), loss=TASKS[task])
    got, metrics = on(strategy(), batching)(algo, algo.init(), episodes(task))
    assert apart(got, {"init": wanted(task, algorithm), "hyper": {}}) < 1e-10
    assert metrics["loss"].shape == (2,)


@pytest.mark.slow
def test_compiled_pieces_have_the_same_gradient():
    algo = ANIL(net("detection"), steps=STEPS, rule=sgd(RATE), loss=Detection())
    got, _ = on(Adjoint(), "loop+compile")(algo, algo.init(), episodes("detection"))
    assert apart(got, {"init": wanted("detection", "anil"), "hyper": {}}) < 1e-10


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("task", TASKS)
def test_prototypes_of_places_have_the_gradient_of_plain_means(task, distance):
    loss, given = TASKS[task], episodes(task)
    algo = ProtoNet(net(task, None), distance, 0.5, loss=loss)
    got, _ = on(Unroll(), "vmap")(algo, algo.init(), given)
    module = net(task, None)
    init = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    total = 0.0
    for t in range(2):
        support, query = (batch.map(lambda v, t=t: v[t]) for batch in given[:2])
        sides = loss.sides
        f_s, f_q = (functional_call(module, init, (b.x,)) for b in (support, query))
        embedded, of_query = (f[:, : f.shape[1] - sides] for f in (f_s, f_q))
        if task == "segmentation":  # as PANet does: the maps at the size of the masks
            large = torch.nn.functional.interpolate(embedded, (32, 32), mode="bilinear")
            means = [large.movedim(1, -1)[support.y["mask"] == n].mean(0) for n in range(WAYS + 1)]
        else:
            hot = loss.shares(support, embedded, WAYS + 1)
            means = [embedded.movedim(1, -1)[hot[:, n] > 0].mean(0) for n in range(WAYS + 1)]
        columns = []
        for mean in means:
            shape = mean.view(1, -1, 1, 1)
            if distance == "cosine":
                columns.append(torch.cosine_similarity(of_query, shape, 1) / 0.5)
            else:
                columns.append(-(of_query - shape).square().sum(1) / 0.5)
        outputs = torch.cat([torch.stack(columns, 1), f_q[:, f_q.shape[1] - sides :]], 1)
        total = total + LOSSES[task](outputs, query.y) / 2
    want = dict(zip(init, torch.autograd.grad(total, list(init.values())), strict=True))
    assert apart(got, {"init": want, "hyper": {}}) < 1e-10


@pytest.mark.parametrize("task", TASKS)
def test_padding_changes_nothing(task):
    """Pictures of weight 0, objects of valid 0: whatever stands there."""
    given = episodes(task)

    def padded(batch: Batch) -> Batch:
        y = dict(batch.y)
        tasks, pictures = batch.x.shape[:2]
        x = torch.cat([batch.x, torch.full_like(batch.x[:, :1], 7.0)], 1)
        more = {n: torch.zeros_like(t[:, :1]) for n, t in y.items()}
        y = {n: torch.cat([t, more[n]], 1) for n, t in y.items()}
        if "boxes" in y:
            junk = torch.tensor([0.4, 0.4, 0.4, 0.2]).double().expand(tasks, pictures + 1, 1, 4)
            y["boxes"] = torch.cat([y["boxes"], junk], 2)
        for name, value in (("labels", 5), ("valid", 0.0)):
            y[name] = torch.nn.functional.pad(y[name], (0, 1), value=value)
        weight = torch.ones(tasks, pictures + 1).double()
        weight[:, -1] = 0
        return Batch(x, y, weight)

    algo = MAML(net(task), steps=1, rule=sgd(RATE), loss=TASKS[task])
    plain, metrics = on(Adjoint(), "vmap")(algo, algo.init(), given)
    other = Episodes(padded(given.support), padded(given.query))
    got, theirs = on(Adjoint(), "vmap")(algo, algo.init(), other)
    assert apart(got, plain) < 1e-12
    for name, value in metrics.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-12, atol=0)


def test_a_pixel_without_a_finite_answer_is_wrong():
    given = episodes("segmentation").query.map(lambda t: t[0])
    right = torch.nn.functional.one_hot(given.y["mask"], WAYS + 1).movedim(-1, 1).double()
    for lost in (math.nan, math.inf):
        outputs = right.clone()
        outputs[:, :, :16] = lost  # the upper half, whose background is no background then
        metrics = Segmentation()(outputs, given)[1]
        mask = given.y["mask"]
        low = mask[:, 16:]
        each = [(low == n).sum() / (mask == n).sum() for n in range(WAYS + 1)]
        ink = (low > 0).sum() / (mask > 0).sum()
        torch.testing.assert_close(
            metrics["miou"], sum(each[1:]).double() / WAYS, rtol=1e-6, atol=0
        )
        torch.testing.assert_close(
            metrics["fb_iou"], (each[0] + ink).double() / 2, rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("task", TASKS)
def test_prototypes_without_a_background_have_a_loss(task):
    """One that leaves out the places that nobody could be right at, and still sees what is lost."""
    given, loss = episodes(task), Detection(radius=8) if task == "detection" else Segmentation()
    y = {n: t.clone() for n, t in given.support.y.items()}
    if task == "detection":
        y["boxes"][:] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        y["labels"][:, 0], y["labels"][:, 1] = 0, 1
    else:
        y["mask"] = torch.where(y["mask"] > 0, y["mask"], y["labels"][..., :1, None] + 1)
    support = given.support._replace(y=y)
    algo = ProtoNet(net(task, None), temperature=0.5, loss=loss)
    meta, one = algo.init(), support.map(lambda t: t[0])
    assert algo.begin(meta, Given(one))["counts"][0] == 0
    got, metrics = on(Unroll())(algo, meta, Episodes(support, given.query))
    assert metrics["loss"].isfinite().all() and 0 < metrics["loss"].max() < 100
    assert all(t.isfinite().all() for t in got["init"].values())
    query = given.query.map(lambda t: t[0])
    for lost in (math.nan, -math.inf, math.inf):
        outputs = torch.zeros(len(query.x), 1 + WAYS + loss.sides, 4, 4).double()
        outputs[:, 0] = lost
        assert not loss(outputs, query)[0].isfinite()


def test_reptile_and_adapt_take_boxes():
    given, loss = episodes("detection"), Detection()
    algo = Reptile(net("detection"), steps=2, rule=sgd(0.1, batch_size=1), loss=loss)
    got, _ = on(Displacement(), "loop")(algo, algo.init(), given)
    one = given.support.map(lambda t: t[0])
    fast = adapt(MAML(net("detection"), 3, sgd(0.05), loss), algo.init(), one)
    before = loss(net("detection")(one.x), one)[0]
    after = loss(functional_call(net("detection"), fast, (one.x,)), one)[0]
    assert after < before and all(t.isfinite().all() for t in got["init"].values())


def test_boxes_by_hand():
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).double()
    b = torch.tensor([[0.25, 0.0, 0.75, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]]).double()
    want = torch.tensor([1 / 3, -0.5, 1.0]).double()  # hulls 0.375, 1, 0.25; unions 0.375, 0.5
    torch.testing.assert_close(generalised_iou(a, b), want)
    numbers = torch.full((1, 4, 1, 2), 0.5).double().expm1().log()  # softplus of it is 0.5
    boxes = decoded(numbers)
    torch.testing.assert_close(boxes[0, 1], torch.tensor([0.5, 0.0, 1.0, 1.0]).double())


def test_maps_are_resized_as_torch_does_inside_and_outside_of_transforms():
    x = torch.randn(2, 3, 5, 7).double()
    want = torch.nn.functional.interpolate(x, (11, 4), mode="bilinear")
    inside = torch.func.grad(lambda x: dense.resized(x, (11, 4)).square().sum())(x)
    torch.testing.assert_close(dense.resized(x, (11, 4)), want)
    x.requires_grad_()
    torch.nn.functional.interpolate(x, (11, 4), mode="bilinear").square().sum().backward()
    torch.testing.assert_close(inside, x.grad)


@pytest.mark.parametrize(
    "body, sizes",
    [
        (lambda: ResNet12(3, 1, 32, (4, 4, 6, 6)), 4),
        (lambda: CifarResNet(3, 1, 32, 8), 8),
        (lambda: WideResNet(3, 1, 32, 10, 1), 8),
    ],
    ids=["resnet12", "cifar_resnet", "wide_resnet"],
)
def test_other_backbones_give_maps(body, sizes):
    x = torch.randn(2, 1, 32, 32)
    made = dense.detection(body(), "head", x, stride=8)
    assert made.eval()(x).shape == (2, 1 + 3 + 4, sizes, sizes)
    plain = body().eval()
    torch.testing.assert_close(
        plain.head(plain.maps(x)[-1].mean((2, 3))), plain(x), rtol=1e-5, atol=1e-6
    )


def changed(task: str, **values) -> Episodes:
    """The episodes with other targets in the support pictures."""
    given = episodes(task)
    y = {n: t.clone() for n, t in given.support.y.items()}
    for name, (at, value) in values.items():
        y[name][at] = torch.tensor(value, dtype=y[name].dtype)
    return given._replace(support=given.support._replace(y=y))


FIRST = (0, 0, 0)
WRONG = {
    "no box": ("detection", {"valid": ((0,), 0.0)}, "support set of task 0 has no object"),
    "no area": ("detection", {"boxes": (FIRST, [0.2, 0.2, 0.2, 0.5])}, "no area"),
    "beyond": ("detection", {"boxes": (FIRST, [3.0, 4.0, 20.0, 30.0])}, "beyond its picture"),
    "NaN": ("detection", {"boxes": (FIRST, [float("nan")] * 4)}, "beyond its picture"),
    "x y w h": ("detection", {"boxes": (FIRST, [0.6, 0.6, 0.2, 0.2])}, "is not x0 y0 x1 y1"),
    "a gap": ("detection", {"labels": ((0,), 1)}, "has the classes 1; number those"),
    "no mask": ("segmentation", {"mask": ((0, 0), 0)}, "class . of support picture 0 .* no mask"),
    "another": ("segmentation", {"mask": ((0, 0, 0), 9)}, "which its labels lack"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_targets_are_one_line(case):
    task, values, told = WRONG[case]
    algo = MAML(net(task), steps=1, loss=TASKS[task])
    wrong = changed(task, **values)
    with pytest.raises(UsageError, match=told):
        on(Adjoint(), "vmap")(algo, algo.init(), wrong)
    with pytest.raises(UsageError, match=told):
        adapt(algo, algo.init(), wrong.support.map(lambda t: t[0]))


def test_a_loss_or_network_of_another_task_is_one_line():
    given = episodes("detection")
    one = given.support.map(lambda t: t[0])
    with pytest.raises(UsageError, match="targets are boxes, labels, valid.*maml, anil"):
        MAML(net("detection")).outer_loss({"init": {}, "hyper": {}, "buffers": {}}, {}, one)
    with pytest.raises(UsageError, match="takes targets {mask"):
        Segmentation()(torch.zeros(2, 3, 4, 4), one)
    with pytest.raises(UsageError, match=r"takes outputs \[B, 1 \+ N \+ 4, h, w\], not \[2, 3\]"):
        Detection()(torch.zeros(2, 3), one)
    with pytest.raises(UsageError, match="3 classes, and the network answers for 2"):
        algo = MAML(net("detection"), loss=Detection())
        scenes = glyph_scenes(size=32, glyph=16, classes=24, drawings=6)
        shape = {"ways": 3, "shots": 1, "queries": 1, "seed": 0}
        more = make_episodes(scenes, task="detection", **shape).batch("train", [0])
        adapt(algo, algo.init(), more.support.map(lambda t: t[0]))
    with pytest.raises(UsageError, match="Linear gives no feature maps; use backbone=conv4"):
        dense.detection(nn.Linear(4, 3), None, torch.zeros(1, 1, 8, 8))
