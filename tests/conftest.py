"""What every test shares: one thread, in it and in what it starts; the tests run side by side."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def workplace(tmp_path: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, the session's data cache, and no W&B account."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(data_cache))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return tmp_path
