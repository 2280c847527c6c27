"""One bad message sinks nobody: it ends dead under its own name, and the good ones around it are delivered and pay nothing."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, Worker
from outbox.model import Reason
from outbox.payload import text
from outbox.tables import attempt, destination, message
from outbox.testing import Behaviour, HangUp, Received, Receiver, Silence, Status, Truncated, peak_of
from tests import warm
from tests.factories import column, event, in_full, message_values, real_clock, reasons, states
from tests.story.conftest import ROOT, Hand, Place, eventually

WORDS = "the device 'turbine-7' has no event 'crack'"
#: Good messages among which a bad one is looked for.
MANY = in_full(10_000, 1_000)
#: What the receiver's words become of a request that it refuses.
REFUSED = 1204


def named(struct: dict[str, Any], kind: str) -> bool:
    return str(struct["assetId"]).startswith(kind)


def put_all(place: Place, keys: Iterable[str], now: datetime | None = None) -> list[str]:
    """Messages as `enqueue` writes them, all due at once; the door is another story."""
    rows = []
    when = {"created_at": now or place.clock.wall, "due_at": now or place.clock.wall}
    for key in keys:
        written = text(event(key))
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


@pytest.mark.long
@pytest.mark.parametrize(
    "placement",
    ["spread", "adjacent", *(pytest.param(each, marks=pytest.mark.full) for each in ("first", "last", "random"))],
)
def test_ten_bad_messages_are_refused_by_name(place: Place, placement: str) -> None:
    good = in_full(1000, 400)
    refused_by_name(place, good, chosen(placement, good + 10, 10), "hand", keep_good=placement in ("adjacent", "random"))


@pytest.mark.full
def test_ten_bad_among_very_many_good_are_refused_by_name(sqlite_place: Place) -> None:
    refused_by_name(sqlite_place, MANY, chosen("spread", MANY + 10, 10), "hand", keep_good=False)


@pytest.mark.full
def test_two_workers_find_ten_bad_among_very_many_good_that_a_receiver_keeps(place: Place) -> None:
    refused_by_name(place, MANY, chosen("random", MANY + 10, 10), "workers", keep_good=True)


@pytest.mark.long
def test_of_any_number_of_messages_exactly_the_bad_ones_die(place: Place) -> None:
    seed = int.from_bytes(os.urandom(4))
    dice = random.Random(seed)
    for game in range(4):
        good, batch = dice.randint(1, 40), dice.choice([1, 2, 3, 7, 16, 100])
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
    place.check()


@pytest.mark.long
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
    run = warm.run(command, cwd=place.folder, env=os.environ | settings, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


# A message that breaks every request


def play(place: Place, hand: Hand, step: float, arrivals: Sequence[Sequence[str]]) -> None:
    """Deliver while messages keep coming, until nothing is left; `step` seconds pass from each arrival to the next.

    They must keep coming: when nothing else gets through, nobody can say whose fault it is, and nothing is charged.
    """
    coming = iter(arrivals)
    for _ in range(2 * len(arrivals)):
        put_all(place, next(coming, ()))
        for _ in range(4):
            hand.turn()
        place.clock.move(step)
        if unfinished(place) == 0:
            break
    put_all(place, (key for keys in coming for key in keys))
    hand.turn_while_it_moves(1000)


def lots(good: int, size: int) -> list[list[str]]:
    """The keys of good messages that come so many at a time."""
    return [[f"good-{each}" for each in range(first, min(first + size, good))] for first in range(0, good, size)]


def nobody_else_paid(place: Place, good: int) -> None:
    innocent = fates(place, "good").values()
    assert {("delivered", 0, 0): good} == Counter((each.state, each.failures, each.unknowns) for each in innocent)


@pytest.mark.full
def test_messages_that_break_every_request_among_very_many_good_are_given_up(place: Place) -> None:
    place.receiver.break_on(lambda struct: named(struct, "reset"), HangUp("in_body"))
    place.receiver.break_on(lambda struct: named(struct, "error"), Status(500))
    first, *later = lots(MANY, MANY // 100)
    first[MANY // 400 : MANY // 400], first[MANY // 200 : MANY // 200] = ["reset"], ["error"]

    # The longest back-off is an hour.
    play(place, place.hand(place.outbox(clock=place.clock)), 1800, [first, *later])

    assert {"reset": Reason.OUTCOME_UNKNOWN, "error": Reason.EXHAUSTED} == reasons(place.database)
    nobody_else_paid(place, MANY)
    stored = copies(place.receiver.requests)
    assert {1} == {stored[f"good-{each}"] for each in range(MANY)}
    place.check()


#: A message that fails so, how long its file is, and as what it ends.
BREAKS: dict[str, tuple[Behaviour, int, Reason]] = {
    "reset in a short body": (HangUp("in_body"), 0, Reason.OUTCOME_UNKNOWN),
    # More than the sockets between us and the receiver hold.
    "reset in a long body": (HangUp("in_body"), 8_000_000, Reason.EXHAUSTED),
    "reset after the body": (HangUp("after_body"), 0, Reason.OUTCOME_UNKNOWN),
    "reset in the answer": (HangUp("in_answer", after_bytes=20), 0, Reason.OUTCOME_UNKNOWN),
    "half an answer": (Truncated(), 0, Reason.OUTCOME_UNKNOWN),
    "500": (Status(500), 0, Reason.EXHAUSTED),
    "silence": (Silence(), 0, Reason.OUTCOME_UNKNOWN),
}
OFTEN = ("reset in a long body", "500", "silence")


@pytest.mark.parametrize("how", [pytest.param(each, marks=[] if each in OFTEN else pytest.mark.full) for each in BREAKS])
@pytest.mark.long
def test_a_message_that_breaks_every_request_is_given_up_alone(place: Place, how: str) -> None:
    behaviour, size, reason = BREAKS[how]
    place.receiver.break_on(lambda struct: named(struct, "poison"), behaviour)
    policy = Policy(batch_messages=10, batch_bytes=64_000_000, max_failures=4, max_unknown=2)
    if how == "silence":
        policy = replace(policy, send_base=0.5, slowest_rate=10**9)
    outbox = place.outbox(policy, clock=place.clock)
    place.enqueue(outbox, "poison", {"file": bytes(size)} if size else None)
    put_all(place, ("good-first", "good-second"))

    play(place, place.hand(outbox), 30, lots(200, 5))

    assert {"poison": reason} == reasons(place.database)
    nobody_else_paid(place, 202)
    place.check()


@pytest.mark.long
@pytest.mark.parametrize(
    "behaviour", [HangUp("in_body"), pytest.param(Status(500), marks=pytest.mark.full)], ids=["reset", "500"]
)
def test_two_workers_give_up_a_message_that_breaks_every_request(place: Place, behaviour: Behaviour) -> None:
    quick: dict[str, Any] = {"backoff_first": 0.01, "backoff_cap": 0.05, "probe_first": 0.03, "probe_cap": 0.06}
    place.receiver.break_on(lambda struct: named(struct, "poison"), behaviour)
    put_all(place, ("poison" if each == 333 else f"good-{each}" for each in range(1001)))
    later = 0

    with working(place, 2, Policy(max_failures=4, max_unknown=2, batch_messages=50, **quick)):
        ends = time.monotonic() + 60
        while unfinished(place, "poison"):
            put_all(place, [f"good-later-{later}"], datetime.now(UTC))
            later += 1
            known = len(place.receiver.requests)
            place.receiver.wait_for(lambda receiver: len(receiver.requests) > known, 10)  # noqa: B023 (asked at once)
            assert time.monotonic() < ends, "the poison is not given up"
        eventually(lambda: unfinished(place) == 0)

    assert ["poison"] == list(reasons(place.database))
    nobody_else_paid(place, 1000 + later)
    place.check()


# A message that kills its worker


def killed_again_and_again(place: Place, good: int, *, policy: dict[str, Any], poisons: int = 1) -> int:
    """A worker that is started again each time a message has killed it; how often it died."""
    keys = [f"good-{each}" for each in range(good)]
    for each in range(poisons):
        keys.insert((each + 1) * good // (4 * poisons), f"poison-{each}")
    put_all(place, keys)

    supervisor = Supervisor(place, policy=policy, worker={"gone_after": 0.6, "poll": 0.05})
    assert supervisor.ended() == 0, supervisor.log

    assert {f"poison-{each}": Reason.OUTCOME_UNKNOWN for each in range(poisons)} == reasons(place.database)
    innocent = fates(place, "good").values()
    assert {("delivered", 0): good} == Counter((each.state, each.failures) for each in innocent)
    return supervisor.deaths


def most_unknowns(place: Place) -> Counter[int]:
    """How many good messages have so many unknown outcomes."""
    return Counter(each.unknowns for each in fates(place, "good").values())


class Supervisor:
    """Runs `supervise` of isolation_programs.py."""

    def __init__(self, place: Place, **story: Any) -> None:
        here = {"database": place.url, "spool": str(place.spool), "url": place.receiver.url}
        self._errors = place.folder / "supervisor.err"
        with self._errors.open("wb") as errors:
            self._popen = warm.WarmPopen(
                [sys.executable, "-m", "tests.story.isolation_programs"],
                cwd=ROOT,
                env=os.environ | {"STORY": json.dumps(here | story)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.deaths = 0

    @property
    def log(self) -> str:
        return self._errors.read_text(errors="replace")[-5000:]

    def ended(self, within: float = 120) -> int:
        """Its exit code."""
        try:
            said, _ = self._popen.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.communicate()
            raise
        self.deaths = said.count("died")
        return self._popen.returncode


@pytest.mark.full
def test_a_message_that_kills_its_worker_among_very_many_good_is_given_up(place: Place) -> None:
    deaths = killed_again_and_again(place, MANY, policy={"max_unknown": 2})

    # At most seven times in a batch that is halved, then alone.
    assert 3 < deaths <= 7 + 3
    # One that was halved down together with the guilty one may be under way alone when that kills for the last times.
    assert max(most_unknowns(place)) <= 2
    assert most_unknowns(place)[0] >= MANY - 10
    place.check()


@pytest.mark.slow
@pytest.mark.long
def test_a_message_that_kills_its_worker_takes_no_neighbour_along(place: Place) -> None:
    """Without batches each neighbour is under way alone when the worker dies, as the guilty one is."""
    deaths = killed_again_and_again(place, in_full(400, 60), policy={"batch_messages": 1, "max_unknown": 3})

    assert 3 + 1 == deaths
    unknowns = most_unknowns(place)
    print(f"unknown outcomes of good messages: {dict(unknowns)}")
    assert max(unknowns) <= 2
    place.check()


@pytest.mark.long
def test_messages_that_a_worker_may_have_died_of_travel_one_at_a_time(database_url: str, tmp_path: Path) -> None:
    """Else the innocent among them would die with the guilty one, again and again."""
    with a_place(database_url, tmp_path, latency=0.03) as place:
        put_all(place, (f"good-{each}" for each in range(16)))
        with place.database.begin() as connection:
            connection.execute(sa.update(message).values(suspect=True, batch_limit=1))

        drained(place, "workers", Policy(batch_messages=1))

        assert 1 == peak_of(place.receiver.requests)
        place.check()


@contextmanager
def a_place(database_url: str, folder: Path, **options: Any) -> Iterator[Place]:
    """A place with a receiver that is not as usual."""
    with Receiver(check_token=False, **options) as receiver:
        place = Place(database_url, folder, receiver)
        try:
            yield place
        finally:
            place.close()


# A receiver that takes less than we thought

TAKES = 300_000
EARLY_OR_NOT = pytest.mark.parametrize("modest", [False, True], indirect=True, ids=["read first", "early"])


@pytest.fixture
def modest(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[Place]:
    """Where the receiver takes no request of more than 300 kB, in the time of today, which the terminal goes by."""
    with a_place(database_url, tmp_path, max_request_bytes=TAKES, early_413=getattr(request, "param", False)) as place:
        place.clock = real_clock()
        yield place


def put_bytes(place: Place, outbox: Outbox, name: str, total: int) -> None:
    """Messages of 2 to 20 kB, every fourth with a file."""
    dice = random.Random(name)
    left, number = total, 0
    with place.engine.begin() as connection:
        while left > 0:
            size, number = dice.randint(2_000, 20_000), number + 1
            left -= size
            key = f"{name}-{number}"
            files = {"photo": dice.randbytes(size)} if number % 4 == 0 else {}
            payload = event(key, *files, **({} if files else {"note": "x" * size}))
            outbox.enqueue(connection, "enos", payload, files=files, key=key)
            place.acknowledge(key, files)


def on_the_wire(request: Received) -> int:
    """Bytes of its body as it was sent, read or not."""
    return int(request.headers["content-length"])


def too_large(requests: Iterable[Received]) -> list[int]:
    """How large the requests were that were refused for it."""
    return [on_the_wire(request) for request in requests if request.status == 413]


def learned(place: Place) -> int | None:
    with place.database.read() as connection:
        size: int | None = connection.execute(sa.select(destination.c.learned_bytes)).scalar_one()
        return size


@pytest.mark.long
@EARLY_OR_NOT
def test_a_size_that_is_refused_is_learned_and_kept_to(modest: Place) -> None:
    outbox = modest.outbox(clock=modest.clock)
    put_bytes(modest, outbox, "first", 4_000_000)
    hand = modest.hand(outbox)

    for _ in range(6):
        hand.turn()
    outbox.close()  # and a new program goes on with what the old one learned
    early = len(modest.receiver.requests)
    modest.hand(modest.outbox(clock=modest.clock)).turn_while_it_moves(1000)

    requests = modest.receiver.requests
    refused = too_large(requests)
    print(f"{len(requests)} requests, refused: {refused}, learned: {learned(modest)}")
    assert 1 <= len(refused) <= 3
    assert [] == too_large(requests[early:])
    assert max(on_the_wire(each) for each in requests[early:]) <= TAKES
    size = learned(modest)
    assert size is not None
    assert TAKES / 2 < size <= TAKES
    told = json.loads(terminal(modest, "status", "--json"))["destinations"]["enos"]["learned_bytes"]
    assert size <= told < 1.01 * size, "a little is forgotten each moment"
    assert {"delivered"} == {each.state for each in fates(modest, "first").values()}
    modest.check()


@pytest.mark.long
def test_one_message_that_is_too_large_by_itself_is_dead_and_the_others_travel_as_before(modest: Place) -> None:
    outbox = modest.outbox(clock=modest.clock)
    hand = modest.hand(outbox)
    put_bytes(modest, outbox, "first", 1_200_000)
    hand.turn_while_it_moves(1000)
    before, known = learned(modest), len(modest.receiver.requests)
    modest.enqueue(outbox, "huge", {"photo": bytes(400_000)})
    put_bytes(modest, outbox, "second", 600_000)

    hand.turn_while_it_moves(1000)

    assert {"huge": Reason.TOO_LARGE} == reasons(modest.database)
    assert "400" in column(modest.database, "huge", "reason_text"), "the receiver's words tell the size"
    assert 1 == len(too_large(modest.receiver.requests[known:]))
    assert before == learned(modest)
    assert {"delivered"} == {each.state for each in fates(modest, "second").values()}
    modest.check()


@pytest.mark.long
def test_a_learned_size_is_forgotten_slowly_and_held_again_after_one_refusal(modest: Place) -> None:
    outbox = modest.outbox(clock=modest.clock)
    hand = modest.hand(outbox)
    put_bytes(modest, outbox, "first", 1_200_000)
    hand.turn_while_it_moves(1000)
    held, known = learned(modest), len(modest.receiver.requests)
    assert held is not None

    modest.clock.move(hours=2)
    put_bytes(modest, outbox, "soon", 600_000)
    hand.turn_while_it_moves(1000)
    soon, known = modest.receiver.requests[known:], len(modest.receiver.requests)
    modest.clock.move(days=2)
    put_bytes(modest, outbox, "later", 1_200_000)
    hand.turn_while_it_moves(1000)
    later = modest.receiver.requests[known:]

    assert [] == too_large(soon)
    assert held < max(on_the_wire(each) for each in soon)
    (refused,) = too_large(later)
    assert refused > 2 * held
    assert later[0].status == 413
    assert max(on_the_wire(each) for each in later[1:]) <= TAKES
    assert held == learned(modest)
    assert {"delivered"} == set(states(modest.database).values())
    modest.check()


@pytest.mark.long
@pytest.mark.parametrize(
    "modest", [pytest.param(False, marks=pytest.mark.full), True], indirect=True, ids=["read first", "early"]
)
def test_many_senders_learn_a_size_together(modest: Place) -> None:
    put_bytes(modest, modest.outbox(), "first", 4_000_000)

    drained(modest, "workers")

    requests = modest.receiver.requests
    refused = [each for each in requests if each.status == 413]
    print(f"{len(requests)} requests, refused: {too_large(requests)}, learned: {learned(modest)}")
    # Two sizes are too large, and for each of them every sender may have begun one.
    assert 1 <= len(refused) <= 2 * 8
    last = max(each.finished for each in refused)
    # What a sender had claimed before the last lesson it may begin after it; then it knows.
    later = sorted((each for each in requests if each.started > last), key=lambda each: each.started)
    assert all(on_the_wire(each) <= TAKES for each in later[8:])
    assert later
    size = learned(modest)
    assert size is not None
    assert TAKES / 4 < size <= TAKES, "what was refused before the lesson taught nothing twice"
    assert {"delivered"} == set(states(modest.database).values())
    modest.check()
