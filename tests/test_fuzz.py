"""Random combinations of the config groups; `scripts/fuzz.py` tries thousands of them."""

from pathlib import Path

import pytest

from scripts.fuzz import combination, tried
from tests.spread import spread


@pytest.mark.parametrize("number", spread(range(3), share=3))
def test_a_combination_ends_in_a_result_or_in_one_line(workplace: Path, number: int) -> None:
    words = combination(number, seed=0, heavy=False)
    assert words == combination(number, seed=0, heavy=False)
    found = tried(words, Path("r"))
    assert not found.fault, f"{found.end}: {' '.join(words)}\n{found.told}"
