"""What a report shows of a search, in a browser too, and on W&B."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from metalearn.sweeps.cells import arrange
from metalearn.sweeps.importance import drawn, importances, score, searched
from metalearn.sweeps.runs import read_runs
from tests.command import metalearn
from tests.sweeps.runs import write_run


def search(count: int = 16) -> None:
    """Runs of which the rate decides, by its logarithm; the optimizer does nothing."""
    rng = np.random.default_rng(0)
    for number in range(count):
        rate, steps = float(10 ** rng.uniform(-3, 0)), int(rng.integers(1, 4))
        value = 0.6 - 0.1 * abs(np.log10(rate) + 1.5) + 0.01 * steps
        config = {
            "algorithm": {"_target_": "metalearn.algorithms.MAML", "steps": steps},
            "inner": {"rate": rate}, "outer": {"_target_": f"x.{('Adam', 'SGD')[number % 2]}"},
            "training": {"steps": 10 * steps}, "schedule": {"T_max": 10 * steps},
            "name": f"trial{number}",
        }  # fmt: skip
        values = value + rng.normal(0, 0.01, 20)
        folder = Path(f"runs/{number:02d}")
        write_run(folder, "MAML", 0, values, config=config, validation_score=value)


def test_importances_name_what_decides(workplace: Path) -> None:
    search()
    runs, _ = read_runs([Path("runs")])
    names = searched(runs)
    # Neither the name nor what always has the same value as another.
    assert sorted(names) == ["algorithm.steps", "inner.rate", "outer", "schedule.T_max"]
    shares = importances(runs, names)
    assert next(iter(shares)) == "inner.rate" and shares["inner.rate"] > 0.6
    assert sum(shares.values()) == pytest.approx(1) and shares["outer"] < 0.1
    assert shares == importances(runs, names)  # of one seed
    assert [score(run) for run in runs] == [run.result["validation_score"] for run in runs]
    assert importances([runs[0]] * 3, names) == {}
    assert list(drawn(arrange(runs[:8]))) == ["The search"] and drawn(arrange(runs[:7])) == {}


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
SCRIPT = """<script>
const told = [], table = document.querySelector('table');
window.onerror = (message, file, line) => told.push('error: ' + message);
const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join(' ');
const heads = [...table.tHead.rows[0].cells];
const head = name => heads.find(cell => cell.textContent === name);
told.push(order());
for (const name of ['algorithm', 'algorithm', 'omniglot 5-way 1-shot', 'omniglot 5-way 1-shot']) {
  head(name).click(); told.push(order()); }
head('omniglot 5-way 5-shot').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}));
told.push(order());
told.push([...document.images].every(image => image.complete && image.naturalWidth > 300));
document.body.dataset.told = told.join('; ');
</script>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium to open the page in")
def test_the_page_sorts_in_a_browser(workplace: Path) -> None:
    for name, mean, shots in (
        ("Far", 0.095, (1,)), ("Best", 0.8, (1, 5)), ("Alike", 0.5, (1, 5)), ("Less", 0.4, (5,)),
    ):  # fmt: skip
        for k in shots:
            values = mean + np.random.default_rng(k).normal(0, 0.01, 20)
            write_run(Path(f"runs/{name}-{k}"), name, 0, values, shots=k)
    assert metalearn("report", "runs").code == 0
    page = Path("report/report.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://", page)
    Path("report/tried.html").write_text(page.replace("</body>", f"{SCRIPT}</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=3000", f"--user-data-dir={workplace}/profile"]
    address = (workplace / "report/tried.html").as_uri()
    done = subprocess.run([*command, address], capture_output=True, text=True, check=False)
    told = re.search(r'data-told="([^"]*)"', done.stdout)
    assert told, (done.stdout[-500:], done.stderr[-500:])
    begin, *rest = told[1].split("; ")
    assert sorted(begin.split()) == ["Alike", "Best", "Far", "Less"]
    assert rest == [
        "Alike Best Far Less", "Less Far Best Alike",  # by name, and the other way
        "Far Alike Best Less", "Best Alike Far Less",  # by number; what is missing last
        "Less Alike Best Far", "true",  # by the keyboard; the pictures are there
    ]  # fmt: skip


def test_to_wandb_without_a_server(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        write_run(Path(f"runs/{seed}"), "MAML", seed, np.full(5, 0.5) + seed / 100)
    outcome = metalearn("report", "runs", "--to", "wandb", "project=p")
    assert outcome.code == 0, outcome.err
    assert "W&B: recording offline (no API key for " in outcome.out
    place = Path(re.search(r"W&B: (\S*offline-run-\S*)", outcome.out)[1])
    assert place.is_dir() and place.resolve().is_relative_to(workplace / "report")
    limit = time.monotonic() + 300
    while not list(place.glob("run-*.wandb")):  # written by a process of W&B's own
        assert time.monotonic() < limit
        time.sleep(0.1)
    (table,) = place.rglob("table_*.table.json")
    held = json.loads(table.read_text())
    row = dict(zip(held["columns"], held["data"][0], strict=True))
    assert row["algorithm"] == "MAML" and row["seeds"] == 2 and row["mean"] == pytest.approx(0.505)
    assert [p.read_text() for p in place.rglob("page_*.html")] == [
        Path("report/report.html").read_text()
    ]
