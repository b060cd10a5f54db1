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

from metalearn.data import DataError, ImageDataset, Mixture, TensorDataset
from metalearn.episodes.dense import DenseEpisodes
from metalearn.episodes.few_shot import FewShotEpisodes
from metalearn.episodes.gather import EpisodeIds, gather
from metalearn.episodes.mixed import MixedEpisodes
from metalearn.episodes.source import EpisodeSource
from metalearn.errors import UsageError
from metalearn.runtime.files import write_atomic
from metalearn.types import Episodes

FORMAT = 1
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


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

    @property
    def images(self) -> ImageDataset | Mixture | None:
        """The data set that the episodes are drawn from; None where it has no images."""
        source: Any = self.source
        while not hasattr(source, "dataset") and hasattr(source, "source"):
            source = source.source
        dataset = getattr(source, "dataset", None)
        return dataset if isinstance(dataset, ImageDataset | Mixture) else None

    @property
    def dataset_hash(self) -> str | None:
        """That of the images and class splits that the episodes are drawn from; None without."""
        return self.images and self.images.digest

    def batches(self, size: int, of: range | None = None) -> Iterator[Episodes]:
        """The episodes `of`, None for all, in order, `size` at a time; the last part may be
        smaller."""
        of = range(self.episodes) if of is None else of
        for start in range(0, len(of), size):
            yield self.source.batch(self.split, of[start : start + size])


@dataclass(frozen=True)
class RecordedEpisodes:
    """Episodes that a file lists, all of one split: an `EpisodeSource` that draws nothing.

    shape: (N, K, queries a class); the largest of each, and None for K, where they differ.
    """

    dataset: ImageDataset | Mixture
    split: str
    drawn: tuple[EpisodeIds, ...]
    shape: tuple[int, int | None, int]
    device: torch.device | None = None

    def check(self, split: str) -> None:
        """Raise UsageError for another split than the file's."""
        if split != self.split:
            raise UsageError(f"the manifest lists episodes of {self.split}, not of {split}")

    def draw(self, split: str, index: int) -> EpisodeIds:
        """The classes and examples of episode `index`."""
        self.check(split)
        return self.drawn[index]

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: pixels scaled to [0, 1], support `[T, S, C, H, W]`."""
        drawn = [self.draw(split, i) for i in indices]
        return gather(self.dataset, split, drawn, self.device, varied=self.shape[1] is None)

    def fingerprint(self, split: str, index: int) -> bytes:
        """The class and example numbers, as little-endian int64."""
        return self.drawn[index].encode(varied=self.shape[1] is None)


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write `manifest` as JSON, an episode a line. Raises UsageError where it has no images."""
    source, split = manifest.source, manifest.split
    if isinstance(source, DenseEpisodes):  # whose pictures follow from the numbers
        source = source.source
    of_images = isinstance(source, FewShotEpisodes | MixedEpisodes)
    if not of_images or isinstance(dataset := source.dataset, TensorDataset):
        raise UsageError("only episodes of images have a manifest file")
    sets = dataset.sets if isinstance(dataset, Mixture) else {"": dataset}
    names = {name: one.splits[split].names(one.store) for name, one in sets.items()}
    head = {"format": FORMAT, "dataset": dataset.name, "dataset_hash": dataset.digest}
    head |= {"split": split, "shape": source.shape, "hash": manifest.hash}
    head["classes"] = names if isinstance(dataset, Mixture) else names[""]
    lines = (json.dumps(_listed(source.draw(split, i))) for i in range(manifest.episodes))
    body = ",\n".join(lines)
    write_atomic(path, f'{json.dumps(head, indent=1)[:-2]},\n "episodes": [\n{body}\n]}}\n')


