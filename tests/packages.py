"""A package with files in it, as one that carries weights, on the path and not imported."""

import sys
from pathlib import Path

import pytest


def installed(monkeypatch: pytest.MonkeyPatch, site: Path, name: str) -> Path:
    """The folder `model` of the package `name`, which would fail if it were imported."""
    folder = site / name / "model"
    folder.mkdir(parents=True)
    (site / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return folder
