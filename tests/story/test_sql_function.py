"""`outbox_enqueue` on Postgres: what it refuses, what it says, what it locks, and who may call it from where."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.types.json import Json, Jsonb

from outbox import State
from outbox.payload import text as json_text
from outbox.tables import message
from outbox.telemetry import context_of
from outbox.worker import Worker
from tests.factories import column, count, event, states
from tests.story.conftest import Place, eventually

pytestmark = pytest.mark.postgres

EVENT = json_text(event("a"))
Call = Callable[..., Any]


@pytest.fixture
def connection(postgres_place: Place) -> Iterator[psycopg.Connection[Any]]:
    address = sa.make_url(postgres_place.url).set(drivername="postgresql")
    with psycopg.connect(address.render_as_string(hide_password=False)) as connection:
        yield connection


def called(connection: psycopg.Connection[Any], words: str, *values: Any) -> tuple[int, bool]:
    found = connection.execute(f"SELECT id, is_new FROM outbox_enqueue({words})", values).fetchone()
    assert found is not None
    return found


def refusal(connection: psycopg.Connection[Any], words: str, *values: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught, connection.transaction():
        called(connection, words, *values)
    return caught.value


def test_it_is_called_by_place_and_by_name_with_text_json_and_jsonb(
    postgres_place: Place, connection: psycopg.Connection[Any]
) -> None:
    made = [
        called(connection, "'enos', '{}'"),
        called(connection, "%s, %s", "enos", EVENT),
        called(connection, "%s, %s, %s, %s", "enos", EVENT, "key", "pump"),
        called(connection, "destination => %s, payload => %s, lane => 'bulk'", "enos", Json(event("a"))),
        called(connection, "%s, %s, ordered => %s, ordering_key => %s", "enos", Jsonb(event("a")), False, "pump"),
        called(connection, "destination => 'enos', payload => jsonb_build_object('a', 1), nudge => null, ordered => null"),
    ]
    connection.commit()

    assert [True] * len(made) == [new for _, new in made]
    assert len(made) == count(postgres_place.database, message)


def test_the_text_is_kept_as_it_came_and_of_jsonb_as_postgres_writes_it(
    postgres_place: Place, connection: psycopg.Connection[Any]
) -> None:
    spaced = '{"b": 1,\n "a":  "ä"}'
    for key, payload in {"text": spaced, "json": spaced, "jsonb": spaced}.items():
        called(connection, f"'enos', %s::{key}, %s", payload, key)
    connection.commit()

    kept = [column(postgres_place.database, key, "payload") for key in ("text", "json", "jsonb")]
    sizes = [column(postgres_place.database, key, "size") for key in ("text", "json", "jsonb")]
    assert [spaced, spaced, '{"a": "ä", "b": 1}'] == kept
    assert [len(each.encode()) + 1 for each in kept] == sizes


FAULTS: dict[str, tuple[str, list[Any], str]] = {
    "no payload": ("'enos', %s", [None], "payload: expected JSON, got null"),
    "no json": ("'enos', %s", ["{a: 1}"], "payload: is no JSON (invalid input syntax for type json)"),
    "not quite json": ("'enos', %s", ["NaN"], "payload: is no JSON"),
    "too deep": ("'enos', %s", ["[" * 100_000 + "]" * 100_000], "payload: is no JSON (stack depth limit exceeded)"),
    "no destination": ("%s, '{}'", [None], "destination: expected the name of a destination"),
    "no name of one": ("%s, '{}'", ["Enos!"], "got 'Enos!'"),
    "an empty key": ("'enos', '{}', %s", [""], "key: expected 1 to 255 characters, got 0"),
    "a long key": ("'enos', '{}', %s", ["ä" * 256], "key: expected 1 to 255 characters, got 256"),
    "a key with a tab": ("'enos', '{}', %s", ["a\tb"], "key: holds control characters"),
    "a key with a C1": ("'enos', '{}', %s", ["a\x9bb"], "key: holds control characters"),
    "a key of none": ("'enos', '{}', %s", ["inspection-None"], "key: 'inspection-None' seems to be made from a None"),
    "an ordering key of none": ("'enos', '{}', null, %s", ["None"], "ordering_key: 'None' seems to be made from a None"),
    "a lane": ("'enos', '{}', lane => %s", ["fast"], "lane: no lane named 'fast'; known are express, normal, bulk, large"),
    "over": ("'enos', '{}', expires_at => %s", ["2024-03-01 12:00+01"], "expires_at: has passed, it is 20"),
    "over before it begins": (
        "'enos', '{}', due_at => now() + interval '2 h', expires_at => now() + interval '1 h'",
        [],
        "expires_at: is not after due_at",
    ),
    "never": ("'enos', '{}', due_at => %s", ["infinity"], "due_at: expected an instant in the years 1 to 9999, got infinity"),
    "long ago": ("'enos', '{}', due_at => %s", ["4000-01-01 BC"], "due_at: expected an instant in the years 1 to 9999"),
    "no context": ("'enos', '{}', traceparent => %s", ["00-0-0-00"], "traceparent: expected the form of the W3C"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_refused_with_a_sentence(postgres_place: Place, connection: psycopg.Connection[Any], fault: str) -> None:
    words, values, sentence = FAULTS[fault]

    error = refusal(connection, words, *values)

    assert "22023" == error.sqlstate
    assert sentence in str(error)
    connection.commit()
    assert 0 == count(postgres_place.database, message)


def test_all_faults_come_at_once(connection: psycopg.Connection[Any]) -> None:
    error = refusal(connection, "'Enos', '{', '', lane => 'fast', expires_at => '2024-03-01', traceparent => 'x'")

    named = [each.partition(": ")[0] for each in str(error.diag.message_primary).split("; ") if ": " in each]
    assert ["destination", "payload", "key", "expires_at", "lane", "traceparent"] == named


GOOD = ["a" * 255, "ä" * 255, "Nonesuch", "inspection-7", "a b", "%s:x", "it's"]


@pytest.mark.parametrize("key", GOOD)
def test_a_good_key_is_kept_as_it_is(postgres_place: Place, connection: psycopg.Connection[Any], key: str) -> None:
    called(connection, "'enos', '{}', %s, %s", key, key)
    connection.commit()

    assert {key: State.PENDING} == states(postgres_place.database)


CONTEXT = f"-{'a' * 32}-{'b' * 16}-01"
CONTEXTS = {f"00{CONTEXT}": f"00{CONTEXT}", f"01{CONTEXT}": f"00{CONTEXT}", f"cc{CONTEXT}-more": f"00{CONTEXT}"}
NO_CONTEXTS = ["", f"00{CONTEXT}-more", f"ff{CONTEXT}", f"00-{'0' * 32}-{'b' * 16}-01", f"01{CONTEXT}x", f"00{CONTEXT}".upper()]


def test_a_trace_context_is_read_as_enqueue_reads_it(postgres_place: Place, connection: psycopg.Connection[Any]) -> None:
    for given, kept in CONTEXTS.items():
        called(connection, "'enos', '{}', %s, traceparent => %s", given, given)
        connection.commit()
        assert context_of(given) == kept == column(postgres_place.database, given, "traceparent")
    for given in NO_CONTEXTS:
        assert context_of(given) is None
        assert "traceparent" in str(refusal(connection, "'enos', '{}', traceparent => %s", given))


def test_a_repeated_key_is_the_message_that_is_there(connection: psycopg.Connection[Any]) -> None:
    first = called(connection, "'enos', %s, 'a'", EVENT)

    assert (first[0], False) == called(connection, "'enos', %s, 'a'", EVENT)
    assert called(connection, "'elsewhere', %s, 'a'", EVENT)[1]


@pytest.mark.parametrize("words", ["'enos', '{}', 'a'", "'enos', %s, 'a', 'pump'"])
def test_a_key_that_names_something_else_is_a_unique_violation_that_says_what(
    connection: psycopg.Connection[Any], words: str
) -> None:
    number, _ = called(connection, "'enos', %s, 'a'", EVENT)

    error = refusal(connection, words, *([EVENT] if "%s" in words else []))

    assert isinstance(error, psycopg.errors.UniqueViolation)
    expected = f"key 'a' already names message {number} of destination 'enos' with other content"
    assert expected == error.diag.message_primary
    assert "another key" in str(error.diag.message_hint)


def test_a_key_that_nobody_chose_sorts_behind_those_before(postgres_place: Place, connection: psycopg.Connection[Any]) -> None:
    for _ in range(3):
        called(connection, "'enos', '{}'")
        connection.execute("SELECT pg_sleep(0.002)")
    connection.commit()

    with postgres_place.database.read() as ours:
        keys = list(ours.execute(sa.select(message.c.key).order_by(message.c.id)).scalars())
    assert sorted(keys) == keys
    assert all(len(each) == 32 and each[12] == "7" and each[16] in "89ab" for each in keys)


def test_the_second_producer_of_a_stream_waits_for_the_first_ones_commit(
    postgres_place: Place, connection: psycopg.Connection[Any]
) -> None:
    called(connection, "'enos', '{}', 'a', 'pump'")
    with postgres_place.engine.connect() as other:
        other.execute(sa.text("SET LOCAL lock_timeout = '50ms'"))
        waits = sa.text("SELECT outbox_enqueue('enos', '{}', 'b', 'pump')")
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            other.execute(waits)
        other.rollback()
        connection.commit()
        other.execute(waits)
        other.commit()

    assert [1, 2] == [column(postgres_place.database, key, "stream_number") for key in ("a", "b")]


def test_producers_of_a_share_do_not_wait_for_each_other(postgres_place: Place, connection: psycopg.Connection[Any]) -> None:
    called(connection, "'enos', '{}', 'first', 'pump', false")
    connection.execute("UPDATE outbox_share SET due_at = NULL")  # at rest: both of them wake it
    connection.commit()
    called(connection, "'enos', '{}', 'a', 'pump', false")
    with postgres_place.engine.begin() as other:
        other.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        other.execute(sa.text("SELECT outbox_enqueue('enos', '{}', 'b', 'pump', false)"))
    connection.commit()

    assert 3 == count(postgres_place.database, message)


@pytest.mark.parametrize("path", ["", "elsewhere, public", "pg_temp, public"])
def test_it_finds_our_tables_whatever_the_search_path(
    postgres_place: Place, connection: psycopg.Connection[Any], path: str
) -> None:
    """And takes no other's for them."""
    for place in ("elsewhere", "pg_temp"):
        if place == "elsewhere":
            connection.execute("CREATE SCHEMA elsewhere")
        for table in ("outbox_message", "outbox_stream", "outbox_head"):
            connection.execute(f"CREATE TABLE {place}.{table} (id integer)")
    connection.execute("SELECT set_config('search_path', %s, false)", [path])

    connection.execute("SELECT * FROM public.outbox_enqueue('enos', '{}', 'text', 'pump')")
    connection.execute("SELECT * FROM public.outbox_enqueue('enos', '{}'::jsonb, 'jsonb', 'pump')")

    connection.execute("DROP SCHEMA elsewhere CASCADE")
    connection.commit()
    assert {"text", "jsonb"} == set(states(postgres_place.database))


