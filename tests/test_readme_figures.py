"""Every figure in README stands in a file under experiments/; its tables are what those give."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
README = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text("utf-8"), flags=re.M | re.S)
NUMBER = r"\d[\d,]*(?:\.\d+)?"
INSTALL = "## Install"
"""A section whose sizes are those of other people's packages."""


def plain(number: str) -> str:
    """Without thousands' commas, powers of ten and zeros at the end."""
    digits = number.replace(",", "")
    digits = f"{float(digits):.0f}" if "e" in digits else digits
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def figures(text: str) -> set[str]:
    """Numbers of tables' cells, those with an interval, and in sentences those of a fraction or of
    thousands: what a person can only have measured or read."""
    found = set()
    for line in text.splitlines():
        if line.startswith("|"):
            cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
            found |= {
                m for cell in cells for m in re.findall(NUMBER, cell) if cell[:1] in "-+0123456789"
            }
        elif not line.startswith("    "):
            found |= set(re.findall(r"(?<![\w.=-])(?:\d[\d,]*\.\d+|\d+,\d{3})\b", line))
        found |= {part for pair in re.findall(rf"({NUMBER}) ± ({NUMBER})", line) for part in pair}
    return {plain(number) for number in found}


def without_install(text: str) -> str:
    before, _, rest = text.partition(INSTALL)
    return before + "## " + rest.partition("\n## ")[2]


@pytest.fixture(scope="module")
def recorded() -> set[str]:
    """Every number that a page under experiments/ has."""
    pages = (path.read_text("utf-8") for path in EXPERIMENTS.rglob("*.md"))
    return {plain(number) for text in pages for number in re.findall(rf"{NUMBER}(?:e\+\d+)?", text)}


def test_a_figure_of_no_file_is_found() -> None:
    text = (
        "| a | 98.03 ± 0.18 | 12 |\n\nours makes 13,800 at 2.9 %, K=5, torch 2.15\n\n    pip 1.2\n"
    )
    assert figures(text) == {"98.03", "0.18", "12", "13800", "2.9", "2.15"}


def test_every_figure_is_in_a_file(recorded: set[str]) -> None:
    before, start, rest = without_install(README).partition(ENGINE)
    text = before + rest.partition("\n\n")[2]  # of that table below, from the measurements
    wanted = figures(text)
    assert start and len(wanted) > 100 and {"98.03", "0.0965", "56.32"} <= wanted
    assert sorted(wanted - recorded) == [], "in README and in no file under experiments/"


def rows(start: str) -> list[list[str]]:
    """The cells of the table that begins with the line `start`, its head left out."""
    table = README.partition(start)[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


ENGINE = "| | ours | ours, `bf16` | learn2learn"
MODELS = {
    "28x28x1": "conv4-28", "32x32x3": "conv4-32", "84x84x3": "conv4-84",
    "ViT-Tiny, 32x32x3": "vit-32", "ResNet-12, 84x84x3": "resnet12-84",
}  # fmt: skip
WORKERS = ("ours tuned", "ours-bf16 tuned", "learn2learn default", "higher default")
WORKERS += ("torchopt default", "jax-loop default")


def test_the_engine_table_is_of_the_measurements() -> None:
    measured = {}
    for path in (EXPERIMENTS / "engine" / "avx512").glob("*.json*"):
        text = path.read_text("utf-8")
        held = map(json.loads, text.splitlines()) if path.suffix == ".jsonl" else json.loads(text)
        for one in held if isinstance(held, list | map) else []:
            if isinstance(one, dict) and "workers" in one:
                cell = one["cell"]
                measured[cell["model"], cell["steps"], cell["tasks"]] = one["workers"]
    found = rows(ENGINE)
    assert len(found) == 22
    # x | ours, `bf16` | learn2learn")
    assert len(found) == 22
    for name, *shown in found:
        model, steps, tasks = re.fullmatch(r"(.+), K=(\d+), T=(\d+)", name).groups()
        workers = measured[MODELS[model], int(steps), int(tasks)]
        for worker, text in zip(WORKERS, shown, strict=True):
            seconds = workers.get(worker, {}).get("seconds")
            if text == "-":
                continue
            rate = int(tasks) / statistics.median(seconds)
            digits = len(text.partition(".")[2])
            assert abs(rate - float(text)) <= 0.5001 * 10**-digits, (name, worker, rate, text)


def test_the_comparison_is_of_its_file() -> None:
    made = json.loads(
        (EXPERIMENTS / "two_stage/compare_resnet56/comparison.json").read_text("utf-8")
    )
    by = {(row["method"], row["shots"]): row for row in made["rows"]}
    found = rows("| family | method | 1-shot | 5-shot |")
    assert [row[1] for row in found] == list(dict.fromkeys(row["method"] for row in made["rows"]))
    for family, method, one, five, episodes, _ in found:
        both = [by[method, shots] for shots in (1, 5)]
        assert family == both[0]["family"]
        for row, text in zip(both, (one, five), strict=True):
            assert text == f"{100 * row['accuracy']:.2f} ± {100 * row['half_width']:.2f}"
        counts = dict.fromkeys(f"{row['episodes']:,}" for row in both)
        assert episodes == ", ".join(counts)
