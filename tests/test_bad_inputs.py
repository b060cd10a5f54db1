"""Every bad input of the table is refused as the table says, and leaves nothing behind."""

from pathlib import Path

import pytest

from scripts.bad_inputs import CASES, TABLE, tried
from tests.inputs.case import Case

ROWS = (Path(__file__).parents[1] / TABLE).read_text(encoding="utf-8").splitlines()
MARKED = [pytest.param(c, id=c.given, marks=[pytest.mark.slow] * c.slow) for c in CASES]


def test_the_table_has_a_row_for_every_case() -> None:
    assert len({case.given for case in CASES}) == len(CASES) >= 40
    assert len([row for row in ROWS if row.startswith("| ")]) == 1 + len(CASES)


@pytest.mark.parametrize("case", MARKED)
def test_it_is_refused(case: Case, tmp_path: Path) -> None:
    refusal = tried(case, tmp_path)
    rows = [row for row in ROWS if row.startswith(f"| {case.given.replace('<', '&lt;')} |")]
    assert len(rows) == 1 and case.said.replace("<", "&lt;") in rows[0]
    assert rows[0].endswith(f"| {refusal.ended} | {refusal.left} |")