def test_columns_with_collations_of_their_own_are_no_trouble(
    postgres_place: Place, connection: psycopg.Connection[Any]
) -> None:
    connection.execute('CREATE TEMP TABLE t (a text COLLATE "C", b text COLLATE "POSIX", c varchar(9))')
    connection.execute("INSERT INTO t VALUES ('a', 'b', 'express')")

    connection.execute("SELECT outbox_enqueue('enos', '{}', a, b, lane => c) FROM t")
    connection.execute("SELECT outbox_enqueue('enos', '{}', b, a, false, lane => c) FROM t")
    connection.commit()

    assert {"a", "b"} == set(states(postgres_place.database))


TRIGGER = """
    CREATE TABLE function_orders (id int PRIMARY KEY, payload jsonb);
    CREATE FUNCTION pg_temp.tell() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM outbox_enqueue('enos', NEW.payload, key => 'order-' || NEW.id, ordering_key => 'orders');
        RETURN NULL;
    END $$;
    CREATE TRIGGER tell AFTER INSERT ON function_orders FOR EACH ROW EXECUTE FUNCTION pg_temp.tell()
"""


def test_a_trigger_shares_the_fate_of_its_row(postgres_place: Place, connection: psycopg.Connection[Any]) -> None:
    connection.execute(TRIGGER)
    connection.commit()
    insert = "INSERT INTO function_orders VALUES (%s, %s)"

    connection.execute(insert, [1, Jsonb(event("order-1"))])
    connection.rollback()
    connection.cursor().executemany(insert, [[n, Jsonb(event(f"order-{n}"))] for n in (2, 3)])
    connection.commit()
    with pytest.raises(psycopg.errors.InvalidParameterValue), connection.transaction():
        connection.execute(insert, [4, None])

    for n in (2, 3):
        postgres_place.acknowledge(f"order-{n}")
    with Worker(postgres_place.outbox()):
        eventually(lambda: {"order-2": State.DELIVERED, "order-3": State.DELIVERED} == states(postgres_place.database))
    assert ["order-2", "order-3"] == [each.struct["assetId"] for each in postgres_place.receiver.accepted]
    assert [(2,), (3,)] == connection.execute("SELECT id FROM function_orders ORDER BY id").fetchall()
    connection.execute("DROP TABLE function_orders")
    connection.commit()


