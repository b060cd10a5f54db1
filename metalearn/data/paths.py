"""Where data is looked for."""

import os
from pathlib import Path

from metalearn.errors import DataError


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
