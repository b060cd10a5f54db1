"""Average precision: torchmetrics' value is that of the definition, and evaluation tells it."""

import importlib.util
import math

import numpy as np
import pytest
import torch

from metalearn import Batch
from metalearn.algorithms.detection import Detection
from metalearn.evaluation.average_precision import (
    ANSWERS,
    KEPT,
    OVERLAP,
    average_precision,
    judged,
    kept,
)
from metalearn.evaluation.protocol import EvalReport

missing = [n for n in ("torchmetrics", "pycocotools") if importlib.util.find_spec(n) is None]
measured = pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed")

LEFT, RIGHT = [0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]


def answers(boxes, scores, labels):
    return {
        "boxes": torch.tensor(boxes),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels),
    }


def query(weight=None) -> Batch:
    """Two pictures: class 0 left and class 1 right; class 0 right, and padding."""
    y = {
        "boxes": torch.tensor([[LEFT, RIGHT], [RIGHT, [0.0] * 4]]),
        "labels": torch.tensor([[0, 1], [0, 0]]),
        "valid": torch.tensor([[1.0, 1.0], [1.0, 0.0]]),
    }
    return Batch(torch.zeros(2, 1, 8, 8), y, weight)


@measured
def test_the_mean_over_classes_of_the_area_under_precision_and_recall():
    told = answers([[LEFT, RIGHT], [LEFT, RIGHT]], [[0.9, 0.8], [0.95, 0.6]], [[0, 1], [0, 0]])
    # Class 1: found. Class 0: a miss at 0.95, then two that are right; precision 2/3.
    assert average_precision(told, query()) == pytest.approx((1 + 2 / 3) / 2)
    # A picture of weight 0 is not looked at.
    assert average_precision(told, query(torch.tensor([1.0, 0.0]))) == pytest.approx(1.0)


def test_of_boxes_that_overlap_the_surest_of_a_class_stays():
    near = [0.02, 0.0, 0.42, 0.4]
    one = answers([near, LEFT, LEFT], [0.5, 0.9, 0.4], [0, 0, 1])
    assert OVERLAP < 0.38 / 0.42
    assert kept(one)["labels"].tolist() == [0, 1]
    np.testing.assert_allclose(kept(one)["scores"], [0.9, 0.4], rtol=1e-6)


@pytest.mark.parametrize("score, box", [(0.9, [math.nan] * 4), (math.nan, LEFT)])
def test_what_is_not_finite_is_no_answer(score, box):
    told = answers([[box, RIGHT]] * 2, [[score, 0.8]] * 2, [[0, 1]] * 2)
    one = kept({name: t[0] for name, t in told.items()})
    assert one["labels"].tolist() == [1] and torch.equal(one["boxes"], torch.tensor([RIGHT]))
    if not missing:
        # Class 0: no answer. Class 1: found in the first picture, and not in the second.
        assert average_precision(told, query()) == pytest.approx(0.5)


@measured
def test_a_box_where_there_is_none_is_wrong():
    found = query()
    found.y["valid"][1] = 0
    told = answers([[LEFT, RIGHT]] * 2, [[0.9, 0.8], [0.95, 0.6]], [[0, 1], [0, 2]])
    # Class 0: a miss in the empty picture, then right; class 1: right; class 2: nobody has it.
    assert average_precision(told, found) == pytest.approx((0.5 + 1) / 2)


def test_a_class_that_is_nowhere_the_surest_has_its_box():
    """As every place has a box of every class, the surest 100 may be of one class alone."""
    outputs = torch.zeros(1, 1 + 3 + 4, 16, 16)
    outputs[:, :4] = torch.tensor([0.0, 4.0, 3.0, 2.0]).view(1, -1, 1, 1)
    outputs[:, 4:] = 30.0  # of all places the whole picture
    found = Detection().answers(outputs)
    one = kept({name: t[0] for name, t in found.items()})
    assert one["labels"].tolist() == [0, 1, 2]


def test_no_more_boxes_than_coco_takes_and_the_surest():
    places = torch.arange(121)
    corner = torch.stack([places % 11, places // 11], 1) / 11
    boxes = torch.cat([corner, corner + 0.05], 1)
    one = kept({"boxes": boxes, "scores": places / 121, "labels": places % 3})
    assert len(one["boxes"]) == KEPT
    np.testing.assert_allclose(one["scores"], places.flip(0)[:KEPT] / 121, rtol=1e-6)


@measured
def test_the_boxes_are_judged_without_their_classes_too():
    told = answers([[LEFT, RIGHT]] * 2, [[0.9, 0.8], [0.3, 0.95]], [[1, 0]] * 2)
    both = {f"{ANSWERS}{name}": torch.stack([t] * 2, -1) for name, t in told.items()}
    found = judged({**both, "loss": torch.zeros(2)}, query().map(lambda t: t.unsqueeze(0)))
    # Class 0: one of two, then a miss; class 1: none. Boxes: the three, then a miss.
    assert found["ap50"].tolist() == pytest.approx([51 / 101 / 2] * 2, abs=1e-6)
    assert found["box_ap50"].tolist() == pytest.approx([1.0])


def test_more_is_better_by_what_a_task_is_judged_by():
    values = np.array([[0.25, 0.75]])
    report = EvalReport({"loss": values, "ap50": values})
    assert (report.measure, report.score) == ("ap50", 0.75)
    assert EvalReport({"loss": values, "miou": values, "fb_iou": values}).score == 0.75
    assert EvalReport({"loss": values}).score == -0.75
