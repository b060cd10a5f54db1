"""mixup and CutMix against plain loops, and the shares against their distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from metalearn.errors import UsageError
from metalearn.training.mixing import Labelled, Mixing

B, C, H, W = 6, 3, 10, 14


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(B, C, H, W, generator=rng), torch.arange(B) * 10


def mixed(seed: int, **alphas: float) -> Labelled:
    return Mixing(**alphas)(*batch(), np.random.default_rng(seed))


def partners(found: Labelled) -> list[int]:
    return (found.other // 10).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_mixup_is_a_weighted_mean_of_two_images(seed: int) -> None:
    x, y = batch()
    found = mixed(seed, mixup=0.8)
    assert 0 < found.share < 1 and torch.equal(found.y, y)
    assert sorted(partners(found)) == list(range(B))
    for i, j in enumerate(partners(found)):
        want = found.share * x[i].double() + (1 - found.share) * x[j].double()
        torch.testing.assert_close(found.x[i].double(), want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_pastes_a_box_and_counts_what_is_left(seed: int) -> None:
    x, y = batch()
    found = mixed(seed, cutmix=1.0)
    assert torch.equal(found.y, y)
    for i, j in enumerate(partners(found)):
        own = (found.x[i] == x[i]).all(0)
        theirs = (found.x[i] == x[j]).all(0)
        assert (own | theirs).all()
        if i != j:
            assert found.share == pytest.approx(own.double().mean().item(), abs=1e-12)
            rows, columns = theirs.any(1).nonzero(), theirs.any(0).nonzero()
            assert theirs.sum() == len(rows) * len(columns)  # a box


def test_the_given_batch_stays_as_it_is() -> None:
    x, y = batch()
    kept = x.clone()
    for alphas in ({"mixup": 1.0}, {"cutmix": 1.0}, {}):
        Mixing(**alphas)(x, y, np.random.default_rng(0))
    assert torch.equal(x, kept)
    nothing = mixed(0)
    assert nothing.share == 1 and torch.equal(nothing.x, x) and torch.equal(nothing.other, y)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_beta(alpha: float) -> None:
    shares = [mixed(seed, mixup=alpha).share for seed in range(800)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_both_take_turns_at_even_odds() -> None:
    x, _ = batch()
    both = (mixed(seed, mixup=1.0, cutmix=1.0) for seed in range(400))
    pasted = sum(bool(torch.isin(found.x, x).all()) for found in both)
    assert stats.binomtest(pasted, 400, 0.5).pvalue > 0.01


def test_alphas_below_0_are_refused() -> None:
    with pytest.raises(UsageError, match="training.cutmix=-1 must be 0 or more"):
        Mixing(cutmix=-1)
