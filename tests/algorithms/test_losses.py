"""The losses equal torch's, and leave padding out."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jacfwd, jacrev, vmap

from metalearn import Batch
from metalearn.algorithms.losses import (
    absent,
    auto,
    cross_entropy,
    focal,
    label_smoothed,
    mean_squared,
    present,
)
from metalearn.errors import UsageError
from tests.tasks import generator

# The formulas that torch loads for forward mode use what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")

G = generator()
LOGITS = torch.randn(6, 4, generator=G, dtype=torch.float64)
CLASSES = torch.randint(4, (6,), generator=G)
WEIGHT = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 2.0], dtype=torch.float64)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)


def test_cross_entropy():
    loss, metrics = cross_entropy(LOGITS, Batch(LOGITS, CLASSES))
    close(loss, F.cross_entropy(LOGITS, CLASSES))
    close(metrics["accuracy"], (LOGITS.argmax(1) == CLASSES).double().mean())


def test_weighted_cross_entropy():
    loss, metrics = cross_entropy(LOGITS, Batch(LOGITS, CLASSES, WEIGHT))
    each = F.cross_entropy(LOGITS, CLASSES, reduction="none")
    rows = [0, 2, 3, 5, 5]
    close(loss, each[rows].mean())
    close(metrics["accuracy"], (LOGITS.argmax(1) == CLASSES)[rows].double().mean())


def test_mean_squared():
    targets = torch.randn(6, 4, generator=G, dtype=torch.float64)
    loss, metrics = mean_squared(LOGITS, Batch(LOGITS, targets))
    close(loss, F.mse_loss(LOGITS, targets))
    close(metrics["loss"], loss)
    loss, _ = mean_squared(LOGITS, Batch(LOGITS, targets, WEIGHT))
    close(loss, F.mse_loss(LOGITS[[0, 2, 3, 5, 5]], targets[[0, 2, 3, 5, 5]]))


def test_one_number_a_target():
    values, targets = LOGITS[:, 0], LOGITS[:, 1]
    close(
        mean_squared(values[:, None], Batch(values, targets[:, None]))[0],
        F.mse_loss(values, targets),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing(smoothing):
    each = F.cross_entropy(LOGITS, CLASSES, reduction="none", label_smoothing=smoothing)
    loss, metrics = label_smoothed(LOGITS, Batch(LOGITS, CLASSES), smoothing=smoothing)
    close(loss, each.mean())
    close(metrics["accuracy"], (LOGITS.argmax(1) == CLASSES).double().mean())
    loss, _ = label_smoothed(LOGITS, Batch(LOGITS, CLASSES, WEIGHT), smoothing=smoothing)
    close(loss, each[[0, 2, 3, 5, 5]].mean())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(gamma):
    each = F.cross_entropy(LOGITS, CLASSES, reduction="none")
    each = (1 - (-each).exp()) ** gamma * each
    loss, metrics = focal(LOGITS, Batch(LOGITS, CLASSES), gamma=gamma)
    close(loss, each.mean())
    close(metrics["accuracy"], (LOGITS.argmax(1) == CLASSES).double().mean())
    loss, _ = focal(LOGITS, Batch(LOGITS, CLASSES, WEIGHT), gamma=gamma)
    close(loss, each[[0, 2, 3, 5, 5]].mean())


def test_squared_error_of_classes():
    hot = F.one_hot(CLASSES, 4).double()
    loss, metrics = mean_squared(LOGITS, Batch(LOGITS, CLASSES))
    close(loss, F.mse_loss(LOGITS, hot))
    close(metrics["accuracy"], (LOGITS.argmax(1) == CLASSES).double().mean())
    loss, _ = mean_squared(LOGITS, Batch(LOGITS, CLASSES, WEIGHT))
    close(loss, F.mse_loss(LOGITS[[0, 2, 3, 5, 5]], hot[[0, 2, 3, 5, 5]]))


OF_CLASSES = {
    "auto": auto,
    "cross_entropy": cross_entropy,
    "label_smoothed": label_smoothed,
    "focal-0.5": partial(focal, gamma=0.5),
    "focal-2": focal,
    "mean_squared": mean_squared,
}


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_second_derivatives_by_differences_and_in_every_order_of_transforms(name, weight):
    batch = Batch(LOGITS, CLASSES, weight)

    def loss(logits):
        return OF_CLASSES[name](logits, batch)[0]

    assert torch.autograd.gradgradcheck(loss, LOGITS.clone().requires_grad_())
    hessian = jacrev(grad(loss))(LOGITS)
    torch.testing.assert_close(jacfwd(grad(loss))(LOGITS), hessian, rtol=1e-12, atol=1e-14)
    many = torch.stack([LOGITS, 2 * LOGITS])
    mapped = vmap(jacrev(grad(loss)))(many)[0]
    torch.testing.assert_close(mapped, hessian, rtol=1e-12, atol=1e-14)
    outside = jacrev(grad(lambda many: vmap(loss)(many)[0]))(many)[0, :, :, 0]
    torch.testing.assert_close(outside, hessian, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_certain_logits_have_finite_derivatives(name, dtype):
    """Right or wrong beyond doubt, and all the same."""
    sure = torch.tensor([[900.0, 0, -3], [900.0, 0, -3], [0.0, 0, 0]], dtype=dtype)
    batch = Batch(sure, torch.tensor([0, 1, 2]))

    def loss(logits):
        return OF_CLASSES[name](logits, batch)[0]

    for value in (loss(sure), grad(loss)(sure), jacrev(grad(loss))(sure), jacfwd(grad(loss))(sure)):
        assert value.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_among_the_classes_that_are_present(name, dtype):
    logits, kept = LOGITS.to(dtype), [0, 2, 3]
    classes = torch.tensor([0, 2, 0, 3, 1, 2])  # class 1 is met in padding alone
    weight = WEIGHT.to(dtype) * (classes != 1)
    narrow = Batch(logits, torch.tensor([0, 1, 0, 2, 0, 1]), weight)
    wide = Batch(logits, classes, weight)
    loss = OF_CLASSES[name]

    def ours(logits):
        return present(loss)(logits, wide)[0]

    def theirs(logits):
        return loss(logits[:, kept], narrow)[0]

    near = (
        {"rtol": 1e-12, "atol": 1e-14} if dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    )
    for transform in (lambda f: f, grad, lambda f: jacrev(grad(f)), lambda f: jacfwd(grad(f))):
        torch.testing.assert_close(transform(ours)(logits), transform(theirs)(logits), **near)
    accuracy = present(loss)(logits, wide)[1]["accuracy"]
    close(accuracy, loss(logits[:, kept], narrow)[1]["accuracy"])


def test_a_single_class_is_certain():
    one = torch.full((2, 3), absent(LOGITS), dtype=torch.float64)
    one[:, 0] = torch.tensor([1.0, -2.0])
    for name in ("cross_entropy", "label_smoothed", "focal-2"):

        def loss(logits, name=name):
            return OF_CLASSES[name](logits, Batch(one, torch.tensor([0, 0])))[0]

        assert loss(one) == 0 and (grad(loss)(one) == 0).all()
        assert (jacrev(grad(loss))(one) == 0).all()


REFUSED = {
    "loss=focal is for classes; use loss=auto or mean_squared": (focal, LOGITS),
    "loss=label_smoothed is for classes": (label_smoothed, LOGITS),
    "loss=cross_entropy is for classes": (cross_entropy, LOGITS),
    "loss.gamma=-1 must be 0 or more": (partial(focal, gamma=-1), CLASSES),
    "loss.smoothing=2 must be 0 to 1": (partial(label_smoothed, smoothing=2), CLASSES),
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused(line):
    loss, targets = REFUSED[line]
    with pytest.raises(UsageError, match=line):
        loss(LOGITS, Batch(LOGITS, targets))


def test_auto_is_by_the_targets():
    close(auto(LOGITS, Batch(LOGITS, CLASSES))[0], F.cross_entropy(LOGITS, CLASSES))
    close(auto(LOGITS, Batch(LOGITS, LOGITS + 1))[0], torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("shapes", [((6, 1), (6,)), ((6,), (6, 1)), ((6,), (6,)), ((6, 1), (6, 1))])
@pytest.mark.parametrize("loss", [auto, mean_squared])
def test_a_missing_last_dimension_of_one_does_not_broadcast(loss, shapes):
    values, targets = (LOGITS[:, n].reshape(shape) for n, shape in enumerate(shapes))
    want = F.mse_loss(LOGITS[:, 0], LOGITS[:, 1])
    close(loss(values, Batch(values, targets))[0], want)
    each = (LOGITS[:, 0] - LOGITS[:, 1]).square()
    close(loss(values, Batch(values, targets, WEIGHT))[0], each[[0, 2, 3, 5, 5]].mean())


@pytest.mark.parametrize(
    "outputs, targets",
    [((6, 2), (6,)), ((6, 1), (6, 2)), ((6, 1, 3), (6, 3)), ((6, 2), (1, 2)), ((1,), (6,))],
    ids=str,
)
def test_what_would_broadcast_is_refused_by_both_shapes(outputs, targets):
    values = torch.zeros(outputs)
    with pytest.raises(UsageError) as error:
        mean_squared(values, Batch(values, torch.zeros(targets)))
    told = f"the network returns {list(outputs)} for targets {list(targets)}; "
    assert str(error.value) == told + "loss=mean_squared takes two of one shape"


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("outputs, classes", [((6, 3), (6, 1)), ((6,), (6,)), ((6, 3, 2), (6, 2))])
def test_classes_of_another_shape_are_refused(name, outputs, classes):
    batch = Batch(None, torch.zeros(classes, dtype=torch.int64))
    with pytest.raises(UsageError) as error:
        OF_CLASSES[name](torch.zeros(outputs), batch)
    assert str(list(outputs)) in str(error.value) and str(list(classes)) in str(error.value)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(UsageError, match=r"shape \[6\], but weights of \[6, 1\]"):
        cross_entropy(LOGITS, Batch(LOGITS, CLASSES, WEIGHT[:, None]))


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_right(name, wrong):
    """The largest of a row of NaN is its first, and that is class 0."""
    logits = torch.full((6, 4), wrong, dtype=torch.float64)
    loss, metrics = OF_CLASSES[name](logits, Batch(logits, torch.zeros(6, dtype=torch.int64)))
    assert metrics["accuracy"] == 0 and not loss.isfinite()
    one = LOGITS.clone()
    one[2, 1] = float("nan")
    loss, metrics = OF_CLASSES[name](one, Batch(one, LOGITS.argmax(1)))
    assert loss.isnan() and metrics["accuracy"] == pytest.approx(5 / 6)


def test_padding_may_hold_anything():
    logits = LOGITS.clone()
    logits[1] = float("nan")
    loss, metrics = cross_entropy(logits, Batch(logits, CLASSES, WEIGHT))
    want, known = cross_entropy(LOGITS, Batch(LOGITS, CLASSES, WEIGHT))
    close(loss, want)
    close(metrics["accuracy"], known["accuracy"])
