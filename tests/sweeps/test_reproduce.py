"""A table of published figures: what runs, what is kept, what is written, and what is found out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from metalearn.commands.building.config import compose, conf_folder
from metalearn.sweeps.ledger import Cell, read_ledger
from metalearn.sweeps.ledger_page import Figure, figure, verdict
from metalearn.sweeps.runs import read_run, validation
from tests.command import FAST, metalearn
from tests.sweeps.runs import write_run

ROOT = Path(__file__).parents[2]
TABLES = sorted(path.stem for path in (conf_folder() / "table").glob("*.yaml"))


def table(cells: dict, **more: object) -> str:
    """A file with a table, each cell's overrides after what makes a run a matter of a second."""
    fast = [word for word in FAST if not word.startswith("tracker")]
    usual = {"paper": "A. Author 2020", "conditions": "5-way"}
    held = {name: {**usual, **cell} for name, cell in cells.items()}
    text = yaml.safe_dump({"title": "Tiny", "run": [*fast, "batching=loop"], "cells": held, **more})
    Path("tiny.yaml").write_text(text)
    return "tiny.yaml"


def told(*words: str) -> tuple[int, str, str]:
    """Exit code, what was printed and what was said on standard error."""
    outcome = metalearn("reproduce", *words, "isolate=false")
    return outcome.code, " ".join(outcome.out.split()), outcome.err


def test_what_is_missing_runs_and_what_is_there_is_held_to_its_files(workplace: Path) -> None:
    lost = {"run": ["backbone.filters=[1,2]"]}  # composes, and cannot be built
    good = {"run": ["algorithm.steps=2"], "figure": 20.0, "interval": 0.5, "differs": ["all of it"]}
    other = {"run": ["training.meta_batch=3"], "figure": 99.0}
    name = table({"lost": lost, "good": good, "other": other}, seeds=[0], after=[0, 2])
    Path("README.md").write_text("# Mine\n<!-- metalearn reproduce tiny -->\n<!-- end -->\nLast\n")
    code, out, _ = told(name)
    assert code == 1 and "lost seed 0 failed: filters=[1, 2] must be one number, or 4" in out
    # By the images that pass the network: 2 steps x 3 tasks x 5 ways x 6, 2 x 2 x 5 x 8.
    assert "other seed 0 (1 of 3)" in out or "lost seed 0 (1 of 3)" in out
    assert "failed: lost seed 0; the same command tries them again 2 of 3 runs are there" in out
    place = Path("experiments/tiny/good/seed0")
    kept = {path.name for path in place.iterdir()}
    assert {"config.yaml", "result.json", "episodes.csv", "curve.csv", "learning_curve.png"} <= kept
    result = json.loads((place / "result.json").read_text())
    page = Path("experiments/tiny/README.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| [good](good) |"))
    mean, half = 100 * result["accuracy"], 100 * result["accuracy_half_width"]
    assert f"**{mean:.2f} ± {half:.2f}** | 20.0 ± 0.5 | {mean - 20:+.2f} |" in row
    assert (
        f"| 0 | 4 | 15 a class | transductive | no | 0.00 | `{result['manifest_hash'][:8]}` |"
        in row
    )
    assert "- good: all of it" in page and "| good | " in page  # the second by inner step
    assert "| lost | 5-way (A. Author 2020) | - | - | - | not run |" in page
    # The curve is that of the run, whose records are not kept.
    run_dir = yaml.safe_load((place / "config.yaml").read_text())["run_dir"]
    assert validation(place) == validation(Path(run_dir)) and len(validation(place)) == 2
    readme = Path("README.md").read_text()
    assert f"| `good` | 5-way (A. Author 2020) | **{mean:.2f} ± {half:.2f}** |" in readme
    assert "lost" not in readme and readme.startswith("# Mine\n") and readme.endswith("-->\nLast\n")

    # The same command takes what is there, and tries the failed one again.
    code, out, _ = told(name)
    assert code == 1 and "lost seed 0 (1 of 1)" in out and "good seed" not in out
    code, out, err = told(name, "--dry-run")
    assert (code, err) == (0, "") and "3 cells, 2 runs there, 1 to run: 1 not known" in out
    assert "good seed" not in out
    # Another seed of the same work is told by the rate of the one that is there.
    code, out, _ = told(name, "--dry-run", "seeds=0,1", "cells=good")
    rate = result["tasks_per_second"]
    want = f"good: 4 tasks left at {rate:.1f} tasks/s as in experiments/tiny/good/seed0"
    assert code == 0 and want in out and "1 to run: 0.0 hours of training" in out

    for change, line in (
        ({"accuracy": 0.99}, "says accuracy 0.99, its episodes give"),
        ({"accuracy_half_width": 0.001}, "says half-width 0.001, its episodes give"),
        ({"episodes": 5}, "says 5 episodes, episodes.csv has 4"),
        ({"seed": 7}, "is of seed 7"),
        ({"accuracy_by_step": [[0.2, 0], [0.2, 0], [0.2, 0]]}, "accuracy after 0 steps 0.2"),
    ):
        (place / "result.json").write_text(json.dumps(result | change))
        code, _, err = told(name, "--dry-run", "cells=good")
        assert code == 1 and line in err, (change, err)
    assert line in metalearn("reproduce", name, "cells=good").mistake  # nor does it go on from that
    (place / "result.json").write_text(json.dumps(result))
    Path("experiments/tiny/README.md").write_text(page.replace(f"{mean:.2f}", "99.99"))
    code, _, err = told(name, "--dry-run", "cells=good")
    assert code == 1 and "README.md is not what the records give" in err
    Path("README.md").write_text(readme.replace(f"{mean:.2f}", "99.99"))
    assert (
        told(name, "--write", "cells=good")[0] == 0
        and Path("README.md").read_text() == readme
        and Path("experiments/tiny/README.md").read_text() == page
    )
    name = table({"good": {**good, "run": ["algorithm.steps=1"]}}, seeds=[0])
    assert "trained with algorithm.steps=2, the table's run has 1" in told(name, "--dry-run")[2]


