"""Few-shot episodes measured on features of a network that does not adapt.

An image is in many episodes, and its features are the same in each: they are computed once.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.episodes import FewShotEpisodes

Embed = Callable[[np.ndarray, np.ndarray], Tensor]
"""Class and example numbers within a split, both `[n]`, to features `[n, D]`."""

_TOGETHER = 2**24  # numbers of the queries' features at a time


def nearest_centroid(support: Tensor, query: Tensor) -> Tensor:
    """The share of queries whose most similar centroid, by the cosine, is their own class's.

        c_n = mean of f(x) over the support examples of class n
        p(y = n | x) ~ cos(f(x), c_n)

    support: `[T, N, K, D]`. query: `[T, N, Q, D]`. Returns `[T]`. Chen et al. 2021 (Meta-Baseline),
    eqs. 1 and 2.
    """
    centroids = F.normalize(support.mean(2), dim=-1)
    similarity = F.normalize(query, dim=-1).flatten(1, 2) @ centroids.transpose(1, 2)
    ways, queries = query.shape[1:3]
    own = torch.arange(ways, device=query.device).repeat_interleave(queries)
    return (similarity.argmax(-1) == own).double().mean(1)


def centroid_accuracies(
    embed: Embed, sources: Sequence[FewShotEpisodes], split: str, episodes: int
) -> list[np.ndarray]:
    """The accuracies `[episodes]` of the first episodes of each of `sources`, which are of one data
    set and of one size each."""
    if not sources:
        return []
    sizes = sources[0].dataset.sizes[split]
    first = np.cumsum(sizes) - sizes  # the number of each class's first image
    drawn = [[source.draw(split, index) for index in range(episodes)] for source in sources]
    parts = [
        [
            np.stack([first[ids.classes][:, None] + which for ids, which in pairs])
            for pairs in ([(i, i.support) for i in ids], [(i, i.query) for i in ids])
        ]
        for ids in drawn
    ]
    used = np.unique(np.concatenate([numbers.ravel() for pair in parts for numbers in pair]))
    classes = np.searchsorted(first, used, side="right") - 1
    features = embed(classes, used - first[classes])
    return [_accuracies(features, used, *pair) for pair in parts]


def _accuracies(
    features: Tensor, used: np.ndarray, support: np.ndarray, query: np.ndarray
) -> np.ndarray:
    """support: `[T, N, K]` and query: `[T, N, Q]`, numbers of images, of which `used` are those of
    the rows of `features`."""

    def found(numbers: np.ndarray) -> Tensor:
        return features[torch.from_numpy(np.searchsorted(used, numbers)).to(features.device)]

    size = max(1, _TOGETHER // (query[0].size * features.shape[1]))
    return np.concatenate(
        [
            nearest_centroid(found(support[at : at + size]), found(query[at : at + size]))
            .cpu()
            .numpy()
            for at in range(0, len(support), size)
        ]
    )
