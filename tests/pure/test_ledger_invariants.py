"""The ledger's invariants, each with a forged story that breaks it: a story with nothing against it is left alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from outbox.testing import ReceivedFile
from tests.factories import event
from tests.ledger import Balance, bounds
from tests.ledger.balance import Counts
from tests.ledger.claims import along_the_trail
from tests.ledger.evidence import RESCUED, Evidence
from tests.ledger.history import ATTEMPTS, DELIVERY, Line, Promise, Promises, digest
from tests.ledger.invariants import judge
from tests.pure.forging import Forged, Tape, cut, fate, forged, received, refused, tried

ALL = ("I1", "I2", "I3", "I4", "I5", "I8", "I9", "I10", "I11", "I15")


def test_a_story_with_nothing_against_it_is_left_alone() -> None:
    balance = judge(forged().evidence)

    assert [] == balance.faults
    assert balance.adds_up
    assert ALL == balance.looked


def test_how_much_there_was_is_counted() -> None:
    expected = Counts(
        acknowledged=5,
        unknown=2,
        rolled_back=1,
        recovered=1,
        delivered=5,
        dead=1,
        attempts=7,
        unknown_attempts=1,
        requests=5,
        copies=6,
        extra_copies=1,
    )

    assert expected == judge(forged().evidence).counts


def drop(story: Forged, key: str) -> None:
    del story.fates[key]


def told_header(number: int, **headers: str) -> Callable[[Forged], None]:
    names = {"delivery": DELIVERY, "attempts": ATTEMPTS}
    return lambda story: story.swap(number, headers={names[name]: value for name, value in headers.items()})


def another_order(story: Forged) -> None:
    """The second of a stream arrives first."""
    story.requests.insert(0, story.requests.pop(4))
    story.swap(5, started=0.0, finished=0.5)


def too_early(story: Forged) -> None:
    """The second of a stream leaves while the first is still on its way."""
    story.swap(5, started=3.2)


def recorded_otherwise(story: Forged) -> None:
    more = {"delivery": 1, "messages": [["one", 1, "retry"]]}
    story.options["work"] = [Line(1.0, "worker", 1, "ok", "record", None, more)]


def other_file_name(story: Forged) -> None:
    story.swap(1, files={"photo.jpg": ReceivedFile(5, story.requests[0].files["photo.jpg"].sha256, "0" * 32, "selfie.jpg")})


def other_bytes(story: Forged) -> None:
    story.swap(1, files={"photo.jpg": ReceivedFile(5, "f" * 64, "0" * 32, "photo.jpg")})


def another_payload(story: Forged) -> None:
    params = [event("photo", "photo"), event("maybe", severity=9)]
    params[0]["events"]["crack"]["photo"] = "local://photo.jpg"
    story.swap(1, message={"params": params})


def payload_noted(story: Forged) -> None:
    story.promises.acknowledged["one"] = Promise(payload=digest(event("one", severity=9)))


SPOILT: dict[str, tuple[Callable[[Forged], object], str]] = {
    "a row is gone": (lambda story: drop(story, "dead"), "I1 dead was committed and is lost"),
    "it is delivered and never came": (lambda story: story.requests.pop(4), "I1 two was committed and never arrived"),
    "a row that nobody committed": (
        lambda story: story.fates.update({"ghost": fate(9, "ghost")}),
        "I2 ghost is there and nobody committed it",
    ),
    "a message that nobody committed": (
        lambda story: story.requests.append(received(6, "ghost")),
        "I2 request 6 carried ghost, which nobody committed",
    ),
    "a row that was rolled back": (
        lambda story: story.fates.update({"back": fate(9, "back")}),
        "I3 back was rolled back and is there",
    ),
    "a message that was rolled back": (
        lambda story: story.requests.append(received(6, "back")),
        "I3 back was rolled back and was sent",
    ),
    "a copy too many": (
        lambda story: story.requests.append(received(6, "one")),
        "I5 one arrived 2 times, 1 without an explanation",
    ),
    "two copies for one unknown attempt": (
        lambda story: story.requests.append(cut(6, "twice")),
        "I5 twice arrived 3 times, 1 without an explanation",
    ),
    "no copy": (
        lambda story: story.requests.pop(4),
        "I8 two counts as delivered and no confirmation of it was ever sent",
    ),
    "no confirmation": (
        lambda story: story.swap(5, answered=False),
        "I8 two counts as delivered and no confirmation of it was ever sent",
    ),
    "an error took for a confirmation": (
        lambda story: story.swap(5, status=502),
        "I8 two counts as delivered and no confirmation of it was ever sent",
    ),
    "one confirmation for two deliveries": (
        lambda story: story.change("one", attempt=2, replays=1, attempts=tried("delivered", "delivered")),
        "I8 one counts as delivered 2 times, and 1 confirmations of it were sent",
    ),
    "a late confirmation that never was": (
        lambda story: story.change("twice", attempts=tried("unknown", "delivered", late="delivered")),
        "I8 twice counts as delivered 2 times, and 1 confirmations of it were sent",
    ),
    "the second arrives first": (another_order, "I9 two arrived before one, which stands before it"),
    "the second leaves too early": (too_early, "I9 two was sent before one, which stands before it, was confirmed"),
    "other files in the rows": (
        lambda story: story.change("photo", attached={}),
        "I10 photo has other files than were given: {}",
    ),
    "other bytes on the way": (other_bytes, "I10 request 1 brought other bytes for photo than were enqueued"),
    "another name for a file": (other_file_name, "I10 request 1 calls photo of photo selfie.jpg, and not photo.jpg"),
    "another payload than is kept": (another_payload, "I10 request 1 brought another payload for maybe than is kept"),
    "another payload than was enqueued": (payload_noted, "I10 request 3 brought another payload for one than was enqueued"),
    "a request that breaks the rules": (lambda story: story.swap(3, faults=("rude",)), "I10 request 3 broke the rules: rude"),
    "an attempt that nobody wrote down": (
        lambda story: story.change("twice", attempts=tried("unknown", "delivered")[1:]),
        "I11 twice was tried 2 times, written down are [2]",
    ),
    "more copies than attempts": (
        lambda story: story.requests.append(received(6, "one")),
        "I11 one arrived 2 times in 1 attempts",
    ),
    "a last word that was another": (
        lambda story: story.change("one", attempts=tried("retry")),
        "I11 one is delivered, yet its last attempt ended as retry",
    ),
    "an attempt without a delivery": (
        lambda story: story.deliveries.pop(2),
        "I11 attempt 2 of twice belongs to no delivery",
    ),
    "a delivery that never ended": (
        lambda story: story.deliveries.update({7: SimpleNamespace(id=7, finished_at=None, text=None)}),
        "I11 delivery 7 never ended",
    ),
    "a stream that is never served again": (
        lambda story: story.options.update(claimed_streams=[1]),
        "I11 stream 1 is still claimed",
    ),
    "a request of no delivery": (
        told_header(5, delivery="77", attempts="5:1"),
        "I11 request 5 says it is delivery 77, and there is none",
    ),
    "a request of no attempt": (
        told_header(5, delivery="1", attempts="5:3"),
        "I11 request 5 says it is attempt 3 of two, and no row says so",
    ),
    "an attempt that was recorded otherwise": (
        recorded_otherwise,
        "I11 attempt 1 of one was recorded as retry, and no row says so",
    ),
    "something left to do": (lambda story: story.change("dead", state="pending"), "I15 dead is still pending"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_against_a_story_is_said(name: str) -> None:
    spoil, sentence = SPOILT[name]
    story = forged()

    spoil(story)

    assert sentence in judge(story.evidence).faults


def refused_in_part(story: Forged) -> None:
    """The receiver takes one of a batch that it refuses, and again when it is sent alone."""
    story.requests.append(refused(2, "one", "dead", kept=(event("one"),)))
    story.change("one", attempt=2, attempts=tried("reject", "delivered"))


def replayed(story: Forged) -> None:
    story.requests.append(received(6, "one"))
    story.change("one", attempt=2, replays=1, attempts=tried("delivered", "delivered"))


def cancelled(story: Forged) -> None:
    story.requests.pop(3)
    story.change("dead", state="cancelled", attempt=0, attempts=())


def frozen_copy_of_a_dead_one(story: Forged) -> None:
    """The first of a stream died without an answer, the second went on; then the copy of the first arrives."""
    story.requests[2] = received(3, "twice")
    story.change("one", state="dead", attempts=tried("unknown"))
    story.requests.append(cut(6, "one"))


def attempts_are_told(story: Forged) -> None:
    told_header(5, delivery="1", attempts="5:1")(story)
    story.options["work"] = [
        Line(1.0, "worker", 1, "invoke", "send", None, {"delivery": 1, "messages": [["two", 1]]}),
        Line(2.0, "worker", 2, "ok", "record", None, {"delivery": 1, "messages": [["two", 1, "delivered"]]}),
    ]


def much_is_forgotten(story: Forged) -> None:
    """Of very many attempts the last thousand are kept."""
    mine = tried(*(["retry"] * 1004), "delivered")[5:]
    story.change("one", attempt=1005, attempts=mine)
    story.deliveries.update({number: SimpleNamespace(id=number, finished_at="then", text=None) for number in range(1, 1006)})
    story.requests.append(received(6, "one"))


def purged_on_purpose(story: Forged) -> None:
    story.options["purged"] = {"dead"}
    drop(story, "dead")


def under_way(story: Forged) -> None:
    story.options |= {"drained": False, "claimed_streams": [1]}
    story.change("two", state="claimed", attempts=())
    story.requests.pop(4)


EXPLAINED: dict[str, Callable[[Forged], object]] = {
    "a copy out of a batch that was refused": refused_in_part,
    "a copy after a replay": replayed,
    "a cancelled message that never came": cancelled,
    "a late copy of one that is dead": frozen_copy_of_a_dead_one,
    "requests and records of attempts that are there": attempts_are_told,
    "attempts that are too many to keep": much_is_forgotten,
    "a row that was purged": purged_on_purpose,
    "what is under way": under_way,
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_has_an_explanation_is_not_held_against_a_story(name: str) -> None:
    story = forged()

    EXPLAINED[name](story)

    assert [] == judge(story.evidence).faults


def test_copies_that_are_explained_for_nobody_are_counted_in_all() -> None:
    story = forged()
    story.requests += [received(6, "one"), cut(7, "one")]

    assert (0, 2) == (judge(forged().evidence).counts.unexplained, judge(story.evidence).counts.unexplained)


def test_copies_out_of_refused_batches_are_counted() -> None:
    story = forged()

    refused_in_part(story)

    assert 1 == judge(story.evidence).counts.kept_parts


# The trail.


def walked(tape: Tape, rescued: int | None = None) -> list[str]:
    """What is against a trail, in which one delivery was taken from a worker."""
    deliveries = {} if rescued is None else {rescued: SimpleNamespace(id=rescued, text=RESCUED)}
    found = along_the_trail(Evidence(Promises(), {}, [], deliveries, trail=tape.trail))
    return [f"{number} {sentence}" for number, sentences in found.items() for sentence in sentences]


def a_good_trail() -> Tape:
    """Everything that may happen to messages."""
    tape = Tape().born("a", "b", stream=1).born("c", "d", "e")
    tape.worker("w1", "here").worker("w2", "here")
    tape.claimed("a").claimed("c").ended("a", "pending").ended("c", "delivered")
    tape.claimed("a", "w2").worker("w2", "gone").ended("a", "pending", "unknown").claimed("a").ended("a", "delivered")
    tape.claimed("b").ended("b", "dead").became("b", state="pending", replays=1).claimed("b").ended("b", "delivered")
    tape.became("d", state="dead").became("d", state="cancelled").became("e", state="cancelled").deleted("e")
    return tape.became("c", state="pending", replays=1).claimed("c").ended("c", "delivered").deleted("c")


def test_a_trail_of_everything_that_may_happen_is_left_alone() -> None:
    assert [] == walked(a_good_trail(), rescued=3)


TRAILS: dict[str, tuple[Callable[[], Tape], str]] = {
    "claimed while it is claimed": (
        lambda: Tape().born("a").claimed("a").claimed("a", "w2"),
        "I6 a was claimed by w2 (attempt 2) while w1 held it (attempt 1)",
    ),
    "claimed before it was recorded": (
        lambda: Tape().born("a").claimed("a").became("a", state="pending", worker=None, delivery=None).claimed("a", "w2"),
        "I6 a was claimed again before its attempt 1 was recorded or rescued",
    ),
    "taken from the living": (
        lambda: Tape().worker("w1", "here").born("a").claimed("a").ended("a", "pending", "unknown"),
        "I6 attempt 1 of a was taken from w1, which was not gone",
    ),
    "the attempt falls": (
        lambda: Tape().born("a").claimed("a").ended("a", "pending").became("a", attempt=0),
        "I7 the attempt of a fell from 1 to 0",
    ),
    "a claim without a new attempt": (
        lambda: Tape().born("a").claimed("a", attempt=0),
        "I7 a was claimed as attempt 0 after attempt 0",
    ),
    "a new attempt without a claim": (
        lambda: Tape().born("a").became("a", attempt=1),
        "I7 the attempt of a rose from 0 to 1 without a claim",
    ),
    "delivered without a claim": (
        lambda: Tape().born("a").claimed("a").ended("a", "pending").became("a", state="delivered"),
        "I7 a went from pending to delivered without a claim",
    ),
    "a record by an attempt that had lost its claim": (
        lambda: (
            Tape()
            .born("a")
            .claimed("a")
            .ended("a", "pending")
            .claimed("a", "w2")
            .ended("a", "delivered", attempt=1, delivery=1)
        ),
        "I7 attempt 1 of message 1 was written although attempt 2 had ended",
    ),
    "an attempt that nobody made": (
        lambda: Tape().born("a").wrote("a", "retry", 1, 1),
        "I7 attempt 1 of message 1 was written although none had ended",
    ),
    "an attempt that is written again": (
        lambda: Tape().born("a").claimed("a").ended("a", "delivered").wrote("a", "retry", 1, 1, was="delivered"),
        "I7 attempt 1 of message 1 was written again: delivered became retry",
    ),
    "a state that its attempt did not bring": (
        lambda: Tape().born("a").claimed("a").ended("a", "delivered", "retry"),
        "I7 attempt 1 of message 1 ended as retry, and the message became delivered",
    ),
    "final and not final any more": (
        lambda: Tape().born("a").claimed("a").ended("a", "delivered").became("a", state="pending"),
        "I13 a was delivered and became pending without a replay",
    ),
    "final and another final": (
        lambda: Tape().born("a").claimed("a").ended("a", "delivered").became("a", state="dead"),
        "I13 a was delivered and became dead without a replay",
    ),
    "two of a stream at the same time": (
        lambda: Tape().born("a", "b", stream=1).claimed("a").claimed("b"),
        "I9 b was claimed while a of the same stream was",
    ),
    "the second of a stream before the first": (
        lambda: Tape().born("a", "b", stream=1).claimed("b"),
        "I9 b was claimed before a, which stands before it, was over",
    ),
}


@pytest.mark.parametrize("name", TRAILS)
def test_what_is_against_a_trail_is_said(name: str) -> None:
    make, sentence = TRAILS[name]

    assert sentence in walked(make(), rescued=1 if "was not gone" in sentence else None)


def test_a_message_that_was_deleted_before_it_was_final_is_lost() -> None:
    story = forged()
    story.options |= {"trail": Tape().born("one").deleted("one").trail, "purged": None}
    drop(story, "one")

    found = judge(story.evidence).faults

    assert "I1 one was deleted while it was pending" in found
    assert "I1 one was committed and is lost" in found


def test_a_message_that_was_purged_is_judged_by_its_trail() -> None:
    tape = Tape().born("one").claimed("one").ended("one", "delivered").deleted("one")
    story = forged()
    story.fates["one"] = tape.trail.fates_of_deleted()["one"]
    story.options |= {"trail": tape.trail, "purged": None}

    clean = judge(story.evidence).faults
    story.requests.append(received(6, "one"))
    with_another_copy = judge(story.evidence).faults

    assert [] == clean
    assert ["I5 one arrived 2 times, 1 without an explanation"] == with_another_copy


def test_with_a_trail_more_is_looked_at() -> None:
    story = forged()
    story.options["trail"] = Tape().trail

    assert {"I6", "I7", "I13"} == set(judge(story.evidence).looked) - set(ALL)


# The result, and the bounds that scenarios set.


def test_several_rounds_are_added() -> None:
    first = Balance({"I5": ("m1 came twice",)}, Counts(copies=3), ("I1", "I5", "I14"))
    second = Balance({"I1": ("m2 is lost",), "I5": ("m3 came twice",)}, Counts(copies=4), ("I1", "I5"))

    total = first + second

    assert ["I1 m2 is lost", "I5 m1 came twice", "I5 m3 came twice"] == total.faults
    assert 7 == total.counts.copies
    assert ("I1", "I5") == total.looked, "what only one of them has looked at nobody can vouch for"


def test_a_scenario_adds_its_own_bounds() -> None:
    balance = Balance(looked=("I1",))

    slow = balance.plus("I15", bounds.in_time(10.0, 45.0, within=30))
    quick = balance.plus("I15", bounds.in_time(10.0, 39.0, within=30))

    assert ["I15 it took 35.0 s until all was done, and may take 30.0 s"] == slow.faults
    assert quick.adds_up
    assert ("I1", "I15") == quick.looked


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (bounds.Size(memory=201), "the worker has 201 KiB of memory, and may have 200"),
        (bounds.Size(descriptors=21), "the worker has 21 descriptors, and may have 20"),
        (bounds.Size(threads=8), "the worker has 8 threads, and may have 7"),
        (bounds.Size(log=1001), "the worker has 1001 bytes of log, and may have 1000"),
    ],
)
def test_what_is_too_large_is_said(size: bounds.Size, sentence: str) -> None:
    most = bounds.Size(memory=200, descriptors=20, threads=7, log=1000)

    assert [sentence] == bounds.within(size, most, "the worker")
    assert [] == bounds.within(most, most)
