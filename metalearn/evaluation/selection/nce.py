"""NCE: minus the entropy of the labels, given the source class that the network names.

    NCE = -H(Y | Z) = sum over y, z of  P(y, z) log(P(y, z) / P(z)),   z_i = argmax theta(x_i)

Tran, Nguyen, Hassner: Transferability and Hardness of Supervised Classification Tasks, 2019.
"""

import numpy as np

from metalearn.evaluation.selection.examples import probabilities


def nce(theta: np.ndarray, labels: np.ndarray) -> float:
    """NCE of probabilities `[n, Z]` of the source classes and labels `[n]`, in nats, 0 at most.

    Raises DataError.
    """
    given = probabilities(theta, labels)
    named = np.eye(given.x.shape[1])[given.x.argmax(1)]
    joint = given.one_hot.T @ named / len(given.x)
    there = joint > 0
    conditional = joint / np.where(joint.sum(0) > 0, joint.sum(0), 1)
    return float((joint[there] * np.log(conditional[there])).sum())
