"""`metalearn list algorithms`: what the code says of every method that a configuration names."""

import re
import statistics

import pytest

from metalearn.commands.building.config import conf_folder
from metalearn.commands.building.methods import GROUPS, methods
from scripts.method_pages import FOLDER, files, key, norm_of, pages
from tests.command import metalearn

ROWS = {row.choice: row for row in methods()}


def test_every_algorithm_and_classifier_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"{g}={p.stem}" for g in GROUPS for p in (conf_folder() / g).glob("[!_]*.yaml")]
    assert sorted(ROWS) == sorted(files)
    monkeypatch.setenv("COLUMNS", "220")
    out = metalearn("list", "algorithms").out
    assert all(choice in out for choice in files) and f"{len(files)} methods" in out
    shown = [
        ROWS[name].transductive for name in re.findall(r"^(?:algorithm|classifier)=\w+", out, re.M)
    ]
    assert len(shown) == len(files) and shown == sorted(shown) and any(shown)
    assert "algorithm=boil" in metalearn("list", "algorithm").out
    assert "no group algoritms (did you mean algorithms?)" in metalearn("list", "algoritms").mistake


@pytest.mark.parametrize(
    "choice, family, marks, strategies, paper",
    [
        ("algorithm=imaml", "gradient", "inductive, 16 inner steps, on inputs", "implicit",
         "Rajeswaran et al. 2019"),
        ("algorithm=anil", "gradient", "inductive, 5 inner steps, on features",
         "adjoint unroll checkpointed annealed first_order truncated evolution bootstrapped",
         "Raghu et al. 2020"),
        ("algorithm=soft_kmeans", "metric", "transductive, no inner loop, on features",
         "adjoint unroll checkpointed annealed", "Ren et al. 2018"),
        ("algorithm=es_maml", "gradient", "inductive, 1 inner step, on inputs", "evolution",
         "Song et al. 2020"),
        ("algorithm=meta_curvature", "gradient", "inductive, 1 inner step, on inputs",
         "adjoint unroll checkpointed annealed first_order truncated evolution bootstrapped",
         "Park, Oliva 2019"),
    ],
)  # fmt: skip
def test_marks_are_those_of_the_code(choice, family, marks, strategies, paper) -> None:
    row = ROWS[choice]
    assert (row.family, row.marks, row.strategies, row.paper) == (family, marks, strategies, paper)


def test_every_paper_that_a_configuration_names_is_cited_in_the_code() -> None:
    assert [row.choice for row in ROWS.values() if row.paper and not row.citation] == []
    assert [row.choice for row in ROWS.values() if not row.paper] in ([], ["algorithm=metric"])
    assert all(row.what for row in ROWS.values())


def test_the_file_of_a_method_is_short() -> None:
    lengths = dict(file for row in ROWS.values() for file in files(row))
    assert statistics.median(lengths.values()) <= 70
    own = {name: count for name, count in lengths.items() if "/algorithms/" in name}
    assert statistics.median(own.values()) <= 70


def test_every_method_has_the_page_that_the_command_writes_today() -> None:
    made = pages(list(ROWS.values()))
    assert len(made) == len(ROWS) + 1  # and the table of all
    old = [n for n, text in made.items() if not (FOLDER / n).is_file() or _held(n) != text]
    assert old == [], "run python -m scripts.method_pages"
    assert (
        "†" not in made["README.md"].partition("<!-- methods -->")[2].partition("Transductive:")[0]
    )
    kept = {path.name for path in FOLDER.glob("*.md") if _held(path.name).startswith("# `")}
    assert kept == made.keys() - {"README.md"}


def _held(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


@pytest.mark.parametrize("name", [key(row) for row in ROWS.values()])
def test_a_page_has_the_equation_and_says_where_a_figure_is_missing(name: str) -> None:
    told, _, rest = _held(f"{name}.md").partition("\n## What it is\n")
    assert re.search(r"\n\n    (?=\S).*(=|<-|min over)", told)
    assert re.search(r"\.py`: \d+ lines", rest) and "```yaml" in rest
    figures = rest.partition("## Figures")[2]
    for whose, missing in (("ours", "Ours: not measured yet."), ("", "Published: not sourced.")):
        rows = [line.split(" | ")[1] for line in figures.splitlines() if line.startswith("| ")][2:]
        assert any((row == "ours") == bool(whose) for row in rows) != (missing in figures)


def test_the_norm_of_a_row_is_that_of_its_method() -> None:
    told = "frozen; group for protonet_scratch, maml_scratch; none for mine"
    found = [norm_of(told, name) for name in ("maml", "maml_scratch", "mine")]
    assert found == ["frozen", "group", "none"]
