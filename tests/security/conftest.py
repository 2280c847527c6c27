"""A place to attack: an outbox on SQLite with its spool and a strict receiver; and a server that keeps every byte."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing import Receiver
from outbox.transport import RequestsTransport
from tests.security.ear import Ear
from tests.story.conftest import Place


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(check_token=False) as receiver:
        yield receiver


@pytest.fixture
def place(migrated_sqlite_url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Place]:
    place = Place(migrated_sqlite_url, tmp_path, receiver)
    yield place
    place.close()


@pytest.fixture
def transport() -> Iterator[RequestsTransport]:
    transport = RequestsTransport()
    yield transport
    transport.cut()
    transport.close()


@pytest.fixture
def ear() -> Iterator[Ear]:
    with Ear() as ear:
        yield ear


@pytest.fixture
def dice() -> random.Random:
    """Chance that can be had again: OUTBOX_TEST_SEED takes back what was printed."""
    seed = int(os.environ.get("OUTBOX_TEST_SEED") or random.randrange(10**6))
    print(f"OUTBOX_TEST_SEED={seed}")
    return random.Random(seed)
