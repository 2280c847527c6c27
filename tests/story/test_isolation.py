"""One bad message sinks nobody: it ends dead under its own name, and the good ones around it are delivered and pay nothing."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, Worker
from outbox.model import Reason
from outbox.payload import text
from outbox.store import breaker
from outbox.tables import attempt, message
from outbox.testing import Behaviour, HangUp, Received, Receiver, Silence, Status, Truncated
from tests.factories import event, message_values, reasons
from tests.story.conftest import ROOT, Hand, Place, Process, eventually

WORDS = "the device 'turbine-7' has no event 'crack'"
#: What the receiver's words become of a request that it refuses.
REFUSED = 1204


def named(struct: dict[str, Any], kind: str) -> bool:
    return str(struct["assetId"]).startswith(kind)


def put_all(place: Place, keys: Iterable[str]) -> list[str]:
    """Messages as `enqueue` writes them, all due at once; the door is another story."""
    rows = []
    for key in keys:
        written = text(event(key))
        when = {"created_at": place.clock.wall, "due_at": place.clock.wall}
        rows.append(message_values(key=key, payload=written, size=len(written) + 1, **when))
        place.acknowledge(key)
    with place.database.begin() as connection:
        connection.execute(sa.insert(message), rows)
    return [row["key"] for row in rows]


@dataclass(frozen=True)
class Fate:
    """What became of a message, and what it was charged."""

    state: str
    reason: str | None
    words: str | None
    attempts: int
    failures: int
    unknowns: int


def fates(place: Place, kind: str) -> dict[str, Fate]:
    """Of the messages whose keys begin so."""
    names = ("key", "state", "reason", "reason_text", "attempt", "failures", "unknowns")
    statement = sa.select(*(message.c[name] for name in names)).where(message.c.key.startswith(kind))
    with place.database.read() as connection:
        return {row[0]: Fate(*row[1:]) for row in connection.execute(statement)}


def unfinished(place: Place, kind: str = "") -> int:
    there = (message.c.finished_at.is_(None), message.c.key.startswith(kind))
    with place.database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(message).where(*there)).scalar_one())


def copies(requests: Iterable[Received]) -> Counter[str]:
    """How often the receiver stored each message."""
    return Counter(struct["assetId"] for request in requests for struct in request.kept)


@contextmanager
def working(place: Place, number: int, policy: Policy | None = None, **options: Any) -> Iterator[None]:
    """Workers in threads of this process."""
    workers = [Worker(place.outbox(policy), poll=0.02, **options) for _ in range(number)]
    try:
        for each in workers:
            each.start()
        yield
    finally:
        for each in workers:
            each.stop()
        for each in workers:
            each.join()


def drained(place: Place, how: str, policy: Policy | None = None) -> None:
    """Deliver everything: by hand, or by two workers with four senders each."""
    if how == "hand":
        place.hand(place.outbox(policy, clock=place.clock)).turn_while_it_moves(5000)
    else:
        with working(place, 2, policy):
            eventually(lambda: unfinished(place) == 0, within=120)


# A batch that is refused


def chosen(placement: str, total: int, bad: int) -> set[int]:
    """Where among all the messages the bad ones stand."""
    middle = (total - bad) // 2
    match placement:
        case "spread":
            return set(range(total // bad // 2, total, total // bad)[:bad])
        case "adjacent":
            return set(range(middle, middle + bad))
        case "first":
            return set(range(bad))
        case "last":
            return set(range(total - bad, total))
        case _:
            seed = int.from_bytes(os.urandom(4))
            print(f"seed {seed}")
            return set(random.Random(seed).sample(range(total), bad))


def request_bound(good: int, bad: int, batch: int) -> int:
    """The most requests that may find `bad` messages among `good` ones."""
    return math.ceil(good / batch) + bad * (2 * math.ceil(math.log2(batch)) + 2)


def refused_by_name(place: Place, good: int, bad: set[int], how: str, *, keep_good: bool, batch: int = 100) -> None:
    """The whole story of a refusal, with everything that must hold at its end."""
    place.receiver.refuse(lambda struct: named(struct, "bad"), REFUSED, WORDS, keep_good=keep_good)
    put_all(place, (f"{'bad' if each in bad else 'good'}-{each}" for each in range(good + len(bad))))

    drained(place, how, Policy(batch_messages=batch))

    dead = fates(place, "bad")
    assert {f"bad-{each}" for each in bad} == dead.keys()
    assert {("dead", Reason.REJECTED, WORDS, 0, 0)} == {
        (each.state, each.reason, each.words, each.failures, each.unknowns) for each in dead.values()
    }
    innocent = fates(place, "good")
    assert good == len(innocent)
    assert {("delivered", 0, 0)} == {(each.state, each.failures, each.unknowns) for each in innocent.values()}
    requests = place.receiver.requests
    assert len(requests) <= request_bound(good, len(bad), batch), Counter(len(each.structs) for each in requests)
    stored, refused = copies(requests), refusals(place)
    assert innocent.keys() == stored.keys()
    if keep_good:
        beyond = {key: count - 1 for key, count in stored.items() if count > 1}
        assert beyond, "the receiver kept nothing of a batch that it refused"
        assert {} == {key: (count, refused[key]) for key, count in beyond.items() if count > refused[key]}
    else:
        assert {1} == set(stored.values())
    place.check()


def refusals(place: Place) -> Counter[str]:
    """How many refused batches each message was in."""
    statement = sa.select(message.c.key).join(attempt, attempt.c.message_id == message.c.id)
    with place.database.read() as connection:
        return Counter(connection.execute(statement.where(attempt.c.outcome == "reject")).scalars())


@pytest.mark.parametrize("placement", ["spread", "adjacent", "first", "last", "random"])
def test_ten_bad_messages_are_refused_by_name(place: Place, placement: str) -> None:
    refused_by_name(place, 1000, chosen(placement, 1010, 10), "hand", keep_good=placement in ("adjacent", "last"))


@pytest.mark.slow
def test_ten_bad_among_ten_thousand_good_are_refused_by_name(sqlite_place: Place) -> None:
    refused_by_name(sqlite_place, 10_000, chosen("spread", 10_010, 10), "hand", keep_good=False)


@pytest.mark.slow
def test_two_workers_find_ten_bad_among_ten_thousand_good_that_a_receiver_keeps(place: Place) -> None:
    refused_by_name(place, 10_000, chosen("random", 10_010, 10), "workers", keep_good=True)


def test_of_any_number_of_messages_exactly_the_bad_ones_die(place: Place) -> None:
    seed = int.from_bytes(os.urandom(4))
    dice = random.Random(seed)
    outbox = place.outbox(clock=place.clock)
    for game in range(12):
        good, batch = dice.randint(1, 60), dice.choice([1, 2, 3, 7, 16, 100])
        # More that die one after the other and the destination counts as the one that is wrong.
        bad = dice.randint(0, min(good, Policy().reject_streak - 1))
        what = f"seed {seed}, game {game}: {bad} bad among {good}, {batch} to a request"
        names = [f"{game}-good-{each}" for each in range(good)] + [f"{game}-bad-{each}" for each in range(bad)]
        dice.shuffle(names)
        place.receiver.stop_refusing()
        place.receiver.refuse(lambda struct: "bad" in struct["assetId"], REFUSED, WORDS, keep_good=dice.random() < 0.5)
        put_all(place, names)
        before = len(place.receiver.requests)

        drained(place, "hand", Policy(batch_messages=batch))

        dead = {key for key, fate in fates(place, f"{game}-").items() if fate.state == "dead"}
        assert {name for name in names if "bad" in name} == dead, what
        assert unfinished(place) == 0, what
        assert len(place.receiver.requests) - before <= request_bound(good, bad, batch), what
    assert outbox.destination("enos")
    place.check()


def test_the_terminal_tells_the_receivers_words(place: Place) -> None:
    place.receiver.refuse(lambda struct: named(struct, "bad"), REFUSED, WORDS)
    put_all(place, ["good-0", "bad-0", "good-1"])
    drained(place, "hand")

    listed = [json.loads(line) for line in terminal(place, "list", "--state", "dead", "--json").splitlines()]
    shown = terminal(place, "show", "bad-0")

    assert [("bad-0", "rejected", WORDS)] == [(each["key"], each["reason"], each["reason_text"]) for each in listed]
    assert WORDS in next(line for line in shown.splitlines() if line.startswith("reason text"))
    assert WORDS in shown.splitlines()[-1], "the last attempt tells it too"


def terminal(place: Place, *arguments: str) -> str:
    """What `outbox` prints here."""
    settings = {
        "OUTBOX_DATABASE": place.url,
        "OUTBOX_SPOOL": str(place.spool),
        "OUTBOX_DESTINATIONS__ENOS__TYPE": "enos-events",
        "OUTBOX_DESTINATIONS__ENOS__URL": place.receiver.url,
        "OUTBOX_DESTINATIONS__ENOS__ORG_ID": "o1",
        "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "400",
    }
    command = [sys.executable, "-m", "outbox", *arguments]
    run = subprocess.run(command, cwd=place.folder, env=os.environ | settings, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


# A message that breaks every request


def play(place: Place, hand: Hand, step: float, turns: int = 400) -> None:
    """Turns, with a pause after each, until nothing is left."""
    for _ in range(turns):
        if unfinished(place) == 0:
            return
        hand.turn()
        place.clock.move(step)
    raise AssertionError(f"{unfinished(place)} messages are left after {turns} turns")


@pytest.mark.slow
def test_messages_that_break_every_request_among_ten_thousand_good_are_given_up(place: Place) -> None:
    place.receiver.break_on(lambda struct: named(struct, "reset"), HangUp("in_body"))
    place.receiver.break_on(lambda struct: named(struct, "error"), Status(500))
    put_all(place, ("reset" if each == 2_345 else "error" if each == 2_377 else f"good-{each}" for each in range(10_002)))
    hand = place.hand(place.outbox(clock=place.clock))

    # The longest back-off is an hour: with steps of half of that the good ones last until both are given up.
    play(place, hand, step=1800)

    assert {"reset": Reason.OUTCOME_UNKNOWN, "error": Reason.EXHAUSTED} == reasons(place.database)
    assert {("delivered", 0, 0)} == {(each.state, each.failures, each.unknowns) for each in fates(place, "good").values()}
    assert 10_000 == len(place.receiver.accepted) == len({each.struct["assetId"] for each in place.receiver.accepted})
    place.check()


#: A message that fails so, how its file is, and as what it ends.
BREAKS: dict[str, tuple[Behaviour, int, Reason]] = {
    "reset in a short body": (HangUp("in_body"), 0, Reason.OUTCOME_UNKNOWN),
    # More than the sockets between us and the receiver hold.
    "reset in a long body": (HangUp("in_body"), 8_000_000, Reason.EXHAUSTED),
    "polite end in a long body": (HangUp("in_body", reset=False), 8_000_000, Reason.EXHAUSTED),
    "reset after the body": (HangUp("after_body"), 0, Reason.OUTCOME_UNKNOWN),
    "reset in the answer": (HangUp("in_answer", after_bytes=20), 0, Reason.OUTCOME_UNKNOWN),
    "half an answer": (Truncated(), 0, Reason.OUTCOME_UNKNOWN),
    "500": (Status(500), 0, Reason.EXHAUSTED),
    "silence": (Silence(), 0, Reason.OUTCOME_UNKNOWN),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_message_that_breaks_every_request_is_given_up_alone(place: Place, how: str) -> None:
    behaviour, size, reason = BREAKS[how]
    place.receiver.break_on(lambda struct: named(struct, "poison"), behaviour)
    limits = Policy(batch_messages=10, batch_bytes=64_000_000, max_failures=4, max_unknown=2, slowest_rate=10**9, send_base=0.5)
    patient = limits if how == "silence" else Policy(**{**vars_of(limits), "send_base": 120.0})
    outbox = place.outbox(patient, clock=place.clock)
    put_all(place, (f"good-{each}" for each in range(95)))
    place.enqueue(outbox, "poison", {"file": bytes(size)} if size else None)
    put_all(place, (f"good-{each}" for each in range(95, 300)))

    play(place, place.hand(outbox), step=30)

    assert {"poison": reason} == reasons(place.database)
    assert {("delivered", 0, 0)} == {(each.state, each.failures, each.unknowns) for each in fates(place, "good").values()}
    place.check()


def vars_of(policy: Policy) -> dict[str, Any]:
    return {name: getattr(policy, name) for name in Policy.__dataclass_fields__}


@pytest.mark.parametrize("behaviour", [HangUp("in_body"), Status(500)], ids=["reset", "500"])
def test_two_workers_give_up_a_message_that_breaks_every_request(place: Place, behaviour: Behaviour) -> None:
    quick = {"backoff_first": 0.01, "backoff_cap": 0.05, "probe_first": 0.03, "probe_cap": 0.06}
    place.receiver.break_on(lambda struct: named(struct, "poison"), behaviour)
    put_all(place, ("poison" if each == 333 else f"good-{each}" for each in range(1001)))

    with working(place, 2, Policy(max_failures=4, max_unknown=2, batch_messages=50, **quick)):
        for each in range(2000):  # good ones keep coming: without them nobody could say whose fault it is
            if unfinished(place) == 0:
                break
            put_all(place, [f"good-later-{each}"])
            threading.Event().wait(0.01)
        eventually(lambda: unfinished(place) == 0, within=30)

    assert ["poison"] == list(reasons(place.database))
    assert {("delivered", 0, 0)} == {(each.state, each.failures, each.unknowns) for each in fates(place, "good").values()}
    place.check()


# A message that kills its worker


def supervised(place: Place, **story: Any) -> Process:
    """A worker that is started again each time it dies."""
    program = place.run("supervise", **story)
    return program
