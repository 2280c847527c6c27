"""What becomes of a message: delivered once, tried again, refused by name, or kept until its destination is well."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apscheduler.schedulers.base
import pytest
import sqlalchemy as sa

import outbox.metronome
from outbox import Credentials, Lane, Outbox, Policy, State, Token, Worker
from outbox.destinations import EnosEvents
from outbox.model import Reason
from outbox.patience import Stop
from outbox.tables import message
from outbox.testing import Answer, Expired, HangUp, Hold, Receiver, Silence, Status, Truncated
from outbox.transport import Transport
from tests.factories import (
    an_outbox,
    claim,
    column,
    deliveries,
    event,
    in_full,
    join,
    outcomes,
    reasons,
    states,
)
from tests.story.conftest import Hand, Place, eventually

DELIVERED, DEAD, PENDING = State.DELIVERED, State.DEAD, State.PENDING


@pytest.fixture
def outbox_here(place: Place) -> Outbox:
    return place.outbox(clock=place.clock)


@pytest.fixture
def hand(place: Place, outbox_here: Outbox) -> Hand:
    return place.hand(outbox_here)


def enqueue_many(place: Place, outbox_: Outbox, number: int, **options: Any) -> list[str]:
    keys = [f"m{each}" for each in range(number)]
    for key in keys:
        place.enqueue(outbox_, key, **options)
    return keys


def carried(receiver: Receiver) -> list[list[str]]:
    """The keys in each request."""
    return [[struct["assetId"] for struct in request.structs] for request in receiver.requests]


# The way of a message


def test_a_message_arrives_whole(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    photo = os.urandom(300_000)
    place.enqueue(outbox_here, "a", {"photo": photo, "log": b""})

    assert hand.turn()

    (accepted,) = place.receiver.accepted
    assert "a" == accepted.struct["assetId"]
    assert hashlib.sha256(photo).hexdigest() == accepted.files_by_path["events/crack/photo"].sha256
    assert {"a": DELIVERED} == states(place.database)
    place.check()


def test_nothing_due_is_nothing_sent(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a", due_at=place.clock.wall + timedelta(minutes=1))

    assert not hand.turn()
    place.clock.move(minutes=1)
    assert hand.turn()

    assert [["a"]] == carried(place.receiver)


def test_many_messages_travel_in_one_request(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    keys = enqueue_many(place, outbox_here, 5)

    hand.turn()

    assert [keys] == carried(place.receiver)
    assert [(5, "delivered")] == [(each.messages, each.outcome) for each in deliveries(place.database)]
    place.check()


@pytest.mark.long
@pytest.mark.parametrize(
    ("policy", "sizes"),
    [
        (Policy(batch_messages=3), [3, 3, 1]),
        (Policy(batch_messages=1), [1] * 7),
        (Policy(batch_bytes=2 * 502), [2, 2, 2, 1]),
        (Policy(batch_bytes=2 * 502 - 1), [1] * 7),
    ],
)
def test_a_batch_keeps_to_its_limits(place: Place, policy: Policy, sizes: list[int]) -> None:
    outbox_ = place.outbox(policy, clock=place.clock)
    enqueue_many(place, outbox_, 7, files={"photo": b"x" * 10})
    assert 502 == column(place.database, "m0", "size") + 10, "what one of these weighs is what the limits above are made of"

    place.hand(outbox_).turn_while_it_moves()

    assert sizes == [len(each) for each in carried(place.receiver)]
    place.check()


def test_a_drain_ends_when_nothing_is_left(place: Place) -> None:
    outbox_ = place.outbox()
    enqueue_many(place, outbox_, 20, files={"photo": b"bytes"})

    Worker(outbox_, poll=0.05).run(until_idle=True)

    assert {DELIVERED} == set(states(place.database).values())
    place.check()


def test_every_lane_is_served(place: Place) -> None:
    outbox_ = place.outbox()
    for lane in Lane:
        place.enqueue(outbox_, lane.value, lane=lane)

    Worker(outbox_, poll=0.05).run(until_idle=True)

    assert {lane.value: DELIVERED for lane in Lane} == states(place.database)


# A destination that is unwell


ILLS = {
    "503": Status(503),
    "404 of a gateway": Status(404),
    "html with 200": Status(200, "<html>Please log in</html>"),
    "redirect": Status(302, headers={"Location": "https://elsewhere.example/"}),
    "unknown code": Answer(99500),
    "hang-up before the body": HangUp("before_body"),
    "hang-up in the body": HangUp("in_body", after_bytes=10),
    "no answer": HangUp("after_body"),
    "half an answer": Truncated(),
}


@pytest.mark.long
@pytest.mark.parametrize("ill", ILLS)
def test_an_outage_costs_nothing(place: Place, hand: Hand, outbox_here: Outbox, ill: str) -> None:
    # More than the sockets between us and the receiver hold, or a hang-up would come after the last byte went out.
    place.enqueue(outbox_here, "a", {"photo": bytes(8_000_000 if "hang-up" in ill else 8)})
    place.receiver.always(ILLS[ill])

    for _ in range(12):
        hand.turn()
        place.clock.move(minutes=20)

    assert PENDING == column(place.database, "a", "state")
    assert (0, 0) == (column(place.database, "a", "failures"), column(place.database, "a", "unknowns"))
    assert len(place.receiver.requests) == 12
    place.receiver.never()
    hand.turn()
    assert {"a": DELIVERED} == states(place.database)
    place.check()


@pytest.mark.long
def test_a_flaky_destination_gets_everything_in_the_end(place: Place) -> None:
    policy = Policy(batch_messages=3, probe_first=0.05, probe_cap=0.1, backoff_first=0.01, backoff_cap=0.05, max_unknown=30)
    outbox_ = place.outbox(policy)
    keys = enqueue_many(place, outbox_, 30, files={"photo": b"x" * 1000})
    for seed, trouble in enumerate([Status(503), HangUp("in_body"), HangUp("after_body"), HangUp("in_answer", after_bytes=20)]):
        place.receiver.sometimes(trouble, 0.15, seed)

    worker = Worker(outbox_, poll=0.02)
    with worker:
        place.receiver.wait_for(lambda receiver: {each.struct["assetId"] for each in receiver.accepted} == set(keys), 30)

    assert {DELIVERED} == set(states(place.database).values())
    place.check()


def test_the_breaker_opens_after_five_failures_and_probes_with_one_message(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    keys = enqueue_many(place, outbox_here, 4)
    place.receiver.always(Status(503))

    for _ in range(10):
        hand.turn()
    place.clock.move(seconds=4.9)
    hand.turn()
    before = carried(place.receiver)
    place.clock.move(seconds=0.2)
    for _ in range(5):
        hand.turn()

    assert [keys] * 5 == before
    assert [1] == [len(each) for each in carried(place.receiver)[5:]]
    assert [False] * 5 + [True] == [each.probe for each in deliveries(place.database)]


@pytest.mark.long
def test_probes_come_further_and_further_apart(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, 2)
    place.receiver.always(Status(503))
    probes = []
    for second in range(200):
        known = len(place.receiver.requests)
        hand.turn()
        if len(place.receiver.requests) > known >= 5:
            probes.append(second)
        place.clock.move(1)

    assert [5, 10, 20, 40, 80] == [later - earlier for earlier, later in zip([4, *probes], probes, strict=False)][:5]


def test_a_probe_that_succeeds_opens_the_door(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    keys = enqueue_many(place, outbox_here, 4)
    place.receiver.always(Status(503))
    for _ in range(5):
        hand.turn()
    place.receiver.never()
    place.clock.move(seconds=6)

    hand.turn_while_it_moves()

    assert [1, 3] == [len(each) for each in carried(place.receiver)[5:]]
    assert hand.breaker().open_until is None
    assert dict.fromkeys(keys, DELIVERED) == states(place.database)
    place.check()


def test_probes_take_turns_so_that_no_message_blocks_the_others(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, 3)
    place.receiver.always(Status(503))
    for _ in range(5):
        hand.turn()
    for _ in range(3):
        place.clock.move(hours=1)
        hand.turn()

    assert ["m0", "m1", "m2"] == sorted(key for (key,) in carried(place.receiver)[5:])


def test_of_two_workers_one_probes(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    enqueue_many(place, outbox_here, 3)
    place.receiver.always(Status(503))
    for _ in range(5):
        hand.turn()
    place.clock.move(seconds=6)
    place.receiver.always(Hold())
    other = place.hand(place.outbox(clock=place.clock))
    prober = threading.Thread(target=hand.turn)
    prober.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)

    moved = other.turn()
    place.receiver.release()
    prober.join(10)

    assert not moved
    assert len(place.receiver.requests) == 6


def test_a_prober_that_dies_does_not_shut_the_door_for_ever(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    enqueue_many(place, outbox_here, 1)
    place.receiver.always(Status(503))
    for _ in range(5):
        hand.turn()
    place.clock.move(seconds=6)
    # As a worker does that is killed right after its claim.
    with outbox_here.database.begin() as connection:
        join(connection, "dead")
        policy = outbox_here.destinations["enos"].policy
        from outbox.patience import after_probe_began
        from outbox.store import breaker, living

        seen = breaker.read(connection, "enos")
        claim(connection, "dead", now=place.clock.wall)
        breaker.move(connection, "enos", seen, after_probe_began(seen, place.clock.wall, policy), place.clock.wall)
        living.leave(connection, "dead")
    place.receiver.never()
    hand.dispatcher.rescue()

    early = hand.turn()
    place.clock.move(minutes=3)
    late = hand.turn()

    assert (False, True) == (early, late)
    place.check()


def test_retry_after_is_heeded(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    place.receiver.misbehave(Status(503, headers={"Retry-After": "60"}))
    hand.turn()

    place.clock.move(seconds=59)
    early = hand.turn()
    place.clock.move(seconds=2)
    late = hand.turn()

    assert (False, True) == (early, late)
    place.check()


def test_an_absurd_retry_after_is_cut_to_the_longest_pause(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    place.receiver.misbehave(Status(503, headers={"Retry-After": "99999999"}))
    hand.turn()

    place.clock.move(seconds=901)

    assert hand.turn()


def test_a_clock_that_steps_back_does_not_keep_a_door_shut(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a", due_at=place.clock.wall - timedelta(days=2))
    place.receiver.always(Status(503))
    for _ in range(5):
        hand.turn()
    place.receiver.never()
    place.clock.wall -= timedelta(days=1)

    place.clock.move(seconds=901)

    assert hand.turn()


def test_a_message_that_fails_while_others_are_delivered_is_given_up(place: Place) -> None:
    outbox_ = place.outbox(Policy(batch_messages=1, max_failures=3), clock=place.clock)
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "bad")
    place.receiver.refuse(lambda struct: struct["assetId"] == "bad", code=99500, msg="internal error")
    hand.turn()  # nothing was delivered yet, so this one is not the message's fault

    for each in range(3):
        place.enqueue(outbox_, f"good-{each}", due_at=place.clock.wall - timedelta(hours=1))
        hand.turn_while_it_moves()
        place.clock.move(minutes=1)

    assert {"bad": Reason.EXHAUSTED} == reasons(place.database)
    assert [("retry", None)] * 4 == outcomes(place.database, "bad")
    assert [DELIVERED] * 3 == [state for key, state in states(place.database).items() if key != "bad"]
    place.check()


def test_a_message_that_fails_alone_at_a_destination_nobody_else_uses_is_kept(place: Place) -> None:
    outbox_ = place.outbox(Policy(max_failures=1), clock=place.clock)
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "a")
    place.receiver.always(Answer(99500))

    for _ in range(10):
        hand.turn()
        place.clock.move(hours=1)

    assert (PENDING, 0) == (column(place.database, "a", "state"), column(place.database, "a", "failures"))


# Unknown outcomes


@pytest.mark.long
@pytest.mark.parametrize("trouble", [HangUp("after_body"), HangUp("in_answer", after_bytes=10), Silence()])
def test_an_answer_that_is_lost_is_unknown_and_sent_again(place: Place, trouble: Any) -> None:
    patience = 1.5 if isinstance(trouble, Silence) else 30.0  # what is not silent takes as long as it takes
    outbox_ = place.outbox(Policy(send_base=patience, breaker_after=100), clock=place.clock)
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    place.receiver.misbehave(trouble)

    hand.turn()
    lost = (column(place.database, "a", "state"), column(place.database, "a", "unknowns"))
    hand.turn()

    assert (PENDING, 0) == lost
    assert [("unknown", None), ("delivered", None)] == outcomes(place.database, "a")
    place.check()


def test_a_message_that_comes_back_while_a_worker_looks_whether_all_is_done_is_not_left_behind(place: Place) -> None:
    outbox_ = place.outbox()
    place.hand(outbox_)  # its destination is declared
    place.enqueue(outbox_, "a")
    with place.database.begin() as connection:
        claim(connection, "w1", now=datetime.now(UTC))

    def comes_back(*said: Any) -> None:
        """Once it is certain that nothing is due, and not yet that something is claimed."""
        if "EXISTS" in said[2] and states(place.database) == {"a": State.CLAIMED}:
            with place.database.begin() as connection:
                connection.execute(sa.update(message).values(state=PENDING, claimed_by=None, delivery_id=None))

    with outbox_.database.read() as connection:
        sa.event.listen(connection.engine, "after_cursor_execute", comes_back)

    assert not Worker(outbox_)._nothing_left()
    assert {"a": PENDING} == states(place.database)


def test_a_message_whose_answers_are_lost_while_others_are_delivered_is_given_up(place: Place) -> None:
    outbox_ = place.outbox(Policy(batch_messages=1, max_unknown=2, breaker_after=100), clock=place.clock)
    place.enqueue(outbox_, "a")
    hand = place.hand(outbox_)

    for number in range(4):
        place.receiver.misbehave(HangUp("after_body"))
        hand.turn()
        place.enqueue(outbox_, f"good-{number}", due_at=place.clock.wall - timedelta(hours=1))
        hand.turn()
        place.clock.move(minutes=1)

    assert {"a": Reason.OUTCOME_UNKNOWN} == reasons(place.database)
    assert [("unknown", None)] * 4 == outcomes(place.database, "a")
    place.check()


def test_where_nothing_may_arrive_twice_an_unknown_outcome_is_the_end(place: Place) -> None:
    outbox_ = place.outbox(Policy(on_unknown="dead"), clock=place.clock)
    keys = enqueue_many(place, outbox_, 3)
    place.receiver.always(HangUp("after_body"))
    hand = place.hand(outbox_)

    for _ in range(5):
        hand.turn()

    assert dict.fromkeys(keys, Reason.OUTCOME_UNKNOWN) == reasons(place.database)
    assert 1 == len(place.receiver.requests)
    place.check()


# One bad message


@pytest.mark.long
@pytest.mark.parametrize("guilty", [{"m0"}, {"m6"}, {"m2", "m3"}, {"m0", "m4", "m9"}])
def test_a_refused_batch_is_halved_until_the_guilty_are_found(
    place: Place, hand: Hand, outbox_here: Outbox, guilty: set[str]
) -> None:
    keys = enqueue_many(place, outbox_here, 10)
    place.receiver.refuse(lambda struct: struct["assetId"] in guilty, code=1204, msg="Model validate failed")

    hand.turn_while_it_moves()

    assert dict.fromkeys(guilty, Reason.REJECTED) == reasons(place.database)
    assert {key: DEAD if key in guilty else DELIVERED for key in keys} == states(place.database)
    taken = [each.struct["assetId"] for each in place.receiver.accepted]
    assert sorted(set(keys) - guilty) == sorted(taken)
    assert any("Model validate failed" in (each.text or "") and each.code == 1204 for each in deliveries(place.database))
    place.check()


def test_a_message_too_large_for_its_destination_is_named(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    for key in ("a", "big", "c"):
        place.enqueue(outbox_here, key)
    place.receiver.refuse(lambda struct: struct["assetId"] == "big", code=1008, msg="too large")

    hand.turn_while_it_moves()

    assert {"big": Reason.TOO_LARGE} == reasons(place.database)
    place.check()


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def one_bit(path: Path) -> None:
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


def last_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 0x80]))


@pytest.mark.long
@pytest.mark.parametrize("size", [10, 600_000])
@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (longer, Reason.FILE_CHANGED),
        (shorter, Reason.FILE_CHANGED),
        (one_bit, Reason.FILE_CHANGED),
        (last_bit, Reason.FILE_CHANGED),
        (Path.unlink, Reason.FILE_MISSING),
    ],
)
def test_an_altered_file_never_completes_a_request(
    place: Place, hand: Hand, outbox_here: Outbox, alter: Callable[[Path], None], reason: Reason, size: int
) -> None:
    files = {key: {"photo": os.urandom(size)} for key in ("before", "altered", "after")}
    for key, content in files.items():
        place.enqueue(outbox_here, key, content)
    digest = place.acknowledged["altered"]["photo"]
    path = next(path for path in place.spool.rglob("*") if path.is_file() and sha256(path) == digest)

    alter(path)
    hand.turn_while_it_moves()

    assert {"altered": reason} == reasons(place.database)
    assert {"before": DELIVERED, "altered": DEAD, "after": DELIVERED} == states(place.database)
    assert all(
        "altered" not in keys
        for keys, request in zip(carried(place.receiver), place.receiver.requests, strict=True)
        if request.complete
    )
    place.check()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Credentials


@pytest.fixture
def guarded(database_url: str, tmp_path: Path) -> Iterator[tuple[Place, Outbox, Receiver]]:
    with Receiver() as receiver:
        place = Place(database_url, tmp_path, receiver)
        token = Token(receiver.token_url, "app-key", "app-secret", allow_plain_http=True)
        yield place, place.outbox(clock=place.clock, token=token), receiver
        place.close()


def test_a_token_that_ran_out_is_renewed_in_the_same_delivery(guarded: tuple[Place, Outbox, Receiver]) -> None:
    place, outbox_, receiver = guarded
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "a")
    hand.turn()
    place.enqueue(outbox_, "b", {"photo": b"bytes"})
    receiver.expire_tokens()

    hand.turn()

    assert [200, 401, 200] == [request.status for request in receiver.requests]
    assert [("delivered", None)] == outcomes(place.database, "b")
    assert 2 == len(deliveries(place.database))
    assert 0 == hand.breaker().failures


def test_credentials_that_are_refused_stop_the_destination_and_cost_nothing(guarded: tuple[Place, Outbox, Receiver]) -> None:
    place, outbox_, receiver = guarded
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "a")
    receiver.always(Expired())

    for _ in range(5):
        hand.turn()
    stopped = hand.breaker()
    place.clock.move(minutes=14)
    hand.turn()

    assert Stop.CREDENTIALS == stopped.stop
    assert 2 == len(receiver.requests)  # with the token at hand, and with a new one
    assert (PENDING, 0) == (column(place.database, "a", "state"), column(place.database, "a", "failures"))


def test_credentials_are_tried_again_every_quarter_of_an_hour(guarded: tuple[Place, Outbox, Receiver]) -> None:
    place, outbox_, receiver = guarded
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "a")
    place.enqueue(outbox_, "b")
    receiver.always(Expired())
    hand.turn()
    receiver.never()

    place.clock.move(minutes=16)
    hand.turn_while_it_moves()

    assert {"a": DELIVERED, "b": DELIVERED} == states(place.database)
    assert hand.breaker().stop is None
    place.check()


def test_a_token_service_that_refuses_us_stops_the_destination(place: Place) -> None:
    token = Token(place.receiver.token_url, "app-key", "wrong", allow_plain_http=True)
    outbox_ = place.outbox(clock=place.clock, token=token)
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "a")

    hand.turn()

    assert Stop.CREDENTIALS == hand.breaker().stop
    assert [] == place.receiver.requests
    assert [("retry", None)] == outcomes(place.database, "a")


class Unruly:
    """Credentials of somebody's own that fail in a way nobody planned."""

    def headers(self, transport: Transport, now: datetime, monotonic: float) -> dict[str, str]:
        return {}

    def renew(self) -> None:
        raise RuntimeError("no idea how")


