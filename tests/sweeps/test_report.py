"""One table of many runs: what stands in a cell, what may not, and every file that is written."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.command import metalearn
from tests.sweeps.runs import write_run


def drawn(mean: float, number: int, episodes: int = 50) -> np.ndarray:
    hard = np.random.default_rng(0).normal(0, 0.05, episodes)
    return mean + hard + np.random.default_rng(number).normal(0, 0.01, episodes)


@pytest.fixture
def runs(workplace: Path) -> Path:
    """Two methods, two shots, three seeds; a transductive one; one that has not finished."""
    for place, (algorithm, mean) in enumerate([("MAML", 0.6), ("ProtoNet", 0.7)]):
        for shots in (1, 5):
            for seed in range(3):
                values = drawn(mean + shots / 50, 10 * place + seed)
                write_run(
                    Path(f"runs/{algorithm}-{shots}-{seed}"), algorithm, seed, values, shots=shots,
                    config={"outputs": 5 + shots},  # what follows the condition is no row
                )  # fmt: skip
    own = {"outputs": 6}
    write_run(Path("runs/soft"), "Soft", 0, drawn(0.9, 7), config=own, transductive=True)
    (workplace / "runs/begun").mkdir()
    (workplace / "runs/begun/config.yaml").write_text("seed: 0\n")
    return workplace


def test_a_table_of_seeds(runs: Path) -> None:
    outcome = metalearn("report", "runs", "out=a/report")
    assert outcome.code == 0, outcome.err
    assert "left out: runs/begun has not finished" in outcome.out and "13 runs" in outcome.out
    text = (runs / "a/report/report.md").read_text()
    assert "over episodes alone. Of fewer than 5 seeds it is" in text
    inductive, transductive = text.split("Transductive methods")
    assert "| algorithm | seeds | omniglot 5-way 1-shot | omniglot 5-way 5-shot | IQM |" in text
    row = next(line for line in inductive.splitlines() if line.startswith("| MAML |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    want = 100 * np.mean([drawn(0.62, seed).mean() for seed in range(3)])
    assert cells[1] == "3" and cells[2].startswith(f"{want:.2f} ± ") and cells[2].endswith("†")
    assert cells[-3:] == ["10.0", "1024", "6.00"] and cells[5] == "0.00"
    # The best of the others is best there, though a transductive method is above it.
    assert re.search(r"\| ProtoNet \| 3 \| \*\*7\d\.\d\d ± ", inductive)
    assert re.search(r"\| Soft \| 1 \| \*\*9\d\.\d\d ± .* \| - \| - \|", transductive)
    made = list(csv.DictReader((runs / "a/report/report.csv").read_text().splitlines()))
    assert len(made) == 5 == len(json.loads((runs / "a/report/report.json").read_text()))
    one = next(r for r in made if r["algorithm"] == "MAML" and r["condition"].endswith("5-shot"))
    assert float(one["p"]) < 0.05 and float(one["gap_low"]) < float(one["gap"]) < 0
    assert float(one["low"]) < float(one["mean"]) < float(one["high"])
    assert one["folders"].split()[0] == "runs/MAML-5-0"


def test_latex_and_the_page(runs: Path) -> None:
    assert metalearn("report", "runs").code == 0
    tex = (runs / "report/report.tex").read_text()
    lines = [
        line for line in tex.splitlines() if line.endswith("\\\\") and "multicolumn" not in line
    ]
    assert len(lines) == 4 and len({line.count("&") for line in lines}) == 1
    assert tex.count("{") == tex.count("}") and "\\toprule" in tex and "$\\pm$" in tex
    _compile(tex)
    page = (runs / "report/report.html").read_text()
    assert page.count("<img ") == 4 and page.count("<tr class=") == 3
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)  # it needs nothing beside it


def _compile(tex: str) -> None:
    if shutil.which("pdflatex") is None:
        print("not compiled: there is no pdflatex here")
        return
    head = "\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage{booktabs}"
    text = f"{head}\\begin{{document}}\n{tex}\n\\end{{document}}\n"
    Path("table.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and Path("table.pdf").stat().st_size > 1000, done.stdout[-2000:]


def test_as_few_settings_as_tell_the_rows_apart(workplace: Path) -> None:
    for number, (name, rate) in enumerate([("MAML", 0.1), ("ANIL", 0.2), ("Reptile", 0.2)]):
        inner = {"inner": {"rate": rate}}
        write_run(Path(f"runs/{name}"), name, 0, drawn(0.5, number), config=inner)
    assert metalearn("report", "runs").code == 0
    text = (workplace / "report/report.md").read_text()
    assert "| algorithm | seeds |" in text and "The rows differ in more: inner.rate" in text
    made = json.loads((workplace / "report/report.json").read_text())
    assert [(row["algorithm"], row["inner.rate"]) for row in made] == [
        ("ANIL", 0.2), ("MAML", 0.1), ("Reptile", 0.2),
    ]  # fmt: skip


def test_runs_of_an_older_version_and_pre_training(workplace: Path) -> None:
    old = Path(__file__).parents[1] / "old_runs"
    outcome = metalearn("report", str(old))
    assert outcome.code == 0 and "1 runs" in outcome.out, outcome.err
    assert f"left out: {old}/pretrain is of no test episodes" in outcome.out


def test_rows_by_a_setting(runs: Path) -> None:
    for seed, rate in ((0, 0.1), (1, 0.1), (0, 0.2)):
        folder = Path(f"rates/{seed}-{rate}")
        write_run(folder, "MAML", seed, drawn(0.5 + rate, seed), config={"inner": {"rate": rate}})
    assert metalearn("report", "rates").code == 0
    text = (runs / "report/report.md").read_text()
    assert "| rate | seeds |" in text and "| 0.1 | 2 |" in text and "| 0.2 | 1 |" in text
    told = metalearn("report", "rates", "by=algorithm").mistake
    assert "cannot stand in one cell: inner.rate differs; add it to by=" in told


def test_a_loss_is_best_where_it_is_least(workplace: Path) -> None:
    for name, mean in (("MAML", 0.4), ("ANIL", 0.9)):
        values = drawn(mean, 1)
        write_run(
            Path(f"runs/{name}"), name, 0, values, accuracy=None, loss=float(values.mean()),
            ways=None, shots=10, dataset="sinusoid", accuracy_by_step=None,
        )  # fmt: skip
    assert metalearn("report", "runs").code == 0
    text = (workplace / "report/report.md").read_text()
    assert re.search(r"\| MAML \| 1 \| \*\*0\.\d{4} ± ", text) and "sinusoid 10-shot" in text
    assert re.search(r"\| ANIL \| 1 \| 0\.\d{4} ± \d\.\d{4}† ", text)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"manifest_hash": "b" * 64}, "their test episodes differ (aaaaaaaaaaaa and bbbbbbbbbbbb)"),
        ({"norm_policy": "running"}, "their norm policy differ (transductive and running)"),
        ({"queries": 5}, "their queries differ (15 and 5)"),
        ({"transductive": True}, "their transduction differ (False and True)"),
        ({"seed": 0}, "are both of seed 0; leave one out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unlike_runs_are_no_cell(more: dict, told: str, workplace: Path) -> None:
    write_run(Path("runs/a"), "MAML", 0, drawn(0.5, 0))
    write_run(Path("runs/b"), "MAML", more.pop("seed", 1), drawn(0.5, 1), **more)
    mistake = metalearn("report", "runs").mistake
    assert told in mistake and mistake.startswith("runs/a and runs/b ")
    assert not (workplace / "report").exists()


def test_what_was_measured_on_other_episodes_is_not_compared(workplace: Path) -> None:
    write_run(Path("runs/a"), "MAML", 0, drawn(0.5, 0))
    write_run(Path("runs/b"), "ANIL", 0, drawn(0.4, 0, 20), manifest_hash="b" * 64)
    assert metalearn("report", "runs").code == 0
    text = (workplace / "report/report.md").read_text()
    assert "what saw other episodes than the best is not compared" in text
    assert not re.search(r"\| ANIL .*†", text)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "report needs runs: metalearn report runs/* [out=report]"),
        (["nowhere"], "nowhere is not there; name folders of runs"),
        (["empty"], "empty holds no run: neither result.json nor config.yaml is there"),
        (["begun"], "no run in begun has finished"),
        (["good", "by=algoritm"], "by=algoritm is no setting of these runs (did you mean"),
        (["good", "confidence=2"], "confidence=2 must lie between 0 and 1"),
        (["good", "ouut=x"], "no option ouut (did you mean out?) of"),
        (["spoilt"], "spoilt cannot be read (JSONDecodeError"),
        (["other"], "other cannot be read (KeyError: 'shots')"),
        (["nan"], "nan has test episodes of which accuracy is no number, or none at all"),
        (["seedless"], "seedless cannot be read (ValueError: no seed, or no settings)"),
        (["good", "--to", "mlflow"], "to=mlflow is not known; use --to wandb"),
        (["good", "--to"], "to= is not known; use --to wandb"),
        (["good", "project=x"], "project= goes with --to wandb"),
        (["good", "--to", "wandb", "mode=never"], "mode=never must be online or offline"),
        (["good", "loss"], "classification and regression cannot stand in one table"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(words: list[str], told: str, workplace: Path) -> None:
    write_run(Path("good"), "MAML", 0, drawn(0.5, 0))
    write_run(Path("spoilt"), "MAML", 0, drawn(0.5, 0))
    Path("spoilt/result.json").write_text('{"accuracy": ')
    write_run(Path("other"), "MAML", 0, drawn(0.5, 0), shots=None)
    write_run(Path("loss"), "MAML", 0, drawn(0.5, 0), accuracy=None, loss=0.5)
    write_run(Path("nan"), "MAML", 0, np.array([0.5, np.nan]))
    write_run(Path("seedless"), "MAML", 0, drawn(0.5, 0))
    result = json.loads(Path("seedless/result.json").read_text())
    Path("seedless/result.json").write_text(json.dumps(result | {"seed": None}))
    Path("empty").mkdir()
    Path("begun").mkdir()
    Path("begun/config.yaml").write_text("seed: 0\n")
    assert told in metalearn("report", *words).mistake