def test_a_run_goes_on_and_one_that_is_not_kept_yet_is_kept(workplace: Path) -> None:
    name = table({"a": {"run": [], "pretrain": ["debug=null"]}}, seeds=[3])
    assert "cell a: " in metalearn("reproduce", name, "--dry-run").mistake  # pretrain has no debug
    name = table({"a": {"run": []}}, seeds=[3])
    assert told(name)[0] == 0
    place = Path("experiments/tiny/a/seed3")
    weights = json.loads((place / "result.json").read_text())["weights_sha256"]
    run = Path(yaml.safe_load((place / "config.yaml").read_text())["run_dir"])
    shutil.rmtree("experiments")
    (run / "result.json").unlink()  # as if it had been killed in its test
    code, out, _ = told(name, "--dry-run")
    assert code == 0 and "a seed 3 has begun: 2 of 2 meta-steps" in out
    code, out, _ = told(name)
    assert code == 0 and f"resuming {run} at step 2" in out
    assert json.loads((place / "result.json").read_text())["weights_sha256"] == weights
    shutil.rmtree("experiments")  # killed after its end, before it was kept
    assert "has finished before" in told(name)[1] and (place / "result.json").is_file()


def test_a_cell_may_start_from_a_run_of_pretraining(workplace: Path) -> None:
    pretrain = [
        "training.steps=1", "training.batch_size=2", "evaluation.episodes=2",
        "evaluation.validation_episodes=2", "held_out.val=0.02", "held_out.test=0.02",
        "evaluation.train_images=2", "backbone=conv4", "backbone.filters=4", "dataset=glyphs",
        "dataset.classes=60", "backbone.norm=running",
    ]  # fmt: skip
    run = ["backbone=conv4", "backbone.norm=frozen", "training.steps=1"]
    assert told(table({"two": {"run": run, "pretrain": pretrain}}, seeds=[0]))[0] == 0
    place = Path("experiments/tiny/two/seed0")
    before = json.loads((place / "pretrain/result.json").read_text())
    told_of = yaml.safe_load((place / "config.yaml").read_text())["backbone"]
    assert told_of["sha256"] == before["weights_sha256"]
    assert told("tiny.yaml", "--dry-run")[0] == 0  # of weights that lie elsewhere by now, too


