"""The curves of `metalearn compare`: against numbers taken by hand, on the same episodes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.algorithms import Metric
from metalearn.backbones import CifarResNet, Conv4
from metalearn.classifiers import Cosine
from metalearn.commands.compare import setting_of
from metalearn.commands.parts.compare_plan import plan
from metalearn.evaluation.comparison.curve_report import looks_apart
from metalearn.evaluation.comparison.curves import (
    Subject,
    multiply_accumulates,
    of_features,
    parameters,
    pruned,
)
from metalearn.evaluation.protocol import evaluate
from tests.command import metalearn
from tests.test_compare import SMALL

ASKED = [
    *("methods=[nearest_centroid,logistic_regression,protonet,maml]", "episodes.shots=[1]"),
    *("sparsity=[0,0.9]", "robustness=[fog,pgd]", "curves.severities=[1,5]", "norm=frozen"),
    *("curves.episodes=4", "curves.steps=2", "evaluation.episodes=4"),
]


def test_curves_are_measured_and_drawn(workplace: Path) -> None:
    outcome = metalearn("compare", *SMALL, *ASKED)
    assert outcome.code == 0, outcome.err
    made = json.loads((workplace / "run/comparison.json").read_text(encoding="utf-8"))
    three = ["nearest_centroid", "protonet", "maml"]
    by_method = {name: [r for r in made["sparsity"] if r["method"] == name] for name in three}
    assert [row["method"] for row in made["sparsity"]] == [m for m in three for _ in range(2)]
    for rows in by_method.values():
        dense, sparse = rows
        assert sparse["parameters"] < 0.5 * dense["parameters"]
        assert sparse["multiply_accumulates"] < 0.3 * dense["multiply_accumulates"]
        assert dense["difference"] == 0 and dense["milliseconds"] > 0
    told = [(r["name"], r["severity"]) for r in made["robustness"] if r["method"] == "maml"]
    assert told == [("natural", None), ("pgd-2", None), ("fog", 1), ("fog", 5)]
    assert "no curve: it is no network" in made["notes"]["logistic_regression"][-1]
    assert {"sparsity.png", "robustness.png"} <= {p.name for p in (workplace / "run").iterdir()}
    with (workplace / "run/robustness.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    natural = [float(line["maml"]) for line in lines if line["name"] == "natural"]
    row = next(r for r in made["robustness"] if (r["method"], r["name"]) == ("maml", "natural"))
    assert len(natural) == 4 and np.mean(natural) == pytest.approx(row["accuracy"])
    page = (workplace / "run/comparison.md").read_text(encoding="utf-8")
    assert "## Sparsity, 3-way 1-shot, 4 episodes" in page and "(robustness.png)" in page


def test_methods_of_different_families_look_different_in_one_panel() -> None:
    families = {"nearest_centroid": "pre-training", "protonet": "meta-learning",
                "maml": "meta-learning", "protonet_scratch": "from scratch"}  # fmt: skip
    looks = looks_apart([{"method": m, "family": family} for m, family in families.items()])
    assert list(looks) == list(families)
    assert len({look["color"] for look in looks.values()}) == 4
    assert len({look["marker"] for look in looks.values()}) == 4


def test_a_pruned_network_is_measured_as_by_hand(workplace: Path) -> None:
    asked = ["dataset.classes=60", "dataset.size=16", "backbone.filters=4", "norm=frozen"]
    setting = setting_of(plan([*asked, "device=cpu"]))
    network = setting.bare()
    subject = of_features(setting, network, Cosine())
    small = pruned(subject, 0.5, "magnitude")
    flat = torch.cat([t.flatten() for n, t in network.weights.items() if t.ndim > 1])
    limit = flat.abs().sort().values[len(flat) // 2]
    weights = {
        n: torch.where(t.abs() < limit, 0, t) if t.ndim > 1 else t
        for n, t in network.weights.items()
    }
    algo = Metric(network.net.module, Cosine())
    meta = algo.init()
    meta["init"] = {n: weights[n] for n in meta["init"]}
    episodes = setting.images(1, "test", 3)
    got, want = (evaluate(*s[:2], episodes).by_step["loss"] for s in (small, (algo, meta)))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    narrow = pruned(subject, 0.5, "channels")
    assert parameters(narrow.meta) < 0.6 * parameters(subject.meta)
    assert evaluate(narrow.algo, narrow.meta, episodes).accuracies.shape == (3,)


def test_multiply_accumulates_are_counted() -> None:
    for net, x, want in (
        (Conv4(5, 1, 4, 16, norm="frozen"), (1, 16, 16),
         16 * 16 * 9 * 4 + (8 * 8 + 4 * 4 + 2 * 2) * 9 * 16 + 4 * 5),
        (CifarResNet(5, size=8, depth=8, norm="frozen"), (3, 8, 8),
         64 * 27 * 16 + 64 * 9 * 16 * 16 * 2 + 16 * 9 * (16 * 32 + 32 * 32)
         + 4 * 9 * (32 * 64 + 64 * 64) + 64 * 5),
    ):  # fmt: skip
        algo = Metric(net, Cosine())
        meta = algo.init()
        assert multiply_accumulates(algo, meta, torch.zeros(1, *x)) == want
        half = pruned(Subject(algo, meta, 0), 0.5, "per_layer")
        assert multiply_accumulates(half.algo, half.meta, torch.zeros(1, *x)) == want // 2


@pytest.mark.parametrize(
    "asked, told",
    [
        ("sparsity=[0,1.0]", "sparsity=1.0 must be 0 or more, and below 1"),
        ("robustness=[fogg]", "robustness=fogg is not known (did you mean fog?)"),
        ("curves.severities=[6]", "corruption.severity=6 must be 1, 2, 3, 4 or 5"),
        ("curves.steps=0", "adversarial.steps=0 must be"),
        ("curves.pruning=channel", "curves.pruning=channel is not known (did you mean channels?)"),
        ("curves.episodes=0", "curves.episodes=0 must be"),
    ],
)
def test_mistakes_are_one_line(asked: str, told: str, workplace: Path) -> None:
    found = metalearn("compare", asked).mistake
    assert found.startswith(told.partition("?")[0][:45]), found
