"""The scores by name."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from metalearn.evaluation.selection.h_score import h_score, shrunk_h_score
from metalearn.evaluation.selection.leep import leep, n_leep
from metalearn.evaluation.selection.logme import logme
from metalearn.evaluation.selection.nce import nce
from metalearn.evaluation.selection.parc import parc
from metalearn.evaluation.selection.sfda import sfda


class Score(NamedTuple):
    """A score and what it looks at: features, or the probabilities of the classes that the network
    was trained on."""

    of: Callable[[np.ndarray, np.ndarray], float]
    needs: Literal["features", "probabilities"]


SCORES = {
    "logme": Score(logme, "features"),
    "h_score": Score(h_score, "features"),
    "shrunk_h_score": Score(shrunk_h_score, "features"),
    "leep": Score(leep, "probabilities"),
    "n_leep": Score(n_leep, "features"),
    "nce": Score(nce, "probabilities"),
    "parc": Score(parc, "features"),
    "sfda": Score(sfda, "features"),
}
"""By the name on the command line."""
