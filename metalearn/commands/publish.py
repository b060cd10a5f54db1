"""`metalearn publish`: a finished run as a folder for others, or on the hub."""

import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from metalearn.commands.building import words
from metalearn.commands.building.config import reopen
from metalearn.commands.building.episodes import read_data
from metalearn.commands.parts import hub
from metalearn.episodes import Manifest
from metalearn.errors import UsageError
from metalearn.training.publication import check_empty, publish
from metalearn.training.stage import teller

_OPTIONS = ("hub", "private", "dataset.root", "dataset.archive")


def main(arguments: list[str], console: Console) -> None:
    """`metalearn publish <run> [<folder>] [hub=user/name] [private=true] [dataset.root=<folder>]`.

    Raises UsageError for a run that has not finished, a folder that is not empty, and where the hub
    does not take it: what was written to `<folder>` stays then.
    """
    trust, rest = words.trusted(arguments)
    places, options = words.split(rest, "publish", _OPTIONS)
    repository = options.get("hub")
    if not places or len(places) > 2 or not (places[1:] or repository):
        raise UsageError(
            "publish needs a run and a folder, or the hub: metalearn publish runs/<run> <folder>, "
            "or metalearn publish runs/<run> hub=<user>/<name>"
        )
    private = words.flag(options, "private", False)
    say = teller(console)
    run, folder = places[0], places[1] if places[1:] else None
    if folder is not None:
        check_empty(folder)
    if repository is not None:
        hub.check_name(repository)
    where = [f"{n}={options[n]}" for n in _OPTIONS[2:4] if n in options]
    config = reopen(run, where, trust, say)
    data, asked = read_data(config), config["evaluation"]
    listed = asked.get("manifest") and Path(asked["manifest"])
    drawn = Manifest(data.source(asked["split"]), asked["split"], asked["episodes"])
    test = data.test() if listed else drawn
    temporary = Path(tempfile.mkdtemp()) if folder is None else None
    try:
        place = folder or temporary / "run"  # type: ignore[operator]
        for name in publish(run, place, test, listed):
            say(f"{name}: {(place / name).stat().st_size:,} bytes")
        if folder is not None:
            say(f"published: {folder}; metalearn pull <it> <folder> checks it")
        if repository is not None:
            say(f"on the hub: {hub.upload(place, repository, private)}")
    finally:
        if temporary is not None:
            shutil.rmtree(temporary)
