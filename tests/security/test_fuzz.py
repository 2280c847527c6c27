"""S29: chance finds no answer, form, name or settings that anything of ours is surprised by. `make torture` has longer."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from outbox import payload
from tests.security import fuzz as fuzzing
from tests.security.fuzz import fuzz

TARGETS = {"answers", "tokens", "forms", "names", "settings", "wire"}


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("OUTBOX_TEST_SEED") or random.randrange(10**6))
    print(f"OUTBOX_TEST_SEED={seed}")
    return seed


def test_chance_finds_nothing_in_a_moment(seed: int) -> None:
    counts = fuzz(0.8, seed)

    assert TARGETS == counts.keys()
    assert min(counts.values()) > 0


@pytest.mark.merge
def test_chance_finds_nothing_in_a_while(seed: int) -> None:
    assert sum(fuzz(6.0, seed).values()) > 100


def believes_anything(body: bytes) -> Any:
    """A reader as it is written first."""
    import json

    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def test_chance_finds_a_reader_that_believes_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "believed", believes_anything)

    with pytest.raises(AssertionError, match=r"fuzz found something in answers: case [0-9]+ of OUTBOX_TEST_SEED=1"):
        fuzz(20.0, 1, "answers")


def test_chance_finds_a_form_whose_headers_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.multipart.has_controls", lambda line: False)

    with pytest.raises(AssertionError, match="fuzz found something in forms"):
        fuzz(20.0, 1, "forms")


def test_chance_finds_names_that_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "checked_name", lambda name: name)

    with pytest.raises(AssertionError, match="fuzz found something in names"):
        fuzz(20.0, 1, "names")
