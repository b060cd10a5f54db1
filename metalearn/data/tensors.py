"""Examples that are tensors already, in memory: a user's own data, of one input or of several."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from metalearn.data.dataset import SPLITS
from metalearn.errors import DataError
from metalearn.types import Inputs, Targets, first_tensor, map_tensors

_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


@dataclass(frozen=True, eq=False)
class TensorDataset:
    """Labelled tensors and the classes of train, val and test.

    x: `Inputs` of n examples, `[n, *X]` each. classes: whole numbers `[n]`, the class of each
        example, any of them: an episode's labels are 0 to N-1, in the order of its draw.
    splits: by "train", "val" and "test", classes; none in two of them. targets: further tensors
        `[n, *Y]` by name; an episode's `y` is then a dict, its classes under `label`.
    name: told in results. names: of the classes 0, 1, ..., where they have any.

    Raises DataError where lengths differ, or a split names a class twice or that is not there.
    """

    x: Inputs
    classes: Tensor
    splits: Mapping[str, Sequence[int]]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "tensors"
    names: Sequence[str] = ()
    groups: None = None

    def __post_init__(self) -> None:
        known, told = self.classes, "no tensor"
        if isinstance(known, Tensor):
            told = f"{known.dtype} {list(known.shape)}"
        if not isinstance(known, Tensor) or known.ndim != 1 or known.dtype not in _WHOLE:
            raise DataError(f"{self.name}: classes are {told}, not whole numbers [n]")
        count = len(known)
        lengths = {len(t) for t in (*self._inputs.values(), *self.targets.values())}
        if lengths != {count}:
            raise DataError(
                f"{self.name}: {count} classes, but tensors of {sorted(lengths)} examples; give "
                "every example its class"
            )
        if self.names and not 0 <= int(known.min()) <= int(known.max()) < len(self.names):
            raise DataError(f"{self.name}: {len(self.names)} names do not name every class")
        if "label" in self.targets:
            raise DataError(f"{self.name}: the target `label` is the class's; use another name")
        if set(self.splits) != set(SPLITS):
            raise DataError(f"{self.name}: splits are {sorted(self.splits)}, not {list(SPLITS)}")
        given = [int(c) for split in SPLITS for c in self.splits[split]]
        if twice := {c for c in given if given.count(c) > 1}:
            raise DataError(f"{self.name}: class {min(twice)} is in two splits, or twice in one")
        if missing := set(given) - set(self.classes.tolist()):
            raise DataError(f"{self.name}: no example is of class {min(missing)}")

    @property
    def _inputs(self) -> dict[str, Tensor]:
        return self.x if isinstance(self.x, dict) else {"x": self.x}

    @cached_property
    def _rows(self) -> dict[str, list[np.ndarray]]:
        """By split, the rows of each of its classes."""
        known = self.classes.cpu().numpy()
        return {split: [np.flatnonzero(known == c) for c in self.splits[split]] for split in SPLITS}

    @cached_property
    def sizes(self) -> dict[str, np.ndarray]:
        """By split, how many examples each class has: int64 `[C]`."""
        return {split: np.array([*map(len, self._rows[split])], np.int64) for split in SPLITS}

    @cached_property
    def digest(self) -> str:
        """sha256 over every tensor and the splits, in hexadecimal."""
        total = hashlib.sha256()
        for name, t in (*self._inputs.items(), ("", self.classes), *self.targets.items()):
            flat = t.detach().cpu().contiguous().flatten()
            total.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
            total.update(flat.view(torch.uint8).numpy().tobytes())
        total.update(repr([(split, list(self.splits[split])) for split in SPLITS]).encode())
        return total.hexdigest()

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Of one example of the first input; `(1,)` where that is a number."""
        return tuple(first_tensor(self.x).shape[1:]) or (1,)

    def class_count(self, split: str) -> int:
        """How many classes `split` has."""
        return len(self._rows[split])

    def class_names(self, split: str) -> list[str]:
        """The classes of `split`, in its order."""
        return [self.names[c] if self.names else str(int(c)) for c in self.splits[split]]

    def examples(
        self, split: str, classes: np.ndarray, examples: np.ndarray
    ) -> tuple[Inputs, dict[str, Tensor]]:
        """Inputs and further targets of examples, `[n, ...]` each.

        classes, examples: int64 `[n]`, numbered within `split` and within the class.
        """
        rows = [self._rows[split][c][e] for c, e in zip(classes, examples, strict=True)]
        picked = torch.from_numpy(np.array(rows, np.int64))
        x = map_tensors(lambda t: t[picked], self.x)
        return x, {name: t[picked] for name, t in self.targets.items()}

    def labelled(self, labels: Tensor, targets: dict[str, Tensor]) -> Targets:
        """`y` of a batch: the labels, or a dict where there are further targets."""
        return {"label": labels, **targets} if self.targets else labels
