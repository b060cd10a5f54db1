"""A finished run as a folder for others: no path of this machine, the sha256 of every file.

    weights.safetensors config.yaml result.json episodes.csv manifest.json README.md SHA256SUMS

`metalearn evaluate run=<folder>` measures it as the run that it was. A manifest is there where the
test episodes are of images.
"""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from metalearn.episodes import Manifest, write_manifest
from metalearn.errors import UsageError
from metalearn.evaluation.report import write_json
from metalearn.runtime.files import write_atomic
from metalearn.training.folder import MANIFEST, read_config
from metalearn.training.model_card import model_card
from metalearn.training.run import finished

SUMS = "SHA256SUMS"
NEEDED = ("config.yaml", "result.json", "weights.safetensors")
_TEXTS = (*NEEDED[:2], MANIFEST, "README.md", "episodes.csv")
_PICTURES = ("learning_curve.png", "accuracy_by_step.png", "loss_by_step.png")
_TRACKER = {"mode": "disabled", "project": "metalearn", "entity": None, "group": None, "tags": []}


def publish(run: Path, folder: Path, test: Manifest, listed: Path | None = None) -> list[str]:
    """Write what is published of the finished run in `run` to `folder`, which is not there or is
    empty; the names of its files. test: its episodes; listed: the file that they come from.

    Raises UsageError where `run` has not finished or its weights are not those that it wrote, where
    `folder` holds anything, and for what would still name this machine.
    """
    result = finished(run)
    if result is None or not (run / "weights.safetensors").is_file():
        raise UsageError(f"{run} has not finished; the command that started it goes on with it")
    check_empty(folder)
    digest = sha256(run / "weights.safetensors")
    if digest != result["weights_sha256"]:
        raise UsageError(
            f"{run}/weights.safetensors is not what the run wrote (sha256 {digest[:8]}, in "
            f"result.json {result['weights_sha256'][:8]}); put it back, or train anew"
        )
    if test.hash != result["manifest_hash"]:
        raise UsageError(
            f"the test episodes are not those of {run} (manifest {test.hash[:12]}, not "
            f"{result['manifest_hash'][:12]}); its images or class splits have changed"
        )
    config, result = shared(read_config(run / "config.yaml", "evaluation")), shared(result)
    config["run_dir"] = f"runs/{run.resolve().name}"
    config["tracker"] = dict(_TRACKER)
    with _becoming(folder) as part:
        with_images = _write_manifest(test, listed, part / MANIFEST)
        if config["evaluation"].get("manifest") is not None:
            config["evaluation"]["manifest"] = MANIFEST
        write_atomic(part / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_json(part / "result.json", result)
        pictures = [name for name in _PICTURES if (run / name).is_file()]
        for name in ("weights.safetensors", "episodes.csv", *pictures):
            shutil.copyfile(run / name, part / name)
        write_atomic(part / "README.md", model_card(result, pictures, with_images))
        _check_personal(part)
        names = sorted(path.name for path in part.iterdir())
        lines = (f"{sha256(part / name)}  {name}\n" for name in names)
        write_atomic(part / SUMS, "".join(lines))
    return [*names, SUMS]


@contextmanager
def _becoming(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, which takes its place unless anything is raised."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.is_dir():
            folder.rmdir()
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_empty(folder: Path) -> None:
    """Raise UsageError where `folder` is there and holds anything."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is there and is not empty; choose another folder")


def _write_manifest(test: Manifest, listed: Path | None, path: Path) -> bool:
    """Whether there is one: not of regression."""
    if listed is not None:
        shutil.copyfile(listed, path)
        return True
    try:
        write_manifest(test, path)
    except UsageError:
        return False
    return True


def shared(value: Any, key: str = "") -> Any:
    """A copy without what only this machine knows: of a path its last name, of an archive nothing,
    which is looked for where each user has it."""
    if isinstance(value, Mapping):
        return {name: shared(part, str(name)) for name, part in value.items()}
    if isinstance(value, list):
        return [shared(part, key) for part in value]
    if isinstance(value, str) and _is_path(value):
        return None if key == "archive" else PureWindowsPath(value).name
    return value


def _is_path(text: str) -> bool:
    """An absolute one, or one from a home folder, of whatever system."""
    return bool(re.match(r"(?:[/~\\]|[A-Za-z]:[/\\]|file:/)", text)) and "\n" not in text


def _check_personal(folder: Path) -> None:
    """Raise UsageError where a text still names the home folder, this folder or this host."""
    host = socket.gethostname().partition(".")[0]
    told = [str(Path.home()), os.getcwd(), *([host] if len(host) > 3 else [])]
    for name in _TEXTS:
        path = folder / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for word in (w for w in told if w != "/"):
            if re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text):
                raise UsageError(
                    f"{name} would tell {word} to others; take it out of the run's name"
                )


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(text: str, where: object) -> dict[str, str]:
    """By name, the sha256 of the files that a `SHA256SUMS` lists. Raises UsageError for lines that
    are none, names that would leave the folder, and where a needed file is missing."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  (\w[\w.-]*)", line)
        if match is None or match[2] in found or match[2] == SUMS:
            raise UsageError(f"{where}: {SUMS} has the line {line[:80]!r}, which lists no file")
        found[match[2]] = match[1]
    if missing := [name for name in NEEDED if name not in found]:
        raise UsageError(f"{where}: {SUMS} lists no {missing[0]}; it is no published run")
    return found


def receive(
    source: object, folder: Path, fetch: Callable[[str, Path, str | None], None]
) -> Iterator[str]:
    """Write a published run to `folder`; the names of its files as they come.

    fetch: writes the file of a name to a path; its sha256 is given where it is known. Raises
    UsageError where a file is not what `SHA256SUMS` says, and writes nothing then.
    """
    check_empty(folder)
    with _becoming(folder) as part:
        fetch(SUMS, part / SUMS, None)
        try:
            text = (part / SUMS).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{source}: {SUMS} is no text; it is no published run") from None
        listed = sums(text, source)
        for name, digest in listed.items():
            fetch(name, part / name, digest)
            if (found := sha256(part / name)) != digest:
                raise UsageError(
                    f"{name} of {source} is not what was published (sha256 {found[:8]}, in {SUMS} "
                    f"{digest[:8]}); nothing was written"
                )
            yield name
        try:
            told = json.loads((part / "result.json").read_text(encoding="utf-8"))["weights_sha256"]
        except (ValueError, KeyError, TypeError):
            told = None
        if told != listed["weights.safetensors"]:
            raise UsageError(f"{source}: result.json is of other weights; nothing was written")
