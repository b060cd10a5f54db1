"""`metalearn evaluate` on a finished run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metalearn.commands.building.meta_training import build
from metalearn.training.folder import load_weights
from tests.command import FAST, metalearn


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(data_cache))
        assert metalearn("train", *FAST, f"run_dir={folder}").code == 0
    return folder


@pytest.fixture
def run(finished: Path, workplace: Path) -> Path:
    """A copy of it in the current folder."""
    return Path(shutil.copytree(finished, workplace / "run")).relative_to(workplace)


def evaluated(run: Path, *overrides: str) -> tuple[dict[str, Any], Path]:
    """The result of one evaluation and its folder."""
    before = set(run.glob("evaluations/*"))
    outcome = metalearn("evaluate", f"run={run}", *overrides)
    assert outcome.code == 0, outcome.err
    (folder,) = set(run.glob("evaluations/*")) - before
    return json.loads((folder / "result.json").read_text()), folder


def test_without_overrides_it_is_the_test_of_training(run: Path) -> None:
    trained = json.loads((run / "result.json").read_text())
    again, folder = evaluated(run)
    same = ("accuracy", "accuracy_half_width", "manifest_hash", "weights_sha256", "config_hash")
    assert {name: again[name] for name in same} == {name: trained[name] for name in same}
    assert (folder / "episodes.csv").read_text() == (run / "episodes.csv").read_text()


def test_overrides_of_the_evaluation(run: Path) -> None:
    result, folder = evaluated(
        run, "evaluation.episodes=6", "evaluation.split=val", "evaluation.steps=2"
    )
    assert (result["episodes"], result["split"]) == (6, "val")
    assert len(result["accuracy_by_step"]) == 1 + 2
    assert folder.name.startswith("val-") and folder.name.endswith(result["config_hash"][:8])
    assert len((folder / "episodes.csv").read_text().splitlines()) == 1 + 6
    other, _ = evaluated(run, "episodes.queries=5", "batching=vmap")
    assert (other["queries"], other["episodes"]) == (5, 4)


def test_a_transductive_method_sees_the_queries_and_says_so(workplace: Path) -> None:
    asked = [o for o in FAST if not o.startswith("algorithm")]
    assert metalearn("train", *asked, "algorithm=soft_kmeans", "run_dir=run").code == 0
    trained = json.loads(Path("run/result.json").read_text())
    again, _ = evaluated(Path("run"))
    assert trained["transductive"] is again["transductive"] is True
    assert again["accuracy"] == trained["accuracy"]
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    built = build(config, trained=True)[1]
    meta = load_weights(Path("run/weights.safetensors"), built.meta)
    algo = built.algo
    right, alone = [], []
    for episode in built.test.batches(1):
        (x, y, _), (q, truth, _), _ = episode.map(lambda t: t[0])
        with torch.no_grad():
            x, q = (algo.net.apply({**meta["buffers"], **meta["init"]}, t) for t in (x, q))
        hot = torch.nn.functional.one_hot(y).to(x.dtype)
        means = (hot.T @ x) / hot.sum(0)[:, None]
        share = (-((q[:, None] - means) ** 2).sum(2)).softmax(1)
        refined = (hot.T @ x + share.T @ q) / (hot.sum(0) + share.sum(0))[:, None]
        for found, centres in ((right, refined), (alone, means)):
            nearest = ((q[:, None] - centres) ** 2).sum(2).argmin(1)
            found.append((nearest == truth).double().mean().item())
    assert np.mean(right) == pytest.approx(trained["accuracy"], abs=1e-6)
    assert right != alone


MISTAKES = {
    "episodes.wyas=3": "no key episodes.wyas (did you mean episodes.ways?)",
    "+episodes.wyas=3": "no key episodes.wyas (did you mean episodes.ways?)",
    "evaluation.episodes=many": "evaluation.episodes must be a whole number",
    "evaluation.episodes=0": "evaluation.episodes=0 must be 1 or more",
    "evaluation.split=tset": "split='tset' is not known; use train, val, test",
    "evaluation.episodes=1,2": "evaluate takes single values, not evaluation.episodes=1,2",
    "algorithm=protonet": "evaluate keeps the run's algorithm; override values inside it",
    "episodes.ways=3": "episodes.ways=3, but the network has 5 outputs",
    "[": "cannot read '['; write name=value",
    "run=other": "evaluate needs one run",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line(override: str, run: Path) -> None:
    assert MISTAKES[override] in metalearn("evaluate", f"run={run}", override).mistake
    assert not (run / "evaluations").exists()


def test_an_unfinished_or_damaged_run_is_one_line(run: Path) -> None:
    (run / "weights.safetensors").write_bytes(b"no weights at all")
    told = metalearn("evaluate", f"run={run}").mistake
    assert "weights.safetensors is not what the run wrote" in told
    (run / "weights.safetensors").unlink()
    assert "run has not finished" in metalearn("evaluate", f"run={run}").mistake
    (run / "config.yaml").write_text("seed: [")
    assert "config.yaml is damaged" in metalearn("evaluate", f"run={run}").mistake
