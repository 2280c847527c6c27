"""What `make torture` has found in the product, each as a story of its own that takes no luck."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from outbox import State, prepare
from tests.factories import event, states
from tests.story.conftest import Place


def test_an_ordering_key_without_order_is_enqueued_while_others_write(sqlite_place: Place) -> None:
    """In a transaction that stands open already its first statement takes the write lock, too."""
    place = sqlite_place
    outbox = place.outbox()
    place.enqueue(outbox, "before", ordering_key="pump", ordered=False)
    began = prepare(sa.create_engine(place.url, connect_args={"isolation_level": None}))
    sa.event.listen(began, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    rival = sa.create_engine(place.url, connect_args={"timeout": 0})
    heard: list[str] = []

    def intrude(*_: object) -> None:
        if not heard:
            heard.append("the first statement")
            try:
                with rival.begin() as connection:
                    connection.execute(sa.text("DELETE FROM outbox_audit"))
            except sa.exc.OperationalError:
                heard.append("the lock is taken")

    with began.begin() as connection:
        outbox.enqueue(connection, "enos", event("known"), key="known")  # what a connection promises is looked up once
    with began.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        sa.event.listen(began, "after_cursor_execute", intrude)
        outbox.enqueue(connection, "enos", event("a"), key="a", ordering_key="pump", ordered=False)
        connection.commit()

    assert ["the first statement", "the lock is taken"] == heard
    assert State.PENDING == states(place.database)["a"]
    rival.dispose()
    began.dispose()


def test_a_spool_that_another_producer_makes_at_this_moment_is_not_missed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs enqueue the first files there are; one looks for the spool before the other has made it."""
    first, second = place.outbox(), place.outbox()
    there = first.spool_store.is_there

    def look() -> bool:
        found = there()
        if not found:
            place.enqueue(second, "other", {"photo": b"bytes"})
        return found

    monkeypatch.setattr(first.spool_store, "is_there", look)

    place.enqueue(first, "mine", {"photo": b"bytes"})

    assert {"other": State.PENDING, "mine": State.PENDING} == states(place.database)
