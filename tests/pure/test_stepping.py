"""Past a spot that cannot be read: the key that lies so many steps behind another, of numbers and of names in the spool."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.checkup.verify import _stepped

LAST = "f" * 32


@pytest.mark.parametrize(
    ("after", "step", "behind"),
    [
        ((7,), 1, (8,)),
        ((7, 3), 2, (9, 0)),
        ((2**63 - 2,), 1, (2**63 - 1,)),
        ((2**63 - 1,), 1, None),
        (("",), 1, (f"{1:032x}",)),
        ((f"{255:032x}",), 1, (f"{256:032x}",)),
        ((LAST,), 1, None),
        (("no name of ours",), 1, None),
        (("a", "b"), 1, None),
    ],
)
def test_a_key_is_so_many_steps_behind_another_if_there_is_one(after: Any, step: int, behind: Any) -> None:
    assert behind == _stepped(after, step)
