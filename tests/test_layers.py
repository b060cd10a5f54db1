"""The packages import as CONTRIBUTING.md says, and nothing points back."""

import ast
import re
from pathlib import Path

from metalearn import cli
from scripts import tour

ROOT = Path(__file__).parents[1]


def layers() -> dict[str, int]:
    """Each name of the list in CONTRIBUTING.md, and the number of its line."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("nothing points back")[2]
    block = text.partition("\n\n")[2].partition("\n\n")[0]
    found = {}
    for number, line in enumerate(block.splitlines()):
        for name in re.split(r",\s*", re.split(r"\s{2,}", line.strip())[0]):
            found[name] = number
    return found


def imports(path: Path) -> set[str]:
    """The parts of metalearn that a file imports, inside of functions too."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("metalearn.")}


def test_nothing_points_back() -> None:
    order = layers()
    package = ROOT / "metalearn"
    parts = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} == set(order)
    back = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in package.rglob("*.py")
        if path.parent != package or path.name not in ("__init__.py", "__main__.py")
        for part in [path.relative_to(package).parts[0].removesuffix(".py")]
        for name in imports(path)
        if name in order and name != part and order[name] > order[part]
    ]
    assert back == []


def at_start(module: str, seen: set[str]) -> set[str]:
    """The packages of others that importing `module` of ours imports, as our files say."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not file.is_file():
        return set()
    seen.add(module)
    names = {module.rpartition(".")[0]}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    ours = {name for name in names if name.partition(".")[0] == "metalearn"}
    others = {name.partition(".")[0] for name in names - ours}
    return others.union(*(at_start(name, seen) for name in ours))


def test_a_start_does_not_wait_for_what_it_may_not_need() -> None:
    seen: set[str] = set()
    found = at_start("metalearn.commands.train", seen) | at_start("metalearn.cli", seen)
    assert {"torch", "hydra", "rich"} <= found and "metalearn.training.episodic" in seen
    late = {"sklearn", "matplotlib", "torchvision", "timm", "wandb", "optuna", "pandas", "optree"}
    assert found & late == set()


def test_no_import_hides_from_the_interpreter() -> None:
    package = ROOT / "metalearn"
    assert [p.name for p in package.rglob("*.py") if "TYPE_CHECKING" in p.read_text()] == []


def test_the_top_level_is_small() -> None:
    entries = [p for p in (ROOT / "metalearn").iterdir() if p.name != "__pycache__"]
    assert len(entries) <= 22
    modules = {p.name for p in entries if p.suffix == ".py"}
    assert len(modules - {"__main__.py"}) <= 5  # which is for `python -m metalearn`


def test_the_files_of_commands_are_the_commands() -> None:
    files = {path.stem for path in (ROOT / "metalearn/commands").glob("*.py")}
    assert files - {"__init__"} == set(cli.COMMANDS)


def test_no_file_is_long() -> None:
    assert [p.name for p in (ROOT / "metalearn").rglob("*.py") if tour.lines(p) > 300] == []


def test_the_tour_counts_files_and_lines(tmp_path: Path) -> None:
    lengths = {"engine/plan.py": 40, "engine/parts/a.py": 7, "errors.py": 12, "conf/notes.txt": 5}
    for name, length in {**lengths, "__pycache__/b.py": 99}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n" * length)
    assert tour.tour(tmp_path).splitlines() == [
        "entry      files  lines  longest file",
        "engine         2     47  engine/plan.py (40)",
        "errors.py      1     12  errors.py (12)",
        "2 entries, 1 of them modules; 3 files, 59 lines; median file 12, "
        "longest engine/plan.py (40)",
    ]


def test_only_commands_know_hydra() -> None:
    users = [
        path.relative_to(ROOT / "metalearn").parts[0]
        for path in (ROOT / "metalearn").rglob("*.py")
        if re.search(r"^\s*(from|import) (hydra|omegaconf)", path.read_text(), re.M)
    ]
    assert set(users) == {"commands"}


def test_only_three_files_know_wandb() -> None:
    users = [
        path.name
        for path in (ROOT / "metalearn").rglob("*.py")
        if re.search(r"^\s*(from|import) wandb", path.read_text(), re.M)
    ]
    assert sorted(users) == ["wandb.py", "wandb_report.py", "wandb_service.py"]
