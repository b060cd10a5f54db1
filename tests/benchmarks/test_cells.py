"""What `cells=` and `frameworks=` name."""

from typing import Any

import pytest

from metalearn.benchmarks import cells
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import default, framework, parse
from metalearn.benchmarks.frameworks.ours import ours
from metalearn.engine import Engine
from metalearn.engine.autotune import Autotuned
from metalearn.engine.plan import Plan
from metalearn.errors import UsageError
from metalearn.gradients import Unroll


def test_the_grid() -> None:
    assert len(cells.parse("full")) == 6 * 4 * 4
    assert set(cells.parse("quick")) <= set(cells.parse("full"))


def test_a_filter_keeps_what_it_names() -> None:
    assert cells.parse("conv4-28/K=1,5/T=4") == (Cell("conv4-28", 1, 4), Cell("conv4-28", 5, 4))
    assert {c.model for c in cells.parse("T=1/K=1")} == set(cells.MODELS)
    assert len(cells.parse("mlp,vit-32")) == 2 * 16
    assert cells.parse("mlp/K=3/T=2") == (Cell("mlp", 3, 2),)


def test_the_inner_loop_has_a_bounded_length() -> None:
    assert Cell("mlp", 1, 1).rate == 0.1
    assert Cell("mlp", 50, 1).rate == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("conv428", "'conv428' is not known (did you mean conv4-28?)"),
        ("quik", "did you mean quick?"),
        ("K=0", "K=0 must be whole numbers of 1 or more"),
        ("K=a", "K=a must be whole numbers"),
        ("conv4-28/S=3", "'S=3' is not known"),
    ],
)
def test_a_wrong_filter_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as error:
        cells.parse(text)
    assert line in str(error.value)


def test_frameworks() -> None:
    assert parse("ours,jax,ours") == ("ours", "jax-vmap", "jax-loop")
    assert parse("ours@adjoint:4:fp32") == ("ours@adjoint:4:fp32",)
    captured = "ours@exact:vmap:bf16:graph"
    assert parse(captured) == (captured,)
    assert framework(captured).low_precision and not framework("ours-graph").low_precision
    for device in ("cpu", "cuda"):
        assert parse(",".join(default(device))) == default(device)
    assert set(default("cuda")) - set(default("cpu")) == {"ours-graph", "ours-graph-bf16"}
    for text, line in {
        "learn2lern": "did you mean learn2learn?",
        "ours@adjont:loop:fp32": "did you mean adjoint?",
        "ours@higher:loop:fp32:graph": "strategy higher has no capture",
        "ours@adjoint:vmap:fp32:grph": "capture='grph' is not known",
        "ours@adjoint:vmap:fp32:graph:5": "use <strategy>:<batching>:<precision>:<capture>",
    }.items():
        with pytest.raises(UsageError, match=line.replace("?", r"\?")):
            parse(text)


def test_ours_runs_by_the_plan_for_a_long_training() -> None:
    """An engine that is called now and then compiles nothing yet."""
    asked = []

    class Asked(Engine):
        def autotune(self, *args: Any, coming: int | None = None) -> Autotuned:
            asked.append(coming)
            return Autotuned(Plan(tasks=0), {})

    for batching in ("auto", "loop"):
        step = ours(Cell("mlp", 1, 2), Asked(batching), Unroll())
        assert step()[1]["loss"].shape == step()[1]["loss"].shape == (2,)
    assert asked == [None]
