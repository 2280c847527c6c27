"""S18 and S14: a record is one line whatever is in it, and what is delivered is never in one.

The search for secrets in rows, files, logs, tracebacks and command lines is in tests/skins/test_cli_service.py.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import EnosEvents, Worker
from outbox.logs import JsonFormatter, TextFormatter
from outbox.model import Batch, Selection
from outbox.testing import Answer, Behaviour, Body, EarlyStatus, HangUp, Status, Truncated
from outbox.testing import Receiver as StrictReceiver
from tests.factories import event, states
from tests.security.test_terminal import STRINGS
from tests.story.conftest import Place

ANY = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x1b\ud800"), max_size=80
)


def record_of(text: str, *arguments: Any, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord(extra.pop("logger", "shop"), logging.INFO, "x.py", 1, text, arguments, exc_info)
    record.__dict__.update(extra)
    return record


def raised(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def check_text(record: logging.LogRecord, below: bool) -> None:
    first, *rest = TextFormatter().format(record).split("\n")
    assert first.isprintable()
    assert bool(rest) == below
    assert all(line.isprintable() and line.startswith("    ") for line in rest)


def check_json(record: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    told: dict[str, Any] = json.loads(line)
    return told


@given(given_text=ANY, argument=ANY, name=ANY)
def test_a_record_is_one_line_whatever_is_in_it(given_text: str, argument: str, name: str) -> None:
    text = given_text.replace("%", "%%") + "%s%r"
    record = record_of(
        text, argument, argument, logger=name, message_id=argument, deep={argument: [argument]}, odd={1: argument}
    )

    check_text(record, below=False)
    assert check_json(record)["deep"] == {argument: [argument]}


@given(words=ANY)
def test_a_traceback_is_below_its_line_and_nothing_in_it_looks_like_another(words: str) -> None:
    record = record_of("it failed: %s", words, error=raised(words))

    check_text(record, below=True)
    assert "Traceback" in check_json(record)["exception"]


def test_two_hundred_control_strings_are_one_line_each() -> None:
    for each in STRINGS:
        check_text(record_of("said %s", each), below=False)
        check_text(record_of(each.replace("%", "%%"), error=raised(each), stack_info=each), below=True)
        check_json(record_of("said %s", each, answer=each))


def test_a_forged_record_is_seen_as_what_it_is() -> None:
    forged = "ok\n2026-03-01 12:00:00,000 INFO    outbox: delivered: delivery 7"

    lines = TextFormatter().format(record_of("the answer was %s", forged, error=raised(forged))).split("\n")

    assert r"the answer was ok\n2026-03-01" in lines[0]
    assert not any(line.startswith("2026-03-01 12") for line in lines[1:])


def test_another_formatters_idea_of_a_traceback_is_not_ours() -> None:
    """A record is formatted by every handler, and the library keeps the first one's traceback in it."""
    record = record_of("it failed", error=raised("a\nb"))
    logging.Formatter().format(record)

    check_text(record, below=True)


# What is delivered stays out of them.

#: A message's key is its name, and is told at DEBUG; what it is about is not.
CANARIES = {name: f"canary-{name}-5e8d" for name in ("value", "name", "content", "filename", "ordering")}


class Broken(EnosEvents):
    """A destination of one's own with bugs in it, whose words hold what it was given."""

    def encode(self, batch: Batch) -> Any:
        if "encode" in batch.messages[0].key:
            raise RuntimeError(f"cannot encode {batch.messages[0].text}")
        return super().encode(batch)

    def judge(self, answer: Any, batch: Batch, now: Any) -> Any:
        if "judge" in batch.messages[0].key:
            raise RuntimeError(f"cannot judge {batch.messages[0].text}")
        return super().judge(answer, batch, now)


BEHAVIOURS: dict[str, Behaviour | None] = {
    "delivered": None,
    "rejected": Answer(1204, "no"),
    "denied": Answer(99403, "no"),
    "unavailable": Status(503),
    "redirected": Status(302, b"", {"Location": "https://elsewhere.example/x?ticket=1"}),
    "no object": Body(b"<html>"),
    "cut before": HangUp("before_body"),
    "cut after": HangUp("after_body"),
    "torn": Truncated(),
    "too large": EarlyStatus(413),
}


def test_what_is_delivered_is_in_no_log_line_whatever_becomes_of_it(
    place: Place, receiver: StrictReceiver, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    caplog.set_level(logging.DEBUG)
    outbox = place.outbox(clock=place.clock)
    outbox.destinations["enos"] = Broken(name="enos", url=receiver.url, org_id="o1", allow_plain_http=True)
    hand = place.hand(outbox)
    payload = event(CANARIES["value"], "photo", **{CANARIES["name"]: [CANARIES["value"]]})
    (place.folder / CANARIES["filename"]).write_text(CANARIES["content"])
    for number, how in enumerate([*BEHAVIOURS, "encode", "judge", "missing file", "changed file"], 1):
        receiver.always(BEHAVIOURS.get(how))
        caplog.clear()
        with place.engine.begin() as connection:
            files = {"photo": place.folder / CANARIES["filename"]}
            outbox.enqueue(connection, "enos", payload, files=files, key=how, ordering_key=f"{CANARIES['ordering']}{number}")
        if how.endswith("file"):
            newest = max((place.spool / each for each in place.spooled()), key=lambda path: path.name)
            newest.unlink() if how.startswith("missing") else newest.write_bytes(b"x" * len(CANARIES["content"]))
        hand.turn()
        outbox.cancel(Selection(keys=(how,)), "ann")
        place.clock.move(hours=2)

        lines = [form.format(record) for record in caplog.records for form in (TextFormatter(), JsonFormatter())]
        told = {name for name in CANARIES if any(CANARIES[name] in line for line in lines)}
        with subtests.test(how):
            assert any(f"delivery {number} " in line for line in lines)
            # The words of somebody's own bug are told: it must be found.
            assert told <= ({"value", "name"} if how in ("encode", "judge") else set())


@pytest.mark.merge
def test_a_worker_that_talks_about_everything_does_not_talk_about_that(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    outbox = place.outbox()
    place.enqueue(outbox, "a", {"photo": CANARIES["content"].encode()}, lane="express")

    Worker(outbox, poll=0.05).run(until_idle=True)

    assert {"a": "delivered"} == states(place.database)
    assert CANARIES["content"] not in caplog.text
    assert "local://" not in caplog.text
