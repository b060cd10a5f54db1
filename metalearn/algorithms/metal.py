"""MeTAL: the inner loop descends on a loss that is learned, and that changes with the task.

    theta_{k+1} = theta_k - alpha * grad L_phi'(tau_k)                                   (eq. 4)
    tau_k = [L_support(theta_k), mean of each layer of theta_k, mean output on the support set]
    phi' = (1 + gamma) * phi + beta,   (gamma, beta) = g_psi(tau_k)                      (eq. 6)

L_phi is L_support plus a network of two layers, g_psi another; both return 0 at the start, so that
training begins as MAML. This is the inductive form, without a loss of the queries' outputs.

Baik, Choi, Kim, Cho, Min, Lee: Meta-Learning with Task-Adaptive Loss Function for Few-Shot
Learning, 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.algorithms.losses import Loss, cross_entropy, mean
from metalearn.algorithms.maml import MAML
from metalearn.errors import UsageError
from metalearn.inner.perceptron import means, perceptron, perceptron_start
from metalearn.inner.rules import InnerRule, sgd, under_prefix
from metalearn.types import Given, Meta, Params


@dataclass(frozen=True)
class AdaptiveLoss:
    """L_phi and what adapts it. outputs: N, of the network."""

    outputs: int

    def hyper(self, algo: MAML) -> Params:
        """`loss.*`, phi, and `adapter.*`, psi; their size is that of tau."""
        weights = algo.net.params
        size = 1 + len(weights) + self.outputs
        like = next(iter(weights.values()))
        phi = perceptron_start("loss", (size, size, 1), like)
        return {**phi, **perceptron_start("adapter", (size, size, 2 * len(phi)), like)}

    def __call__(
        self, algo: MAML, meta: Meta, fast: Params, given: Given, step: int | Tensor
    ) -> Tensor:
        """L_phi'(tau)."""
        hyper = meta["hyper"]
        weights = {name: fast.get(name, w) for name, w in meta["init"].items()}
        support_loss = algo.support_loss(meta, fast, given, step)
        outputs = algo.outputs(meta, fast, given.support.x, given.support.weight).flatten(1)
        average = torch.stack([mean(o, given.support.weight) for o in outputs.unbind(1)])
        tau = torch.cat([support_loss.view(1), means(weights), average])
        scale, shift = perceptron(hyper, "adapter", tau).view(2, -1)
        phi = under_prefix("loss", hyper)
        adapted = {n: t * (1 + scale[i]) + shift[i] for i, (n, t) in enumerate(phi.items())}
        learned = perceptron({f"loss.{n}": t for n, t in adapted.items()}, "loss", tau)
        return support_loss + learned.squeeze(0)


def MeTAL(  # a method of the field, named as the others are
    module: nn.Module, steps: int = 5, rule: InnerRule = sgd(0.01), loss: Loss = cross_entropy
) -> MAML:
    """MAML on the learned loss. The network ends in a layer of N outputs, its last matrix. Raises
    UsageError where it has none."""
    matrices = [w for w in module.parameters() if w.requires_grad and w.ndim > 1]
    if not matrices:
        raise UsageError("MeTAL reads the outputs of a last layer; this network has none to train")
    return MAML(module, steps, rule, loss, objective=AdaptiveLoss(len(matrices[-1])))
