"""Rows and tables of a comparison, by hand."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from metalearn.evaluation.comparison import report
from metalearn.evaluation.comparison.page import page
from metalearn.evaluation.comparison.plot import plot_comparison
from metalearn.evaluation.comparison.tables import terminal

T9 = 2.2621571627409915  # quantile 0.975 of Student's t with 9 degrees of freedom
T3 = 3.1824463052837046


def result(method: str, family: str, **shots: list[float]) -> dict:
    held = {k[1:]: {"accuracies": v, "milliseconds": 1.5} for k, v in shots.items()}
    return {"method": method, "family": family, "shots": held}


A = [0.1 * k for k in range(10)]
B = [0.1 * k + 0.05 + 0.01 * (k % 3) for k in range(10)]
C = [0.9, 0.1, 0.2, 0.3]


def three() -> list[dict]:
    return [
        result("<b>|[red]", "untrained", k1=A, k5=A),
        result("second", "pre-training", k1=B, k5=B),
        result("third", "transfer", k1=C, k5=[0.9] * 4),
    ]


def test_differences_are_of_pairs_over_the_episodes_that_both_have() -> None:
    rows = report.compared(three(), [1, 5])
    assert [(row["shots"], row["method"]) for row in rows][3:] == [
        (5, "<b>|[red]"), (5, "second"), (5, "third"),
    ]  # fmt: skip
    first, second, third = rows[:3]
    assert second["best"] and not first["best"] and not third["best"]
    gaps = np.array(A) - np.array(B)
    assert first["difference"] == pytest.approx(gaps.mean())
    half = T9 * gaps.std(ddof=1) / math.sqrt(10)
    assert first["difference_half_width"] == pytest.approx(half) and first["differs"]
    gaps = np.array(C) - np.array(B[:4])
    assert third["difference"] == pytest.approx(gaps.mean()) and third["shared_episodes"] == 4
    half = T3 * gaps.std(ddof=1) / 2
    assert third["difference_half_width"] == pytest.approx(half) and not third["differs"]
    assert (first["episodes"], third["episodes"]) == (10, 4)
    assert first["accuracy"] == pytest.approx(0.45)
    assert first["half_width"] == pytest.approx(T9 * np.std(A, ddof=1) / math.sqrt(10))
    assert second["difference"] == 0 and not second["differs"]
    assert [row["best"] for row in rows[3:]] == [False, False, True]


def test_the_file_of_episodes_leaves_out_what_was_not_measured() -> None:
    rows = report.episode_rows(three(), [1])
    assert len(rows) == 10
    assert rows[3] == {"shots": 1, "index": 3, "<b>|[red]": A[3], "second": B[3], "third": 0.3}
    assert rows[4]["third"] is None


def test_queries_of_unequal_classes_are_cases_of_their_own() -> None:
    results = [result("a", "transfer", k1=A), result("b", "transfer", k1=B)]
    for one, values in zip(results, (B, A), strict=True):
        one["shots"]["1 dirichlet"] = {"accuracies": values, "milliseconds": 2.0}
    rows = report.compared(results, ["1", "1 dirichlet"])
    told = [(row["shots"], row["queries"], row["method"], row["best"]) for row in rows]
    assert told == [
        (1, "balanced", "a", False), (1, "balanced", "b", True),
        (1, "dirichlet", "a", True), (1, "dirichlet", "b", False),
    ]  # fmt: skip
    line = report.episode_rows(results, ["1", "1 dirichlet"])[13]
    assert line == {"shots": 1, "queries": "dirichlet", "index": 3, "a": B[3], "b": A[3]}
    text = {**made(), "rows": rows, "manifests": {"1": "ab" * 32, "1 dirichlet": "cd" * 32},
            "concentration": 2.0, "costs": [], "chosen": {}}  # fmt: skip
    text = report.markdown(text)
    assert "| family | method | 1-shot | 1-shot, Dirichlet queries |" in text
    assert "Dirichlet queries: 75 in proportions of Dirichlet(2)" in text


def made() -> dict:
    results = three()
    cost = {"adapted": 12345, "learned": 0, "seconds": None, "peak_memory_bytes": 2**29,
            "training_peak_memory_bytes": None}  # fmt: skip
    return {
        "command": "metalearn compare 'a=<script>'", "dataset": "tiny", "split": "test",
        "ways": 5, "queries": 15, "shots": [1, 5], "evaluation_seed": 0,
        "manifests": {"1": "ab" * 32, "5": "cd" * 32}, "backbone": "Net<x>", "weights": "w&w",
        "weights_sha256": "ef" * 32, "seed": 0, "device": "cpu", "threads": 1, "torch": "2",
        "norm_policy": "frozen", "commit": "c0ffee",
        "rows": report.compared(results, [1, 5]),
        "costs": [{"method": r["method"], "family": r["family"], **cost} for r in results],
        "chosen": {"third": {"5": {"rate": 0.1, "steps": 3, "accuracy": 0.5, "edge": ""}}},
        "notes": {"third": ["told"]}, "failed": {"fourth": "no <such> thing"},
    }  # fmt: skip


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for table in report.tables(made()):
        console.print(terminal(table))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "<b>|[red]" in text and "12,345" in text and "512" in text
    lines = [line for line in text.splitlines() if line.startswith("  second")]
    assert lines[0].split()[1:4] == ["50.90", "±", "21.71"] and "best" in lines[0]


def test_a_transductive_method_is_marked_and_stands_in_a_table_of_its_own() -> None:
    results = three()
    results[1]["transductive"] = True
    marked = {**made(), "rows": report.compared(results, [1, 5])}
    inductive, own, *_, costs = report.tables(marked)
    assert [line[0] for line in inductive.rows] == ["<b>|[red]", "third"]
    assert [line[0] for line in own.rows] == ["second †"] and "transductive" in own.title
    assert inductive.best == [True, False] and own.best == [True]
    assert [line[0] for line in costs.rows] == ["<b>|[red]", "third", "second †"]
    (every,) = report.overview(marked)
    assert [line[0] for line in every.rows] == ["<b>|[red]", "third", "second †"]
    assert every.families[2] == "transductive" and every.head[1:] == ("1-shot", "5-shot")
    assert every.rows[2][1] == "50.90 ± 21.71"
    assert report.notes(marked)[0] == "† second: transductive, a task's queries are seen together"
    assert "| second † |" in report.markdown(marked)
    assert not any("†" in line for line in report.notes(made()))


def test_markdown_has_a_line_for_every_method_and_breaks_no_table() -> None:
    text = report.markdown(made())
    bars = [
        len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")
    ]
    assert len(bars) == 3 * 5 + 5 and set(bars) == {5, 7, 9}
    assert "third, 5-shot: rate 0.1 and 3 steps, chosen on the val split (50.00% there)" in text
    assert "fourth failed: no <such> thing" in text and "cd" * 32 in text


class Reader(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_no_other_file_and_runs_nothing(tmp_path) -> None:
    plot_comparison(made()["rows"], tmp_path / "a.png", "t", 0.2)
    reader = Reader()
    reader.feed(page(made(), tmp_path / "a.png"))
    assert reader.open == []
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "iframe", "b", "x", "such"}
    (source,) = (attrs["src"] for tag, attrs in reader.tags if tag == "img")
    assert (
        base64.b64decode(source.removeprefix("data:image/png;base64,"))
        == (tmp_path / "a.png").read_bytes()
    )
    assert not [a for _, attrs in reader.tags for a in attrs if a in ("href", "onload", "style")]
    for told in (
        "<b>|[red]",
        "'a=<script>'",
        "w&w",
        "Net<x>",
        "no <such> thing",
        "ef" * 32,
        "c0ffee",
    ):
        assert told in reader.text
    assert len([1 for tag, attrs in reader.tags if attrs.get("class") == "best"]) == 2


@pytest.mark.parametrize("shots", [[1], [1, 5]])
def test_the_picture_is_drawn_for_one_number_of_shots_and_for_several(tmp_path, shots) -> None:
    rows = report.compared(three(), shots)
    plot_comparison(rows, tmp_path / "a.png", "t", 0.2)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 900 and len(image.convert("RGB").getcolors(2**24) or []) > 20
    title = "Conv4, filters 64, downsample stride on omniglot: methods compared, 5 ways " * 2
    plot_comparison(rows, tmp_path / "a.png", title, 0.2)
    with Image.open(tmp_path / "a.png") as image:  # a title that is cut off reaches the edge
        assert np.asarray(image.convert("L"))[:, -3:].min() == 255
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_comparison([], tmp_path / "b.png", "t", 0.2)
