"""Where data is looked for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from metalearn.errors import DataError


class Source(NamedTuple):
    """Where a data set comes from: its `origin` where nothing of it is here yet.

    store: how the names of its stores begin. archives: what it is decoded from, one of them, in
    the data folder or downloaded to the cache.
    """

    origin: Literal["download", "yours", "made"]
    store: str = ""
    archives: Sequence[str] = ()


def data_folder() -> Path | None:
    """The folder with data that the user already has, or None.

    The environment variable `METALEARN_DATA` wins; without it `../shared/data`, seen from the
    current directory and from the repository root. Raises DataError where the variable names
    no folder: falling back in silence would hide a misspelling.
    """
    named = os.environ.get("METALEARN_DATA")
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise DataError(f"METALEARN_DATA names {folder}, which is no folder; correct it")
        return folder
    repository = Path(__file__).resolve().parents[2]
    for start in (Path.cwd(), repository):
        folder = start.parent / "shared" / "data"
        if folder.is_dir():
            return folder
    return None


def forms(name: str) -> tuple[str, ...]:
    """What a folder of images may be called in the data folder."""
    return (name, f"{name}.zip", f"{name}.tar.gz", f"{name}.tar")


def own_images(name: str) -> Path:
    """The user's own images in the data folder. Raises DataError where there are none."""
    data = data_folder()
    for form in forms(name):
        if data is not None and (data / form).exists():
            return data / form
    raise DataError(
        f"{name} cannot be downloaded freely; give its images with dataset.archive=<folder or "
        f"zip>, or put them at {name}/ in a folder named by METALEARN_DATA"
    )
