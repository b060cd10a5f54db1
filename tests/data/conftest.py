"""Real Omniglot where it is at hand, tiny archives shaped like it, and a server that misbehaves."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from metalearn.data import DataError, ImageDataset, data_folder, omniglot
from tests.inputs.files import omniglot_zip
from tests.inputs.server import Server, serving


@pytest.fixture(scope="session")
def omniglot_archives() -> Path:
    """The folder with the real archives; skips where there is none."""
    folder = data_folder()
    if folder is None or not (folder / "omniglot" / "images_background.zip").is_file():
        pytest.skip("no real Omniglot: neither METALEARN_DATA nor ../shared/data holds omniglot/")
    return folder / "omniglot"


@pytest.fixture(scope="session")
def omniglot_root(omniglot_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which Omniglot is decoded already, once a session."""
    root = tmp_path_factory.mktemp("omniglot")
    omniglot(root)
    return root


@pytest.fixture
def real(omniglot_root: Path) -> ImageDataset:
    return omniglot(omniglot_root)


@pytest.fixture
def tiny_archive(tmp_path: Path) -> Callable[..., Path]:
    """Writes `images_background.zip`."""
    return partial(omniglot_zip, tmp_path / "archives" / "images_background.zip")


@pytest.fixture
def one_line() -> Callable[[pytest.ExceptionInfo[DataError]], str]:
    """The message of a DataError, which must be one line."""

    def check(caught: pytest.ExceptionInfo[DataError]) -> str:
        text = str(caught.value)
        assert text and "\n" not in text
        return text

    return check


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("metalearn.data.download.PAUSE", 0.0)
    with serving(np.random.default_rng(0).bytes(300_000)) as server:
        yield server
