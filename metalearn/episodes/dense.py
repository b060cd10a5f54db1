"""Episodes of pictures with boxes or masks: K shots of each of N classes, as in classification, but
several objects may stand in one picture.

What an episode holds depends on the numbers of its classes and examples, and on them alone: so a
manifest lists it as it does others.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.data import ImageDataset
from metalearn.data.scenes import Scene, places_for
from metalearn.episodes.gather import EpisodeIds, gather, in_order, scaled
from metalearn.episodes.source import Derived, generator
from metalearn.errors import UsageError
from metalearn.types import Batch, Episodes

TASKS = ("detection", "segmentation")


@dataclass(frozen=True)
class DenseEpisodes(Derived):
    """The pictures of the examples that `source` draws, with dict-shaped targets.

    source: `FewShotEpisodes` or `RecordedEpisodes` of equal sizes. task: "detection" gives `boxes`
    `[T, B, M, 4]`, "segmentation" `mask` int64 `[T, B, H, W]`, both with `labels` int64
    `[T, B, M]`, the places in the draw, and `valid` float `[T, B, M]`, 0 where a picture has fewer
    objects. Of a scene there are as few pictures as hold the K * N objects; else M is 1.

    Raises UsageError where the data set has no boxes, or no masks.
    """

    source: Any
    task: str

    def __post_init__(self) -> None:
        dataset, task = self.dataset, self.task
        if task not in TASKS:
            raise UsageError(f"task={task} is not known; use {' or '.join(TASKS)}")
        use = "use dataset=glyph_scenes"
        if not isinstance(dataset, ImageDataset):
            raise UsageError(f"task={task} is for pictures of one data set; {use}")
        if dataset.scene is None and task == "segmentation":
            raise UsageError(f"{dataset.name} has no masks for task=segmentation; {use}")
        if dataset.scene is None and "boxes" not in dataset.store.beside:
            raise UsageError(
                f"{dataset.name} has no boxes for task=detection; {use}, or tiny_imagenet"
            )
        drawn = self.source
        if getattr(drawn, "sizes", None) or getattr(drawn, "concentration", None) is not None:
            raise UsageError(
                f"task={task} takes as many shots of every class; use sampling=uniform"
            )

    @property
    def dataset(self) -> ImageDataset:
        """That of the source."""
        return self.source.dataset

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give one episode of this shape."""
        self.source.check(split)
        scene, count = self.dataset.scene, self.dataset.class_count(split)
        ways = self.source.shape[0]
        if scene is not None and scene.distractors and ways >= count:
            raise UsageError(
                f"dataset.distractors={scene.distractors} are of classes beside the {ways} of an "
                f"episode, and {split} has {count}; use fewer episodes.ways, or no distractors"
            )

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: pixels scaled to [0, 1], support `[T, B, C, H, W]`."""
        drawn = [self.source.draw(split, index) for index in indices]
        scene = self.dataset.scene
        if scene is None:
            return self._single(split, drawn)
        parts = [self._scenes(scene, split, ids) for ids in drawn]
        batches = [_stacked([part[n] for part in parts], self.task) for n in (0, 1)]
        return Episodes(*batches)

    def _single(self, split: str, drawn: Sequence[EpisodeIds]) -> Episodes:
        found = gather(self.dataset, split, drawn, getattr(self.source, "device", None))
        classes = np.stack([ids.classes for ids in drawn])

        def boxed(batch: Batch, which: list[np.ndarray]) -> Batch:
            labels, numbers = in_order(which)
            of = np.take_along_axis(classes, labels, 1)
            y = _one_box(self.dataset, split, of, numbers, labels)
            return Batch(batch.x, {name: t.to(batch.x.device) for name, t in y.items()})

        return Episodes(
            boxed(found.support, [ids.support for ids in drawn]),
            boxed(found.query, [ids.query for ids in drawn]),
        )

    def _scenes(self, scene: Scene, split: str, ids: EpisodeIds) -> tuple[dict, dict]:
        key = hashlib.sha256(ids.encode(varied=True)).hexdigest()
        rng = generator(f"{self.dataset.digest}/scenes/{key}", split, 0, 0)
        return self._part(scene, split, ids, ids.support, rng), self._part(
            scene, split, ids, ids.query, rng
        )

    def _part(
        self,
        scene: Scene,
        split: str,
        ids: EpisodeIds,
        which: np.ndarray,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        (labels,), (numbers,) = in_order([which])
        order = np.argsort(rng.random(len(labels)), kind="stable")
        labels, numbers = labels[order], numbers[order]
        pictures = math.ceil(len(labels) / scene.objects)
        others = np.setdiff1d(np.arange(self.dataset.class_count(split)), ids.classes)
        found: list[dict[str, np.ndarray]] = []
        for number in range(pictures):
            here = slice(number * scene.objects, (number + 1) * scene.objects)
            own = labels[here]
            more = others[(rng.random(scene.distractors) * len(others)).astype(np.int64)]
            sizes = self.dataset.sizes[split][more]
            classes = np.concatenate([ids.classes[own], more])
            examples = (rng.random(scene.distractors) * sizes).astype(np.int64)
            examples = np.concatenate([numbers[here], examples])
            images = self.dataset.tiles(split, classes, examples)
            places = places_for(rng, len(images))
            found.append(_labelled(scene, images, places, own))
        return {name: np.stack([one[name] for one in found]) for name in found[0]}


def _one_box(
    dataset: ImageDataset, split: str, classes: np.ndarray, numbers: np.ndarray, labels: np.ndarray
) -> dict[str, Tensor]:
    """The targets of images of one box each; all arguments `[...]`."""
    edges = dataset.beside("boxes", split, classes, numbers)
    boxes = torch.from_numpy(edges / np.float32(dataset.image_shape[1])).unsqueeze(-2)
    shown = torch.from_numpy(labels).unsqueeze(-1)
    valid = torch.ones_like(shown, dtype=torch.float32)
    return {"boxes": boxes, "labels": shown, "valid": valid}


def pictures_of(
    dataset: ImageDataset,
    split: str,
    classes: np.ndarray,
    examples: np.ndarray,
    rng: np.random.Generator,
) -> Batch:
    """Pictures with boxes of the images that are named `[n]`, labelled by their class within
    `split`; of a scene as many to a picture as it holds, without others."""
    if dataset.scene is None:
        x = scaled(torch.from_numpy(dataset.images(split, classes, examples)))
        return Batch(x, _one_box(dataset, split, classes, examples, classes))
    scene, found = dataset.scene, []
    for start in range(0, len(classes), scene.objects):
        here = slice(start, start + scene.objects)
        images = dataset.tiles(split, classes[here], examples[here])
        found.append(_labelled(scene, images, places_for(rng, len(images)), classes[here]))
    stacked = {name: np.stack([one[name] for one in found]) for name in found[0]}
    return _stacked([stacked], "detection").map(lambda t: t[0])


def _labelled(
    scene: Scene, images: np.ndarray, places: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """One picture and what stands in it, padded to `scene.objects`."""
    made = scene.picture(images, places, len(labels))
    missing = scene.objects - len(labels)
    valid = np.ones(len(labels), np.float32)
    return {
        "x": made.pixels,
        "boxes": np.pad(made.boxes, ((0, missing), (0, 0))),
        "mask": np.concatenate([[0], labels + 1])[made.mask],
        "labels": np.pad(labels, (0, missing)),
        "valid": np.pad(valid, (0, missing)),
    }


def _stacked(parts: Sequence[dict[str, np.ndarray]], task: str) -> Batch:
    whole = {name: torch.from_numpy(np.stack([part[name] for part in parts])) for name in parts[0]}
    targets = "boxes" if task == "detection" else "mask"
    y: dict[str, Tensor] = {name: whole[name] for name in (targets, "labels", "valid")}
    return Batch(scaled(whole["x"]), y)
