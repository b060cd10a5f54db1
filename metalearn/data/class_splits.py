"""Class splits and superclasses: lists in files, or random fractions."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from metalearn.data.dataset import SPLITS, Classes, without_rotations
from metalearn.data.store import ImageStore
from metalearn.errors import DataError

PACKAGED = Path(__file__).parent / "splits"


def listed(name: str) -> dict[str, list[str]]:
    """The names in the lists `name_train.txt` ... that come with this package."""
    return {s: (PACKAGED / f"{name}_{s}.txt").read_text("utf-8").split() for s in SPLITS}


def packaged(
    store: ImageStore, name: str, classes: Callable[[np.ndarray], Classes] = without_rotations
) -> dict[str, Classes]:
    """The classes of `store` by `listed(name)`. Raises DataError for one that it lacks."""
    number = {label: i for i, label in enumerate(store.classes)}
    splits = {}
    for split, labels in listed(name).items():
        if unknown := [label for label in labels if label not in number]:
            raise DataError(
                f"{PACKAGED / f'{name}_{split}.txt'} names {len(unknown)} classes that "
                f"{store.name} lacks, such as {unknown[0]!r}; it has "
                f"{', '.join(store.classes[:3])}, ..."
            )
        splits[split] = classes(np.array([number[label] for label in labels], dtype=np.int64))
    return splits


def superclasses(store: ImageStore, name: str) -> list[str]:
    """The superclass of each class of the store, by the list `name_superclasses.txt` that comes
    with this package: `superclass: class class ...` a line."""
    text = (PACKAGED / f"{name}_superclasses.txt").read_text(encoding="utf-8")
    lines = (line.partition(":") for line in text.splitlines())
    owner = {label: group for group, _, labels in lines for label in labels.split()}
    return [owner[label] for label in store.classes]


def by_fractions(
    name: str, units: Sequence[str], fractions: Sequence[float], seed: int
) -> dict[str, Classes]:
    """The classes in an order that depends on `seed` alone, cut by three fractions that sum to 1;
    every split gets one unit at least, and none where its fraction is exactly 0.

    name: of the data set. units: for each class what stays whole in one split, such as the class
    itself, or its superclass. Raises DataError where that cannot be.
    """
    parts = [float(f) for f in fractions]
    if len(parts) != 3 or not min(parts) >= 0 or not abs(sum(parts) - 1) <= 1e-6:
        raise DataError(f"fractions={list(fractions)} must be three numbers, 0 or more, of sum 1")
    members: dict[str, list[int]] = {}
    for number, unit in enumerate(units):
        members.setdefault(unit, []).append(number)
    count = len(members)
    train, val, test = (int(part > 0) for part in parts)
    if count < train + val + test:
        told = f"{count} classes" if count == len(units) else f"classes in {count} folders"
        use = "put the images of each class in a folder of its own"
        if count < len(units):
            use = "use dataset.class_folder=path, where each of the folders within is a class"
        raise DataError(
            f"{name} has {told}, and fractions={list(fractions)} need {train + val + test} at "
            f"least; {use}"
        )
    order = shuffled(count, seed)
    first = min(max(train, round(parts[0] * count)), count - val - test)
    second = min(max(first + val, round((parts[0] + parts[1]) * count)), count - test)
    own = list(members.values())
    cut = [[c for unit in some for c in own[unit]] for some in np.split(order, [first, second])]
    index = (np.array(numbers, dtype=np.int64) for numbers in cut)
    return dict(zip(SPLITS, map(without_rotations, index), strict=True))


def shuffled(count: int, seed: int) -> np.ndarray:
    """A permutation of 0 ... count - 1 by `seed`. Raises DataError for a seed below 0."""
    if seed < 0:
        raise DataError(f"seed={seed} must be 0 or more")
    rng = np.random.Generator(np.random.PCG64(seed))
    # Sorted random keys: unlike `permutation`, numpy does not change how `random` draws.
    return np.argsort(rng.random(count), kind="stable")