def test_the_verdict_by_hand() -> None:
    def cell(figure: float | None, interval: float | None = None) -> Cell:
        return Cell("a", "paper", "5-way", (), figure, interval)

    ours = Figure(98.5, 0.3, 2)
    assert verdict(ours, cell(98.7, 0.4)) == ("-0.20", "inside")
    assert verdict(ours, cell(99.0, 0.4)) == ("-0.50", "below by 0.10")
    assert verdict(ours, cell(97.0, 0.4)) == ("+1.50", "above by 1.10")
    assert verdict(ours, cell(98.8)) == ("-0.30", "inside our interval")
    assert verdict(ours, cell(99.5)) == ("-1.00", "below by 0.70 more than our interval")
    assert verdict(ours, cell(None))[0] == "-"


def test_seeds_of_a_cell_are_measured_alike(workplace: Path) -> None:
    for seed, queries in ((0, 15), (1, 5)):
        write_run(Path(f"s{seed}"), "MAML", seed, np.full(4, 0.5), queries=queries, episodes=4)
    runs = [read_run(Path(f"s{seed}")) for seed in (0, 1)]
    with pytest.raises(ValueError, match="s0 and s1 are no seeds of one cell: queries is 15 and 5"):
        figure(runs)


@pytest.mark.parametrize(
    "name", [name for name in TABLES if (ROOT / "experiments" / name).is_dir()]
)
def test_what_is_recorded_is_what_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells compose, records are what their episodes give, and the README is what they give."""
    monkeypatch.chdir(ROOT)
    code, out, err = told(name, "--dry-run", *([] if name == "sinusoid" else ["seeds=0"]))
    assert code == 0, err
    assert name != "omniglot" or " 16 cells, " in out
    assert name != "sinusoid" or out.endswith(" 1 cell, 3 runs there, 0 to run")


def test_the_other_tables_compose() -> None:
    for name in TABLES:
        ledger = read_ledger(conf_folder() / "table" / f"{name}.yaml")
        if not (ROOT / "experiments" / name).is_dir():
            compose(ledger.cells[-1].run)
        assert all(cell.figure is None or cell.differs or ledger.differs for cell in ledger.cells)


MISTAKES = {
    "no table": ([], {}, "reproduce needs one table of cifar_fs, "),
    "two": (["sinusoid", "glyphs"], {}, "reproduce needs one table of "),
    "unknown": (["omnglot"], {}, "no table omnglot (did you mean omniglot?); use "),
    "file": (["gone.yaml"], {}, "gone.yaml cannot be read ("),
    "option": (["tiny.yaml", "cell=a"], {}, "no option cell (did you mean cells?) of reproduce"),
    "cell": (["tiny.yaml", "cells=b"], {}, "table tiny has no cell b; use a"),
    "seeds": (["tiny.yaml", "seeds=x"], {}, "seeds=x must be whole numbers, as seeds=0,1,2"),
    "isolate": (["tiny.yaml", "isolate=no"], {}, "isolate=no must be true or false"),
    "key": (["tiny.yaml"], {"a": {"run": [], "figures": 1}}, "no key figures (did you mean figure"),
    "number": (["tiny.yaml"], {"a": {"run": [], "figure": "98"}}, "figure must be a number or nu"),
    "interval": (["tiny.yaml"], {"a": {"run": [], "interval": 1}}, "an interval and no figure"),
    "run": (["tiny.yaml"], {"a": {"run": "x=1"}}, "cell a: run must be a list of texts, not 'x=1'"),
    "name": (["tiny.yaml"], {"../a": {"run": []}}, "cell ../a must be letters, digits"),
    "override": (["tiny.yaml"], {"a": {"run": ["algorithm=mam"]}}, "table tiny, cell a: "),
    "cells": (["tiny.yaml"], {}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str, workplace: Path) -> None:
    words, cells, line = MISTAKES[case]
    table(cells or ({} if line is None else {"a": {"run": []}}))
    line = line or "tiny.yaml: cells must name a cell or more"
    assert line in metalearn("reproduce", *words, "--dry-run").mistake
    assert not Path("experiments").exists() and not Path("runs").exists()


@pytest.mark.parametrize("text", ["- a list", "title: [", "title: T\ncells: {a: 3}", "seeds: 1"])
def test_a_file_that_is_no_table_is_one_line(text: str, workplace: Path) -> None:
    Path("tiny.yaml").write_text(text)
    assert "tiny.yaml" in metalearn("reproduce", "tiny.yaml").mistake
