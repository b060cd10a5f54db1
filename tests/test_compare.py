"""`metalearn compare` on glyphs: its numbers against plain loops, its choices, its resumption."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metalearn.classifiers import PTMAP, Cosine, DistributionCalibration, Ridge, SimpleShot
from metalearn.commands.building.config import conf_folder
from metalearn.commands.building.meta_training import build
from metalearn.commands.compare import setting_of
from metalearn.commands.parts.compare_plan import plan
from metalearn.data import ImageDataset
from metalearn.evaluation import evaluate
from metalearn.evaluation.comparison import methods
from metalearn.evaluation.comparison.base import knowing_base
from metalearn.evaluation.comparison.setting import Setting
from metalearn.evaluation.on_features import classifying, measure
from metalearn.tracking import read_records
from metalearn.training.folder import load_weights
from tests import preloaded
from tests.command import META_TRAINED, Outcome, metalearn

SMALL = (
    "dataset.classes=60",
    "dataset.size=16",
    "backbone.filters=4",
    "norm=group",  # random weights, whose running averages would be of nothing
    "episodes.ways=3",
    "episodes.queries=4",
    "evaluation.episodes=12",
    "evaluation.network_episodes=3",
    "evaluation.timed=1",
    META_TRAINED,
    "tuning.episodes=8",
    "tuning.network_episodes=2",
    "tuning.head_rates=[0.1,10]",
    "tuning.head_steps=[1,8]",
    "tuning.rates=[0.01,0.3]",
    "tuning.steps=[1,3]",
    "meta.seconds=0.2",
    "meta.shots=2",
    "isolate=false",
    "tracker=disabled",
    "tracker.plots=false",
    "run_dir=run",
)
CHEAP = "methods=[untrained,nearest_centroid,logistic_regression,fine_tune_head]"


def compare(*overrides: str) -> Outcome:
    return metalearn("compare", *SMALL, *overrides)


def made(folder: str = "run") -> dict[str, Any]:
    return json.loads(Path(folder, "comparison.json").read_text())


def numbers(folder: str = "run") -> tuple[Any, ...]:
    """Everything of a comparison that chance or the clock must not change."""
    found = made(folder)
    rows = [{n: v for n, v in row.items() if n != "milliseconds"} for row in found["rows"]]
    episodes = Path(folder, "episodes.csv").read_text()
    return rows, found["chosen"], found["manifests"], found["norm_policy"], episodes


def accuracies(method: str, shots: int, folder: str = "run") -> np.ndarray:
    held = json.loads(Path(folder, "methods", f"{method}.json").read_text())
    return np.array(held["shots"][str(shots)]["accuracies"])


def setting(*overrides: str) -> Setting:
    return setting_of(plan([*SMALL, *overrides]))


def test_a_classifier_is_told_of_the_base_classes_where_it_asks(workplace: Path) -> None:
    here = setting()
    network = here.bare()
    told = knowing_base(SimpleShot(), here, network)
    manifest = here.features(network, 1, "train", 12)
    drawn = torch.cat([batch.support.x[0] for batch in manifest.batches(1)])
    features = manifest.source.features
    assert all((features == x).all(1).any() for x in drawn)
    torch.testing.assert_close(told.centre, features.mean(0))
    calibrated = knowing_base(DistributionCalibration(), here, network)
    assert len(calibrated.means) <= len(here.dataset.sizes["train"])
    assert knowing_base(Cosine(), here, network) == Cosine()


def test_what_a_comparison_leaves_behind(workplace: Path) -> None:
    outcome = compare(CHEAP, "seed=3")
    assert outcome.code == 0, outcome.err
    found = made()
    assert [row["method"] for row in found["rows"]] == 2 * [
        "untrained", "nearest_centroid", "logistic_regression", "fine_tune_head",
    ]  # fmt: skip
    assert "3-way 1-shot, manifest" in outcome.out and "3-way 5-shot" in outcome.out
    # No weights are given, so that both are the features of the same random network.
    assert (accuracies("untrained", 5) == accuracies("nearest_centroid", 5)).all()
    for row in found["rows"]:
        kept = accuracies(row["method"], row["shots"])
        assert row["episodes"] == 12 and row["accuracy"] == pytest.approx(kept.mean())
        assert row["milliseconds"] > 0
    with Path("run/episodes.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 24 and lines[13]["shots"] == "5" and lines[13]["index"] == "1"
    assert float(lines[13]["fine_tune_head"]) == accuracies("fine_tune_head", 5)[1]
    (record,) = [r for r in read_records("run/metrics.jsonl") if r["kind"] == "table"]
    place = record["columns"].index("accuracy")
    assert [row[place] for row in record["rows"]] == [row["accuracy"] for row in found["rows"]]
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    again = compare(CHEAP, "seed=3")
    assert again.code == 0 and "has finished before" in again.out
    assert again.out.partition("3-way")[2] == outcome.out.partition("3-way")[2].replace(
        "comparison folder: run\n", ""
    )
    after = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }
    assert compare("methods=[untrained]", "resume=never", "seed=3").code == 0
    assert made("run-2")["rows"] and made()["rows"] == found["rows"]


def test_the_network_and_its_head_descend_as_in_a_plain_loop(workplace: Path) -> None:
    outcome = compare("methods=[fine_tune_all]", "episodes.shots=[2]")
    assert outcome.code == 0, outcome.err
    chosen = made()["chosen"]["fine_tune_all"]["2"]
    here = setting("episodes.shots=[2]")

    def reached(split: str, count: int, rate: float, steps: int) -> list[float]:
        found = []
        for batch in here.images(2, split, count).batches(1):
            module = here.network(here.plan.headed).net.module
            for weight in module.head.parameters():
                torch.nn.init.zeros_(weight)
            optimizer = torch.optim.SGD(module.parameters(), lr=rate)
            for _ in range(steps):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(
                    module(batch.support.x[0]), batch.support.y[0]
                )
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                right = module(batch.query.x[0]).argmax(1) == batch.query.y[0]
            found.append(float(right.double().mean()))
        return found

    tried = {
        (rate, steps): np.mean(reached("val", 2, rate, steps))
        for rate in (0.01, 0.3)
        for steps in (1, 3)
    }
    assert tried[chosen["rate"], chosen["steps"]] == max(tried.values())
    assert chosen["accuracy"] == pytest.approx(max(tried.values()))
    wanted = reached("test", 3, chosen["rate"], chosen["steps"])
    np.testing.assert_allclose(accuracies("fine_tune_all", 2), wanted, atol=1e-6)


def test_the_head_is_tuned_on_validation_alone(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    images, tuned = ImageDataset.images, methods.tuned

    def noted(self: ImageDataset, split: str, *which: Any) -> np.ndarray:
        read.append(split)
        return images(self, split, *which)

    def within(*arguments: Any) -> Any:
        read.append("tune")
        choice = tuned(*arguments)
        read.append("tuned")
        return choice

    monkeypatch.setattr(ImageDataset, "images", noted)
    monkeypatch.setattr(methods, "tuned", within)
    names = ["fine_tune_head", "fine_tune_all"]
    assert compare(f"methods=[{','.join(names)}]", "episodes.shots=[1]").code == 0
    assert read.count("tune") == 2 and "test" in read
    for part in " ".join(read).split("tune ")[1:]:
        assert set(part.partition("tuned")[0].split()) <= {"val"}
    for name in names:
        choice = made()["chosen"][name]["1"]
        assert choice["rate"] in (0.1, 10, 0.01, 0.3) and choice["steps"] in (1, 3, 8)


def test_what_was_meta_learned_is_measured_on_features_as_on_images(workplace: Path) -> None:
    """With inductive norms a feature does not depend on the images beside it."""
    names = ["protonet", "anil", "meta_baseline", "maml", "protonet_scratch", "r2d2", "soft"]
    asked = (
        "norm=frozen", "episodes.shots=[1]", "evaluation.network_episodes=6",
        '+meta.overrides.r2d2=["algorithm=r2d2"]',
        '+meta.overrides.soft=["algorithm=soft_kmeans"]',
    )  # fmt: skip
    outcome = compare(f"methods=[{','.join(names)}]", *asked)
    assert outcome.code == 0, outcome.err
    here = setting(*asked)
    for name in names:
        config = yaml.safe_load(Path("run", name, "config.yaml").read_text())
        _, built = build(config)
        meta = load_weights(Path("run", name, "weights.safetensors"), built.meta)
        count = 6 if name == "maml" else 12  # it alone adapts what the features come from
        report = evaluate(built.algo, meta, here.images(1, "test", count))
        np.testing.assert_allclose(accuracies(name, 1), report.accuracies, atol=1e-6)
    found = made()
    assert [row["method"] for row in found["rows"] if row["transductive"]] == ["soft"]
    text = Path("run/comparison.md").read_text()
    assert "| soft † |" in text and "† soft: transductive" in text
    costs = {cost["method"]: cost for cost in found["costs"]}
    head = 4 * 1 * 3 + 3
    assert costs["anil"]["adapted"] == head and costs["protonet"]["adapted"] == 0
    assert costs["maml"]["adapted"] == costs["maml"]["learned"] == costs["anil"]["learned"]
    assert costs["meta_baseline"]["learned"] == costs["protonet"]["learned"] + 1
    assert costs["maml"]["learned"] == costs["protonet"]["learned"] + head
    assert all(cost["seconds"] >= 0.2 for cost in costs.values())
    assert found["norm_policy"] == "frozen; group for protonet_scratch"


def test_methods_that_are_all_meta_trained_may_have_norms_of_the_task(workplace: Path) -> None:
    asked = (
        "norm=support",
        "episodes.shots=[1]",
        "evaluation.network_episodes=6",
        "meta.shots=1",
        '+meta.overrides.ridge=["algorithm=metric","classifier=ridge"]',
    )
    names = "methods=[ridge]"
    outcome = compare(names, *asked)
    assert outcome.code == 0, outcome.err
    found = made()
    (row,), (cost,) = found["rows"], found["costs"]
    assert (row["method"], row["family"], row["episodes"]) == ("ridge", "meta-learning", 6)
    assert found["norm_policy"] == "support"
    _, built = build(yaml.safe_load(Path("run/ridge/config.yaml").read_text()))
    meta = load_weights(Path("run/ridge/weights.safetensors"), built.meta)
    report = evaluate(built.algo, meta, setting(names, *asked).images(1, "test", 6))
    np.testing.assert_allclose(accuracies("ridge", 1), report.accuracies, atol=1e-6)
    training = found["training"]["ridge"]
    assert cost["tasks_per_second"] == training["tasks"] / training["seconds"]


def test_a_classifier_that_is_meta_trained_knows_the_width_of_the_comparison() -> None:
    asked = ("methods=[frn]", '+meta.overrides.frn=["algorithm=metric","classifier=frn"]')
    for backbone, channels in (
        (["backbone.filters=12"], 12),
        (["backbone=cifar_resnet", "dataset=cifar_fs"], None),
    ):
        run = plan([*asked, *backbone]).runs["frn"]
        assert run["classifier"]["channels"] == channels
        assert run["backbone"].get("filters") == channels


def test_a_whole_comparison_by_name() -> None:
    made = plan(["comparison=omniglot", "methods=[maml,relation]", "meta.seconds=7"])
    assert made.methods == ["maml", "relation"] and not made.config["classifiers"]
    assert made.config["evaluation"]["network_episodes"] == 1000
    for run in made.runs.values():
        assert run["training"]["seconds"] == 7 and run["training"]["steps"] >= 10**6
        assert (run["backbone"]["norm"], run["seed"]) == ("support", 0)
        assert run["dataset"]["_target_"].endswith("omniglot") and not run["outer"]["schedule"]
    assert made.runs["relation"]["classifier"]["_target_"].endswith("Relation")
    written = yaml.safe_load((conf_folder() / "comparison" / "omniglot.yaml").read_text("utf-8"))
    assert set(written["methods"]) == set(written["meta"]["overrides"])
    assert len(written["methods"]) >= 15
    for words in written["meta"]["overrides"].values():
        for group, _, name in (word.partition("=") for word in words):
            if group in ("algorithm", "classifier", "loss"):
                assert (conf_folder() / group / f"{name}.yaml").exists(), name


def test_classifiers_by_name_on_balanced_and_on_dirichlet_queries(workplace: Path) -> None:
    names = ["nearest_centroid", "ridge_like", "ptmap", "soft_kmeans"]
    asked = (
        "episodes.shots=[2]", "sampling.queries=[balanced,dirichlet]", "classifiers.ptmap.steps=3",
        "+classifiers.ridge_like._target_=metalearn.classifiers.Ridge",
    )  # fmt: skip
    outcome = compare(f"methods=[{','.join(names)}]", *asked)
    assert outcome.code == 0, outcome.err
    found, here = made(), setting(*asked, f"methods=[{','.join(names)}]")
    assert here.plan.config["classifiers"]["ptmap"]["ways"] == 3
    network = here.bare()
    for queries, key in (("balanced", "2"), ("dirichlet", "2 dirichlet")):
        manifest = here.drawing(queries).features(network, 2, "test", 12)
        assert found["manifests"][key] == manifest.hash
        for name, classifier in (("ridge_like", Ridge()), ("ptmap", PTMAP(steps=3, ways=3))):
            report = measure(classifying(classifier), manifest)
            held = json.loads(Path("run", "methods", f"{name}.json").read_text())["shots"][key]
            np.testing.assert_allclose(held["accuracies"], report.accuracies, atol=1e-6)
    assert len({*found["manifests"].values()}) == 2
    assert [(row["method"], row["transductive"]) for row in found["rows"]][:4] == [
        ("nearest_centroid", False), ("ridge_like", False), ("ptmap", True), ("soft_kmeans", True),
    ]  # fmt: skip
    assert [row["family"] for row in found["rows"]][2:4] == ["transductive"] * 2
    assert len(list(Path("run/features").iterdir())) == 1


def test_the_seed_draws_the_weights_and_not_the_episodes(workplace: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        overrides = (f"run_dir={folder}", f"seed={seed}")
        assert compare("methods=[untrained,logistic_regression]", *overrides).code == 0
    assert numbers("a") == numbers("b")
    assert made("a")["manifests"] == made("c")["manifests"]
    assert numbers("a")[0] != numbers("c")[0]


def test_a_killed_comparison_goes_on_and_ends_with_the_same_numbers(workplace: Path) -> None:
    assert compare(CHEAP, "run_dir=whole").code == 0
    with preloaded.metalearn("compare", *SMALL, CHEAP) as killed:
        end = time.monotonic() + 600
        while not Path("run/methods/untrained.json").exists() and time.monotonic() < end:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    first = Path("run/methods/untrained.json").stat().st_mtime_ns
    assert not Path("run/comparison.json").exists()
    assert compare(CHEAP).code == 0
    assert Path("run/methods/untrained.json").stat().st_mtime_ns == first
    assert numbers() == numbers("whole")


BAD = '+meta.overrides.bad=["algorithm=maml","gradient=displacement"]'
WHY = "algorithm=maml cannot use gradient=displacement; use gradient=adjoint"


def test_a_method_that_fails_is_named_and_the_others_are_kept(workplace: Path) -> None:
    asked = (BAD, "methods=[bad,nearest_centroid]", "episodes.shots=[1]")
    outcome = compare(*asked)
    assert outcome.code == 1 and f"bad failed: {WHY}" in outcome.out
    assert WHY in made()["failed"]["bad"] and WHY in Path("run/comparison.md").read_text()
    assert [row["method"] for row in made()["rows"]] == ["nearest_centroid"]
    kept = Path("run/methods/nearest_centroid.json").stat().st_mtime_ns
    again = compare(*asked)
    assert again.code == 1 and "failed: bad; the same command tries them again" in again.out
    assert Path("run/methods/nearest_centroid.json").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_methods_in_processes_of_their_own_give_the_same_numbers(workplace: Path) -> None:
    asked = (BAD, "methods=[bad,nearest_centroid,logistic_regression,protonet]")
    outcome = compare(*asked, "isolate=true", "jobs=2", "run_dir=apart")
    assert outcome.code == 1 and WHY in made("apart")["failed"]["bad"]
    assert "2 methods at a time" in outcome.out
    assert "test at step" in Path("apart/methods/protonet.log").read_text()
    assert compare(*asked).code == 1
    for name in ("nearest_centroid", "logistic_regression"):
        for shots in (1, 5):
            assert (accuracies(name, shots) == accuracies(name, shots, "apart")).all()
    costs = {cost["method"]: cost for cost in made("apart")["costs"]}
    assert costs["protonet"]["training_peak_memory_bytes"] > 2**27
    assert 2**27 < costs["nearest_centroid"]["peak_memory_bytes"] < 2**31


@pytest.mark.slow
def test_sigterm_stops_a_method_in_its_own_process_and_the_same_command_goes_on(
    workplace: Path,
) -> None:
    asked = [*SMALL, "isolate=true", "methods=[protonet]", "meta.seconds=8"]
    command = [sys.executable, "-m", "metalearn.cli", "compare", *asked]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as stopped:
        end = time.monotonic() + 600
        while not list(Path("run").glob("protonet/metrics.jsonl")) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)
        stopped.terminate()
        out, _ = stopped.communicate(timeout=600)
    assert stopped.returncode == 143
    assert "stopped; the same command goes on from there" in out
    assert list(Path("run").glob("protonet/checkpoints/step-*"))
    assert not Path("run/methods/protonet.json").exists()
    outcome = metalearn("compare", *asked)
    assert outcome.code == 0 and 8 <= made()["costs"][0]["seconds"] < 120


def test_all_methods_by_default_and_ones_own_beside_them() -> None:
    mine = ('+meta.overrides.mine=["algorithm=anil","algorithm.steps=2"]', "meta.seconds=7")
    made = plan([*SMALL, *mine, "scratch_norm=none"])
    assert made.methods == [
        "untrained", "nearest_centroid", "logistic_regression", "linear_probe", "fine_tune_head",
        "fine_tune_all", "protonet", "maml", "anil", "meta_baseline", "mine", "protonet_scratch",
        "maml_scratch",
    ]  # fmt: skip
    run = made.runs["mine"]
    assert run["algorithm"]["steps"] == 2 and run["training"]["seconds"] == 7
    assert run["episodes"] == {"ways": 3, "shots": 2, "queries": 4}
    assert {run["training"]["seconds"] for run in made.runs.values()} == {7}
    assert made.runs["protonet"]["backbone"]["ways"] is None
    assert made.runs["maml"]["backbone"]["ways"] == 3
    assert made.runs["maml"]["backbone"]["norm"] == "group"
    assert made.runs["maml_scratch"]["backbone"]["norm"] == "none"
    assert made.runs["maml_scratch"]["algorithm"] == made.runs["maml"]["algorithm"]


def test_the_configuration_is_printed(workplace: Path) -> None:
    outcome = metalearn("compare", "--cfg", "job", "episodes.shots=[1,20]", "dataset=cifar_fs")
    config = yaml.safe_load(outcome.out)
    assert config["episodes"]["shots"] == [1, 20] and config["meta"]["seconds"] == 150
    assert config["run_dir"].startswith("runs/compare-cifar_fs-5w-seed0-")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "methods=[nearest_centroit]",
            "no method nearest_centroit (did you mean nearest_centroid?)",
        ),
        ("methods=[ptmop]", "no method ptmop (did you mean ptmap?)"),
        ("sampling.queries=[]", "sampling.queries=[] must name each kind once, and one or more"),
        ("sampling.queries=even", "sampling.queries=even is not known; use balanced or dirichlet"),
        ("sampling.concentration=0", "sampling.concentration=0.0 must be above 0"),
        ("jobs=2", "jobs=2 must be 1 or more, and 1 with isolate=false"),
        ("meta.clock=cpu", "meta.clock=cpu is not known; use wall or processor"),
        ("+classifiers.maml._target_=metalearn.classifiers.Ridge", "maml is not free as a name"),
        ("methods=[]", "methods=[] is empty; name one or more, or use methods=null for all"),
        ("episodes.shots=[]", "episodes.shots=[] is empty; give it one value or more"),
        ("episodes.shots=[0]", "episodes.shots=[0] must be 1 or more each"),
        ("episodes.shots=[1,1]", "names a number twice"),
        ("episodes.shots=[1,17]", "episodes.shots + episodes.queries = 21, but a class of glyphs"),
        ("episodes.ways=16", "but glyphs has 13 classes in its test split; use at most 13"),
        ("meta.shots=20", "but a class of glyphs (train) has 20 examples"),
        ("evaluation.split=tset", "split='tset' is not known"),
        ("evaluation.episodes=0", "evaluation.episodes=0 must be 1 or more"),
        ("evaluation.network_episodes=0", "must be a whole number above 0"),
        ("evaluation.network_episodes=[1,2,3]", "a list of one for each of the 2 shots"),
        ("evaluation.timed=0", "evaluation.timed=0 must be above 0"),
        ("tuning.rates=[]", "tuning.rates=[] is empty"),
        ("tuning.steps=[-1]", "must be 0 or more each"),
        ("meta.seconds=0", "meta.seconds=0.0 must be above 0"),
        ("meta.scratch=[mml]", "meta.scratch has mml, not in meta.overrides (did you mean maml?)"),
        ("norm=batch", "norm=batch is not known; use frozen, running, group, none, support or"),
        (
            "norm=support",
            "norm=support gives single images no features, which untrained needs; use "
            "frozen, running, group or none, or only methods of meta.overrides",
        ),
        ("backbone.norm=frozen", "backbone.norm is one for all methods; use norm=..."),
        ("outputs=3", "outputs is set by the comparison; use episodes.ways=..."),
        ("dataset=sinusoid", "dataset=sinusoid sets inner, which metalearn compare does not have"),
        ("backbone.weights=nowhere.pth", "no weights at nowhere.pth"),
        ("meta.common=[algoritm=maml]", "algoritm"),
        ('+meta.overrides.mine=["algorithm=mine"]', "algorithm=mine is not known"),
        ('+meta.overrides.mine=["backbone=mlp"]', "meta.overrides.mine: backbone is one for all"),
        ('+meta.overrides.untrained=["algorithm=maml"]', "is not free as a name"),
        ("method=[untrained]", "no key method"),
        ("resume=alwys", "resume=alwys is not known"),
        ("--multirun", "compare takes overrides and --cfg job, not --multirun"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    workplace: Path, override: str, told: str
) -> None:
    assert told in compare(override).mistake
    assert not Path("run").exists()


def test_a_classifier_that_draws_weights_is_meta_trained_before(workplace: Path) -> None:
    small = ("episodes.shots=[1]", "classifier_training.steps=3", "methods=[feat,matching]")
    assert compare(*small).code == 0
    (feat,) = [cost for cost in made()["costs"] if cost["method"] == "feat"]
    assert feat["learned"] > 0 and feat["seconds"] > 0
    told = {name: any("meta-trained" in line for line in n) for name, n in made()["notes"].items()}
    assert told == {"feat": True, "matching": False}
