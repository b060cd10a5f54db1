"""Intents of short questions: BANKING77 (Casanueva et al. 2020), 77 of 13,083 texts, and CLINC150
(Larson et al. 2019), 150 of 22,500, each with five published few-shot class splits.

The splits are those of Dopierre, Gravier, Logerais: ProtAugment: Unsupervised diverse short-texts
paraphrasing for intent detection meta-learning, 2021.
"""

import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from metalearn.data.dataset import SPLITS
from metalearn.data.files import cannot_read
from metalearn.data.paths import Source, data_folder
from metalearn.data.tensors import TensorDataset
from metalearn.errors import DataError, nearest, reason_of
from metalearn.runtime.files import packaged

NAMES = ("banking77", "clinc150")
SOURCE = Source("yours", "", tuple(f"intents/{name}/full.jsonl" for name in NAMES))
WORDS = "words"
VOCABULARY = 1 << 14
"""Ids of `words`: 0 is padding, others are words by their CRC-32, so that no list is kept."""

Tokenizer = Callable[[str], Sequence[int]]


def intents(
    name: str = "banking77",
    fold: int = 1,
    root: Path | None = None,
    tokenizer: str | Path | None = None,
    length: int = 64,
) -> TensorDataset:
    """Texts as `{"ids": [n, L], "mask": [n, L]}`, int64; the mask is 0 at padding.

    name: banking77 (25/25/27 classes) or clinc150 (50/50/50). fold: 1 to 5, of the class splits.
    root: the folder `intents`, by default that of the data folder; it holds `<name>/full.jsonl`,
        a `sentence` and a `label` a line, and `<name>/splits/0<fold>/{train,val,test}.txt`.
    tokenizer: "words" or None, lower-case words and marks by their hash; or a local folder, or an
        installed package, with a tokenizer of the package transformers. Nothing is downloaded, and
        no code of it is run.
    length: L at most; what is longer is cut.

    Raises DataError where files are missing or damaged, for an empty text, and for a class of a
    split without texts or in two splits.
    """
    if name not in NAMES:
        raise DataError(f"dataset.name={name} is not known{nearest(name, NAMES)}; use {_either()}")
    if not 1 <= fold <= 5:
        raise DataError(f"dataset.fold={fold} must be 1 to 5, of the published class splits")
    if length < 1:
        raise DataError(f"dataset.length={length} must be 1 token or more")
    place = _place(root, name)
    texts, labels = _texts(place / "full.jsonl")
    names = sorted(set(labels))
    number = {label: c for c, label in enumerate(names)}
    splits: dict[str, list[int]] = {}
    for split in SPLITS:
        path = place / "splits" / f"{fold:02d}" / f"{split}.txt"
        listed = _read(path).split()
        if missing := [label for label in listed if label not in number]:
            raise DataError(f"class {missing[0]} of {path} has no texts; add some, or remove it")
        splits[split] = [number[label] for label in listed]
        for other in splits.keys() - {split}:
            if both := set(splits[other]) & set(splits[split]):
                raise DataError(f"class {names[min(both)]} is in {other} and in {path}; keep one")
    ids, mask = _encoded(texts, _tokenizer(tokenizer, length), length)
    classes = torch.tensor([number[label] for label in labels])
    return TensorDataset({"ids": ids, "mask": mask}, classes, splits, name=name, names=names)


def words(text: str) -> list[int]:
    """The ids of the lower-case words and marks of a text, 1 to `VOCABULARY` - 1."""
    found = re.findall(r"\w+(?:'\w+)?|[^\w\s]", text.lower())
    return [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in found]


def _either() -> str:
    return " or ".join(NAMES)


def _place(root: Path | None, name: str) -> Path:
    data = data_folder()
    place = Path(root) if root is not None else data / "intents" if data else None
    if place is None or not (place / name / "full.jsonl").is_file():
        where = "a folder named by METALEARN_DATA" if place is None else place.parent
        raise DataError(
            f"there is no intents/{name}/full.jsonl in {where}; put it there, or use "
            "dataset.root=<folder of intents>"
        )
    return place / name


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(cannot_read(path, error)) from None
    except UnicodeError:
        raise DataError(f"{path} is no text in UTF-8; mend or replace it") from None


def _texts(path: Path) -> tuple[list[str], list[str]]:
    texts, labels = [], []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, label = row["sentence"], row["label"]
        except (ValueError, KeyError, TypeError):
            text = label = None
        if not isinstance(text, str) or not isinstance(label, str):
            raise DataError(f"line {number} of {path} is no sentence with a label; mend it")
        if not text.strip():
            raise DataError(f"line {number} of {path}, of class {label}, is an empty text; mend it")
        texts.append(text)
        labels.append(label)
    if not texts:
        raise DataError(f"{path} holds no texts; put the data set's own in its place")
    return texts, labels


def _tokenizer(given: str | Path | None, length: int) -> Tokenizer:
    return words if given is None or given == WORDS else _loaded(given, length)


def _loaded(folder: str | Path, length: int) -> Tokenizer:
    """The tokenizer in a local folder of the package transformers, which cuts a text so that its
    closing mark stays."""
    path = Path(folder).expanduser()
    if not path.exists() and (found := packaged(str(folder), "tokenizer.json", "vocab.*")):
        path = min(found, key=lambda file: len(file.parts)).parent
    if not path.is_dir():
        raise DataError(f"dataset.tokenizer={folder} is no folder; use {WORDS}, or give one")
    empty = (
        f"dataset.tokenizer={folder} holds no tokenizer (tokenizer.json, vocab.txt ...)"
        "; put its files there, or give another folder"
    )
    if not any(any(path.glob(name)) for name in ("*token*", "*vocab*", "*.model", "*.bpe")):
        raise DataError(empty)
    try:
        from transformers import AutoTokenizer  # type: ignore[import-not-found]
    except ImportError as error:
        use = f"pip install 'metalearn-torch[text]', or use dataset.tokenizer={WORDS}"
        raise DataError(
            f"dataset.tokenizer={folder} needs the package transformers ({reason_of(error)}); {use}"
        ) from None
    try:
        made = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever it makes of another folder
        reason = f"holds no tokenizer that can be read ({reason_of(error)})"
        raise DataError(f"dataset.tokenizer={folder} {reason}; give another folder") from None
    if len(made) <= len({*made.all_special_ids}):  # transformers then makes one that knows no word
        raise DataError(empty)
    most = max(length, len(made("")["input_ids"]) + 1)
    return lambda text: made(text, truncation=True, max_length=most)["input_ids"]


def _encoded(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[Tensor, Tensor]:
    empty = len(tokenizer(""))  # the marks of beginning and end
    rows = []
    for text in texts:
        found = list(tokenizer(text))
        if len(found) <= empty:
            raise DataError(f"the tokenizer makes nothing of the text {text!r}; mend it")
        rows.append(found[:length])
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids, mask
