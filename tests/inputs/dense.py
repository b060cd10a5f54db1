"""Targets of a detection or a segmentation that cannot be right."""

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn import Batch, adapt
from metalearn.algorithms import MAML
from metalearn.algorithms.detection import Detection
from metalearn.algorithms.segmentation import Segmentation
from metalearn.backbones import Conv4
from metalearn.backbones.dense import detection, segmentation
from tests.command import metalearn
from tests.inputs.case import Case

Targets = dict[str, Tensor]
BOX = [0.1, 0.2, 0.5, 0.6]


def adapted(
    given: str, said: str, change: Callable[[Targets], object], masks: bool = False
) -> Case:
    """`adapt` to two pictures of one object each, their targets changed."""

    def act(place: object) -> object:
        y = {"labels": torch.tensor([[0], [1]]), "valid": torch.ones(2, 1)}
        if masks:
            y["mask"] = torch.tensor([1, 2]).view(2, 1, 1).repeat(1, 16, 16)
        else:
            y["boxes"] = torch.tensor([[BOX], [BOX]])
        change(y)
        head, loss = (segmentation, Segmentation()) if masks else (detection, Detection())
        net = head(Conv4(2, filters=4, size=16), "head", torch.zeros(1, 1, 16, 16), width=4)
        algo = MAML(net, steps=1, loss=loss)
        return adapt(algo, algo.init(), Batch(torch.rand(2, 1, 16, 16), y))

    return Case(given, said, act)


def box(*values: float) -> Callable[[Targets], object]:
    """The first box is this one."""
    return lambda y: y["boxes"].__setitem__((0, 0), torch.tensor(values))


def refused(words: str, said: str) -> Case:
    """A command that says no before it trains, and leaves its drawings."""
    given = f"`metalearn {words}`"
    small = "dataset.classes=24"
    return Case(given, said, lambda place: metalearn(*words.split(), small))


DENSE: tuple[Case, ...] = (
    adapted("no box in a support set", "has no object", lambda y: y["valid"].zero_()),
    adapted("a box of no area", "has no area", box(0.2, 0.2, 0.2, 0.9)),
    adapted("a box in pixels", "lies beyond its picture", box(3, 4, 20, 30)),
    adapted("a box partly outside the picture", "lies beyond", box(-0.1, 0.2, 0.3, 0.9)),
    adapted("a box of x, y, width and height", "is not x0 y0 x1 y1", box(0.5, 0.5, 0.2, 0.2)),
    adapted("a box that is no number", "lies beyond its picture", box(*[float("nan")] * 4)),
    adapted("boxes of 5 numbers", "give [B, M, 4]", lambda y: y.update(boxes=torch.ones(2, 1, 5))),
    adapted("boxes of a class 3 of 2", "number those", lambda y: y["labels"].fill_(3)),
    adapted("a class without a mask", "has no mask", lambda y: y["mask"][1].zero_(), masks=True),
    adapted(
        "a mask of an unnamed class", "its labels lack", lambda y: y["mask"][0, 0].fill_(9), True
    ),
    adapted("a mask of real numbers", "give classes", lambda y: y.update(mask=y["mask"] / 2), True),
    refused("train task=detection dataset.size=8", "has no boxes for task=detection"),
    refused("train dataset=glyph_scenes dataset.glyph=8", "use task=detection or task=segment"),
    refused("pretrain task=segmentation", "pretrain has no task=segmentation"),
)
