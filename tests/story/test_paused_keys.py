"""A person pauses one ordering key: nothing of it begins any more, all else goes on, and it comes in order when resumed."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, Refused, State, UnknownDestination, Worker
from outbox.checkup import Verification
from outbox.explaining import Cause, Code
from outbox.model import Selection
from outbox.secret import literal
from outbox.store import pausing
from outbox.tables import attempt, audit, delivery, message
from outbox.testing import Hold, Receiver
from tests.factories import caller_engine, column, event, states
from tests.story.conftest import Hand, Place
from tests.story.test_contention import together

pytestmark = pytest.mark.long
DELIVERED, DEAD, PENDING, CLAIMED = State.DELIVERED, State.DEAD, State.PENDING, State.CLAIMED
LANES = ("express", "normal", "bulk", "large")
both = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])


@pytest.fixture
def outbox_here(place: Place) -> Outbox:
    return place.outbox(clock=place.clock)


@pytest.fixture
def hand(place: Place, outbox_here: Outbox) -> Hand:
    return place.hand(outbox_here)


def arrived(receiver: Receiver) -> list[str]:
    """The keys of what came, in the order of the requests."""
    requests = sorted(receiver.requests, key=lambda request: request.number)
    return [struct["assetId"] for request in requests if request.stored for struct in request.structs]


def drain(hand: Hand) -> None:
    while hand.turn(*LANES):
        pass


def pump(place: Place, outbox: Outbox, *keys: str, ordered: bool, **options: Any) -> list[int]:
    return [place.enqueue(outbox, key, ordering_key="pump", ordered=ordered, **options) for key in keys]


def pause(outbox: Outbox, key: str = "pump", reason: str = "the wrong model", by: str = "ann") -> None:
    outbox.pause("enos", reason, by, ordering_key=key)


def resume(outbox: Outbox, key: str = "pump", by: str = "bob") -> bool:
    return outbox.resume("enos", by, ordering_key=key)


def acts(place: Place) -> list[tuple[str, str, str]]:
    with place.database.read() as connection:
        columns = (audit.c.actor, audit.c.action, audit.c.selection)
        return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(audit.c.id))]  # type: ignore[misc]


# One key waits, the others go.


@both
def test_a_paused_key_waits_and_comes_when_it_is_resumed(place: Place, hand: Hand, outbox_here: Outbox, ordered: bool) -> None:
    pump(place, outbox_here, "p1", "p2", ordered=ordered)
    place.enqueue(outbox_here, "f1", ordering_key="fan", ordered=ordered)
    place.enqueue(outbox_here, "loose")

    pause(outbox_here)
    pump(place, outbox_here, "p3", ordered=ordered)
    drain(hand)
    place.clock.move(days=40)
    drain(place.hand(place.outbox(clock=place.clock)))

    assert ["f1", "loose"] == sorted(arrived(place.receiver))
    assert {"p1": PENDING, "p2": PENDING, "p3": PENDING, "f1": DELIVERED, "loose": DELIVERED} == states(place.database)
    assert 0 == column(place.database, "p1", "attempt")
    assert resume(outbox_here)
    drain(hand)
    assert ["p1", "p2", "p3"] == arrived(place.receiver)[2:]
    place.check()


@both
def test_what_is_being_sent_is_finished_and_the_next_waits(
    place: Place, hand: Hand, outbox_here: Outbox, ordered: bool
) -> None:
    pump(place, outbox_here, "p1", ordered=ordered)
    place.receiver.misbehave(Hold())
    sending = threading.Thread(target=hand.turn)
    sending.start()
    place.receiver.wait_for(lambda receiver: receiver.held)

    pause(outbox_here)
    (later,) = pump(place, outbox_here, "p2", ordered=ordered)
    in_hand = outbox_here.explain("p1", "enos")
    place.receiver.release()
    sending.join(20)
    drain(hand)

    assert {"p1": DELIVERED, "p2": PENDING} == states(place.database)
    assert [Code.CLAIMED, Code.KEY_PAUSED] == [each.code for each in in_hand]
    assert "what is being sent is finished" in in_hand[1].next
    assert Code.KEY_PAUSED == outbox_here.explain(later)[0].code
    resume(outbox_here)
    drain(hand)
    place.check()


@both
def test_a_key_that_nobody_has_used_yet_is_paused_in_every_lane(
    place: Place, hand: Hand, outbox_here: Outbox, ordered: bool
) -> None:
    pause(outbox_here)
    for lane in LANES:
        pump(place, outbox_here, lane, ordered=ordered, lane=lane)

    drain(hand)

    assert {PENDING} == set(states(place.database).values())
    resume(outbox_here)
    drain(hand)
    assert set(LANES) == set(arrived(place.receiver))
    assert not ordered or list(LANES) == arrived(place.receiver)
    place.check()


@both
def test_an_idle_turn_over_a_paused_key_writes_nothing(
    place: Place, hand: Hand, outbox_here: Outbox, ordered: bool, statements: Callable[[sa.Engine], list[str]]
) -> None:
    pump(place, outbox_here, "p1", "p2", ordered=ordered)
    pause(outbox_here)
    heard = statements(outbox_here.database.engine)

    assert not hand.turn(*LANES)

    assert [] == [each for each in heard if not each.lstrip().upper().startswith("SELECT")]


@both
def test_a_worker_until_idle_does_not_wait_for_a_paused_key(place: Place, ordered: bool) -> None:
    outbox = place.outbox()
    pump(place, outbox, "p1", ordered=ordered)
    place.enqueue(outbox, "loose")
    pause(outbox)

    worker = threading.Thread(target=lambda: Worker(outbox, poll=0.05).run(until_idle=True))
    worker.start()
    worker.join(20)

    assert not worker.is_alive()
    assert {"p1": PENDING, "loose": DELIVERED} == states(place.database)


@both
def test_a_running_worker_goes_on_with_a_key_that_is_resumed(place: Place, ordered: bool) -> None:
    outbox = place.outbox()
    pause(outbox)
    pump(place, outbox, "p1", ordered=ordered)
    with Worker(outbox, poll=0.05):
        place.enqueue(outbox, "loose")
        place.receiver.wait_for(lambda receiver: receiver.accepted)
        resume(outbox)
        place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 2)

    assert ["loose", "p1"] == arrived(place.receiver)
    place.check()


# What else may become of its messages.


@both
def test_messages_of_a_paused_key_expire_as_those_of_a_paused_destination_do(
    place: Place, hand: Hand, outbox_here: Outbox, ordered: bool
) -> None:
    ends = place.clock.wall.replace(hour=13)
    (number, _) = pump(place, outbox_here, "p1", "p2", ordered=ordered, expires_at=ends)
    pause(outbox_here)
    place.clock.move(hours=2)

    told = [each.code for each in outbox_here.explain(number)]
    assert 2 == hand.dispatcher.expire()

    assert {Code.KEY_PAUSED, Code.EXPIRED} <= set(told)
    assert {"p1": DEAD, "p2": DEAD} == states(place.database)
    pump(place, outbox_here, "p3", ordered=ordered)
    drain(hand)
    assert [] == arrived(place.receiver)
    assert resume(outbox_here)
    drain(hand)
    assert ["p3"] == arrived(place.receiver)


@both
def test_a_replayed_message_of_a_paused_key_waits_too(place: Place, hand: Hand, outbox_here: Outbox, ordered: bool) -> None:
    pump(place, outbox_here, "p1", ordered=ordered)
    place.enqueue(outbox_here, "loose")
    drain(hand)
    pause(outbox_here)

    assert 2 == outbox_here.replay(Selection(states=(DELIVERED,)), "ann")
    drain(hand)

    assert {"p1": PENDING, "loose": DELIVERED} == states(place.database)
    assert Code.KEY_PAUSED == outbox_here.explain("p1")[0].code
    resume(outbox_here)
    drain(hand)
    assert ["loose", "loose", "p1", "p1"] == sorted(arrived(place.receiver))


@both
def test_a_replayed_message_is_still_one_of_its_ordering_key(
    place: Place, hand: Hand, outbox_here: Outbox, ordered: bool
) -> None:
    pump(place, outbox_here, "p1", "p2", ordered=ordered)
    drain(hand)

    outbox_here.replay(Selection(ordering_key="pump"), "ann")

    assert 2 == len(outbox_here.messages(Selection(ordering_key="pump", states=(PENDING,))))
    assert [] == [each.text for each in Verification(outbox_here).run()], "what was enqueued is still what is there"
    drain(hand)
    assert ["p1", "p1", "p2", "p2"] == sorted(arrived(place.receiver))


@both
def test_a_message_of_a_paused_key_can_be_cancelled_and_purged(
    place: Place, hand: Hand, outbox_here: Outbox, ordered: bool
) -> None:
    pump(place, outbox_here, "p1", "p2", ordered=ordered)
    pause(outbox_here)

    assert 1 == outbox_here.cancel(Selection(keys=("p1",)), "ann")
    assert 1 == outbox_here.purge(Selection(keys=("p1",)), "ann")
    drain(hand)
    assert [] == arrived(place.receiver)
    resume(outbox_here)
    drain(hand)
    assert ["p2"] == arrived(place.receiver)


def test_resuming_a_key_lifts_its_pause_and_forgives_its_dead(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.receiver.refuse(lambda struct: struct["assetId"] == "p1")
    pump(place, outbox_here, "p1", "p2", ordered=True)
    drain(hand)
    pause(outbox_here)
    held_up_twice = [each.code for each in outbox_here.explain("p2")]

    assert resume(outbox_here)
    assert not resume(outbox_here)
    drain(hand)

    assert [Code.KEY_PAUSED, Code.ORDER_DEAD] == held_up_twice[:2]
    assert {"p1": DEAD, "p2": DELIVERED} == states(place.database)


def test_a_stream_that_skips_its_dead_goes_on_at_once_when_it_is_resumed(place: Place) -> None:
    outbox = place.outbox(Policy(on_dead="skip"), clock=place.clock)
    hand = place.hand(outbox)
    place.receiver.refuse(lambda struct: struct["assetId"] == "p1")
    pump(place, outbox, "p1", "p2", ordered=True)
    hand.turn()
    pause(outbox)

    resume(outbox)
    drain(hand)

    assert {"p1": DEAD, "p2": DELIVERED} == states(place.database)


def test_a_paused_destination_goes_on_without_its_paused_keys(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    pump(place, outbox_here, "p1", ordered=True)
    place.enqueue(outbox_here, "loose")
    pause(outbox_here)
    outbox_here.pause("enos", "they move house", "ann")
    assert [Code.PAUSED, Code.KEY_PAUSED] == [each.code for each in outbox_here.explain("p1")][:2]

    assert outbox_here.resume("enos", "bob")
    drain(hand)

    assert ["loose"] == arrived(place.receiver)


# What is said of it.


@both
def test_who_paused_it_since_when_and_why_is_told_for_its_messages(
    place: Place, hand: Hand, outbox_here: Outbox, ordered: bool
) -> None:
    number = place.enqueue(outbox_here, "p1", ordering_key="pümp 7", ordered=ordered)
    pause(outbox_here, "pümp 7", "the wrong model\nuntil noon", "Zoë")
    since = f"{place.clock.wall:%Y-%m-%d %H:%M:%S}Z"
    place.clock.move(seconds=5)

    (cause, *others) = outbox_here.explain(number)

    sentence = f"ordering key 'pümp 7' of message {number} is paused by Zoë since {since}: the wrong model until noon"
    next_ = "nothing of that key is sent until a person lets it go on: outbox resume enos --key 'pümp 7'"
    assert Cause(Code.KEY_PAUSED, sentence, next_) == cause
    assert Code.READY not in [each.code for each in others]
    assert outbox_here.message(number).next_try_at is None
    resume(outbox_here, "pümp 7")
    assert [Code.READY] == [each.code for each in outbox_here.explain(number)]
    assert outbox_here.message(number).next_try_at is not None


def test_a_destination_says_how_many_of_its_keys_are_paused_and_names_a_few(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    since = f"{place.clock.wall:%Y-%m-%d %H:%M:%S}Z"
    pause(outbox_here, "pump")
    (one, *_) = [each for each in outbox_here.explain("enos") if each.code == Code.KEY_PAUSED]
    for key in ("fan", "valve", "belt"):
        place.clock.move(seconds=1)
        pause(outbox_here, key, by="bob")
    (several, *_) = [each for each in outbox_here.explain("enos") if each.code == Code.KEY_PAUSED]

    assert f"1 ordering key of enos is paused: 'pump' by ann since {since}: the wrong model" == one.sentence
    assert several.sentence.startswith(f"4 ordering keys of enos are paused: 'pump' by ann since {since}: the wrong model; ")
    assert several.sentence.endswith("'valve' by bob since 2026-03-01 12:00:02Z: the wrong model; and 1 more")
    assert several.next.endswith("outbox resume enos --key KEY")
    assert 4 == outbox_here.status().destinations["enos"].paused_keys
    for key in ("fan", "valve", "belt", "pump"):
        resume(outbox_here, key)
    assert Code.KEY_PAUSED not in [each.code for each in outbox_here.explain("enos")]
    assert 0 == outbox_here.status().destinations["enos"].paused_keys


def test_nothing_is_due_where_only_a_paused_key_waits(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    pump(place, outbox_here, "p1", ordered=True)
    pump(place, outbox_here, "u1", ordered=False)
    pause(outbox_here)
    later = place.clock.wall.replace(hour=18)
    place.enqueue(outbox_here, "loose", due_at=later)

    (idle,) = [each for each in outbox_here.explain("enos") if each.code == Code.IDLE]

    assert ("nothing is due for enos", later) == (idle.sentence, idle.at)


def test_the_audit_names_the_destination_and_the_key(place: Place, outbox_here: Outbox) -> None:
    pause(outbox_here)
    resume(outbox_here)
    resume(outbox_here)

    assert [
        ("ann", "pause", "destination enos; ordering key pump: the wrong model"),
        ("bob", "resume", "destination enos; ordering key pump"),
    ] == acts(place)


# The door.


@pytest.mark.parametrize("key", [None, "pump"])
@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("", "reason: says nothing; say why"),
        (" \n\t", "reason: says nothing; say why"),
        ("x" * 501, "reason: has 501 characters; say it in 500 at most"),
        (None, "reason: expected words, got None"),
    ],
)
def test_a_reason_that_is_none_or_a_novel_is_refused(place: Place, key: str | None, reason: Any, said: str) -> None:
    outbox = place.outbox(clock=place.clock)
    with pytest.raises(Refused) as refused:
        outbox.pause("enos", reason, "ann", key)

    assert str(refused.value).startswith(said)
    assert [] == acts(place)


@pytest.mark.parametrize("key", [None, "pump"])
def test_a_reason_is_kept_as_any_database_takes_it_and_without_secrets(place: Place, key: str | None) -> None:
    outbox = place.outbox(clock=place.clock)
    hidden = literal("correct-horse-battery")  # nothing has used it yet

    outbox.pause("enos", "x" * 400 + " key correct-horse-battery\x00 \ud83d ", "an\ud83dn", key)

    kept = "x" * 400 + " key ***  ?"
    what = "destination enos" if key is None else "destination enos; ordering key pump"
    assert [("an?n", "pause", f"{what}: {kept}")] == acts(place)
    with place.database.read() as connection:
        of_key = pausing.of_destination(connection, "enos", 10)
    assert ([] if key is None else [(kept, "an?n")]) == [(each.text, each.paused_by) for each in of_key]
    assert kept == (outbox.status().destinations["enos"].stop_text or kept)
    assert repr(hidden) == "Secret(a literal)"


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\ud83d", 7], ids=["empty", "long", "control", "surrogate", "number"])
def test_a_key_that_no_message_can_have_is_refused(place: Place, key: Any) -> None:
    outbox = place.outbox(clock=place.clock)
    for act in (lambda: pause(outbox, key), lambda: resume(outbox, key)):
        with pytest.raises(Refused, match="ordering_key: no message has"):
            act()
    with pytest.raises(UnknownDestination):
        outbox.pause("nobody", "why", "ann", "pump")


# A producer's transaction is open: only Postgres has others beside it.


def soon(act: Callable[[], object]) -> None:
    """An act in which somebody else is not waited for: it ends within ten seconds."""
    thread = ThreadPoolExecutor(1)
    try:
        thread.submit(act).result(10)
    finally:
        thread.shutdown(wait=False)


@both
@pytest.mark.parametrize("before", ["never seen", "at rest", "due", "under way"])
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_key_is_paused_while_a_producer_has_it_in_an_open_transaction(
    postgres_place: Place, ordered: bool, before: str, ends: str
) -> None:
    place, outbox = postgres_place, postgres_place.outbox(clock=postgres_place.clock)
    hand, other = place.hand(outbox), place.hand(place.outbox(clock=place.clock))
    if before != "never seen":
        pump(place, outbox, "p1", ordered=ordered)
    if before == "at rest":
        drain(hand)
    if before == "under way":
        place.receiver.misbehave(Hold())
        sending = threading.Thread(target=hand.turn)
        sending.start()
        place.receiver.wait_for(lambda receiver: receiver.held)
    producer = place.engine.connect()
    more = {f"{lane}, {mixed}": (lane, mixed) for lane in LANES for mixed in (True, False)}
    outbox.enqueue(producer, "enos", event("late"), key="late", ordering_key="pump", ordered=ordered)

    soon(lambda: pause(outbox))
    place.enqueue(outbox, "loose")
    other.turn()
    # It may go on with that key as it likes, in any lane, and in order or not.
    for key, (lane, mixed) in more.items():
        outbox.enqueue(producer, "enos", event(key), key=key, ordering_key="pump", ordered=mixed, lane=lane)
    if before == "under way":
        place.receiver.release()
        sending.join(20)
    getattr(producer, ends)()
    producer.close()
    drain(hand)
    drain(other)

    finished = {"p1"} if before in ("at rest", "under way") else set()
    assert {"loose"} | finished == set(arrived(place.receiver))
    assert resume(outbox)
    drain(hand)
    late = {"late", *more} if ends == "commit" else set()
    assert {"loose"} | late | (set() if before == "never seen" else {"p1"}) == set(arrived(place.receiver))
    for key in late:
        place.acknowledge(key)
    place.check()


# By chance.


@dataclass
class Crowd:
    """Producers, workers and people who pause and resume, all at the same keys."""

    place: Place
    outbox: Outbox
    keys: dict[str, list[bool]]  #: with or without order, or both
    seed: int
    pauses: int = 0
    broken: list[tuple[str, int]] = field(default_factory=list)  #: pauses, by claims that began in them
    done: threading.Event = field(default_factory=threading.Event)

    def produce(self, name: str, isolation: Any) -> None:
        dice, engine = random.Random(f"{self.seed}{name}"), caller_engine(self.place.url)
        if self.place.database.kind == "postgresql":
            engine = engine.execution_options(isolation_level=isolation)
        for number in range(40):
            wanted = sorted(dice.sample(sorted(self.keys), 2))
            with engine.connect() as connection:
                try:
                    self._enqueue(connection, dice, {key: f"{key}/{name}-{number:02}" for key in wanted})
                except sa.exc.OperationalError as error:
                    if "serialize" not in str(error):  # overtaken it may be; a deadlock it must not be
                        raise
        engine.dispose()

    def _enqueue(self, connection: sa.Connection, dice: random.Random, named: dict[str, str]) -> None:
        for key, mine in named.items():
            lane, ordered = dice.choice(["normal", "express", "bulk"]), dice.choice(self.keys[key])
            self.outbox.enqueue(connection, "enos", event(mine), key=mine, ordering_key=key, ordered=ordered, lane=lane)
        time.sleep(dice.random() * 0.01)
        if dice.random() < 0.8:
            connection.commit()
            for mine in named.values():
                self.place.acknowledge(mine)

    def work(self, hand: Hand) -> None:
        while not self.done.is_set():
            if not hand.turn(*LANES):
                hand.dispatcher.free_streams()
                hand.dispatcher.find_strays()
                self.done.wait(0.01)

    def meddle(self, keys: list[str]) -> None:
        dice = random.Random(f"{self.seed}{keys}")
        while not self.done.is_set():
            key = dice.choice(keys)
            pause(self.outbox, key)
            since = datetime.now(UTC)
            self.done.wait(dice.random() * 0.05)
            self.broken += [(key, each) for each in begun(self.place, key, since)]
            self.pauses += 1
            assert resume(self.outbox, key)


def begun(place: Place, key: str, since: datetime) -> list[int]:
    """Deliveries with messages of an ordering key, under way or ended, whose claims began after an instant."""
    mine = message.c.key.startswith(f"{key}/", autoescape=True)
    ended = sa.select(attempt.c.delivery_id).join(message, attempt.c.message_id == message.c.id).where(mine)
    under_way = sa.select(message.c.delivery_id).where(mine, message.c.delivery_id.is_not(None))
    late = sa.select(delivery.c.id).where(delivery.c.started_at > since, delivery.c.id.in_(ended.union_all(under_way)))
    with place.database.read() as connection:
        return list(connection.execute(late).scalars())


@pytest.mark.slow
def test_no_claim_that_begins_while_a_key_is_paused_has_it_whatever_goes_on(place: Place) -> None:
    """And none of it is lost, none waits for ever, and every stream keeps its order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    kinds = {"stream": [True], "share": [False], "both": [True, False]}
    keys = {f"{kind}{number}": ordered for kind, ordered in kinds.items() for number in range(2)}
    outbox = place.outbox(Policy(batch_messages=6))
    hands = [place.hand(place.outbox(Policy(batch_messages=6))) for _ in range(3)]
    crowd = Crowd(place, outbox, keys, seed)
    isolations = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ"]

    def produce() -> None:
        try:
            together([lambda n=n: crowd.produce(f"p{n}", isolations[n]) for n in range(3)])  # type: ignore[misc]
        finally:
            crowd.done.set()

    people = [sorted(keys)[:3], sorted(keys)[3:]]
    together(
        [
            produce,
            *(lambda hand=hand: crowd.work(hand) for hand in hands),  # type: ignore[misc]
            *(lambda mine=mine: crowd.meddle(mine) for mine in people),  # type: ignore[misc]
        ]
    )
    for _ in range(3):
        for each in hands:
            each.dispatcher.find_strays()
            each.dispatcher.free_streams()
            drain(each)

    print(f"{crowd.pauses} pauses of {len(keys)} keys, {len(states(place.database))} messages")
    assert [] == crowd.broken, "a claim began in a pause"
    assert {DELIVERED} == set(states(place.database).values())
    with place.database.read() as connection:
        left = pausing.counted(connection)
        rows = connection.execute(
            sa.select(message.c.key).where(message.c.stream_id.is_not(None)).order_by(message.c.stream_number)
        ).scalars()
        order: dict[str, list[str]] = defaultdict(list)
        for key in rows:
            order[key.partition("/")[0]].append(key)
    assert {} == left
    places = {key: number for number, key in enumerate(dict.fromkeys(arrived(place.receiver)))}
    assert not [pair for each in order.values() for pair in itertools.pairwise(each) if places[pair[0]] > places[pair[1]]]
    place.check()
