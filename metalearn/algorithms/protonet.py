"""Prototypical networks: classify by the nearest class mean in a learned embedding.

    c_n = mean of f(x) over the support examples of class n                          (eq. 1)
    p(y = n | x) = softmax over n of  -d(f(x), c_n) / temperature                    (eq. 2)

with d the squared Euclidean distance, or minus the cosine.

Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, 2017. With the cosine and a
learned temperature, on a pre-trained backbone, it is Meta-Baseline: Chen, Liu, Xu, Darrell, Wang:
Meta-Baseline: Exploring Simple Meta-Learning for Few-Shot Learning, 2021.
"""

from typing import Literal

from torch import nn

from metalearn.algorithms.dense_prototypes import DensePrototypes
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.metric import Metric
from metalearn.classifiers import Centroid, Cosine
from metalearn.classifiers import SoftKMeans as Refined
from metalearn.errors import UsageError


def ProtoNet(  # a method of the field, named as the others are
    module: nn.Module,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    temperature: float = 1.0,
    learn_temperature: bool = False,
    loss: Loss = cross_entropy,
) -> Metric | DensePrototypes:
    """Nothing adapts: the fast weights are the prototypes. With the loss of a detection or a
    segmentation they are of places: `DensePrototypes`.

    module: any `nn.Module` from `[B, *X]` to embeddings `[B, D]`.
    distance: "euclidean" (squared) or "cosine". temperature: divides the logits, above 0.
    learn_temperature: meta-learn it, as `hyper["log_temperature"]`.
    """
    if distance not in ("euclidean", "cosine"):
        raise UsageError(f"distance={distance!r} is not known; use euclidean or cosine")
    if hasattr(loss, "shares"):
        return DensePrototypes(module, loss, distance, temperature, learn_temperature)
    classifier = Centroid if distance == "euclidean" else Cosine
    return Metric(module, classifier(temperature, learn_temperature), loss)


def SoftKMeans(
    module: nn.Module,
    refinements: int = 1,
    temperature: float = 1.0,
    learn_temperature: bool = False,
    loss: Loss = cross_entropy,
) -> Metric:
    """Prototypes that the queries of the task refine: transductive.

        z_jn = softmax over n of  -|f(x_j) - c_n|^2 / temperature   for the queries x_j
        c_n <- (sum of f(x_i) over class n + sum over j of z_jn f(x_j)) / (K_n + sum over j of z_jn)

    refinements, temperature, learn_temperature: as in `classifiers.SoftKMeans`.

    Ren et al.: Meta-Learning for Semi-Supervised Few-Shot Classification, 2018, with the queries
    in the place of their unlabelled examples.
    """
    return Metric(module, Refined(refinements, temperature, learn_temperature), loss)
