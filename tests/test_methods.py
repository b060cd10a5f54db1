"""`metalearn list algorithms`: what the code says of every method that a configuration names."""

import inspect
import statistics
import sys
from pathlib import Path

import pytest

from metalearn import algorithms
from metalearn.commands.config import conf_folder
from metalearn.commands.methods import GROUPS, methods
from tests.command import metalearn

ROWS = {row.choice: row for row in methods()}


def test_every_algorithm_and_classifier_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"{g}={p.stem}" for g in GROUPS for p in (conf_folder() / g).glob("[!_]*.yaml")]
    assert sorted(ROWS) == sorted(files)
    monkeypatch.setenv("COLUMNS", "220")
    out = metalearn("list", "algorithms").out
    assert all(choice in out for choice in files) and f"{len(files)} methods" in out
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


def test_the_file_of_an_algorithm_is_short() -> None:
    made = [getattr(algorithms, name) for name in algorithms.__all__ if name != "MetaAlgorithm"]
    files = {sys.modules[inspect.unwrap(m).__module__].__file__ for m in made}
    lengths = [len(Path(file).read_text("utf-8").splitlines()) for file in files]
    assert statistics.median(lengths) <= 70
