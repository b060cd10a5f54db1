"""What all tests share, the pages that are tests among them."""

import gc
import os
import shutil
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """The files of tests, many, small and synced, lie in memory where there is room for them."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4e9:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


def pytest_collection_finish() -> None:
    """What was collected stays, and need not be walked whenever memory is cleared."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000)


def pytest_unconfigure() -> None:
    """At its end Python clears everything, as ever."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded data sets of the whole session, shared by the processes that tests run in."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def cache_of_a_page(
    request: pytest.FixtureRequest, data_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A README leaves nothing in the user's cache."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.setenv("METALEARN_CACHE", str(data_cache))
