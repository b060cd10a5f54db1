"""What the benchmark writes, from records made by hand."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from metalearn.benchmarks import memory, plots, report, rounding
from metalearn.benchmarks.cells import Cell
from tests.benchmarks.made import record


def test_json_markdown_and_a_picture(tmp_path: Path) -> None:
    records = [record(Cell("conv4-28", 5, 4)), record(Cell("mlp", 1, 4), peer=0.5)]
    records[1]["workers"]["ours tuned"]["memory"] = None
    nothing = {"status": "not measured", "reason": "too long", "workers": {}}
    records.append(record(Cell("vit-32", 50, 32)) | nothing)
    report.write(records, tmp_path)
    assert json.loads((tmp_path / "speed.json").read_text()) == records
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "speed.md").read_text()
    assert "- A processor, 1 thread(s) of 2 cores, 8.0 GiB; avx2" in text
    assert "GFLOP/s: float32 100, bfloat16 500" in text
    assert "| cell | learn2learn |" in text
    assert "| conv4-28 K=5 T=4 | 2.00 / 1.50 |" in text
    assert "| mlp K=1 T=4 | 0.50 / 1.50 |" in text
    line = "| conv4-28 K=5 T=4 | ours | tuned | 4 | 3.64 to 4.44 |  | 50 | 2.0 | 1 | 1e-06 |"
    assert line in text
    assert "| vit-32 K=50 T=32 | all | too long |" in text
    assert "| mlp K=1 T=4 | higher default | higher is not installed |" in text
    console = Console(record=True, width=80)
    console.print(report.table(report.rows(records)))
    assert "2.00x" in console.export_text()


def test_a_race_with_one_allocator_of_captured_strategies(tmp_path: Path) -> None:
    made = record(Cell("conv4-28", 1, 32))
    peer = made["workers"]["learn2learn default"]
    names = ("ours", "ours-graph", "ours@exact:vmap:fp32:graph")
    mine = [{**peer, "framework": n, "seconds": [1 / k] * 3} for k, n in enumerate(names, 1)]
    made["workers"] = {w["framework"]: w for w in (*mine, peer)}
    report.write([made], tmp_path)
    found = report.rows([made])
    for number, name in enumerate(names, 1):  # the peer's quartiles lie at 2, 1.8 and 2.2 s
        (times,) = plots.speedups(found, name).values()
        assert times == pytest.approx((2 * number, 1.8 * number, 2.2 * number))
    text = (tmp_path / "speed.md").read_text()
    assert "same tuned allocator" not in text.partition("## Everything")[0].partition("## How")[2]
    for number, name in enumerate(names, 1):
        table = text.partition(f"`{name}`:\n\n")[2].partition("\n\n")[0]
        assert f"| conv4-28 K=1 T=32 | {2 * number}.00 |" in table


def test_nothing_timed_writes_no_picture(tmp_path: Path) -> None:
    nothing = {**record(Cell("mlp", 1, 1)), "workers": {}, "reason": "too long"}
    report.write([nothing], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["speed.json", "speed.md"]


def test_memory_of_the_strategies(tmp_path: Path) -> None:
    found = memory.by_steps("tiny", (1, 6), ("unroll:loop:fp32", "adjoint:loop:fp32"))
    by = {(r["strategy"], r["steps"]): r for r in found}
    weights = by["adjoint", 1]["fast_copies"]
    assert by["adjoint", 6]["fast_copies"] == 6 * weights > 0
    grown = {name: by[name, 6]["peak"] - by[name, 1]["peak"] for name in ("adjoint", "unroll")}
    assert grown["adjoint"] <= 1.1 * 5 * weights < grown["unroll"]
    more = by["unroll", 6]["peak"] + grown["unroll"]
    assert memory.expected(found[:2], 11) == pytest.approx(more)
    assert all(r["seconds"] > 0 for r in found)
    plots.plot_memory(found, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes()[:4] == b"\x89PNG"


def test_errors_against_float64() -> None:
    names = ("unroll:loop:fp32", "first_order:loop:fp32", "unroll:loop:fp99")
    exact, first, unknown = rounding.measure(Cell("tiny", 1, 2), names)
    assert exact["error"] < 1e-4 and exact["cosine"] > 0.9999
    assert first["error"] > 0.1 and first["cosine"] < 0.99
    assert unknown["error"] is None and "precision='fp99' is not known" in unknown["reason"]


def test_tasks_that_are_off_are_counted() -> None:
    exact, narrow = rounding.off_tasks(("tiny",), (1,), ("fp32", "bf16-all"), tasks=3)
    assert (exact["off"], exact["tasks"]) == (0, 3) and exact["largest"] < 1e-3
    assert narrow["off"] == 3 and 0.05 < narrow["median"] <= narrow["largest"]
