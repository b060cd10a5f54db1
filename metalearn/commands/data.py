"""`metalearn data`: prepare, verify and show data sets, list episodes in a file."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from metalearn.commands.building import searchpath
from metalearn.commands.building.arguments import option
from metalearn.commands.building.config import compose
from metalearn.commands.building.episodes import read_data
from metalearn.commands.list import choices
from metalearn.data import ImageDataset, Mixture
from metalearn.data.sources import state
from metalearn.data.store import verify as verify_store
from metalearn.episodes import (
    FewShotEpisodes,
    Manifest,
    MixedEpisodes,
    write_manifest,
)
from metalearn.episodes.sheet import class_sheet, episode_sheet
from metalearn.episodes.source import describe_shape
from metalearn.errors import UsageError, nearest
from metalearn.training.stage import teller

STATES = """
prepared: decoded, in the cache; found: its archive is on this machine
download: fetched when used; yours: give your own copy; made: computed, or of others"""

OWN = {"show": ("split", "episode", "out"), "manifest": ("out",)}
"""Arguments of an action that are no overrides."""


def main(arguments: list[str], console: Console) -> None:
    """`metalearn data list|prepare|verify|show|manifest [overrides]`."""
    action, *overrides = arguments or ["list"]
    if "=" in action:
        action, overrides = "prepare", arguments
    actions = ("list", "prepare", "verify", "show", "manifest")
    if action not in actions:
        near = nearest(action, actions)
        raise UsageError(f"no data command {action}{near}; use {', '.join(actions)}")
    if action == "list":
        rest, override = searchpath.split(overrides)
        if rest:
            raise UsageError(f"data list takes nothing more, not {rest[0]}")
        console.print(choices(["dataset"], state, override))
        console.print(STATES, style="dim", highlight=False)
        return
    own = OWN.get(action, ())
    given = {n: v for n, is_, v in (a.partition("=") for a in overrides) if is_ and n in own}
    config = compose([a for a in overrides if a.partition("=")[0] not in given])
    if action in OWN:
        (show if action == "show" else manifest)(config, console, **given)
    else:
        prepare(config, console, verify=action == "verify")


def prepare(config: Mapping[str, Any], console: Console, verify: bool = False) -> None:
    """Prepare a data set and print what it holds; `verify` reads every byte of it again."""
    started = time.monotonic()
    dataset = read_data(config).dataset
    table = Table(title=config["dataset"]["_target_"].rpartition(".")[2], show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    if isinstance(dataset, Mixture):
        for name, one in dataset.sets.items():
            table.add_row("data set", name)
            _describe(one, table, verify)
        table.add_row("hash of all", dataset.digest)
    elif isinstance(dataset, ImageDataset):
        _describe(dataset, table, verify)
    else:
        table.add_row("family", repr(dataset))
    table.add_row("time", f"{time.monotonic() - started:.1f} s")
    console.print(table)


def _write(path: Path, beginning: bytes, write: Callable[[Path], object]) -> None:
    """Write a file. Raises UsageError where it cannot be, or where one at `path` does not begin so:
    it is not one of ours."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(beginning)) not in (beginning, b""):
                    raise UsageError(f"{path} is another file, and stays; use another out=<file>")
        write(path)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot write {path} ({reason}); use out=<file>") from None


def _describe(dataset: ImageDataset, table: Table, verify: bool) -> None:
    images = dataset.store.images
    if verify:
        verify_store(Path(str(images.filename)).parent)  # type: ignore[attr-defined]
    table.add_row("images", f"{len(images)} of {'x'.join(map(str, dataset.image_shape))}")
    sizes = np.diff(dataset.store.offsets)
    each = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    table.add_row("images a class", each)
    for split in dataset.splits:
        table.add_row(f"{split} classes", str(dataset.class_count(split)))
    table.add_row("store", f"{images.nbytes / 2**20:.1f} MiB")
    table.add_row("hash", dataset.digest + (" (verified)" if verify else ""))


def show(
    config: Mapping[str, Any],
    console: Console,
    split: str = "test",
    episode: str | None = None,
    out: str | None = None,
) -> None:
    """Write a PNG of an episode, or of the classes of a split. Raises UsageError."""
    if episode is None:
        dataset = read_data(config).dataset
        if isinstance(dataset, Mixture):
            raise UsageError("dataset=mixture has no classes of its own; use episode=0")
        if not isinstance(dataset, ImageDataset):
            raise UsageError("regression has no images to show")
        if split not in dataset.splits:
            raise UsageError(f"split={split} is not known; use {', '.join(dataset.splits)}")
        if not dataset.class_count(split):
            raise UsageError(f"{dataset.name} has no classes in its {split} split to show")
        page, name = class_sheet(dataset, split), f"{dataset.name}-{split}-classes.png"
    else:
        if not episode.isdecimal():
            raise UsageError(f"episode={episode} must be a whole number, as in episode=0")
        source = read_data({**config, "outputs": None}).source(split)
        if not isinstance(source, FewShotEpisodes | MixedEpisodes):
            raise UsageError("regression has no images to show")
        page = episode_sheet(source, split, int(episode))
        name = f"{source.dataset.name}-{split}-episode{episode}.png"
    path = Path(out or name.replace(" ", "_"))
    _write(path, b"\x89PNG", lambda path: page.save(path, "PNG"))
    teller(console)(f"{path}: {page.width}x{page.height}")


def manifest(config: Mapping[str, Any], console: Console, out: str | None = None) -> None:
    """Write the episodes of an evaluation to a file. Raises UsageError where it has no images."""
    evaluation, split = config["evaluation"], config["evaluation"]["split"]
    source = read_data({**config, "outputs": None}).source(split)
    listed = Manifest(source, split, evaluation["episodes"])
    path = Path(out or f"{option(config['dataset'])}-{split}-{listed.hash[:8]}.json")
    _write(path, b'{\n "format"', lambda path: write_manifest(listed, path))
    shape = describe_shape(listed.source.shape)
    queries = f"{listed.source.shape[-1]} queries a class, hash {listed.hash}"
    teller(console)(f"{path}: {listed.episodes} episodes, {shape}, {queries}")
