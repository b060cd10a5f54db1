"""A detection loss, a segmentation loss and an inner loop in plain loops of torch's own functions.

Nothing here comes from metalearn, so that agreement with it is evidence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.ops import generalized_box_iou_loss


def detection(outputs: Tensor, y: dict[str, Tensor], gamma: float, radius: float) -> Tensor:
    """Mean over pictures of the focal loss and 1 - GIoU, place by place."""
    pictures = []
    for answers, boxes, labels, valid in zip(
        outputs, y["boxes"], y["labels"], y["valid"], strict=True
    ):
        height, width = answers.shape[1:]
        focal, near, positive = torch.zeros(()).double(), torch.zeros(()).double(), 0
        for row in range(height):
            for column in range(width):
                x, v = (column + 0.5) / width, (row + 0.5) / height
                best, size = None, float("inf")
                for m in range(len(boxes)):
                    x0, y0, x1, y1 = boxes[m].tolist()
                    mx, my = (x0 + x1) / 2, (y0 + y1) / 2
                    inside = x0 < x < x1 and y0 < v < y1
                    close = abs(x - mx) * width <= radius and abs(v - my) * height <= radius
                    own = int(mx * width) == column and int(my * height) == row
                    area = (x1 - x0) * (y1 - y0)
                    if valid[m] and ((inside and close) or own) and area < size:
                        best, size = m, area
                target = 0 if best is None else int(labels[best]) + 1
                p = answers[:-4, row, column].softmax(0)[target]
                focal = focal - (1 - p) ** gamma * p.log()
                if best is not None:
                    positive += 1
                    left, top, right, low = F.softplus(answers[-4:, row, column])
                    box = [x - left / width, v - top / height, x + right / width, v + low / height]
                    near = near + generalized_box_iou_loss(torch.stack(box), boxes[best], eps=0.0)
        pictures.append((focal + near) / max(positive, 1))
    return torch.stack(pictures).mean()


def segmentation(outputs: Tensor, y: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of every pixel of logits that torch interpolates."""
    logits = F.interpolate(outputs, y["mask"].shape[-2:], mode="bilinear")
    return F.cross_entropy(logits, y["mask"])


def meta_gradient(net: nn.Module, episodes, steps: int, rate: float, loss, adapts) -> dict:
    """The mean over tasks of the gradient of the query loss after `steps` inner steps."""
    init = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    total = torch.zeros(()).double()
    tasks = len(episodes.support.x)
    for t in range(tasks):
        support, query = (batch.map(lambda v, t=t: v[t]) for batch in episodes[:2])
        fast = dict(init)
        names = [n for n in init if adapts(n)]
        for _ in range(steps):
            value = loss(functional_call(net, fast, (support.x,)), support.y)
            grads = torch.autograd.grad(value, [fast[n] for n in names], create_graph=True)
            fast |= {n: fast[n] - rate * g for n, g in zip(names, grads, strict=True)}
        total = total + loss(functional_call(net, fast, (query.x,)), query.y) / tasks
    return dict(zip(init, torch.autograd.grad(total, list(init.values())), strict=True))
