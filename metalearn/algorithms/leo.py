"""LEO: adapt in a space of a few numbers a class, from which the head is decoded.

    z_n = mean over i of class n, and over all j, of  r(e(f(x_i)), e(f(x_j)))        (eqs. 1 and 2)
    w_n = d(z_n),   z <- z - alpha * grad_z L_support(w(z))            (eqs. 3 to 5), then
    w <- w - eta * grad_w L_support(w)                                       (fine-tuning)

e and d linear, r a network of two layers, alpha and eta learned. z and w are the means of the
paper's distributions: no sample is drawn, and its terms KL, encoder and decoder are left out.

Rusu, Rao, Sygnowski, Vinyals, Pascanu, Osindero, Hadsell: Meta-Learning with Latent Embedding
Optimization, 2019.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import grad

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.metric import Metric
from metalearn.backbones.heads import head_name
from metalearn.classifiers.classes import masked, membership
from metalearn.errors import UsageError
from metalearn.inner.perceptron import perceptron, perceptron_start, random_matrix
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class LatentCode:
    """`code` numbers a class that adapt `steps` times, then the head `head_steps` times.

    features: D. rate, head_rate: where alpha and eta start.
    """

    features: int
    steps: int
    head_steps: int
    code: int
    rate: float
    head_rate: float
    loss: Loss
    transductive: bool = field(default=False, init=False)

    def hyper(self, features: int | None = None) -> Params:
        """`encoder` `[H, D]`, `relation.*`, `decoder` `[D, H]`, `rate` and `head_rate`."""
        like, size = torch.zeros((), dtype=torch.float64), self.code
        return {
            "encoder": random_matrix(size, self.features, like),
            **perceptron_start("relation", (2 * size, 2 * size, size), like, zero=False),
            "decoder": random_matrix(self.features, size, like, 2),
            "rate": like + self.rate,
            "head_rate": like + self.head_rate,
        }

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`weight` `[S, D]`, a row a class, and `counts` `[S]`, its examples."""
        x, member = support.x, membership(support, support.x.dtype)
        counts, share = member.sum(1), member.sum(0) / member.sum()
        encoded = x @ hyper["encoder"].T
        pairs = [t.expand(len(x), *encoded.shape) for t in (encoded.unsqueeze(1), encoded)]
        related = perceptron(hyper, "relation", torch.cat(pairs, 2))
        z = member @ torch.einsum("j,ijh->ih", share, related) / counts.clamp(min=1).unsqueeze(1)

        def support_loss(weight: Tensor) -> Tensor:
            return self.loss(masked(x @ weight.T, counts), support)[0]

        for _ in range(self.steps):
            z = z - hyper["rate"] * grad(lambda z: support_loss(z @ hyper["decoder"].T))(z)
        weight = z @ hyper["decoder"].T
        for _ in range(self.head_steps):
            weight = weight - hyper["head_rate"] * grad(support_loss)(weight)
        return {"weight": weight, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return masked(features @ state["weight"].T, state["counts"])


def LEO(  # a method of the field, named as the others are
    module: nn.Module,
    code_steps: int = 5,
    head_steps: int = 5,
    code: int = 64,
    rate: float = 1.0,
    head_rate: float = 0.001,
    loss: Loss = cross_entropy,
) -> Metric:
    """The network without its head, a linear layer that gives D, and the code.

    Raises UsageError for a network with another head or a head alone, or for a code of 0.
    """
    path, body = head_name(module), copy.deepcopy(module)
    head = body.get_submodule(path)
    if not path or not isinstance(head, nn.Linear):
        raise UsageError(
            "algorithm=leo needs a network that ends in a linear head; use head=linear"
        )
    if code < 1 or min(code_steps, head_steps) < 0:
        raise UsageError("algorithm.code must be 1 or more, and the steps 0 or more")
    body.set_submodule(path, nn.Identity())
    latent = LatentCode(head.in_features, code_steps, head_steps, code, rate, head_rate, loss)
    return Metric(body, latent, loss)