class Unplanned(EnosEvents):
    """A destination whose credentials are unruly."""

    @property
    def credentials(self) -> Credentials:
        return Unruly()


def test_a_claim_is_recorded_whatever_fails_in_between(place: Place) -> None:
    destination = Unplanned(name="enos", url=place.receiver.url, org_id="o1", allow_plain_http=True)
    outbox_ = an_outbox(place.url, place.spool, destination, ambient=place.clock.ambient)
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "a")
    place.receiver.misbehave(Expired())

    hand.turn()
    first = column(place.database, "a", "state")
    place.clock.move(hours=1)
    hand.turn()

    assert PENDING == first
    assert {"a": DELIVERED} == states(place.database)
    assert 0 == hand.dispatcher.holds
    outbox_.close()


# Streams


def test_a_streams_next_message_waits_for_the_one_before(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    for key in ("a", "b", "c"):
        place.enqueue(outbox_here, key, ordering_key="pump")
    place.receiver.misbehave(Status(503))

    hand.turn()
    hand.turn_while_it_moves()

    assert [["a"], ["a"], ["b"], ["c"]] == carried(place.receiver)
    place.check()


def test_heads_of_many_streams_travel_together(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    for number in range(2):
        for name in ("pump", "fan"):
            place.enqueue(outbox_here, f"{name}-{number}", ordering_key=name)
    place.enqueue(outbox_here, "loose")

    hand.turn_while_it_moves()

    assert [["fan-0", "loose", "pump-0"], ["fan-1", "pump-1"]] == [sorted(each) for each in carried(place.receiver)]
    place.check()


def test_a_dead_message_holds_up_its_stream_and_nobody_elses(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    for key, stream in (("bad", "pump"), ("behind", "pump"), ("other", "fan")):
        place.enqueue(outbox_here, key, ordering_key=stream)
    place.receiver.refuse(lambda struct: struct["assetId"] == "bad")

    hand.turn_while_it_moves()

    assert {"bad": DEAD, "behind": PENDING, "other": DELIVERED} == states(place.database)
    place.check(drained=False)


@pytest.mark.long
def test_streams_keep_their_order_whatever_happens(place: Place) -> None:
    policy = Policy(batch_messages=4, probe_first=0.02, probe_cap=0.05, max_unknown=50, send_base=5)
    outbox_ = place.outbox(policy)
    many = in_full(12, 6)
    for number in range(many):
        for name in ("pump", "fan", "gate"):
            place.enqueue(outbox_, f"{name}-{number:02}", ordering_key=name)
    place.receiver.sometimes(Status(503), 0.2, 1)
    place.receiver.sometimes(HangUp("after_body"), 0.1, 2)
    workers = [Worker(each, poll=0.02) for each in (outbox_, place.outbox(policy))]

    for each in workers:
        each.start()
    place.receiver.wait_for(lambda receiver: len({each.struct["assetId"] for each in receiver.accepted}) == 3 * many, 40)
    for each in workers:
        each.stop()
        each.join()

    first_copies = list(
        dict.fromkeys(
            key
            for request in sorted(place.receiver.requests, key=lambda each: each.started)
            if request.stored
            for key in (struct["assetId"] for struct in request.structs)
        )
    )
    for name in ("pump", "fan", "gate"):
        of_stream = [key for key in first_copies if key.startswith(name)]
        assert sorted(of_stream) == of_stream
    place.check()


def test_a_producer_with_an_open_transaction_does_not_hold_up_a_record(postgres_place: Place, receiver: Receiver) -> None:
    place = postgres_place
    outbox_ = place.outbox(clock=place.clock)
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "first", ordering_key="pump")
    receiver.misbehave(Hold())
    turn = threading.Thread(target=hand.turn)
    turn.start()
    receiver.wait_for(lambda each: each.held == 1)

    with place.engine.begin() as connection:
        outbox_.enqueue(connection, "enos", event("second"), key="second", ordering_key="pump")
        receiver.release()
        turn.join(10)
        recorded = (not turn.is_alive(), states(place.database))
    place.acknowledge("second")
    hand.turn_while_it_moves()

    assert (True, {"first": DELIVERED}) == recorded
    assert {"first": DELIVERED, "second": DELIVERED} == states(place.database)
    place.check()


# Claims that nobody holds


def test_a_claim_whose_news_was_lost_is_given_back_uncharged(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    with outbox_here.database.begin() as connection:
        claim(connection, hand.presence.id, now=place.clock.wall)

    assert 1 == hand.dispatcher.release_unheld()

    assert (PENDING, 0, 0) == tuple(column(place.database, "a", name) for name in ("state", "failures", "unknowns"))
    assert [("not_sent", None)] == outcomes(place.database, "a")
    hand.turn()
    place.check()


def test_a_delivery_in_hand_is_not_given_back(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    place.receiver.misbehave(Hold())
    turn = threading.Thread(target=hand.turn)
    turn.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)

    released = hand.dispatcher.release_unheld()
    place.receiver.release()
    turn.join(10)

    assert 0 == released
    assert [("delivered", None)] == outcomes(place.database, "a")
    place.check()


def test_what_the_gone_left_behind_is_settled_as_unknown(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    with outbox_here.database.begin() as connection:
        claim(connection, "gone", now=place.clock.wall)

    assert 1 == hand.dispatcher.rescue()
    assert 0 == hand.dispatcher.rescue()

    assert (PENDING, 0, 1) == tuple(column(place.database, "a", name) for name in ("state", "failures", "unknowns"))
    assert 0 == hand.breaker().failures
    hand.turn()
    assert [("unknown", None), ("delivered", None)] == outcomes(place.database, "a")
    place.check()


def test_a_batch_that_the_gone_left_behind_is_halved(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, 4)
    with outbox_here.database.begin() as connection:
        claim(connection, "gone", now=place.clock.wall)

    hand.dispatcher.rescue()
    hand.turn_while_it_moves()

    assert [2, 2] == [len(each) for each in carried(place.receiver)]
    assert [0] * 4 == [column(place.database, f"m{each}", "unknowns") for each in range(4)]
    place.check()


def test_an_outcome_that_comes_after_a_rescue_changes_nothing(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    other = place.hand(place.outbox(clock=place.clock))
    place.receiver.misbehave(Hold())
    turn = threading.Thread(target=hand.turn)
    turn.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)
    hand.presence.leave()

    other.dispatcher.rescue()
    other.turn()
    place.receiver.release()
    turn.join(10)

    assert [("unknown", "delivered"), ("delivered", None)] == outcomes(place.database, "a")
    assert 2 == len(place.receiver.accepted)
    assert 0 == hand.dispatcher.holds
    place.check()


def test_a_worker_that_was_declared_gone_claims_nothing(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    from outbox.dispatcher import WorkerGone

    place.enqueue(outbox_here, "a")
    hand.presence.leave()

    with pytest.raises(WorkerGone):
        hand.turn()

    assert {"a": PENDING} == states(place.database)
    hand.presence.arrive()
    hand.turn()
    place.check()


def test_a_worker_that_was_declared_gone_goes_on_under_a_new_name(place: Place) -> None:
    outbox_ = place.outbox()
    with Worker(outbox_, gone_after=1.5, poll=0.02) as worker:
        before = worker.id
        with place.database.begin() as connection:
            from outbox.store import living

            living.leave(connection, before)
        place.enqueue(outbox_, "a")
        place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 1)
        after = worker.id

    assert before != after
    place.check()


# Clocks


@pytest.mark.long
def test_a_worker_goes_on_after_the_clock_stepped_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scheduler follows the wall clock, and would sleep for as long as the step."""
    step = timedelta(0)

    class Stepping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + step

    monkeypatch.setattr(outbox.metronome, "datetime", Stepping)
    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Stepping)
    outbox_ = place.outbox(Policy(senders=1), nudge=False)
    with Worker(outbox_, gone_after=1.5, poll=1.0) as worker:
        place.enqueue(outbox_, "before")
        place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 1)

        # While every loop sleeps: one that runs at the moment of the step would arm itself by the new clock.
        eventually(lambda: not any(loop.running for loop in worker._loops))
        step = -timedelta(days=1)
        for number in range(3):
            place.enqueue(outbox_, f"after-{number}")
            place.receiver.wait_for(lambda receiver, number=number: len(receiver.accepted) == 2 + number, 5)

    place.check()


def test_a_worker_goes_on_after_the_clock_jumped_ahead(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    step = timedelta(0)

    class Stepping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + step

    monkeypatch.setattr(outbox.metronome, "datetime", Stepping)
    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Stepping)
    outbox_ = place.outbox(nudge=False)
    with Worker(outbox_, gone_after=1.5, poll=0.05):
        step = timedelta(days=365)
        place.enqueue(outbox_, "after")
        place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 1, 5)

    place.check()


def test_messages_of_before_a_step_back_are_due_all_the_same(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")

    place.clock.wall -= timedelta(days=1)

    assert hand.turn()
    place.check()
