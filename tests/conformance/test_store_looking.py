"""What an operator sees of the rows: counts, lists and one message, from indexes and never from every message there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import DirectorySpool, Lane, NoSuchMessage, Outbox, Reason, Selection, State, UnknownDestination
from outbox.database import Database
from outbox.model import Outcome
from outbox.patience import Breaker
from outbox.policy import SILENT_AFTER
from outbox.store import breaker, listing, living, looking
from outbox.tables import delivery, file, message, share, stream, worker
from outbox.verdict import Facts
from outbox.views import time_to_full
from tests.factories import (
    NOW,
    Clock,
    add_row,
    an_outbox,
    caller_engine,
    claim,
    dead,
    event,
    finish_delivery,
    join,
    message_values,
    put,
    record,
)

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def counts(connection: sa.Connection, name: str = "enos") -> dict[str, Any]:
    return looking.counts(connection, NOW)[name]


def add_delivery(connection: sa.Connection, **changes: Any) -> int:
    values = {"destination": "enos", "lane": Lane.NORMAL, "worker": "w1", "messages": 1, "bytes": 10, "probe": False}
    values |= {"started_at": NOW - MINUTE, "finished_at": NOW, "outcome": Outcome.DELIVERED}
    return int(connection.execute(sa.insert(delivery).values(values | changes).returning(delivery.c.id)).scalar_one())


def add_file(connection: sa.Connection, size: int, created_at: datetime, freed_at: datetime | None = None) -> None:
    name = f"{random.getrandbits(128):032x}"
    values = {"name": name, "size": size, "sha256": "5" * 64, "md5": "3" * 32, "created_at": created_at, "freed_at": freed_at}
    connection.execute(sa.insert(file).values(values))


# Counts.


def test_messages_are_counted_where_they_stand(database: Database) -> None:
    with database.begin() as connection:
        for due_at in (NOW - HOUR, NOW, NOW + HOUR):
            add_row(connection, due_at=due_at)
        add_row(connection, State.CLAIMED)
        add_row(connection, State.DELIVERED)
        add_row(connection, State.CANCELLED)
        add_row(connection, destination="elsewhere", due_at=NOW + HOUR)
        seen = counts(connection)
        elsewhere = counts(connection, "elsewhere")

    assert (2, 1, 1, 0) == tuple(seen[each] for each in ("due", "waiting", "claimed", "dead"))
    assert NOW - HOUR == seen["oldest_due_at"]
    assert (0, 1, None) == (elsewhere["due"], elsewhere["waiting"], elsewhere["oldest_due_at"])


def test_messages_of_streams_and_shares_are_counted_like_the_others(database: Database) -> None:
    with database.begin() as connection:
        for ordered in (True, False):
            put(connection, ordering_key="pump", ordered=ordered, due_at=NOW - HOUR)
            put(connection, ordering_key="pump", ordered=ordered, due_at=NOW + HOUR)
        put(connection)
        seen = counts(connection)

    assert (3, 2, NOW - HOUR) == (seen["due"], seen["waiting"], seen["oldest_due_at"])


def test_the_dead_are_counted_by_what_they_died_of(database: Database) -> None:
    with database.begin() as connection:
        for reason in (Reason.REJECTED, Reason.REJECTED, Reason.EXPIRED):
            add_row(connection, State.DEAD, reason=reason)
        add_row(connection, State.DEAD, destination="elsewhere")

        assert (3, {"rejected": 2, "expired": 1}) == (counts(connection)["dead"], counts(connection)["dead_by_reason"])
        assert {"rejected": 1} == counts(connection, "elsewhere")["dead_by_reason"]


def test_what_was_delivered_of_late_is_counted_from_the_deliveries(database: Database) -> None:
    with database.begin() as connection:
        add_delivery(connection, messages=7, bytes=70)
        add_delivery(connection, messages=2, bytes=30, finished_at=NOW - HOUR / 2)
        add_delivery(connection, messages=100, finished_at=NOW - 2 * HOUR)
        add_delivery(connection, messages=100, outcome=Outcome.REJECT)
        add_delivery(connection, messages=100, outcome=None, finished_at=None)
        add_delivery(connection, destination="elsewhere", messages=1, bytes=1)

        assert {"enos": (9, 100), "elsewhere": (1, 1)} == looking.delivered_since(connection, NOW - HOUR)


@pytest.mark.parametrize("weighed", [3, 5000])
def test_what_came_of_late_is_counted_though_nothing_is_indexed_by_that(
    database: Database, monkeypatch: pytest.MonkeyPatch, weighed: int
) -> None:
    monkeypatch.setattr(looking, "_WEIGHED", weighed)  # of many, the newest stand for all
    with database.begin() as connection:
        ids = [add_row(connection, created_at=NOW - HOUR + each * MINUTE, size=4, file_bytes=6) for each in range(-20, 30)]
        connection.execute(sa.delete(message).where(message.c.id.in_(ids[3:9])))

        assert (30, 300) == looking.arrived_since(connection, NOW - HOUR)
        assert (0, 0) == looking.arrived_since(connection, NOW)


def test_nothing_came_to_an_outbox_that_is_empty(database: Database) -> None:
    with database.read() as connection:
        assert (0, 0) == looking.arrived_since(connection, NOW)


def test_the_first_row_since_an_instant_is_found_whatever_gaps_there_are(database: Database) -> None:
    dice = random.Random(4)
    with database.begin() as connection:
        rows = {add_row(connection, created_at=NOW + each * MINUTE): NOW + each * MINUTE for each in range(60)}
        gone = dice.sample(sorted(rows), 30)
        connection.execute(sa.delete(message).where(message.c.id.in_(gone)))
        left = {number: at for number, at in rows.items() if number not in gone}

        for since in [NOW + each * MINUTE for each in range(-1, 62)]:
            first = looking.first_since(connection, message.c.id, message.c.created_at, since)
            found = [number for number in left if first is not None and number >= first]
            assert [number for number, at in left.items() if at >= since] == found


def test_the_spool_grows_by_what_came_and_shrinks_by_what_went(database: Database) -> None:
    old, since, fresh = NOW - 9 * HOUR, NOW - HOUR, NOW - MINUTE
    with database.begin() as connection:
        add_file(connection, 1, old)
        add_file(connection, 10, fresh)
        add_file(connection, 100, fresh, freed_at=NOW)
        add_file(connection, 1000, old, freed_at=old)

        assert 10 == looking.spool_grew(connection, since)
        assert (2, 11) == looking.spooled(connection)

        add_file(connection, 25, old, freed_at=fresh)
        assert -15 == looking.spool_grew(connection, since)


def test_every_destination_of_a_message_is_named(database: Database) -> None:
    with database.begin() as connection:
        assert [] == looking.destinations_of_messages(connection)

        for name in ("enos", "alarms", "enos", "zeta"):
            add_row(connection, destination=name)

        assert ["alarms", "enos", "zeta"] == looking.destinations_of_messages(connection)


# One message.


def test_a_message_is_found_by_its_id_and_else_by_its_key(database: Database) -> None:
    with database.begin() as connection:
        first = add_row(connection, key="a")
        number = add_row(connection, key=str(first))
        other = add_row(connection, destination="elsewhere", key="a")

        def found(id_or_key: str, name: str | None = None) -> int | None:
            row = looking.one(connection, id_or_key, name)
            return None if row is None else row["id"]

        assert [first, first, number] == [found("a"), found(str(first)), found(str(number))]
        assert [other, None, other] == [found("a", "elsewhere"), found("nobody"), found(str(other), "elsewhere")]
        assert [None, None, None] == [found(str(first), "nobody"), found("9" * 30), found("\u0663")]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_message_names_its_ordering_key_be_it_ordered_or_not(database: Database, ordered: bool) -> None:
    with database.begin() as connection:
        put(connection, "k", ordering_key="pump", ordered=ordered)
        row = looking.one(connection, "k")
        listed = listing.messages(connection, Selection(), 10)

    assert row is not None
    assert ["pump", "pump"] == [row["ordering_key"], listed[0]["ordering_key"]]


# Lists of messages.


def furnish(connection: sa.Connection) -> list[dict[str, Any]]:
    """Messages of every state, reason, time, destination and ordering key, in no order; their rows."""
    dice = random.Random(7)
    streams = [
        connection.execute(
            sa.insert(stream).values(destination=name, ordering_key="pump", last_number=0).returning(stream.c.id)
        )
        for name in ("enos", "alarms")
    ]
    of_stream = {name: int(found.scalar_one()) for name, found in zip(("enos", "alarms"), streams, strict=True)}
    made = sa.insert(share).values(destination="enos", ordering_key="pump", lane=Lane.NORMAL).returning(share.c.id)
    of_share = int(connection.execute(made).scalar_one())
    cases = [*itertools.product(State, ("enos", "alarms"), ("stream", "share", None), (1, 3))]
    dice.shuffle(cases)
    rows: list[dict[str, Any]] = []
    for number, (state, name, kind, age) in enumerate(cases):
        changes: dict[str, Any] = {"destination": name, "key": f"k{number}", "created_at": NOW - (age + 2) * HOUR}
        if kind == "stream":
            changes |= {"stream_id": of_stream[name], "stream_number": number + 1}
        if kind == "share" and name == "enos":
            changes |= {"share_id": of_share}
        if state in (State.DELIVERED, State.DEAD, State.CANCELLED):
            changes |= {"finished_at": NOW - age * HOUR}
        if state is State.DEAD:
            changes |= {"reason": dice.choice(list(Reason)), "reason_text": dice.choice(["No such Asset", "100% wrong", None])}
        values = message_values(state, **changes)
        ordering_key = "pump" if {"stream_id", "share_id"} & changes.keys() else None
        statement = sa.insert(message).values(values).returning(message.c.id)
        row = {"reason": None, "reason_text": None, "finished_at": None} | values
        rows.append(row | {"id": int(connection.execute(statement).scalar_one()), "ordering_key": ordering_key})
    return rows


def fits(row: dict[str, Any], wanted: Selection) -> bool:
    """What a selection means, said once more and simply."""
    at = row["finished_at"] or row["created_at"]
    return all(
        (
            not (wanted.ids or wanted.keys) or row["id"] in wanted.ids or row["key"] in wanted.keys,
            wanted.destination in (None, row["destination"]),
            not wanted.states or row["state"] in wanted.states,
            not wanted.reasons or row["reason"] in wanted.reasons,
            wanted.ordering_key in (None, row["ordering_key"]),
            wanted.since is None or at >= wanted.since,
            wanted.until is None or at < wanted.until,
            wanted.text is None or wanted.text.lower() in (row["reason_text"] or "").lower(),
        )
    )


def selections(at_most: int) -> list[Selection]:
    """Pairs of things that can be said, with some states."""
    said: list[dict[str, Any]] = [
        {},
        {"destination": "enos"},
        {"destination": "nobody"},
        {"ordering_key": "pump"},
        {"ordering_key": "fan"},
        {"since": NOW - 2 * HOUR},
        {"until": NOW - 2 * HOUR},
        {"since": NOW - 4 * HOUR, "until": NOW - 3 * HOUR},
        {"text": "asset"},
        {"text": "0%"},
        {"reasons": (Reason.EXPIRED, Reason.REJECTED)},
        {"ids": (3, 5, 8), "keys": ("k4", "k9", "nobody")},
        {"keys": ("nobody",)},
    ]
    states: list[tuple[State, ...]] = [
        (),
        *((each,) for each in State if each is not State.CANCELLED),
        (State.PENDING, State.CLAIMED, State.DEAD),
        (State.DEAD, State.DELIVERED),
    ]
    cases = [*itertools.product(itertools.combinations(said, 2), states)]
    chosen = random.Random(3).sample(cases, at_most)
    return [Selection(**{"states": among} | one | other) for (one, other), among in chosen]


@pytest.mark.long
@pytest.mark.parametrize("few", [0, 10_000])
def test_a_list_has_what_fits_newest_first_whichever_way_it_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(listing, "_FEW", few)  # a walk back from the newest, or the few that an index names
    with database.begin() as connection:
        rows = sorted(furnish(connection), key=lambda row: -row["id"])

        for each in selections(at_most=100):
            expected = [row["id"] for row in rows if fits(row, each)]
            assert expected[:20] == [row["id"] for row in listing.messages(connection, each, 20)], str(each)


# Lists of deliveries and workers.


def test_a_list_of_deliveries_has_what_fits_newest_first(database: Database) -> None:
    with database.begin() as connection:
        rows = []
        for number in range(24):
            outcome = [None, *Outcome][number % 6]
            values: dict[str, Any] = {"destination": ("enos", "alarms")[number % 2 ^ number // 12], "outcome": outcome}
            values |= {"started_at": NOW - (24 - number) * HOUR, "finished_at": NOW if outcome else None}
            rows.insert(0, values | {"id": add_delivery(connection, **values)})
        cases = itertools.product(
            (None, "enos", "nobody"),
            (None, Outcome.REJECT),
            (False, True),
            (None, NOW - 9 * HOUR, NOW + HOUR),
            (None, NOW - 4 * HOUR),
        )

        for name, outcome, under_way, since, until in cases:
            if outcome and under_way:
                continue
            expected = [
                row["id"]
                for row in rows
                if name in (None, row["destination"])
                and outcome in (None, row["outcome"])
                and (not under_way or row["outcome"] is None)
                and (since is None or row["started_at"] >= since)
                and (until is None or row["started_at"] < until)
            ]
            wanted = listing.Deliveries(name, outcome, under_way, since, until)
            assert expected == [row["id"] for row in listing.deliveries(connection, wanted, 1000)], wanted
            assert expected[:2] == [row["id"] for row in listing.deliveries(connection, wanted, 2)], wanted


def test_a_worker_is_listed_with_what_it_holds_and_until_it_is_gone(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "w1", "w2")
        living.declare_gone(connection, "w2", 0)
        put(connection)
        put(connection)
        claim(connection, "w1")

        listed = [(row["id"], row["claims"], row["deliveries"]) for row in listing.workers(connection, gone=False)]
        every = {row["id"] for row in listing.workers(connection, gone=True)}

    assert [("w1", 2, 1)] == listed
    assert {"w1", "w2"} == every


# Views: the same, as values for whoever shows them.


class Roomy(DirectorySpool):
    """A spool on a disk with so many bytes left."""

    bytes_left: int | None = 1000

    def left(self) -> int | None:
        return self.bytes_left


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(database: Database, database_url: str, tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    outbox = an_outbox(database_url, Roomy(tmp_path / "spool"), ambient=clock.ambient, reserve=0)
    yield outbox
    outbox.close()


@pytest.fixture
def enqueue(outbox: Outbox, database_url: str) -> Iterator[Callable[..., int]]:
    engine = caller_engine(database_url)

    def one_more(key: str, **options: Any) -> int:
        with engine.begin() as connection:
            payload = event(key, *options.get("files", {}))
            return outbox.enqueue(connection, "enos", payload, key=key, **options).id

    yield one_more
    engine.dispose()


@pytest.mark.parametrize(
    ("room", "growth", "seconds"),
    [(3600, 1, 3600 * 3600), (1000, 500, 7200), (1000, 0, None), (1000, -5, None), (0, -5, 0), (-3, 1, 0), (10**15, 1, None)],
)
def test_the_time_until_it_is_full_is_told_only_when_there_is_one(room: int, growth: int, seconds: float | None) -> None:
    assert seconds == time_to_full(room, growth)


def test_status_tells_when_the_disk_is_full_from_how_the_spool_grew(outbox: Outbox, database: Database, clock: Clock) -> None:
    with database.begin() as connection:
        add_file(connection, 300, NOW - 5 * HOUR)
        add_file(connection, 100, NOW - MINUTE)

    spool = outbox.status().spool

    # 100 bytes in the last hour is faster than 400 in six; and 1000 are left.
    assert (2, 400, 100, 36_000, True) == (
        spool.files,
        spool.bytes,
        spool.growth_per_hour,
        spool.full_in_seconds,
        spool.filling,
    )


def test_a_night_that_fills_the_spool_is_seen_though_the_last_hour_was_quiet(outbox: Outbox, database: Database) -> None:
    with database.begin() as connection:
        add_file(connection, 600, NOW - 5 * HOUR)

    assert (100, 36_000) == (outbox.status().spool.growth_per_hour, outbox.status().spool.full_in_seconds)


def test_a_spool_that_shrinks_or_rests_is_not_filling(outbox: Outbox, database: Database) -> None:
    resting = outbox.status().spool
    with database.begin() as connection:
        add_file(connection, 600, NOW - 9 * HOUR, freed_at=NOW - MINUTE)
    shrinking = outbox.status().spool

    assert [(0, None, False), (-100, None, False)] == [
        (each.growth_per_hour, each.full_in_seconds, each.filling) for each in (resting, shrinking)
    ]


def test_nothing_is_said_of_a_spool_whose_room_nobody_knows(outbox: Outbox, database: Database) -> None:
    outbox.spool_store.bytes_left = None  # type: ignore[attr-defined]
    with database.begin() as connection:
        add_file(connection, 600, NOW - MINUTE)

    spool = outbox.status().spool

    assert (None, None, None) == (spool.free_bytes, spool.full_in_seconds, spool.filling)


def test_a_quota_that_is_smaller_than_the_disk_is_what_is_full_first(
    database: Database, database_url: str, tmp_path: Path, clock: Clock
) -> None:
    outbox = an_outbox(database_url, Roomy(tmp_path / "spool"), ambient=clock.ambient, quota=800, reserve=0)
    with database.begin() as connection:
        add_file(connection, 600, NOW - MINUTE)

    spool = outbox.status().spool
    outbox.close()

    assert (800, 75.0, 1200) == (spool.quota_bytes, spool.quota_percent, spool.full_in_seconds)


def test_a_disk_whose_last_bytes_producers_leave_alone_is_full_before_it_is(
    database: Database, database_url: str, tmp_path: Path, clock: Clock
) -> None:
    with database.begin() as connection:
        add_file(connection, 100, NOW - MINUTE)
    seconds = []
    for reserve in (500, 1000):
        outbox = an_outbox(database_url, Roomy(tmp_path / "spool"), ambient=clock.ambient, reserve=reserve)
        seconds.append(outbox.status().spool.full_in_seconds)
        outbox.close()

    assert [18_000, 0] == seconds


def test_status_knows_declared_destinations_and_those_that_there_is_anything_of(outbox: Outbox, database: Database) -> None:
    with database.begin() as connection:
        add_row(connection, destination="retired")
        add_delivery(connection, destination="sent", messages=3, bytes=30)
        put(connection, size=5, created_at=NOW - MINUTE)

    status = outbox.status()

    assert {"enos": True, "retired": False, "sent": False} == {
        name: each.declared for name, each in status.destinations.items()
    }
    assert (3, 30) == (status.destinations["sent"].delivered_last_hour, status.destinations["sent"].delivered_bytes_last_hour)
    assert (2, 7, 3, 30) == tuple(getattr(status.last_hour, name) for name in status.last_hour.__slots__)
    assert (NOW, 0) == (status.at, status.workers)


def test_a_worker_that_was_killed_is_silent_and_not_counted_though_nobody_declared_it_gone(
    outbox: Outbox, database: Database
) -> None:
    with database.begin() as connection:
        join(connection, "alive", "killed", "ended")
        living.leave(connection, "ended")
        long_ago = NOW - timedelta(seconds=SILENT_AFTER + 1)
        connection.execute(sa.update(worker).where(worker.c.id == "killed").values(beat_at=long_ago))

    assert 1 == outbox.status().workers
    assert {"alive": False, "killed": True} == {each.id: each.silent for each in outbox.workers()}
    assert not any(each.silent for each in outbox.workers(gone=True) if each.gone)


def test_an_open_breaker_is_shown_with_the_last_failure(outbox: Outbox, database: Database) -> None:
    with database.begin() as connection:
        add_delivery(connection, outcome=Outcome.RETRY, status=503, text="for repairs")
        add_delivery(connection)
        breaker.declare(connection, ["enos"])
    quiet = outbox.status().destinations["enos"].last_failure
    with database.begin() as connection:
        breaker.move(connection, "enos", Breaker(), Breaker(5, NOW + MINUTE), NOW)

    assert (None, "HTTP 503: for repairs") == (quiet, outbox.status().destinations["enos"].last_failure)


def test_the_views_only_read(outbox: Outbox, enqueue: Callable[..., int], statements_of: Callable[[Outbox], list[str]]) -> None:
    number = enqueue("k", files={"photo": b"a picture"})
    heard = statements_of(outbox)

    looks = (outbox.status, outbox.messages, outbox.deliveries, outbox.workers)
    for look in (*looks, lambda: outbox.message(number), lambda: outbox.upload(number)):
        look()

    assert {"SELECT"} == {statement.split()[0] for statement in heard}


@pytest.fixture
def statements_of() -> Callable[[Outbox], list[str]]:
    """Every statement of ours that an outbox executes from now on, for its data."""

    def listen(outbox: Outbox) -> list[str]:
        heard: list[str] = []
        with outbox.database.read() as connection:
            engine = connection.engine

        @sa.event.listens_for(engine, "before_cursor_execute")
        def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if not statement.startswith(("PRAGMA", "BEGIN")):
                heard.append(statement)

        return heard

    return listen


def test_a_message_is_told_with_its_payload_its_files_and_every_attempt(
    outbox: Outbox, database: Database, enqueue: Callable[..., int]
) -> None:
    number = enqueue("k", files={"photo": b"a picture"})
    with database.begin() as connection:
        claimed = claim(connection)
        assert claimed is not None
        record(connection, claimed.delivery, "w1", claimed.settled(**dead_settled()), now=NOW + MINUTE)
        facts = Facts(200, 1204, "no such asset", "r-1", '{"code": 1204}')
        finish_delivery(connection, claimed.delivery, Outcome.REJECT, facts, NOW + MINUTE)

    detail = outbox.message("k")

    assert event("k", "photo") == detail.payload
    assert [("photo", 9, "there")] == [(each.name, each.size, each.bytes_are) for each in detail.attachments]
    (attempt,) = detail.attempts
    assert (1, "reject", 60.0, 200, 1204) == (attempt.number, attempt.outcome, attempt.seconds, attempt.status, attempt.code)
    assert ("no such asset", "r-1", '{"code": 1204}', "w1") == (
        attempt.text,
        attempt.request_id,
        attempt.answer,
        attempt.worker,
    )
    assert (number, "dead", None, None) == (detail.message.id, detail.message.state, detail.next_try_at, detail.under_way)


def dead_settled() -> dict[str, Any]:
    settled = dead()
    return {"state": settled.state, "outcome": settled.outcome, "reason": settled.reason}


def test_it_is_told_what_became_of_the_bytes_of_each_file(
    outbox: Outbox, database: Database, enqueue: Callable[..., int]
) -> None:
    contents = {name: name.encode() for name in ("there", "freed", "missing", "changed")}
    number = enqueue("k", files=contents)
    spool = outbox.spool_store
    assert isinstance(spool, Roomy)
    named = {each.name: each.spooled for each in outbox.message(number).attachments}
    spool.where(named["missing"]).unlink()
    spool.where(named["changed"]).write_bytes(b"something else")
    with database.begin() as connection:
        connection.execute(sa.update(file).where(file.c.name == named["freed"]).values(freed_at=NOW))

    assert {name: name for name in contents} == {each.name: each.bytes_are for each in outbox.message(number).attachments}


def test_a_spool_that_is_not_there_says_nothing_of_its_files(
    outbox: Outbox, enqueue: Callable[..., int], tmp_path: Path
) -> None:
    number = enqueue("k", files={"photo": b"a picture"})
    (tmp_path / "spool").rename(tmp_path / "unmounted")

    assert ["unreadable"] == [each.bytes_are for each in outbox.message(number).attachments]


def test_the_next_try_is_told_when_there_is_one(outbox: Outbox, database: Database, enqueue: Callable[..., int]) -> None:
    later = enqueue("later", due_at=NOW + HOUR)
    now = enqueue("now")
    assert [NOW + HOUR, NOW] == [outbox.message(each).next_try_at for each in (later, now)]

    with database.begin() as connection:
        breaker.declare(connection, ["enos"])
        connection.execute(sa.text("UPDATE outbox_destination SET open_until = :at"), {"at": until(connection, NOW + 2 * HOUR)})
    assert [NOW + 2 * HOUR] * 2 == [outbox.message(each).next_try_at for each in (later, now)]

    outbox.pause("enos", "maintenance", "anna")
    assert [None, None] == [outbox.message(each).next_try_at for each in (later, now)]


def until(connection: sa.Connection, at: datetime) -> Any:
    return at if connection.dialect.name == "postgresql" else at.strftime("%Y-%m-%d %H:%M:%S.%f")


def test_a_message_behind_a_dead_one_has_no_next_try_and_one_under_way_tells_its_delivery(
    outbox: Outbox, database: Database, enqueue: Callable[..., int]
) -> None:
    first = enqueue("first", ordering_key="pump")
    second = enqueue("second", ordering_key="pump")
    with database.begin() as connection:
        claimed = claim(connection)
        assert claimed is not None
    under_way = outbox.message(first).under_way
    with database.begin() as connection:
        record(connection, claimed.delivery, "w1", claimed.settled(**dead_settled()))

    assert under_way is not None
    assert (claimed.delivery, "w1", None) == (under_way.id, under_way.worker, under_way.outcome)
    assert (None, "first") == (
        outbox.message(second).next_try_at,
        outbox.message(outbox.status().blocked_keys[0].message).message.key,
    )


def test_the_request_of_a_message_is_the_one_that_its_destination_makes(outbox: Outbox, enqueue: Callable[..., int]) -> None:
    number = enqueue("k", files={"photo": b"a picture"})

    upload = outbox.upload(number)

    assert ["enos-message", 9] == [upload.parts[0].name, upload.parts[1].size]
    assert upload.url.startswith("https://enos.example/")


def test_what_is_not_there_is_said_so(outbox: Outbox, database: Database) -> None:
    with database.begin() as connection:
        retired = add_row(connection, destination="retired", key="k")

    with pytest.raises(NoSuchMessage, match="no message has the id or key 'nobody'"):
        outbox.message("nobody")
    with pytest.raises(NoSuchMessage, match="no message of destination 'enos' has"):
        outbox.message("k", "enos")
    with pytest.raises(UnknownDestination, match="no destination named 'retired'"):
        outbox.upload(retired)
    with pytest.raises(UnknownDestination, match="no destination named 'nobody'"):
        outbox.messages(Selection(destination="nobody"))
    assert ["k"] == [each.key for each in outbox.messages(Selection(destination="retired"))]
    assert not outbox.message(retired).declared


# Only indexes: what a million messages would otherwise take is measured elsewhere.

_OVER_THE_DEAD = "ix_outbox_message_dead"


def plans(outbox: Outbox, heard: list[tuple[str, Any]]) -> list[str]:
    """How the database finds what each statement asks for, once it had millions of rows."""
    found = []
    with outbox.database.read() as connection:
        how = "EXPLAIN QUERY PLAN "
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
            how = "EXPLAIN "
        for statement, parameters in heard:
            found += [str(row[-1]) for row in connection.exec_driver_sql(how + statement, parameters)]
    return found


def asked(outbox: Outbox, look: Callable[[], object]) -> list[tuple[str, Any]]:
    """The statements about messages, deliveries and files that a look makes, with their parameters."""
    heard: list[tuple[str, Any]] = []
    with outbox.database.read() as connection:
        engine = connection.engine

    def hear(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if any(f"FROM outbox_{table}" in statement for table in ("message", "delivery", "file")):
            heard.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", hear)
    look()
    sa.event.remove(engine, "before_cursor_execute", hear)
    return heard


def test_status_counts_from_small_indexes_and_never_walks_a_table(outbox: Outbox, database: Database) -> None:
    with database.begin() as connection:
        for state in State:
            add_row(connection, state)
        add_delivery(connection)

    plan = plans(outbox, asked(outbox, outbox.status))

    for index in (_OVER_THE_DEAD, "ix_outbox_file_kept", "ix_outbox_file_freed", "ix_outbox_delivery_recent"):
        assert any(index in line for line in plan), index
    whole = ("SCAN outbox_message", "SCAN outbox_delivery", "SCAN outbox_file")
    assert not [line for line in plan if line.startswith(whole) and "USING" not in line]
    assert not [line for line in plan if "Seq Scan on outbox_message" in line or "Seq Scan on outbox_delivery" in line]
    assert not [line for line in plan if line.startswith("SCAN") and "autoindex" in line and "message" in line]


@pytest.mark.parametrize(
    ("selection", "index"),
    [
        (Selection(states=(State.DEAD,)), _OVER_THE_DEAD),
        (Selection(reasons=(Reason.EXPIRED,), destination="enos"), _OVER_THE_DEAD),
        (Selection(states=(State.DEAD,), since=NOW), _OVER_THE_DEAD),
        (Selection(states=(State.PENDING,)), "ix_outbox_message_due"),
        (Selection(states=(State.CLAIMED,)), "ix_outbox_message_claimed"),
    ],
    ids=str,
)
def test_a_list_of_the_usual_kind_asks_an_index(outbox: Outbox, selection: Selection, index: str) -> None:
    plan = plans(outbox, asked(outbox, lambda: outbox.messages(selection)))

    assert any(index in line for line in plan), plan


def test_a_list_by_key_reads_no_other_message(outbox: Outbox, database: Database) -> None:
    with database.begin() as connection:
        add_row(connection, key="k")

    plan = plans(outbox, asked(outbox, lambda: (outbox.messages(Selection(keys=("k",))), outbox.message("k"))))

    assert not [line for line in plan if line.startswith("SCAN outbox_message") or "Seq Scan on outbox_message" in line], plan
