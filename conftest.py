"""The pages that are tests leave nothing in the user's cache."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache_of_a_page(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded data sets of a README in a folder of its own."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
