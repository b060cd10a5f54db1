"""Few-shot validation against a plain loop over the episodes' own images."""

import numpy as np
import torch
from torch import nn

from metalearn.data import ImageDataset, glyphs
from metalearn.episodes import FewShotEpisodes, ImageTransform
from metalearn.training.base_images import ImageReader
from metalearn.training.validation import Forward, few_shot


def by_hand(support: np.ndarray, query: np.ndarray) -> float:
    """support `[N, K, D]`, query `[N, Q, D]`, one episode."""
    right = []
    for own, rows in enumerate(query):
        for x in rows:
            centres = [s.mean(0) for s in support]
            cosines = [x @ c / np.linalg.norm(x) / np.linalg.norm(c) for c in centres]
            right.append(int(np.argmax(cosines)) == own)
    return float(np.mean(right))


def test_an_image_is_embedded_once_and_the_episodes_are_those_of_training(
    workplace, monkeypatch
) -> None:
    data = glyphs(size=12, classes=40, drawings=8)
    sources = [FewShotEpisodes(data, 3, shots, 2, seed=5) for shots in (1, 4)]
    asked: list[tuple[int, int]] = []
    images = ImageDataset.images

    def noted(self: ImageDataset, split: str, classes, examples) -> np.ndarray:
        asked.extend(zip(classes.tolist(), examples.tolist(), strict=True))
        return images(self, split, classes, examples)

    monkeypatch.setattr(ImageDataset, "images", noted)
    forward = Forward(ImageReader(data, ImageTransform()), torch.device("cpu"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))  # the features are the pixels
    found = few_shot(forward, network, sources, "val", 9)
    assert len(set(asked)) == len(asked) > 0
    seen = set()
    for source, accuracies in zip(sources, found, strict=True):
        for index, accuracy in enumerate(accuracies):
            support, query, _ = source.batch("val", [index])
            # Examples go shot by shot, one of every class.
            parts = [batch.x[0].double().flatten(1) for batch in (support, query)]
            by_class = [part.unflatten(0, (-1, 3)).transpose(0, 1).numpy() for part in parts]
            assert accuracy == by_hand(*by_class)
            seen.add(float(accuracy))
    assert len(seen) > 2
    assert few_shot(forward, network, [], "val", 9) == []
