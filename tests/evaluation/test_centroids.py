"""Nearest centroids against a plain loop over the episodes' own images."""

import numpy as np
import torch

from metalearn.data import glyphs
from metalearn.episodes import FewShotEpisodes
from metalearn.evaluation.centroids import centroid_accuracies, nearest_centroid


def by_hand(support: np.ndarray, query: np.ndarray) -> float:
    """support `[N, K, D]`, query `[N, Q, D]`, one episode."""
    right = []
    for own, rows in enumerate(query):
        for x in rows:
            centres = [s.mean(0) for s in support]
            cosines = [x @ c / np.linalg.norm(x) / np.linalg.norm(c) for c in centres]
            right.append(int(np.argmax(cosines)) == own)
    return float(np.mean(right))


def test_a_batch_of_tasks_against_a_loop() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(7, 4, 1, 5, generator=rng, dtype=torch.float64)
    support = centres + torch.randn(7, 4, 3, 5, generator=rng, dtype=torch.float64)
    query = centres + torch.randn(7, 4, 6, 5, generator=rng, dtype=torch.float64)
    found = nearest_centroid(support, 3.7 * query)
    want = [by_hand(s.numpy(), q.numpy()) for s, q in zip(support, query, strict=True)]
    assert found.tolist() == want and len(set(want)) > 2


def test_an_image_is_embedded_once_and_the_episodes_are_those_of_training(
    workplace, monkeypatch
) -> None:
    data = glyphs(size=12, classes=40, drawings=8)
    sources = [FewShotEpisodes(data, 3, shots, 2, seed=5) for shots in (1, 4)]
    calls = []

    def embed(classes: np.ndarray, examples: np.ndarray) -> torch.Tensor:
        calls.append(list(zip(classes.tolist(), examples.tolist(), strict=True)))
        images = data.images("val", classes, examples)
        return torch.from_numpy(images).double().flatten(1)

    # In several pieces too.
    monkeypatch.setattr("metalearn.evaluation.centroids._TOGETHER", 3000)
    found = centroid_accuracies(embed, sources, "val", 9)
    assert len(calls) == 1 and len(set(calls[0])) == len(calls[0])
    for source, accuracies in zip(sources, found, strict=True):
        for index, accuracy in enumerate(accuracies):
            episode = source.batch("val", [index])
            # Examples go shot by shot, one of every class.
            parts = [batch.x[0].double().flatten(1) for batch in episode]
            by_class = [part.unflatten(0, (-1, 3)).transpose(0, 1).numpy() for part in parts]
            assert accuracy == by_hand(*by_class)
    assert centroid_accuracies(embed, [], "val", 9) == []
