"""Where this machine gives no more threads nothing is sent, and no message pays for that."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from outbox import Policy
from tests.factories import outcomes, states
from tests.story.conftest import Place


@pytest.mark.parametrize("which", ["the deadline's", "the resolver's"])
def test_a_request_that_gets_no_thread_is_not_sent_and_costs_nothing(
    sqlite_place: Place, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = sqlite_place.outbox(Policy(on_unknown="dead"))
    named = replace(outbox.destinations["enos"], url=sqlite_place.receiver.url.replace("127.0.0.1", "localhost"))
    outbox.destinations["enos"] = named
    for number in range(3):
        sqlite_place.enqueue(outbox, f"m{number}")
    hand, start = sqlite_place.hand(outbox), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == {"the deadline's": "outbox-deadlines", "the resolver's": "outbox-resolver"}[which]:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        hand.turn()

    assert {"pending"} == set(states(sqlite_place.database).values())
    assert [("not_sent", None)] == outcomes(sqlite_place.database, "m0")
    assert 0 == sqlite_place.receiver.begun
