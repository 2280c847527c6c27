"""Histories: what a killed process had said is told from what it had not, and who was told what is in one of three sets."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from outbox.errors import OutOfRoom
from outbox.model import Outcome, State
from outbox.testing.ledger import Ledger
from outbox.verdict import Delivered, Reject, Result, Settlement, Unknown, Verdict
from outbox.watching import Recorded
from tests.ledger.evidence import attempts_told
from tests.ledger.history import Diary, History, Promises, arrivals, digest, lines, open_steps, promises
from tests.pure.forging import SHA256, received
from tests.pure.making import batch as batch_of
from tests.pure.making import message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "producer.jsonl"


def from_postgres(sqlstate: str | None) -> OperationalError:
    """What a driver says of a statement, with the state that the server gave; None from a server that is not there."""
    said = RuntimeError("of the driver")
    said.sqlstate = sqlstate  # type: ignore[attr-defined]
    return OperationalError("COMMIT", {}, said)


def from_sqlite(name: str) -> OperationalError:
    said = sqlite3.OperationalError("of the driver")
    said.sqlite_errorname = name
    return OperationalError("COMMIT", {}, said)


def told(path: Path, key: str = "m1") -> str:
    """The set that a key is in."""
    found = promises([path])
    sets = {"K": found.acknowledged, "U": found.unknown, "X": found.rolled_back}
    return "".join(name for name, keys in sets.items() if key in keys)


def test_what_was_committed_is_acknowledged_with_what_was_given(path: Path) -> None:
    with History(path) as history, history.enqueue("m1", files={"photo": b"bytes"}, payload={"a": 1}, ordering_key="pump"):
        pass

    (promise,) = promises([path]).acknowledged.values()
    assert ({"photo": SHA256}, digest({"a": 1}), "pump") == (promise.files, promise.payload, promise.ordering_key)
    assert "K" == told(path)


def fail_with(path: Path, error: BaseException) -> None:
    with History(path) as history, pytest.raises(type(error)), history.enqueue("m1"):
        raise error


TELLS_NOTHING: dict[str, Callable[[], BaseException]] = {
    "the server went down": lambda: from_postgres("57P01"),
    "the connection broke": lambda: from_postgres("08006"),
    "nobody answered": lambda: from_postgres(None),
    "the server itself does not know": lambda: from_postgres("40003"),
    "the disk failed under a sync": lambda: from_sqlite("SQLITE_IOERR_FSYNC"),
    "somebody pressed Ctrl-C": KeyboardInterrupt,
}


@pytest.mark.parametrize("name", TELLS_NOTHING)
def test_after_an_error_that_may_have_struck_the_commit_nobody_knows(path: Path, name: str) -> None:
    fail_with(path, TELLS_NOTHING[name]())

    assert "U" == told(path)


ROLLED_BACK: dict[str, Callable[[], BaseException]] = {
    "the caller's own error": lambda: ValueError("no"),
    "the server could not serialise it": lambda: from_postgres("40001"),
    "a deadlock": lambda: from_postgres("40P01"),
    "the database was locked": lambda: from_sqlite("SQLITE_BUSY"),
    "the disk was full": lambda: from_sqlite("SQLITE_FULL"),
    "there was no room at the door": lambda: OutOfRoom("full"),
}


@pytest.mark.parametrize("name", ROLLED_BACK)
def test_after_an_error_that_comes_before_the_commit_it_is_rolled_back(path: Path, name: str) -> None:
    fail_with(path, ROLLED_BACK[name]())

    assert "X" == told(path)


def test_an_error_that_was_put_into_other_words_is_looked_through(path: Path) -> None:
    error = ValueError("in other words")
    error.__cause__ = from_postgres("57P01")

    fail_with(path, error)

    assert "U" == told(path)


def test_a_caller_that_rolls_back_on_purpose_says_so(path: Path) -> None:
    with History(path) as history, history.enqueue("m1") as attempt:
        attempt.rolled_back()

    assert "X" == told(path)


def test_of_a_producer_that_was_killed_meanwhile_nobody_knows(path: Path) -> None:
    child = os.fork()
    if child == 0:
        history = History(path)
        with history.enqueue("m0"):
            pass
        with history.enqueue("m1"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)

    assert ("K", "U") == (told(path, "m0"), told(path, "m1"))
    assert ["m1"] == [line.key for line in open_steps(lines([path]))]


def test_a_torn_last_line_is_left_out(path: Path) -> None:
    with History(path) as history, history.enqueue("m1"):
        pass
    whole = path.read_bytes()

    path.write_bytes(whole[:-10])

    assert "U" == told(path), "its second line does not count: it was not told"


def test_what_one_of_several_tries_was_told_counts_most(tmp_path: Path) -> None:
    paths = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    fail_with(paths[0], from_postgres(None))
    fail_with(paths[0], ValueError())
    unknown = promises(paths[:1])
    with History(paths[1]) as history, history.enqueue("m1"):
        pass

    assert {"m1"} == unknown.unknown.keys()
    assert Promises({"m1": promises(paths).acknowledged["m1"]}) == promises(paths)


def test_names_that_files_travel_under_and_the_order_of_members_are_no_part_of_a_payload() -> None:
    one = {"a": 1, "events": {"crack": {"photo": "local://photo"}}}
    other = {"events": {"crack": {"photo": "local://0f-12-0.jpg"}}, "a": 1}

    assert digest(one) == digest(other)
    assert digest(one) != digest({**one, "a": 2})


def test_a_worker_writes_down_what_it_does_and_says_which_attempts_a_request_is(path: Path) -> None:
    batch = batch_of(message(1), message(2))
    first, second = batch.messages
    with History(path, "worker") as history:
        diary = Diary(history)
        diary.started("w1")
        headers = diary.upload_begins(batch)
        diary.upload_ended(batch, Unknown(), 0.1)
        settled = {first.id: Settlement(State.PENDING, Outcome.UNKNOWN, 0, 0, 1)}
        result = Result(batch.delivery, batch.worker, "enos", batch.messages, 2, Unknown())
        diary.recorded(Recorded(result, settled))
        diary.stopping()

    written = lines([path])
    assert [("info", "work"), ("invoke", "send"), ("info", "send"), ("ok", "record"), ("info", "stop")] == [
        (line.kind, line.operation) for line in written
    ]
    assert [[first.key, first.attempt, "unknown"]] == written[3].more["messages"]
    assert [second.key] == written[3].more["late"], "its claim was lost"
    said = attempts_told(received(1, "a", headers=dict(headers)))
    assert (batch.delivery, {first.id: first.attempt, second.id: second.attempt}) == said


@pytest.mark.parametrize(("verdict", "kind"), [(Delivered(), "ok"), (Reject(), "fail"), (Unknown(), "info")])
def test_what_became_of_a_send_is_told_apart(path: Path, verdict: Verdict, kind: str) -> None:
    batch = batch_of()
    with History(path) as history:
        diary = Diary(history)
        diary.upload_begins(batch)
        diary.upload_ended(batch, verdict, 0.1)

    assert kind == lines([path])[-1].kind


def test_a_worker_that_died_in_an_upload_leaves_it_open(path: Path) -> None:
    with History(path) as history:
        Diary(history).upload_begins(batch_of())

    assert ["send"] == [line.operation for line in open_steps(lines([path]))]


def test_what_several_receivers_wrote_down_is_read_in_the_order_it_began(tmp_path: Path) -> None:
    paths = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    for path, number in zip(paths, (2, 1), strict=True):
        with Ledger(path) as ledger:
            ledger.write(received(number, f"m{number}", photos=[f"m{number}"]))

    assert [received(1, "m1", photos=["m1"]), received(2, "m2", photos=["m2"])] == arrivals(paths)


def test_a_request_without_the_headers_says_nothing_of_its_attempts() -> None:
    assert attempts_told(received(1, "a")) is None
