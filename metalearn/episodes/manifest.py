"""The finite list of episodes that an evaluation uses, with a hash that proves which.

As a file it holds the numbers of every class and example, so that another run, or another
framework, can be measured on the same episodes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.data import DataError, ImageDataset
from metalearn.episodes.source import EpisodeIds, EpisodeSource, FewShotEpisodes, gather
from metalearn.errors import UsageError
from metalearn.files import write_atomic
from metalearn.types import Episodes

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Episodes 0 to `episodes` - 1 of one split of a source."""

    source: EpisodeSource
    split: str
    episodes: int

    @cached_property
    def hash(self) -> str:
        """sha256 over what every episode holds, in hexadecimal."""
        total = hashlib.sha256(f"{self.split} {self.source.shape} {self.episodes}\n".encode())
        for index in range(self.episodes):
            total.update(self.source.fingerprint(self.split, index))
        return total.hexdigest()

    def batches(self, size: int) -> Iterator[Episodes]:
        """All episodes in order, `size` at a time; the last part may be smaller."""
        for start in range(0, self.episodes, size):
            stop = min(start + size, self.episodes)
            yield self.source.batch(self.split, range(start, stop))


@dataclass(frozen=True)
class RecordedEpisodes:
    """Episodes that a file lists, all of one split: an `EpisodeSource` that draws nothing."""

    dataset: ImageDataset
    split: str
    drawn: tuple[EpisodeIds, ...]
    device: torch.device | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, queries a class)."""
        ids = self.drawn[0]
        return len(ids.classes), ids.support.shape[1], ids.query.shape[1]

    def check(self, split: str) -> None:
        """Raise UsageError for another split than the file's."""
        if split != self.split:
            raise UsageError(f"the manifest lists episodes of {self.split}, not of {split}")

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: pixels scaled to [0, 1], support `[T, N*K, C, H, W]`."""
        self.check(split)
        return gather(self.dataset, split, [self.drawn[i] for i in indices], self.device)

    def fingerprint(self, split: str, index: int) -> bytes:
        """The class and example numbers, as little-endian int64."""
        return self.drawn[index].encode()


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write `manifest` as JSON, an episode a line. Raises UsageError where it has no images."""
    source, split = manifest.source, manifest.split
    if not isinstance(source, FewShotEpisodes):
        raise UsageError("only episodes of images have a manifest file")
    dataset = source.dataset
    head = {
        "format": FORMAT,
        "dataset": dataset.name,
        "dataset_hash": dataset.digest,
        "split": split,
        "hash": manifest.hash,
        "classes": dataset.splits[split].names(dataset.store),
    }
    lines = (
        json.dumps({name: part.tolist() for name, part in ids._asdict().items()})
        for ids in (source.draw(split, index) for index in range(manifest.episodes))
    )
    body = ",\n".join(lines)
    write_atomic(path, f'{json.dumps(head, indent=1)[:-2]},\n "episodes": [\n{body}\n]}}\n')


def read_manifest(
    path: Path, dataset: ImageDataset, device: torch.device | None = None
) -> Manifest:
    """The manifest in `path`. Raises DataError where it is none, is damaged, or was written for
    other data than `dataset`."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] != FORMAT:
            raise ValueError(f"its format is {saved['format']}, not {FORMAT}")
        split, told = str(saved["split"]), str(saved["dataset_hash"])
        drawn = tuple(EpisodeIds(*(_ids(e[name]) for name in EpisodeIds._fields))
                      for e in saved["episodes"])  # fmt: skip
        name, claimed = saved["dataset"], saved["hash"]
    except OSError as error:
        raise DataError(f"cannot read the manifest {path} ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(_refused(path, f"it is damaged: {type(error).__name__} {error}")) from None
    if told != dataset.digest:
        reason = f"it lists images of {name} with hash {told[:12]}, and these are {dataset.name}"
        raise DataError(_refused(path, f"{reason} with {dataset.digest[:12]}"))
    if problem := _problem(drawn, dataset, split):
        raise DataError(_refused(path, problem))
    manifest = Manifest(RecordedEpisodes(dataset, split, drawn, device), split, len(drawn))
    if manifest.hash != claimed:
        raise DataError(_refused(path, "its episodes are not those that its hash names"))
    return manifest


def _ids(numbers: Any) -> np.ndarray:
    array = np.array(numbers)
    if array.dtype.kind != "i":
        raise ValueError("numbers of classes and examples must be whole")
    return array.astype(np.int64)


def _problem(drawn: Sequence[EpisodeIds], dataset: ImageDataset, split: str) -> str | None:
    if not drawn:
        return "it lists no episodes"
    if split not in dataset.splits:
        return f"it names split {split!r}, which is none"
    shapes = [part.shape for part in drawn[0]]
    if any([part.shape for part in ids] != shapes for ids in drawn):
        return "its episodes differ in shape"
    if [len(shape) for shape in shapes] != [1, 2, 2] or len({shape[0] for shape in shapes}) != 1:
        return "its episodes do not list examples of every class"
    for ids in drawn:
        examples = np.concatenate([ids.support, ids.query], 1)
        if (ids.classes < 0).any() or (ids.classes >= dataset.class_count(split)).any():
            return "it names a class that the split lacks"
        sizes = dataset.examples_in(split, ids.classes)[:, None]
        if (examples < 0).any() or (examples >= sizes).any():
            return "it names an example that its class lacks"
    return None


def _refused(path: Path, reason: str) -> str:
    line = " ".join(reason.split())
    return f"manifest {path} is refused ({line}); write it anew with metalearn data manifest"
