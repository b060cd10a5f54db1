"""A network trained as a classifier: torch's own norms, its features, its loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from metalearn.backbones.heads import head_name
from metalearn.errors import UsageError
from metalearn.functional.norms import BatchNorm
from metalearn.functional.outputs import outputs_of, tensor_of
from metalearn.functional.torch_private import NormBase, children
from metalearn.training.distillation import Teacher
from metalearn.training.manifold import mixing_inside
from metalearn.training.mixing import Labelled
from metalearn.types import Params

_MOMENTUM = 0.1  # torch's own


def torch_norms(module: nn.Module) -> nn.Module:
    """`module`, changed in place, with each `BatchNorm` of ours replaced by torch's, whose running
    averages move in train mode.

    The tensors are the same, so the state dict keeps its names; running averages that were not
    there start at 0 and 1. No layer counts its batches.
    """
    done: dict[nn.Module, nn.Module] = {}

    def replaced(part: nn.Module) -> nn.Module:
        if part not in done:
            done[part] = _torch_norm(part) if isinstance(part, BatchNorm) else part
            if done[part] is part:
                # Not named_children(), which leaves out a layer's second place.
                for name, child in children(part).items():
                    if child is not None:
                        part.add_module(name, replaced(child))
        if isinstance(part := done[part], NormBase) and part.momentum is not None:
            part.num_batches_tracked = None
        return part

    return replaced(module)


def _torch_norm(norm: BatchNorm) -> nn.Module:
    features = next(t for t in (norm.weight, getattr(norm, "running_mean", None)) if t is not None)
    new = nn.BatchNorm2d(len(features), norm.eps, _MOMENTUM, affine=norm.weight is not None)
    new.register_parameter("weight", norm.weight)
    new.register_parameter("bias", norm.bias)
    if norm.statistics == "running":
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
    return new.to(features.device)


def head_of(module: nn.Module) -> nn.Linear:
    """The layer that gives the logits. Raises UsageError where it is not linear."""
    layer = module.get_submodule(head_name(module))
    if not isinstance(layer, nn.Linear):
        raise UsageError("the backbone ends in no linear layer, and so no head; give it outputs")
    return layer


def with_features(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[B, N]` of `x`, and what the head makes them from: the features `[B, D]`."""
    seen: list[Tensor] = []
    handle = head_of(module).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits = tensor_of(outputs_of(module(x)))
    finally:
        handle.remove()
    return logits, seen[-1].flatten(1)


def groups(module: nn.Module, decay_norms: bool) -> list[dict[str, Any]]:
    """The trainable parameters as an optimizer takes them. Without `decay_norms` the weight decay
    spares what is not a matrix or a kernel: norms and biases."""
    learned = [p for p in module.parameters() if p.requires_grad]
    if not learned:
        raise UsageError("the backbone has no weights that are trained")
    if decay_norms:
        return [{"params": learned}]
    spared = {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0}
    parts = ({"params": [p for p in learned if p.ndim > 1]}, spared)
    return [group for group in parts if group["params"]]


def rotated_four_ways(x: Tensor) -> Tensor:
    """`[B, C, H, H]` to `[4B, C, H, H]`: as they are, then by 90, 180 and 270 degrees."""
    return torch.cat([torch.rot90(x, quarters, (2, 3)) for quarters in range(4)])


def loss_and_accuracy(
    module: nn.Module,
    batch: Labelled,
    smoothing: float = 0.0,
    rotation_head: nn.Module | None = None,
    rotation: float = 0.0,
    teacher: Teacher | None = None,
    layers: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """The loss of one batch, and the share of it that is classified right.

        share * CE(y) + (1 - share) * CE(other) + rotation * CE(angle)

    CE(y): label-smoothed cross-entropy of the images as they are. CE(angle): of which of the four
    rotations an image has had, told by `rotation_head` `[D] -> [4]` from the features of all of
    them (Gidaris et al. 2018, section 3.1; beside a classifier Mangla et al. 2020).

    With a `teacher` its part of the first two terms is its own (`distillation.py`). A batch that is
    mixed inside the network, in one of `layers`, passes through it alone: then rotated images are
    not mixed, and the last term is rotation * (CE(angle) + CE(y of all rotated images)), with
    rotation 0.5 that of S2M2 (Mangla et al. 2020, section 3.3).
    """
    x, y, other, share, *_ = batch
    extra = x.new_zeros(())
    if batch.partner is not None:
        with mixing_inside(module, layers, batch):
            logits = tensor_of(outputs_of(module(x)))
    elif rotation_head is None:
        logits = tensor_of(outputs_of(module(x)))
    if rotation_head is not None:
        whole, features = with_features(module, rotated_four_ways(x))
        angle = torch.arange(4, device=x.device).repeat_interleave(len(x))
        extra = F.cross_entropy(rotation_head(features), angle)
        if batch.partner is None:
            logits = whole[: len(x)]
        else:
            extra = extra + F.cross_entropy(whole, y.repeat(4), label_smoothing=smoothing)
        extra = rotation * extra
    loss = share * F.cross_entropy(logits, y, label_smoothing=smoothing)
    if share < 1:
        loss = loss + (1 - share) * F.cross_entropy(logits, other, label_smoothing=smoothing)
    if teacher is not None:
        loss = (1 - teacher.weight) * loss + teacher.weight * teacher.loss(logits, batch)
    with torch.no_grad():
        told = logits.argmax(1)
        right = share * (told == y).float() + (1 - share) * (told == other).float()
    return loss + extra, right.mean()


def state(module: nn.Module) -> Params:
    """A copy of every tensor of `module`, by name."""
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


@torch.no_grad()
def restore(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Give `module` the tensors that `state` returned, in place."""
    # Not load_state_dict, which adds a counter of batches to norm layers that have none.
    for name, tensor in module.state_dict().items():
        tensor.copy_(saved[name])


def averaging(module: nn.Module, decay: float) -> AveragedModel | None:
    """The running average of weights and buffers that keeps `decay` of itself in a step; None for
    0. Raises UsageError for a decay that is not below 1."""
    if not 0 <= decay < 1:
        raise UsageError(f"training.ema={decay} must be 0 or more, and below 1")
    if not decay:
        return None
    mean = get_ema_avg_fn(decay)

    def average(before: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        # Some networks keep tables of integers in their buffers.
        return mean(before, now, count) if before.is_floating_point() else now  # type: ignore

    return AveragedModel(module, avg_fn=average, use_buffers=True)