def nudges(postgres_place: Place, connection: psycopg.Connection[Any], *calls: str) -> list[str]:
    """What is heard of a transaction with these calls."""
    address = sa.make_url(postgres_place.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as listener:
        listener.execute("LISTEN outbox")
        for each in calls:
            called(connection, each)
        connection.commit()
        connection.execute("NOTIFY outbox, 'the end'")
        connection.commit()
        heard = []
        for each in listener.notifies(timeout=10):
            if each.payload == "the end":
                return heard
            heard.append(each.payload)
    raise AssertionError("the end was not heard")


def test_idle_workers_are_nudged_once_for_each_transaction_and_destination(
    postgres_place: Place, connection: psycopg.Connection[Any]
) -> None:
    calls = ["'enos', '{}'", "'enos', '{}'::json", "'other', '{}'", "'enos', '{}', 'a'"]

    assert ["enos", "other"] == nudges(postgres_place, connection, *calls)
    assert [] == nudges(postgres_place, connection, "'enos', '{}', nudge => false", "'enos', '{}', 'a'")


def test_a_worker_that_would_look_in_a_minute_takes_it_at_once(
    postgres_place: Place, connection: psycopg.Connection[Any]
) -> None:
    with Worker(postgres_place.outbox(), poll=60):
        postgres_place.enqueue(postgres_place.outbox(), "first")
        eventually(lambda: states(postgres_place.database).get("first") == State.DELIVERED)
        called(connection, "'enos', %s, 'a'", EVENT)
        connection.commit()
        eventually(lambda: states(postgres_place.database).get("a") == State.DELIVERED)
    postgres_place.acknowledge("a")


def test_its_digest_is_the_one_of_enqueue(postgres_place: Place, connection: psycopg.Connection[Any]) -> None:
    outbox = postgres_place.outbox()
    for asset, ordering_key in (("ä€", None), ("b", "pump"), ("c", "größe")):
        text = json.dumps(event(asset), ensure_ascii=False, separators=(",", ":"))
        number, _ = called(connection, "'enos', %s, %s, %s", text, asset, ordering_key)
        connection.commit()
        with postgres_place.engine.begin() as ours:
            again = outbox.enqueue(ours, "enos", event(asset), key=asset, ordering_key=ordering_key)
        assert (number, False) == (again.id, again.new)