def read_manifest(
    path: Path, dataset: ImageDataset | Mixture, device: torch.device | None = None
) -> Manifest:
    """The manifest in `path`. Raises DataError where it is none, is damaged, or was written for
    other data than `dataset`."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8-sig"))
        if saved["format"] != FORMAT:
            raise ValueError(f"its format is {saved['format']}, not {FORMAT}")
        split, digest = str(saved["split"]), str(saved["dataset_hash"])
        drawn = tuple(_drawn(episode) for episode in saved["episodes"])
        name, claimed = saved["dataset"], saved["hash"]
        ways, shots, queries = saved["shape"] if "shape" in saved else _shape(drawn)
    except OSError as error:
        raise DataError(f"cannot read the manifest {path} ({error.strerror or error})") from None
    except _DAMAGED as error:
        raise DataError(_refused(path, f"it is damaged: {type(error).__name__} {error}")) from None
    if digest != dataset.digest:
        reason = f"it lists images of {name} with hash {digest[:12]}, and these are {dataset.name}"
        raise DataError(_refused(path, f"{reason} with {dataset.digest[:12]}"))
    if problem := _problem(drawn, dataset, split, shots is None):
        raise DataError(_refused(path, problem))
    source = RecordedEpisodes(dataset, split, drawn, (ways, shots, queries), device)
    manifest = Manifest(source, split, len(drawn))
    if manifest.hash != claimed:
        raise DataError(_refused(path, "its episodes are not those that its hash names"))
    return manifest


def _listed(ids: EpisodeIds) -> dict[str, Any]:
    """As plain lists; a class with fewer examples has a shorter one."""
    support, query = (
        [[int(i) for i in row if i >= 0] for row in part] for part in (ids.support, ids.query)
    )
    listed = {"classes": ids.classes.tolist(), "support": support, "query": query}
    return {"member": ids.member, **listed} if ids.member else listed


def _drawn(episode: Any) -> EpisodeIds:
    """The inverse of `_listed`."""

    def padded(rows: Any) -> np.ndarray:
        if not all(isinstance(row, list) for row in rows):
            return _ids(rows)
        longest = max(map(len, rows), default=0)
        if any(type(i) is int and i < 0 for row in rows for i in row):
            raise ValueError("numbers of examples must be 0 or more")
        return _ids([[*row, *[-1] * (longest - len(row))] for row in rows])

    support, query = padded(episode["support"]), padded(episode["query"])
    return EpisodeIds(_ids(episode["classes"]), support, query, str(episode.get("member", "")))


def _ids(numbers: Any) -> np.ndarray:
    array = np.array(numbers)
    if array.dtype.kind != "i":
        raise ValueError("numbers of classes and examples must be whole")
    return array.astype(np.int64)


def _shape(drawn: Sequence[EpisodeIds]) -> tuple[int, int, int]:
    """Of files from before shapes could vary."""
    if not drawn or drawn[0].support.ndim != 2 or drawn[0].query.ndim != 2:
        return 0, 0, 0
    ids = drawn[0]
    return len(ids.classes), ids.support.shape[1], ids.query.shape[1]


def _problem(
    drawn: Sequence[EpisodeIds], dataset: ImageDataset | Mixture, split: str, varied: bool
) -> str | None:
    if not drawn:
        return "it lists no episodes"
    if split not in dataset.splits:
        return f"it names split {split!r}, which is none"
    members = dataset.sets if isinstance(dataset, Mixture) else {"": dataset}
    for ids in drawn:
        shapes = [part.shape for part in ids[:3]]
        if [len(s) for s in shapes] != [1, 2, 2] or len({s[0] for s in shapes}) != 1:
            return "its episodes do not list examples of every class"
        first = drawn[0]
        alike = shapes[:2] == [part.shape for part in first[:2]]
        if not varied and not (alike and (ids.query >= 0).sum() == (first.query >= 0).sum()):
            return "its episodes differ in shape"
        if (ids.support[:, 0] < 0).any() or (not varied and (ids.support < 0).any()):
            return "its episodes do not list examples of every class"
        if len(set(ids.classes.tolist())) != len(ids.classes):
            return "it names a class twice in one episode"
        if ids.member not in members:
            return f"it names data set {ids.member!r}, which is none of these"
        member = members[ids.member]
        if (ids.classes < 0).any() or (ids.classes >= member.class_count(split)).any():
            return "it names a class that the split lacks"
        sizes = member.examples_in(split, ids.classes)[:, None]
        examples = np.concatenate([ids.support, ids.query], 1)
        if (examples >= sizes).any():
            return "it names an example that its class lacks"
        ordered = np.sort(examples, 1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            return "it names an example twice in one episode"
    return None


def _refused(path: Path, reason: str) -> str:
    line = " ".join(reason.split())
    return f"manifest {path} is refused ({line}); write it anew with metalearn data manifest"
