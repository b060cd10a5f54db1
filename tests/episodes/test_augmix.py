"""AugMix: each image by its own numbers, a mixture of chains and the image."""

import numpy as np
import pytest
import torch

from metalearn.episodes import AugMix
from metalearn.errors import UsageError

X = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def drawn(how: AugMix) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    numbers = torch.from_numpy(rng.random((5, 11), np.float32))
    return numbers, rng.random((how.randaugment, 5, 2), np.float32)


def test_an_image_does_not_see_the_others() -> None:
    how = AugMix(depth=2, magnitude=9)
    assert how.randaugment == 6
    numbers, draws = drawn(how)
    whole = how(X, torch.zeros(5).long(), numbers, draws)
    alone = how(X[3:4], torch.zeros(1).long(), numbers[3:4], draws[:, 3:4])
    torch.testing.assert_close(alone[0], whole[3], rtol=0, atol=1e-6)
    assert whole.min() >= 0 and whole.max() <= 1 and not torch.equal(whole, X)


def test_the_share_of_the_mixture_is_a_line() -> None:
    how = AugMix(depth=1, magnitude=9)
    numbers, draws = drawn(how)

    def at(share: float) -> torch.Tensor:
        numbers[:, 9] = share
        return how(X, torch.zeros(5).long(), numbers, draws)

    torch.testing.assert_close(at(0.0), X)
    torch.testing.assert_close(at(0.25), 0.75 * X + 0.25 * at(1.0))


def test_mistakes_are_one_line() -> None:
    for given, told in (
        ({"depth": 0}, "augmentation.depth=0"),
        ({"magnitude": 31}, "magnitude=31"),
    ):
        with pytest.raises(UsageError, match=told):
            AugMix(**given)
