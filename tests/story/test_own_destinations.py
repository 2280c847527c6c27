"""A destination of somebody's own with a mistake in it: that is told, its messages wait, and no others do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from outbox import Outbox, State, Worker
from outbox.destinations import Answer, Batch, Delivered, Destination, Facts, FieldPart, Retry, Upload
from tests.factories import an_outbox, states
from tests.story.conftest import Place
from tests.story.process import eventually


class Own(Destination):
    """One message a request, as a document."""

    message_limit = 1

    def encode(self, batch: Batch) -> Upload:
        return Upload(self.url, json=batch.messages[0].text.encode())

    def judge(self, answer: Answer, batch: Batch, now: datetime) -> Any:
        return Delivered(Facts(answer.status))  # the receiver knows no such address, and is not asked for more here


def own(name: str, place: Place, **methods: Any) -> Destination:
    return type("Broken", (Own,), methods)(name=name, url=place.receiver.url, allow_plain_http=True)


def judging(verdict: Callable[[Answer], Any]) -> dict[str, Any]:
    return {"judge": lambda self, answer, batch, now: verdict(answer)}


def encoding(upload: Callable[[Upload], Any]) -> dict[str, Any]:
    return {"encode": lambda self, batch: upload(Own.encode(self, batch))}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a wait that is text": (judging(lambda a: Retry(Facts(a.status), "60")), "cannot be judged"),  # type: ignore[arg-type]
    "a code that is text": (judging(lambda a: Retry(Facts(a.status, "E1"))), "cannot be judged"),  # type: ignore[arg-type]
    "a status that is text": (judging(lambda a: Retry(Facts("OK"))), "cannot be judged"),  # type: ignore[arg-type]
    "words that are bytes": (judging(lambda a: Retry(Facts(text=a.body))), "cannot be judged"),  # type: ignore[arg-type]
    "no verdict": (judging(lambda a: None), "cannot be judged"),
    "facts for a verdict": (judging(lambda a: Facts(a.status)), "cannot be judged"),
    "parts that are none": (encoding(lambda u: replace(u, json=None, parts=[("a", b"b")])), "cannot be encoded"),
    "a document of text": (encoding(lambda u: replace(u, json="{}")), "cannot be encoded"),
    "a field of text": (encoding(lambda u: replace(u, json=None, parts=[FieldPart("a", "b")])), "cannot be encoded"),  # type: ignore[arg-type]
    "no upload": (encoding(lambda u: None), "cannot be encoded"),
}


def both(place: Place, methods: dict[str, Any]) -> Outbox:
    """A broken one and one that is well."""
    outbox = an_outbox(place.url, place.spool, own("broken", place, **methods), own("well", place))  # type: ignore[arg-type]
    place.damaged = True
    return outbox


def said_of(outbox: Outbox, key: str) -> list[Any]:
    return [each.text for each in outbox.message(key).attempts]


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_is_told_and_holds_up_nobody_else(place: Place, mistake: str) -> None:
    methods, words = BROKEN[mistake]
    outbox = both(place, methods)
    with place.engine.begin() as connection:
        outbox.enqueue(connection, "broken", {"a": 1}, key="b")

    with Worker(outbox):
        eventually(lambda: any(words in (text or "") for text in said_of(outbox, "b")))
        with place.engine.begin() as connection:
            outbox.enqueue(connection, "well", {"a": 1}, key="w")
        eventually(lambda: State.DELIVERED == states(outbox.database)["w"])

    assert State.PENDING == states(outbox.database)["b"]
    outbox.close()


def test_what_is_delivered_is_so_although_the_words_cannot_be_kept(place: Place) -> None:
    outbox = both(place, judging(lambda a: Delivered(Facts(a.status, "E0"))))  # type: ignore[arg-type]
    with place.engine.begin() as connection:
        outbox.enqueue(connection, "broken", {"a": 1}, key="b")

    Worker(outbox).run(until_idle=True)

    assert {"b": State.DELIVERED} == states(outbox.database)
    assert 1 == outbox.message("b").message.attempt
    outbox.close()
