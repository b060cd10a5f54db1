"""One bad input: what is given, and where it happens."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import metalearn.commands.train  # noqa: F401  matplotlib keeps fonts at home: before there is another
from tests.command import Outcome


class Place:
    """A folder with the user's files (also the current folder), an empty cache and a home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user, self.data = folder / "user", folder / "user" / "data"
        self.cache, self.home = folder / "cache", folder / "home"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The environment names these folders, and this is the current one."""
        compiled = self.home / "inductor"  # torch makes it sooner or later
        for path in (self.data, self.cache, compiled):
            path.mkdir(parents=True)
        told = {"METALEARN_CACHE": self.cache, "METALEARN_DATA": self.data, "HOME": self.home}
        told["TORCHINDUCTOR_CACHE_DIR"] = compiled
        told = {name: str(path) for name, path in told.items()}
        with (
            mock.patch.dict(os.environ, told | {"no_proxy": "*", "COLUMNS": "200"}),
            mock.patch.object(tempfile, "tempdir", str(self.home)),
            mock.patch("metalearn.data.download.PAUSE", 0.0),
            contextlib.chdir(self.user),
        ):
            yield


@dataclass(frozen=True)
class Case:
    """`act` is tried once `ready` has made the user's files, and must be refused.

    act: raises the error, or gives the outcome of a command.
    said: part of the line that comes back. code: of a command; 0 where nothing is refused.
    left: a pattern of files that may stay in the cache, and `why`. slow: takes many seconds.
    """

    given: str
    said: str
    act: Callable[[Place], Outcome | object]
    ready: Callable[[Place], object] = lambda place: None
    code: int = 2
    left: str = ""
    why: str = ""
    slow: bool = False
