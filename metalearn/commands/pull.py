"""`metalearn pull`: a published run from a folder, a server or the hub, its hashes checked."""

import re
import shutil
from pathlib import Path

from rich.console import Console

from metalearn.commands.parts import hub
from metalearn.data.download import download
from metalearn.errors import UsageError
from metalearn.training.publication import receive
from metalearn.training.stage import teller


def main(arguments: list[str], console: Console) -> None:
    """`metalearn pull <folder, http(s) address or user/name[@revision]> <folder>`.

    Raises UsageError or DataError, and writes nothing, where a file is not what was published.
    """
    if len(arguments) != 2 or any(not a for a in arguments):
        raise UsageError(
            "pull needs a source and a folder: metalearn pull <folder, address or user/name> "
            "<folder>"
        )
    source, folder = arguments[0], Path(arguments[1])
    say = teller(console)
    if re.match(r"https?://", source):
        fetch = _from_server(source.rstrip("/"))
    elif Path(source).exists():
        fetch = _from_folder(Path(source))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source) and not source.startswith("."):
        fetch = hub.fetcher(*source.partition("@")[::2])
    else:
        raise UsageError(
            f"{source} is no folder, no http(s) address and no <user>/<name> of the hub"
        )
    count = sum(1 for _ in receive(source, folder, fetch))
    say(f"{count} files are what was published: metalearn evaluate run={folder}")


def _from_folder(source: Path):
    def fetch(name: str, target: Path, sha256: str | None) -> None:
        if not (source / name).is_file():
            raise UsageError(f"{source} has no {name}; it is no whole published run")
        shutil.copyfile(source / name, target)

    return fetch


def _from_server(source: str):
    def fetch(name: str, target: Path, sha256: str | None) -> None:
        by_hand = "check the address, or fetch the files by hand and pull their folder"
        download([f"{source}/{name}"], target, sha256=sha256, by_hand=by_hand)

    return fetch
