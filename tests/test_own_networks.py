"""Networks of a user's own through `metalearn train`: what can be unwrapped runs, the rest is one
line, and no folder is left."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tests.command import metalearn

NETWORKS = {}


def made(kind: str, ways: int | None = None):
    """What a user's function returns."""
    return NETWORKS[kind](ways)


class Body(nn.Module):
    def __init__(self, wrap, ways: int):
        super().__init__()
        self.layers, self.wrap = nn.Sequential(nn.Flatten(), nn.Linear(64, ways)), wrap

    def forward(self, x):
        return self.wrap(self.layers(x))


def pruned(ways: int) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, ways))
    prune.l1_unstructured(net[1], "weight", 0.5)
    return nn.DataParallel(net)


def spectral(ways: int | None) -> nn.Module:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(64, ways or 3))
    return nn.Sequential(nn.Flatten(), layer)


NETWORKS |= {
    "dict": lambda ways: Body(lambda y: {"logits": y, "hidden": None}, ways),
    "lazy": lambda ways: nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(), nn.LazyLinear(ways)),
    "pruned": pruned,
    "two": lambda ways: Body(lambda y: (y, y), ways),
    "none": lambda ways: print,
    "spectral": spectral,
    "half": lambda ways: Body(lambda y: y, ways).half(),
    "misfit": lambda ways: nn.Sequential(nn.Flatten(), nn.Linear(63, ways)),
    "asserts": lambda ways: Body(misfit, ways),
}


def misfit(y: torch.Tensor) -> torch.Tensor:
    if len(y):
        raise AssertionError
    return y


def train(kind: str, *more: str):
    Path("conf/backbone").mkdir(parents=True)
    Path("conf/backbone/mine.yaml").write_text(
        f"defaults: [_weights]\n_target_: {__name__}.made\nkind: {kind}\nways: ${{outputs}}\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metalearn(
            *("train", "debug=fast", "dataset.classes=24", "dataset.size=8", "backbone=mine"),
            *("episodes.ways=3", "episodes.queries=2", "training.queries=2", "batching=loop"),
            *("tracker=disabled", "tracker.plots=false", "evaluation.untrained=false"),
            *("hydra.searchpath=[file://conf]", "run_dir=run", *more),
        )


@pytest.mark.parametrize("kind", ["dict", "lazy", "pruned"])
def test_what_can_be_unwrapped_runs(workplace: Path, kind: str) -> None:
    outcome = train(kind)
    assert outcome.code == 0, outcome.err
    assert Path("run/result.json").exists()


@pytest.mark.parametrize(
    "kind, line",
    [
        ("two", "the network returns a tuple of 2 tensors; return the logits, or a dict with `log"),
        (
            "none",
            "backbone made is no torch.nn.Module, but a builtin_function_or_method; let",
        ),
        ("spectral", "1.parametrizations.weight.0 (_SpectralNorm) changes _u in its forward; make"),
        ("half", "the network's weights are float16 and the inputs float32; call .float() on the"),
        (
            "misfit",
            "backbone made cannot take inputs of 1x8x8: addmm: mat1 and mat2 shapes",
        ),
        (
            "asserts",
            "backbone made cannot take inputs of 1x8x8: AssertionError at `raise",
        ),
    ],
)
def test_the_rest_is_one_line(workplace: Path, kind: str, line: str) -> None:
    assert line in train(kind).mistake
    assert not Path("run").exists()


@pytest.mark.parametrize("algorithm", ["protonet", "reptile"])
def test_it_is_checked_whatever_is_differentiated(workplace: Path, algorithm: str) -> None:

    assert "changes _u in its forward" in train("spectral", f"algorithm={algorithm}").mistake
