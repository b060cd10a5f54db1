"""From folders of images to classes, and to the splits that the names of folders declare."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from metalearn.data.dataset import SPLITS
from metalearn.errors import DataError

ClassFolder = Literal["path", "first", "last"]
"""Which of the folders that an image lies in is its class: each, the outermost or the innermost."""

_EVALUATION = ("eval", "evaluation")  # test, or val beside a test
_TRAINVAL = ("trainval", "trainvalid", "traindev")  # train, or something else beside it
_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "base", "background", *_TRAINVAL), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "novel", *_EVALUATION), "test"),
}
_FILLERS = re.compile(r"meta|images?|imgs?|set|splits?|data|dataset|class(es)?|phase|folder|\d+")


@dataclass
class Layout:
    """Images by class, sorted, and what is known of their splits.

    owners: the split of every class that has one; None where none is declared. units: then, by
    class, what stays whole in one split. groups: by class its superclass; None without any.
    notes: what is left out, and how folders were understood.
    """

    classes: dict[str, list[str]]
    owners: dict[str, str] | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list)


def named(names: Iterable[str]) -> dict[str, str]:
    """By name, the split that it names, of those that name one: `Meta-Train`, `images_background`,
    or `birds_test` beside `birds_train`."""
    words: dict[str, tuple[str, str]] = {}
    beside: dict[str, set[str]] = defaultdict(set)
    for name in names:
        parts = [p for p in re.findall(r"[a-z]+|\d+", name.lower()) if not _FILLERS.fullmatch(p)]
        parts = [part.removeprefix("meta").removesuffix("set") for part in parts]
        told = [part for part in parts if part in _WORDS]
        if len(told) == 1:
            rest = "".join(part for part in parts if part != told[0])
            words[name] = told[0], rest
            beside[rest].add(_WORDS[told[0]])
    sure = {n: own for n, (own, rest) in words.items() if not rest or len(beside[rest]) > 1}
    found = {name: _WORDS[own] for name, own in sure.items()}
    taken = {split for name, split in found.items() if sure[name] not in (*_EVALUATION, *_TRAINVAL)}
    for name, own in sure.items():
        if own in _EVALUATION and "test" in taken:
            found[name] = "val"
        evaluated = own in _EVALUATION and {"val", "test"} <= taken
        if evaluated or (own in _TRAINVAL and "train" in taken):
            del found[name]  # of something else
    return found


def by_folders(
    name: str, found: Mapping[str, Sequence[str]], class_folder: ClassFolder | None
) -> Layout:
    """The classes and splits of images by their folders, whose common beginning is cut off.

    class_folder: None where only one reading is possible, or each keeps the splits apart. Raises
    DataError where a split is missing, a class would be in two splits, or folders say different
    things by reading.
    """
    place = split_place(name, list(found), class_folder)
    if place is None:
        return _undeclared(name, found, class_folder)
    inside = {label: label.removeprefix(place) for label in found if label.startswith(place)}
    tops = {rest.partition("/")[0] for rest in inside.values()}
    owner = named(tops)
    for split, count in Counter(owner.values()).items():
        if count > 1:
            both = " and ".join(sorted(top for top in owner if owner[top] == split))
            raise DataError(
                f"folders {both} of {name} all name the {split} split; keep one, or give lists of "
                "classes with dataset.splits=<folder>"
            )
    if missing := [split for split in SPLITS if split not in owner.values()]:
        raise DataError(
            f"{name} has no folder {' and '.join(missing)} beside {', '.join(sorted(owner))}; "
            "add it, or give lists with dataset.splits=<folder>"
        )
    kept: dict[str, list[str]] = defaultdict(list)
    owners: dict[str, str] = {}
    groups: dict[str, str] = {}
    rests: list[tuple[str, str]] = []
    for label, rest in inside.items():
        top, nested, own = rest.partition("/")
        if top not in owner:
            continue
        if not nested:
            raise DataError(
                f"{found[label][0]} lies in {top} itself; put every image into the folder of its "
                "class"
            )
        new = f"{top}/{_class(own, class_folder)}"
        kept[new] += found[label]
        owners[new] = owner[top]
        rests.append((own, owner[top]))
        if class_folder in (None, "path") and "/" in own:
            groups[new] = own.partition("/")[0]
    _check_apart(name, rests, class_folder)
    classes = {label: sorted(kept[label]) for label in sorted(kept)}
    all_grouped = groups if len(groups) == len(kept) else None
    layout = Layout(classes, dict(sorted(owners.items())), groups=all_grouped)
    outside = [c for c in found if c not in inside or inside[c].partition("/")[0] not in owner]
    if outside:
        places = sorted({_top(label, place) for label in outside})
        count = sum(len(found[label]) for label in outside)
        layout.notes.append(
            f"{count} images in {some(places)} are left out: "
            f"{', '.join(sorted(owner, key=lambda top: SPLITS.index(owner[top])))} beside them are "
            "the splits"
        )
    return layout


def split_place(name: str, labels: Sequence[str], class_folder: ClassFolder | None) -> str | None:
    """The beginning of the labels below which the folders are splits; None without any."""
    children: dict[str, set[str]] = defaultdict(set)
    flat: dict[str, set[str]] = defaultdict(set)
    for label in labels:
        parts = label.split("/")
        for depth in range(len(parts)):
            beginning = "".join(f"{part}/" for part in parts[:depth])
            last = depth == len(parts) - 1
            (flat if last else children)[beginning].add(parts[depth])
    if named(children[""]) or len(set(named(flat[""]).values())) > 1:
        return ""
    if class_folder is not None:
        return None
    deeper = {at: named(names) for at, names in children.items() if at}
    places = [at for at, owner in deeper.items() if len(set(owner.values())) > 1]
    if len(places) > 1:
        raise DataError(
            f"{', '.join(places[:2])} ... of {name} each have folders named as splits; give lists "
            "of classes with dataset.splits=<folder>, or dataset.root=<one of them>"
        )
    inner = {at: named(names) for at, names in flat.items() if at and at not in places}
    split = [at for at, owner in inner.items() if len(set(owner.values())) > 1]
    if split and not places:
        raise DataError(
            f"{split[0]} of {name} has folders {' and '.join(sorted(inner[split[0]]))}, but "
            "few-shot splits are of classes; use dataset.class_folder=first to take them together"
        )
    return places[0] if places else None


def _undeclared(
    name: str, found: Mapping[str, Sequence[str]], class_folder: ClassFolder | None
) -> Layout:
    kept = merged(found, class_folder)
    if class_folder is not None:
        return Layout(kept, units={label: label for label in kept}, groups=outer(kept))
    tops = {label: label.partition("/")[0] for label in kept}
    nested = [label for label in kept if "/" in label]
    for label in nested:
        for depth in range(1, label.count("/") + 1):
            above = "/".join(label.split("/")[:depth])
            if above in kept:
                raise DataError(
                    f"{above} of {name} holds images and a folder of images, {label}; say whether "
                    f"that is a class of its own: dataset.class_folder=path, or first for one class"
                )
    _check_recurring(name, nested, tops)
    layout = Layout(kept, units=tops, groups=outer(kept))
    if nested:
        layout.notes.append(
            f"{len(kept)} folders within {len(set(tops.values()))} are a class each, and those of "
            "one stay in one split; dataset.class_folder=path, first or last says otherwise"
        )
    return layout


def _check_recurring(name: str, nested: Sequence[str], tops: Mapping[str, str]) -> None:
    """The last folders of a character in an alphabet, a day of a class and a class in a domain
    look the same."""
    owner: dict[str, str] = {}
    for label in nested:
        last = label.rpartition("/")[2]
        other = owner.setdefault(last, label)
        if tops[other] != tops[label]:
            raise DataError(
                f"{name} has {other} and {label}; say what a class is: dataset.class_folder=first "
                f"({tops[other]}), last ({last}), or path where each folder is a class of its own"
            )


def _check_apart(
    name: str, rests: Sequence[tuple[str, str]], class_folder: ClassFolder | None
) -> None:
    """Raise DataError where a class is on both sides of a split, or may be, by its folder's names
    below the splits."""
    owner: dict[str, tuple[str, str]] = {}
    for own, split in rests:
        own = unicodedata.normalize("NFC", own)
        keys = [_class(own, class_folder)]
        if class_folder is None:
            keys += [own.partition("/")[0], own.rpartition("/")[2]]
        for key in keys:
            before, where = owner.setdefault(key, (own, split))
            if where != split and (class_folder is not None or before == own):
                raise DataError(
                    f"class {key} of {name} is in both {where} and {split}; few-shot "
                    "splits have different classes: use dataset.root on one of these folders"
                )
            if where != split:
                raise DataError(
                    f"{name} has {before} in {where} and {own} in {split}; where {key} is a class, "
                    "keep it in one split; where each folder is a class of its own, use "
                    "dataset.class_folder=path"
                )


def _class(label: str, class_folder: ClassFolder | None) -> str:
    parts = label.split("/")
    return {"first": parts[0], "last": parts[-1]}.get(class_folder or "", label)


def merged(
    found: Mapping[str, Sequence[str]], class_folder: ClassFolder | None
) -> dict[str, list[str]]:
    """The images by class, both sorted."""
    kept: dict[str, list[str]] = defaultdict(list)
    for label, names in found.items():
        kept[_class(label, class_folder)] += names
    return {label: sorted(kept[label]) for label in sorted(kept)}


def outer(labels: Iterable[str]) -> dict[str, str] | None:
    """The outermost folder of every class, its superclass; None where one has none."""
    tops = {label: label.partition("/")[0] for label in labels}
    return tops if all("/" in label for label in tops) else None


def _top(label: str, place: str) -> str:
    if place and not label.startswith(place):
        return label.partition("/")[0]
    return place + label.removeprefix(place).partition("/")[0]


def some(names: Sequence[str], count: int = 5) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def left_out(others: Mapping[str, Sequence[str]], closed: Sequence[str]) -> list[str]:
    """What to say of files that are no images, by their ending, and of folders that are closed."""
    notes = []
    others = {ending: names for ending, names in others.items() if names}
    if others:
        order = sorted(others, key=lambda ending: (-len(others[ending]), ending))
        told = [f"{len(others[ending])} {ending or 'without an ending'}" for ending in order]
        example = PurePosixPath(others[order[0]][0])
        count = sum(map(len, others.values()))
        notes.append(
            f"{count} files are left out, of no image format that is read: {some(told)}, such as "
            f"{example}"
        )
    if closed:
        notes.append(f"folders that cannot be read are left out: {some(closed)}")
    return notes


def without_small(layout: Layout, min_images: int) -> None:
    """Take the classes of fewer images out of `layout`, and note them by name."""
    small = {c: len(names) for c, names in layout.classes.items() if len(names) < min_images}
    if not small:
        return
    told = [f"{label} ({count})" for label, count in small.items()]
    layout.notes.append(
        f"{len(small)} classes have fewer than min_images={min_images} images and are left out: "
        f"{some(told, 20)}"
    )
    layout.classes = {c: names for c, names in layout.classes.items() if c not in small}
