"""The wheel holds conf/, and what is installed from it works in another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from metalearn.commands.config import conf_folder
from tests.command import FAST

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_an_installed_wheel_lists_and_trains(workplace: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("no uv on PATH")
    build = [uv, "build", "--wheel", "--out-dir", str(workplace / "dist"), str(REPOSITORY)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if built.returncode and "fetch" in built.stderr:
        pytest.skip("no network for the build's own requirements")
    assert built.returncode == 0, built.stderr
    (wheel,) = (workplace / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert "metalearn/data/splits/omniglot_vinyals_train.txt" in names
        carried = {name.removeprefix("metalearn/conf/") for name in names if "/conf/" in name}
        ours = {str(path.relative_to(conf_folder())) for path in conf_folder().rglob("*.yaml")}
        assert carried == ours and "train.yaml" in ours
        archive.extractall(workplace / "installed")
    # First on the path, so that it and not the checkout is imported; requirements from here.
    paths = (str(workplace / "installed"), sysconfig.get_paths()["purelib"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "metalearn.cli", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "algorithm=maml" in run("list", "algorithm")
    assert "run folder: there" in run("train", *FAST, "run_dir=there")
    assert (workplace / "there" / "result.json").exists()
