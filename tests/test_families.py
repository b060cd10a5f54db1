"""Model families of timm, torchvision and transformers: the page is that of its records, and a
share of them is tried again."""

import functools
import importlib.util
import warnings

import pytest

from scripts import families
from scripts.families import FOLDER, Family, Row, rows

RECORDS = rows(FOLDER / "families.jsonl")
# Those that take seconds; by name, so that the share is the same everywhere.
SHARE = [r for r in RECORDS if r.exact and r.seconds < 4]


def test_the_page_is_that_of_the_records() -> None:
    assert (FOLDER / "families.md").read_text() == families.page(RECORDS)
    unexplained = [r.family for r in RECORDS if not r.exact and not r.reason]
    assert RECORDS and unexplained == []


def test_a_record_is_exact_where_the_loop_is_and_float32_runs() -> None:
    row = Row("timm", "vit", loop=1e-9, vmap=2e-9, single=0.01)
    assert row.exact
    assert not Row("timm", "vit", loop=1e-7, single=0.01).exact
    assert not Row("timm", "vit", loop=1e-9).exact
    named = Row("timm", "old", reason="refused: a | b")
    text = families.page([named, row])
    assert (
        "1 of 2 families" in text and "| timm | old |  | 0 | - | - | - | refused: a / b |" in text
    )


@functools.cache
def of_library(library: str) -> dict[str, Family]:
    return {family.name: family for family in families.LIBRARIES[library]()}


@pytest.mark.slow
@pytest.mark.parametrize("row", SHARE, ids=lambda row: f"{row.package}-{row.family}")
def test_the_meta_gradient_is_that_of_a_plain_loop(row: Row) -> None:
    if importlib.util.find_spec(row.package) is None:
        pytest.skip(f"{row.package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        family = of_library(row.package)[row.family]
        family = families.fitted(family) if row.package == "timm" else family
        again = families.examine(family)
    assert again.exact, again
    if row.vmap is not None and row.vmap < families.CLOSE:
        assert again.vmap is not None and again.vmap < families.CLOSE, again
