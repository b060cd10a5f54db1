"""Splits that lists declare: class names, easyfsl's JSON, LibFewShot's CSV.

For each of train, val and test a file of that name, in one folder:
`.txt`: a class name a line. `.json`: `{"class_names": [...], "class_roots": [folders]}`, as easyfsl
has it. `.csv`: an image and its class a row, as in LibFewShot (`filename,label`) and easyfsl
(`class_name,image_name`).
"""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from metalearn.data.dataset import SPLITS
from metalearn.data.files import Files, text
from metalearn.data.layout import Layout, named, outer, some
from metalearn.errors import DataError

_FILES = ("filename", "file_name", "file", "image_name", "image", "image_path", "path", "img")
_LABELS = ("label", "class_name", "class", "category", "target", "wnid", "label_name")

Lists = Mapping[str, str]
"""By split, the name of its list."""


def find(names: Sequence[str]) -> Lists | None:
    """The lists of all three splits in the outermost folder that has them; None without any."""
    places: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        if path.suffix in (".csv", ".json", ".txt"):
            places[len(path.parts), path.suffix, str(path.parent)].append(name)
    for _, own in sorted(places.items()):
        stems = {PurePosixPath(name).stem: name for name in own}
        split = {owner: stems[stem] for stem, owner in named(stems).items()}
        if set(split) == set(SPLITS) and len(named(stems)) == len(SPLITS):
            return split
    return None


def by_lists(name: str, found: Mapping[str, Sequence[str]], where: Files, lists: Lists) -> Layout:
    """The classes of images by their folders, and the splits that `lists`, files of `where`, say.

    Raises DataError for a list that is empty or cannot be read, that names what is not there, and
    for a class in two of them.
    """
    if lists["train"].endswith(".csv"):
        return _by_rows(name, found, where, lists)
    owners: dict[str, str] = {}
    for split in SPLITS:
        told = where.path / lists[split]
        if lists[split] not in where.names:
            raise DataError(f"cannot read the list of classes {told} (no such file)")
        try:
            content = text(where, lists[split])
            is_json = lists[split].endswith(".json")
            given = _json(content) if is_json else _lines(content)
        except UnicodeError:
            raise DataError(f"cannot read the list of classes {told} (not UTF-8 text)") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = f"no list of class_names and class_roots: {type(error).__name__} {error}"
            raise DataError(f"cannot read {told} ({' '.join(reason.split())})") from None
        if not given:
            raise DataError(f"{told} names no class; put the name of one on each line")
        labels = [_folder(one, list(found)) if is_json else one for one in given]
        if unknown := [one for one, c in zip(given, labels, strict=True) if c not in found]:
            raise DataError(
                f"{told} names {len(unknown)} classes that {name} lacks, such as {unknown[0]!r}; "
                f"it has {', '.join(list(found)[:3])}, ..."
            )
        for label in labels:
            if label in owners:
                both = f"in both {owners[label]} and {split}"
                place = both if owners[label] != split else f"named twice in {split}"
                raise DataError(f"{name}: class {label} is {place}; keep each class in one split")
            owners[label] = split
    classes = {label: list(names) for label, names in found.items()}
    layout = Layout(classes, owners, groups=outer(found))
    if rest := [label for label in found if label not in owners]:
        layout.notes.append(f"classes that stand in no list are left out: {some(rest)}")
    return layout


def name_classes(where: Files, lists: Lists, found: Mapping[str, object]) -> bool:
    """Whether the first line of every text list is a class."""
    try:
        first = [_lines(text(where, name))[:1] for name in lists.values()]
    except UnicodeError:
        return False
    return all(line and line[0] in found for line in first)


def _lines(content: str) -> list[str]:
    lines = (line.strip().replace("\\", "/").rstrip("/") for line in content.splitlines())
    return [line for line in lines if line]


def _json(content: str) -> list[str]:
    specs = dict(json.loads(content))
    roots = specs.get("class_roots") or specs["class_names"]
    return _lines("\n".join(str(root) for root in roots))


def _folder(root: str, labels: Sequence[str]) -> str:
    """The class whose folder's path ends most like `root`, by a folder at least; "" for none, or
    for two."""
    parts = [part for part in root.split("/") if part not in ("", ".", "..")]

    def alike(label: str) -> int:
        own = label.split("/")
        count = 0
        while count < min(len(own), len(parts)) and own[-1 - count] == parts[-1 - count]:
            count += 1
        return count

    ranked = sorted(labels, key=alike, reverse=True)[:2]
    if not ranked or not alike(ranked[0]):
        return ""
    return "" if len(ranked) > 1 and alike(ranked[1]) == alike(ranked[0]) else ranked[0]


def _by_rows(name: str, found: Mapping[str, Sequence[str]], where: Files, lists: Lists) -> Layout:
    images = [image for names in found.values() for image in names]
    places: dict[str, list[str]] = defaultdict(list)
    for image in images:
        parts = image.split("/")
        for start in range(len(parts)):
            places["/".join(parts[start:])].append(image)
    classes: dict[str, list[str]] = defaultdict(list)
    owners: dict[str, str] = {}
    listed: dict[str, str] = {}
    for split in SPLITS:
        told = where.path / lists[split]
        absent = []
        for file, label in _rows(where, lists[split]):
            parts = [part for part in file.replace("\\", "/").split("/") if part not in ("", ".")]
            ways = ["/".join([label, *parts]), *("/".join(parts[i:]) for i in range(len(parts)))]
            image = next((places[way][0] for way in ways if len(places.get(way, ())) == 1), None)
            if image is None:
                absent.append(file)
                continue
            if owners.setdefault(label, split) != split:
                raise DataError(
                    f"{name}: class {label} is in both {owners[label]} and {split} ({told}); "
                    "few-shot splits have different classes"
                )
            if listed.setdefault(image, split) != split:
                raise DataError(
                    f"{name}: image {file} is in both {listed[image]} and {split} ({told}); keep "
                    "each image in one split"
                )
            classes[label].append(image)
        if absent:
            raise DataError(
                f"{told} names {len(absent)} images that are not there, or there twice, such as "
                f"{absent[0]!r}; mend the list"
            )
    named_once = {image for own in classes.values() for image in own}
    layout = Layout({c: sorted(set(classes[c])) for c in sorted(classes)}, owners)
    if rest := len(images) - len(named_once):
        layout.notes.append(f"images that stand in no list are left out: {rest}")
    return layout


def _rows(where: Files, name: str) -> list[tuple[str, str]]:
    """File and class of every row of a CSV."""
    told = where.path / name
    try:
        content = text(where, name)
        first = content.partition("\n")[0]
        marks = {mark: first.count(mark) for mark in ",;\t"}
        rows = list(csv.reader(content.splitlines(), delimiter=max(marks, key=lambda m: marks[m])))
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"cannot read {told} ({' '.join(str(error).split())})") from None
    rows = [[cell.strip() for cell in row] for row in rows if any(row)]
    head = [cell.lower() for cell in rows[0]] if rows else []
    file = next((head.index(column) for column in _FILES if column in head), None)
    label = next((head.index(column) for column in _LABELS if column in head), None)
    if file is None or label is None or len(rows) < 2 or min(map(len, rows)) < len(head):
        raise DataError(
            f"cannot read {told}: its first row must name two columns, filename and label, and "
            "every other row have both"
        )
    return [(row[file], row[label]) for row in rows[1:]]
