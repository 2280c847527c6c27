"""What pytest finds by itself wherever outbox is installed: the fixtures for whoever tests a producer.

It is loaded in every project that has outbox installed, so nothing is imported here that a test does not ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outbox.app import Outbox
    from outbox.destinations.base import Destination
    from outbox.testing.receiver import Receiver
    from outbox.testing.tester import OutboxTester


@pytest.fixture
def outbox_app() -> Outbox | None:
    """The outbox that is tested. Override it to give your program's own.

    One on a SQLite file is moved, for the test, to a database and a spool of the test's alone, unless it is below `tmp_path`:
    then its database is made if it is not there. One on Postgres stays; its database must be the test's alone, and migrated.
    """
    return None


@pytest.fixture
def outbox_destinations() -> Iterable[Destination]:
    """The destinations of the outbox that `outbox_tester` makes if there is no `outbox_app`. Override it to give your own.

    By default there is one, `test`, that takes anything.
    """
    from outbox.testing.lenient import Lenient

    return [Lenient(name="test")]


@pytest.fixture
def outbox_tester(
    request: pytest.FixtureRequest, outbox_app: Outbox | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OutboxTester]:
    """An outbox in the test's hands, see OutboxTester: what was enqueued, what would go out, and a clock that stands still."""
    from outbox.testing import making
    from outbox.testing.tester import OutboxTester

    template: Path = request.getfixturevalue("_outbox_template")
    folder = tmp_path_factory.mktemp("outbox")
    if outbox_app is not None:
        with making.in_place(outbox_app, template, folder) as app, OutboxTester(app) as tester:
            yield tester
        return
    made = making.fresh(template, folder, request.getfixturevalue("outbox_destinations"))
    try:
        with OutboxTester(made, lasting=outbox_app is not None) as tester:
            yield tester
    finally:
        made.close()


@pytest.fixture(scope="session")
def _outbox_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database; a copy is made faster than another one."""
    from outbox.testing import making

    return making.template(tmp_path_factory.mktemp("outbox-template"))


@pytest.fixture
def outbox_receiver() -> Iterator[Receiver]:
    """A strict EnOS receiver on this machine that misbehaves when told to, see Receiver; for a test with a real Worker."""
    from outbox.testing.receiver import Receiver

    with Receiver() as receiver:
        yield receiver
