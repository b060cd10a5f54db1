"""The wheel holds conf/, what is installed from it works elsewhere, and a foreign package of the
same import name gives one line."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import metalearn_start
import pytest

import metalearn
from metalearn.commands.building.config import conf_folder
from tests.command import FAST

REPOSITORY = Path(__file__).resolve().parents[1]
AGAIN = "pip install --force-reinstall --no-deps metalearn-torch\n"
LOST = (
    "metalearn: files of metalearn-torch are overwritten or removed by other-learn 1.2, of the "
    f"same import name; pip uninstall other-learn, then {AGAIN}"
)
NOT_OURS = f"metalearn: metalearn/__init__.py is not that of metalearn-torch; {AGAIN}"


def run(command: list[str | Path], *, path: str = "", cwd: Path | None = None):
    """What a command prints, where `path` is on Python's path."""
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("no uv on PATH")
    folder = tmp_path_factory.mktemp("dist")
    built = run([uv, "build", "--wheel", "--out-dir", folder, REPOSITORY])
    if built.returncode and "fetch" in built.stderr:
        pytest.skip("no network for the build's own requirements")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"metalearn_torch-{metalearn.__version__}-py3-none-any.whl"
    return wheel


@pytest.mark.slow
def test_an_installed_wheel_lists_and_trains(wheel: Path, workplace: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert "metalearn/data/splits/omniglot_vinyals_train.txt" in names
        carried = {name.removeprefix("metalearn/conf/") for name in names if "/conf/" in name}
        ours = {str(path.relative_to(conf_folder())) for path in conf_folder().rglob("*.yaml")}
        assert carried == ours and "train.yaml" in ours
        archive.extractall(workplace / "installed")
    # First on the path, so that it and not the checkout is imported; requirements from here.
    path = os.pathsep.join((str(workplace / "installed"), sysconfig.get_paths()["purelib"]))

    def command(*arguments: str) -> str:
        start = "import metalearn_start; metalearn_start.main()"
        done = run([sys.executable, "-c", start, *arguments], path=path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "algorithm=maml" in command("list", "algorithm")
    assert "run folder: there" in command("train", *FAST, "run_dir=there")
    assert (workplace / "there" / "result.json").exists()


def foreign_wheel(folder: Path) -> Path:
    """A package called other-learn that installs an empty `metalearn/__init__.py`."""
    path = folder / "other_learn-1.2-py3-none-any.whl"
    info = "other_learn-1.2.dist-info"
    files = {
        "metalearn/__init__.py": "# somebody else's\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: other-learn\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/top_level.txt": "metalearn\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.slow
def test_a_package_that_writes_over_ours_is_one_line(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command = [python.with_name("metalearn"), "list", "algorithm"]

    def installed(*more: str | Path) -> None:
        done = run([*pip, *more], cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    installed(wheel)
    installed(foreign_wheel(tmp_path))
    done = run(command, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", LOST)
    library = run([python, "-c", "import metalearn.errors"], cwd=tmp_path)
    assert library.stderr.splitlines()[-1] == LOST.replace("metalearn:", "ImportError:", 1).rstrip()
    # What the line says mends it; between its two commands, where no __init__.py is left:
    assert run([python, "-m", "pip", "uninstall", "-qy", "other-learn"]).returncode == 0
    done = run(command, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == f"metalearn: metalearn/__init__.py is not that of metalearn-torch; {AGAIN}"
    )
    installed("--force-reinstall", wheel)
    done = run(command, path=sysconfig.get_paths()["purelib"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "algorithm=maml" in done.stdout


def start(folder: Path, path: str) -> str:
    """The line of the command whose package lies in `folder`."""
    shutil.copy(metalearn_start.__file__, folder)
    # Neither the folder that pytest runs in nor what is installed is on the path.
    alone = [sys.executable, "-P", "-S", "-c", "import metalearn_start; metalearn_start.main()"]
    done = run(alone, path=path)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.parametrize("content", [None, "", "# somebody else's\n", "raise RuntimeError\n"])
def test_a_foreign_init_is_not_run(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "metalearn").mkdir()
    if content is not None:
        (tmp_path / "metalearn" / "__init__.py").write_text(content)
    assert start(tmp_path, str(tmp_path)) == NOT_OURS


def test_another_metalearn_on_the_path_is_named(tmp_path: Path) -> None:
    for name, content in (("first", "# somebody else's\n"), ("ours", metalearn_start.MARK)):
        (tmp_path / name / "metalearn").mkdir(parents=True)
        (tmp_path / name / "metalearn" / "__init__.py").write_text(content)
    path = f"{tmp_path / 'first'}{os.pathsep}{tmp_path / 'ours'}"
    line = start(tmp_path / "ours", path)
    other = tmp_path / "first" / "metalearn"
    assert line == (
        f"metalearn: Python finds another metalearn first, at {other}; take it off PYTHONPATH\n"
    )


def test_no_package_at_all(tmp_path: Path) -> None:
    assert start(tmp_path, str(tmp_path)) == f"metalearn: the package is gone; {AGAIN}"


def test_the_package_of_this_checkout_is_ours() -> None:
    assert metalearn_start.problem() is None
    assert metalearn.__distribution__ == metalearn_start.DISTRIBUTION
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert f'name = "{metalearn_start.DISTRIBUTION}"' in project
    assert f'version = "{metalearn.__version__}"' in project
