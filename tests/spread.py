"""A product of cases, of which the default tier runs an even share and `-m slow` the rest."""

import itertools
from collections.abc import Iterable

import pytest


def spread(*factors: Iterable, share: int) -> list:
    """Every combination, as one parameter each; all but one in `share` are marked slow.

    What the default tier runs is a fraction of the design in the statistician's sense: where each
    factor but one has its value, one in `share` of the values of the last is run, so that every
    pair of values of two factors meets as long as another factor has `share` values or more.
    """
    cases = []
    for case in itertools.product(*(enumerate(factor) for factor in factors)):
        marks = [] if sum(place for place, _ in case) % share == 0 else [pytest.mark.slow]
        values = [value for _, value in case]
        cases.append(pytest.param(*values, marks=marks, id="-".join(map(_name, values))))
    return cases


def _name(value: object) -> str:
    return str(getattr(value, "__name__", value))
