"""easyfsl's classifiers say of the same features what ours say; see scripts/against_easyfsl.py."""

import pytest
import torch

from metalearn.evaluation.features import unit_length
from metalearn.evaluation.on_features import classifying
from metalearn.types import Batch, Episodes
from scripts.against_easyfsl import PAIRS, ours, their_classifier, theirs
from tests.tasks import generator


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    g, parts = generator(0), []
    for each in (3, 8):
        y = torch.arange(4).repeat(each).repeat(20, 1)
        noise = torch.randn(*y.shape, 12, generator=g, dtype=torch.float64).abs()
        parts.append(Batch(torch.eye(12, dtype=torch.float64)[y] + noise, y))
    return Episodes(*parts)


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_answers(name: str, episodes: Episodes) -> None:
    pytest.importorskip("easyfsl", reason="easyfsl is not installed: uv sync --group bench")
    pair = PAIRS[name]
    given = episodes if pair.plain else unit_length(episodes)
    # It keeps its own tensors in single precision.
    if name in ("LaplacianShot", "matching"):
        given = given.map(lambda t: t.float() if t.is_floating_point() else t)
    found = ours(classifying(pair.ours(4)), given)
    want = theirs(their_classifier(pair, 12), given)
    assert found == pytest.approx(want, abs=1e-6) and 0.4 < sum(want) / len(want) < 1
