"""Two marks, and what is to be done about them."""

from __future__ import annotations

import pytest

from outbox.marks import Marks, Step

OURS, THEIRS = "0" * 31 + "1", "0" * 31 + "2"


@pytest.mark.parametrize(
    ("database", "spool", "step", "adopting"),
    [
        (None, None, Step.MARK_BOTH, Step.MARK_BOTH),
        (OURS, None, Step.MARK_SPOOL, Step.MARK_SPOOL),
        (OURS, OURS, Step.NOTHING, Step.NOTHING),
        (None, THEIRS, Step.REFUSE, Step.ADOPT),
        (OURS, THEIRS, Step.REFUSE, Step.ADOPT),
    ],
)
def test_what_is_anothers_is_refused_until_a_person_says_otherwise(
    database: str | None, spool: str | None, step: Step, adopting: Step
) -> None:
    marks = Marks(database, spool)

    assert (step, adopting) == (marks.step(), marks.step(adopt=True))
