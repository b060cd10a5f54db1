"""Distillation: the answers of a trained network are part of what another learns from.

    L = (1 - beta) * CE + beta * T^2 * KL(softmax(t / T) || softmax(s / T))

t, s: the logits of teacher and student for the same images; T^2 keeps the gradient's size.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, section 2. Of a student
like its teacher (born again) before few-shot tasks: Tian, Wang, Krishnan, Tenenbaum, Isola:
Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need? (RFS), 2020, section
3.4, with beta 0.5 and alpha = 1 - beta.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.functional.outputs import outputs_of, tensor_of
from metalearn.training.mixing import Labelled


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network in eval mode that is not trained.

    weight: beta, 0 to 1. temperature: T. sha256: of its file.
    """

    module: nn.Module
    weight: float
    temperature: float
    sha256: str

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Its logits `[B, N]` of `x` `[B, C, H, W]`."""
        return tensor_of(outputs_of(self.module(x)))

    def loss(self, logits: Tensor, batch: Labelled) -> Tensor:
        """T^2 * KL of the student's `logits` `[B, N]` of `batch`, a scalar.

        Where a batch is mixed inside the student, the teacher sees its images as they are, and
        each of a pair counts by its share, as its label does.
        """
        told = self(batch.x)
        if batch.partner is None:
            return self._divergence(logits, told)
        own, others = (self._divergence(logits, t) for t in (told, told[batch.partner]))
        return batch.share * own + (1 - batch.share) * others

    def _divergence(self, logits: Tensor, told: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        student, teacher = (F.log_softmax(t.to(wide) / self.temperature, 1) for t in (logits, told))
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence
