"""Damage: bits that flip in spooled files, in the database and in its log are found or refused, and harm no other message."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from outbox import Outbox, Selection, State, Worker, migrate
from outbox.checkup import Damage, Level, Verification
from outbox.errors import OutboxError, SchemaError
from outbox.tables import attachment, file, message
from outbox.testing import Receiver
from tests.factories import an_outbox, in_full, reasons, states
from tests.postgres import Postgres
from tests.story.conftest import Place, eventually

#: So many bits are flipped in the database, one after the other, each anew.
FLIPS = in_full(1000, 40)


def verified(outbox: Outbox, **options: Any) -> list[Damage]:
    return list(Verification(outbox, **options).run())


def kinds(found: list[Damage]) -> set[str]:
    return {each.kind for each in found}


def at_rest(place: Place, key: str) -> Path:
    """Where the bytes of a message's only file are."""
    with place.database.read() as connection:
        statement = sa.select(attachment.c.file).join(message, attachment.c.message_id == message.c.id)
        name = connection.execute(statement.where(message.c.key == key)).scalar_one()
    return place.spool / name[-2:] / name


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Turn one bit round, in place and with the file's times as they were."""
    found = path.stat()
    with path.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and its bytes; of SQLite's index beside the log, which whoever reads may write, nothing."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def _shorter(path: Path) -> None:
    os.truncate(path, 100)


def _longer(path: Path) -> None:
    with path.open("ab") as opened:
        opened.write(b"\0")


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _other_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


HARMS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "first bit": (lambda path: flip(path, 0), "file_changed", "file_changed"),
    "last bit": (lambda path: flip(path, 299_999, 7), "file_changed", "file_changed"),
    "shorter": (_shorter, "file_changed", "file_changed"),
    "longer": (_longer, "file_changed", "file_changed"),
    "empty": (_empty, "file_changed", "file_changed"),
    "other bytes": (_other_bytes, "file_changed", "file_changed"),
    "missing": (Path.unlink, "file_missing", "file_missing"),
    "folder": (_folder, "file_changed", "file_changed"),
    "link": (_link, "file_changed", "file_changed"),
    "dangling link": (_dangling, "file_changed", "file_changed"),
}


@pytest.mark.long
def test_each_damaged_file_is_found_with_the_message_that_needs_it_and_kills_that_one_alone(place: Place) -> None:
    outbox_ = place.outbox()
    ids = {name: place.enqueue(outbox_, name, {"photo": os.urandom(300_000)}) for name in HARMS}
    for number in range(10):
        place.enqueue(outbox_, f"fine-{number}", {"photo": os.urandom(1000)})
    for name, (harm, _, _) in HARMS.items():
        harm(at_rest(place, name))

    found = verified(outbox_)
    Worker(outbox_, poll=0.05).run(until_idle=True)

    expected = {ids[name]: (kind, Level.PROBLEM) for name, (_, kind, _) in HARMS.items()}
    assert expected == {each.messages[0]: (each.kind, each.level) for each in found if each.file is not None}
    assert ["elsewhere"] == [Path(each.text.split()[0]).name for each in found if each.kind == "foreign"]
    assert {name: reason for name, (_, _, reason) in HARMS.items()} == reasons(place.database)
    alive = {key: state for key, state in states(place.database).items() if key not in HARMS}
    assert {State.DELIVERED} == set(alive.values())
    place.check()


def test_a_damaged_file_that_two_messages_share_is_told_once_with_both(place: Place) -> None:
    outbox_ = place.outbox()
    shared = outbox_.spool(b"bytes")
    content = {"photo": b"bytes"}
    with place.engine.begin() as connection:
        ids = [outbox_.enqueue(connection, "enos", _event(key), files={"photo": shared}, key=key).id for key in ("a", "b")]
    flip(at_rest(place, "a"), 2)

    (found,) = verified(outbox_)
    (told,) = verified(outbox_, destination="enos")

    assert tuple(ids) == found.messages
    assert "message 1 (a, pending), message 2 (b, pending)" in found.text
    assert found == told
    assert content


def _event(key: str) -> dict[str, Any]:
    return {"assetId": key, "time": 1, "events": {"crack": {"photo": "local://photo"}}}


@pytest.mark.long
def test_the_remedy_of_a_damaged_file_is_true(place: Place) -> None:
    outbox_ = place.outbox()
    number = place.enqueue(outbox_, "a", {"photo": b"bytes"})
    path = at_rest(place, "a")
    flip(path, 0)

    (waiting,) = verified(outbox_)
    Worker(outbox_, poll=0.05).run(until_idle=True)
    (dead,) = verified(outbox_)
    flip(path, 0)
    outbox_.replay(Selection(ids=(number,)), "me")
    Worker(outbox_, poll=0.05).run(until_idle=True)

    back = f"put the bytes that were enqueued back into the spool as {path}"
    again = f"or enqueue it again from the original under another key, and: outbox cancel {number}; look at the disk"
    assert [f"{back}; {again}", f"{back}, then: outbox replay {number}; {again}"] == [waiting.remedy, dead.remedy]
    assert {"a": State.DELIVERED} == states(place.database)
    assert [] == verified(outbox_)


def test_lengths_alone_do_not_find_a_flip_and_find_a_cut(place: Place) -> None:
    outbox_ = place.outbox()
    for key in ("flipped", "cut"):
        place.enqueue(outbox_, key, {"photo": bytes(300)})
    flip(at_rest(place, "flipped"), 7)
    _shorter(at_rest(place, "cut"))

    assert [(2,)] == [each.messages for each in verified(outbox_, fast=True)]
    assert {(1,), (2,)} == {each.messages for each in verified(outbox_)}


def test_what_was_delivered_is_no_problem_any_more(place: Place) -> None:
    outbox_ = place.outbox()
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    Worker(outbox_, poll=0.05).run(until_idle=True)
    flip(at_rest(place, "a"), 0)

    (found,) = verified(outbox_)

    assert (Level.WARNING, "file_changed") == (found.level, found.kind)
    assert "message 1, which is delivered" in found.text


def test_bytes_without_a_row_are_told_when_no_producer_can_be_at_it_any_more(place: Place) -> None:
    outbox_ = place.outbox()
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    young, old, swept = ("0" * 30 + ending for ending in ("aa", "bb", "cc"))
    for name, days in ((young, 0), (old, 2), (swept, 2)):
        path = place.spool / name[-2:] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"rubbish")
        os.utime(path, (path.stat().st_atime - 86_400 * days, path.stat().st_mtime - 86_400 * days))
    outbox_.spool_store.park(swept)

    verification = Verification(outbox_)
    found = list(verification.run())

    assert [("file_without_row", old, Level.WARNING)] == [(each.kind, each.file, each.level) for each in found]
    assert (1, 1) == (verification.tally.files, verification.tally.swept)


def test_a_spool_whose_disk_is_away_says_nothing_about_its_files(place: Place) -> None:
    outbox_ = place.outbox()
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    place.spool.rename(place.folder / "unmounted")
    place.spool.mkdir()

    assert ["spool_missing"] == [each.kind for each in verified(outbox_)]


@contextmanager
def like_anybody() -> Iterator[None]:
    """Without root's right to read whatever it likes (Linux: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH), on this thread."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert 0 == libc.capget(header, rights)
    before = rights[0]
    rights[0] = before & ~0b110
    assert 0 == libc.capset(header, rights)
    try:
        yield
    finally:
        rights[0] = before
        assert 0 == libc.capset(header, rights)


def test_a_spool_whose_mark_is_no_mark_is_told_with_what_to_do(place: Place) -> None:
    outbox_ = place.outbox()
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    outbox_.mark_spool()
    (place.spool / ".outbox").write_text("x")

    (found,) = verified(outbox_)

    assert ("spool_foreign", Level.PROBLEM) == (found.kind, found.level)
    assert "does not say whose spool this is" in found.text
    assert "remove it" in found.remedy


def test_a_file_that_cannot_be_read_is_told_and_the_next_is_looked_at(place: Place) -> None:
    outbox_ = place.outbox()
    for key in ("a", "b"):
        place.enqueue(outbox_, key, {"photo": b"bytes"})
    at_rest(place, "a").chmod(0)
    flip(at_rest(place, "b"), 0)

    with like_anybody():
        assert ["file_unreadable", "file_changed"] == [each.kind for each in verified(outbox_)]


def harm_row(place: Place, words: str) -> None:
    """Write what no constraint would let pass."""
    place.damaged = True
    with closing(sqlite3.connect(place.folder / "outbox.db")) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(f"UPDATE {words}")
        connection.commit()


NO_TEXT = "CAST(x'32b2362d' AS TEXT)"
ROWS = {
    "payload, another number": ("outbox_message SET payload = replace(payload, '3,', '7,') WHERE id = 2", "message_changed"),
    "payload, cut": ("outbox_message SET payload = substr(payload, 1, 20) WHERE id = 2", "message_changed"),
    "payload, no UTF-8": (f"outbox_message SET payload = {NO_TEXT} WHERE id = 2", "row_damaged"),
    "key, no UTF-8": (f"outbox_message SET key = {NO_TEXT} WHERE id = 2", "row_damaged"),
    "digest": ("outbox_message SET digest = replace(digest, 'a', 'b') || '' WHERE id = 2", "message_changed"),
    "due_at, no time": ("outbox_message SET due_at = '2026-03-0q 12:00:00.000000' WHERE id = 2", "row_damaged"),
    "due_at, no such day": ("outbox_message SET due_at = '2026-02-31 12:00:00.000000' WHERE id = 2", "row_damaged"),
    "due_at, a number": ("outbox_message SET due_at = 7 WHERE id = 2", "row_damaged"),
    "state": ("outbox_message SET state = 'pendinw' WHERE id = 2", "row_damaged"),
    "state, contradicted": ("outbox_message SET finished_at = created_at WHERE id = 2", "row_damaged"),
    "size, a word": ("outbox_message SET size = 'x' WHERE id = 2", "row_damaged"),
    "files": ("outbox_message SET files = 2 WHERE id = 2", "message_changed"),
    "file_bytes": ("outbox_message SET file_bytes = file_bytes + 64 WHERE id = 2", "message_changed"),
    "attachment's name": ("outbox_attachment SET filename = 'qhoto' WHERE message_id = 2", "message_changed"),
    "attachment's name, no text": ("outbox_attachment SET name = CAST(name AS BLOB) WHERE message_id = 2", "message_changed"),
    "attachment's type, no text": (
        "outbox_attachment SET content_type = CAST(content_type AS BLOB) WHERE message_id = 2",
        "message_changed",
    ),
    "attachment's type": ("outbox_attachment SET content_type = 'image/jqeg' WHERE message_id = 2", "message_changed"),
    "attachment's file": ("outbox_attachment SET file = 'x' WHERE message_id = 2", "message_changed"),
    "file's SHA-256": ("outbox_file SET sha256 = substr(sha256, 2) || 'x'", "row_damaged"),
    "file's SHA-256, no text": ("outbox_file SET sha256 = CAST(sha256 AS BLOB)", "message_changed"),
    "file's size, a word": ("outbox_file SET size = 'x'", "message_changed"),
    "file's MD5": ("outbox_file SET md5 = 'd41d8cd98f00b204e9800998ecf8427e'", "file_changed"),
    "file's size": ("outbox_file SET size = size + 1", "file_changed"),
    "file freed, so it says": ("outbox_file SET freed_at = created_at", "file_missing"),
    "the spool's mark": ("outbox_spool SET mark = substr(mark, 2) || '0'", "spool_foreign"),
    "the spool's mark, no such digit": ("outbox_spool SET mark = substr(mark, 2) || 'g'", "row_damaged"),
    "ordering key": ("outbox_stream SET ordering_key = 'turbine-8'", "message_changed"),
    "stream's destination": ("outbox_stream SET destination = 'enot'", "row_damaged"),
    "stream's place": ("outbox_head SET due_at = 'x'", "row_damaged"),
    "breaker": ("outbox_destination SET open_until = 'x'", "row_damaged"),
    "beat": (f"outbox_worker SET host = {NO_TEXT}", "row_damaged"),
}


@pytest.mark.merge
@pytest.mark.parametrize("harm", ROWS)
def test_a_damaged_row_is_a_finding_and_no_traceback(sqlite_place: Place, harm: str) -> None:
    words, kind = ROWS[harm]
    outbox_ = sqlite_place.outbox()
    sqlite_place.hand(outbox_)
    for key in ("a", "b"):
        sqlite_place.enqueue(outbox_, key, {"photo": b"bytes of " + key.encode()}, ordering_key="turbine-7")
    outbox_.mark_spool()
    assert [] == verified(outbox_)

    harm_row(sqlite_place, words)

    found = verified(outbox_)
    assert kind in kinds(found)
    if "id = 2" in words:
        assert {(2,)} == {each.messages for each in found if each.kind != "database_damaged"}


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        (State.PENDING, "enqueue it again from the original under another key, and: outbox cancel 1"),
        (State.DELIVERED, "nothing needs it any more; it goes with its time"),
    ],
)
def test_a_message_that_was_delivered_needs_nobody_to_do_anything(sqlite_place: Place, state: State, remedy: str) -> None:
    outbox_ = sqlite_place.outbox()
    sqlite_place.enqueue(outbox_, "a")
    if state is State.DELIVERED:
        Worker(outbox_, poll=0.05).run(until_idle=True)

    harm_row(sqlite_place, "outbox_message SET payload = replace(payload, '3', '7')")

    (found,) = verified(outbox_)
    assert ("message_changed", remedy) == (found.kind, found.remedy)


@pytest.mark.parametrize(
    ("version", "words"), [("outbox_0001", "outbox db upgrade"), ("outbox_9999", "upgrade durable-outbox here")]
)
def test_a_database_of_another_schema_is_not_verified(sqlite_place: Place, version: str, words: str) -> None:
    outbox_ = sqlite_place.outbox()
    harm_row(sqlite_place, f"{migrate.VERSION_TABLE} SET version_num = '{version}'")

    with pytest.raises(SchemaError, match=words):
        verified(outbox_)


def test_a_directory_in_the_place_of_the_database_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").mkdir()

    (found,) = verified(an_outbox(f"sqlite:///{tmp_path / 'outbox.db'}", tmp_path / "spool"))

    assert ("database_unreadable", Level.PROBLEM) == (found.kind, found.level)
    assert "outbox.db is a directory" in found.text


@pytest.mark.merge
@pytest.mark.parametrize("column", ["payload", "due_at", "expires_at", "key", "created_at", "reason_text"])
def test_a_message_whose_row_cannot_be_read_holds_nobody_up(sqlite_place: Place, column: str) -> None:
    outbox_ = sqlite_place.outbox()
    for number in range(7):
        sqlite_place.enqueue(outbox_, f"m{number}")
    harm_row(sqlite_place, f"outbox_message SET {column} = {NO_TEXT} WHERE id = 2")

    with Worker(outbox_, poll=0.05):
        others = {f"m{number}" for number in range(7) if number != 1}
        eventually(lambda: others <= {each.struct["assetId"] for each in sqlite_place.receiver.accepted})


UNREADABLE = {
    "an attachment's name": "outbox_attachment SET name = CAST(name AS BLOB) WHERE message_id = 2",
    "an attachment's filename": f"outbox_attachment SET filename = {NO_TEXT} WHERE message_id = 2",
    "an attachment's type": "outbox_attachment SET content_type = CAST(content_type AS BLOB) WHERE message_id = 2",
    "a file's SHA-256": "outbox_file SET sha256 = CAST(sha256 AS BLOB) WHERE size = 2",
    "a file's MD5": "outbox_file SET md5 = CAST(md5 AS BLOB) WHERE size = 2",
    "a file's size": "outbox_file SET size = 'x' WHERE size = 2",
}


@pytest.mark.merge
@pytest.mark.parametrize("harm", UNREADABLE)
def test_a_message_the_rows_of_whose_file_cannot_be_read_holds_nobody_up(sqlite_place: Place, harm: str) -> None:
    outbox_ = sqlite_place.outbox()
    for number in range(7):
        sqlite_place.enqueue(outbox_, f"m{number}", {"photo": bytes(number + 1)})
    harm_row(sqlite_place, UNREADABLE[harm])

    with Worker(outbox_, poll=0.05):
        others = {f"m{number}" for number in range(7) if number != 1}
        eventually(lambda: others <= {each.struct["assetId"] for each in sqlite_place.receiver.accepted})


@pytest.mark.merge
@pytest.mark.parametrize("column", ["payload", "due_at", "expires_at", "key", "size"])
def test_a_message_whose_row_cannot_be_read_holds_nobody_up_once_it_is_cancelled(sqlite_place: Place, column: str) -> None:
    outbox_ = sqlite_place.outbox()
    for key in ("a", "b", "c"):
        sqlite_place.enqueue(outbox_, key)
    harm_row(sqlite_place, f"outbox_message SET {column} = {NO_TEXT} WHERE id = 2")

    (found,) = verified(outbox_)
    outbox_.cancel(Selection(ids=found.messages), "me")
    Worker(outbox_, poll=0.05).run(until_idle=True)

    assert "outbox cancel 2" in found.remedy
    assert ["a", "c"] == sorted(each.struct["assetId"] for each in sqlite_place.receiver.accepted)


class Sound(NamedTuple):
    """A copy of a database at rest, with messages in every state, and the spool that it vouches for."""

    database: Path
    spool: Path


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("sound")
    with Receiver(check_token=False) as receiver:
        place = Place(f"sqlite:///{folder / 'outbox.db'}", folder, receiver, empty=True)
        outbox_ = place.outbox()
        receiver.refuse(lambda struct: struct["assetId"] == "done-3", msg="no such model")
        for number in range(8):
            place.enqueue(outbox_, f"done-{number}", {"photo": os.urandom(50)})
        Worker(outbox_, poll=0.05).run(until_idle=True)
        for number in range(12):
            place.enqueue(outbox_, f"wait-{number}", {"photo": os.urandom(50)})
        for number in range(6):
            place.enqueue(outbox_, f"ordered-{number}", ordering_key=f"turbine-{number % 2}")
            place.enqueue(outbox_, f"fair-{number}", ordering_key=f"turbine-{number % 2}", ordered=False)
        later = place.clock.wall + timedelta(days=3000)
        place.enqueue(outbox_, "later", due_at=later, expires_at=later + timedelta(days=1))
        place.close()
    with closing(sqlite3.connect(folder / "outbox.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Sound(folder / "outbox.db", folder / "spool")


@pytest.fixture
def sound(made_once: Sound, tmp_path: Path) -> Sound:
    return Sound(Path(shutil.copy(made_once.database, tmp_path / "outbox.db")), made_once.spool)


#: What happened, for people to read: a flip that leaves a word, a number or a time there is not found, and changes nothing that
#: is sent. The same for numbers that only decide how soon, or in what company, a message is tried.
HISTORY = {
    "outbox_message": {
        *("created_at", "finished_at", "reason_text", "replays", "traceparent", "faulted_in"),
        *("attempt", "failures", "unknowns", "batch_limit", "suspect", "size", "scheduled", "clock_plausible"),
    },
    "outbox_delivery": None,
    "outbox_attempt": None,
    "outbox_worker": None,
    "outbox_audit": None,
    "outbox_reserve": None,
    "outbox_file": {"created_at", "free_at"},
    "outbox_spool": {"created_at"},
    "outbox_destination": {"failures", "open_until", "reject_streak", "ramp", "rate_tokens", "rate_at", "learned_bytes"},
    "outbox_head": {"served", "due_at", "scheduled", "forgiven", "claimed_by", "blocked_by"},
    "outbox_share": {"served", "due_at", "scheduled"},
    "sqlite_sequence": None,
}
#: When a message is due is told by an index as well, but for one that is final, and for one in a stream, whose place tells it.
UNINDEXED = {"due_at", "expires_at", "lane", "stream_number"}


def contents(database: Path) -> dict[str, Any]:
    """Everything in a database, as bytes."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
        found: dict[str, Any] = {"schema": sorted((kind, name, of, (sql or b"").split()) for kind, name, of, sql in rows)}
        for kind, raw, _, _ in rows:
            if kind == b"table":
                name = raw.decode()
                cursor = connection.execute(f"SELECT * FROM {name}")
                columns = [each[0] for each in cursor.description]
                found[name] = sorted((dict(zip(columns, row, strict=True)) for row in cursor), key=repr)
        return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What a flip changed that matters for what is sent."""
    if before["schema"] != after["schema"]:
        yield "schema"
    for table in before.keys() - {"schema"}:
        history = HISTORY.get(table, set())
        if history is None:
            continue
        if len(before[table]) != len(after.get(table, ())):
            yield table
            continue
        for old, new in zip(before[table], after[table], strict=True):
            changed = {name for name in old if old[name] != new.get(name)} - history
            if table == "outbox_message" and (old["state"] not in (b"pending", b"claimed") or old["stream_id"] is not None):
                changed -= UNINDEXED
            for name in changed:
                yield f"{table}.{name}: {old[name]!r} became {new.get(name)!r}"


@pytest.mark.merge
@pytest.mark.slow
def test_every_bit_that_flips_in_the_database_is_found_or_refused_or_changes_nothing(sound: Sound, tmp_path: Path) -> None:
    raw, before = sound.database.read_bytes(), contents(sound.database)
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")
    dice = random.Random(seed)
    pages = [number for number in range(len(raw) // 4096) if raw[number * 4096 : (number + 1) * 4096].strip(b"\0")]
    copy = tmp_path / "copies" / "outbox.db"
    found = 0

    for _ in range(FLIPS):
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        at, bit = dice.choice(pages) * 4096 + dice.randrange(4096), dice.randrange(8)
        copy.write_bytes(raw)
        flip(copy, at, bit)
        if is_noticed(copy, sound.spool):
            found += 1
        else:
            assert [] == list(differences(before, contents(copy))), f"byte {at}, bit {bit}"

    assert found > FLIPS / 30, "the flips matter"


def is_noticed(database: Path, spool: Path) -> bool:
    """Whether a flip in a database is found; and that looking for it left the file alone."""
    outbox_ = an_outbox(f"sqlite:///{database}", spool)
    raw = database.read_bytes()
    try:
        return bool(verified(outbox_))
    except OutboxError:
        return True
    finally:
        outbox_.close()
        assert raw == database.read_bytes()


PLACES = {
    "the file's header": lambda raw: 3,
    "the size of its pages": lambda raw: 16,
    "the version of its format": lambda raw: 18,
    "the schema's own page": lambda raw: 100,
    "the header of the messages' page": lambda raw: raw.index(b'"wait-3"') // 4096 * 4096,
    "how many cells a page has": lambda raw: raw.index(b'"wait-3"') // 4096 * 4096 + 4,
    "a payload": lambda raw: raw.index(b'"wait-3"') + 2,
    "a definition": lambda raw: raw.index(b"CREATE TABLE outbox_message") + 3,
    "a word in a CHECK": lambda raw: raw.index(b"(state = 'cancelled'") + 11,
}


@pytest.mark.merge
@pytest.mark.parametrize("place", PLACES)
def test_a_flip_in_a_place_that_everything_hangs_on_is_found(sound: Sound, place: str) -> None:
    raw, before = sound.database.read_bytes(), contents(sound.database)
    for bit in range(8):
        sound.database.write_bytes(raw)
        flip(sound.database, PLACES[place](raw), bit)
        noticed = is_noticed(sound.database, sound.spool)

        assert noticed or [] == list(differences(before, contents(sound.database))), bit


def test_a_mark_that_cannot_be_read_is_told_and_the_files_are_looked_at_all_the_same(sound: Sound) -> None:
    with closing(sqlite3.connect(sound.database)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'outbox_spool'").fetchone()
    flip(sound.database, (page - 1) * 4096, 7)
    outbox_ = an_outbox(f"sqlite:///{sound.database}", sound.spool)
    verification = Verification(outbox_)

    found = list(verification.run())

    assert {"database_damaged"} == kinds(found)
    assert verification.tally.files > 0
    outbox_.close()


@pytest.mark.parametrize("length", [0, 50, 100, 4096, 40_960])
def test_a_database_that_was_cut_is_found_and_no_worker_begins_on_it(sound: Sound, length: int) -> None:
    os.truncate(sound.database, length)
    outbox_ = an_outbox(f"sqlite:///{sound.database}", sound.spool)

    assert is_noticed(sound.database, sound.spool)
    with pytest.raises((OutboxError, sa.exc.DatabaseError)):
        Worker(outbox_).start()

    outbox_.close()


def test_a_database_without_its_last_byte_is_found(sound: Sound) -> None:
    os.truncate(sound.database, sound.database.stat().st_size - 1)

    assert is_noticed(sound.database, sound.spool)


def committed_and_not_moved(place: Place) -> Path:
    """A copy of a database, its log and its index, as a crash leaves them: twenty messages are in the log alone."""
    outbox_ = place.outbox()
    with closing(sqlite3.connect(place.folder / "outbox.db")) as reader:  # whoever closes last would empty the log
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        reader.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for number in range(20):
            place.enqueue(outbox_, f"m{number}")
        crashed = place.folder / "crashed"
        crashed.mkdir()
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(place.folder / f"outbox.db{suffix}", crashed / f"outbox.db{suffix}")
    return crashed / "outbox.db"


def without_index(log: Path) -> None:
    log.with_name("outbox.db-shm").unlink()


LOGS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "a flip in its header": (lambda log: flip(log, 9),),
    "a flip in its header, after a power cut": (lambda log: flip(log, 9), without_index),
    "a flip in its salt, after a power cut": (lambda log: flip(log, 17), without_index),
    "a flip in a page": (lambda log: flip(log, log.stat().st_size // 2),),
    "a flip in a page, after a power cut": (lambda log: flip(log, log.stat().st_size // 2), without_index),
    "a flip in the first page, after a power cut": (lambda log: flip(log, 100), without_index),
    "a flip in the last page": (lambda log: flip(log, log.stat().st_size - 50),),
    "cut in the middle": (lambda log: os.truncate(log, log.stat().st_size // 2),),
    "cut to nothing": (lambda log: os.truncate(log, 0),),
    "deleted": (lambda log: log.unlink(),),
}


@pytest.mark.merge
@pytest.mark.parametrize("harm", LOGS)
def test_a_damaged_log_is_found_before_it_is_forgotten(sqlite_place: Place, harm: str) -> None:
    database = committed_and_not_moved(sqlite_place)
    for each in LOGS[harm]:
        each(database.with_name("outbox.db-wal"))
    outbox_ = an_outbox(f"sqlite:///{database}", sqlite_place.spool)

    found = verified(outbox_)

    outbox_.close()
    assert "log_damaged" in kinds(found), found


def test_a_log_in_order_is_no_finding_be_it_in_use_or_left_by_a_crash(sqlite_place: Place) -> None:
    database = committed_and_not_moved(sqlite_place)
    left = an_outbox(f"sqlite:///{database}", sqlite_place.spool)

    assert [] == verified(sqlite_place.outbox())
    assert [] == verified(left)

    left.close()


def test_a_log_whose_last_commit_a_power_cut_tore_has_lost_nothing_that_was_promised(sqlite_place: Place) -> None:
    database = committed_and_not_moved(sqlite_place)
    log = database.with_name("outbox.db-wal")
    without_index(log)
    flip(log, log.stat().st_size - 4096 - 24 - 50)  # in the last page but one: the last one is whole, and says that it commits
    outbox_ = an_outbox(f"sqlite:///{database}", sqlite_place.spool)

    assert [] == verified(outbox_)

    outbox_.close()


def test_verifying_changes_nothing(sqlite_place: Place) -> None:
    database = committed_and_not_moved(sqlite_place)
    for key in ("a", "b"):
        sqlite_place.enqueue(sqlite_place.outbox(), key, {"photo": b"bytes"})
    shutil.copytree(sqlite_place.spool, database.parent / "spool")
    (database.parent / "spool" / ".swept").mkdir(exist_ok=True)
    before = snapshot(database.parent)
    outbox_ = an_outbox(f"sqlite:///{database}", database.parent / "spool")

    verified(outbox_)

    outbox_.close()
    assert before == snapshot(database.parent)


@pytest.mark.long
@pytest.mark.slow
def test_what_changes_meanwhile_is_not_taken_for_damage(place: Place) -> None:
    outbox_ = place.outbox()
    for number in range(300):
        place.enqueue(outbox_, f"m{number}", {"photo": b"bytes"} if number < 100 else None)
    found: list[Damage] = []
    with Worker(outbox_, poll=0.05):
        while len(place.receiver.accepted) < 300:
            found += verified(outbox_)
        found += verified(outbox_)

    assert [] == found
    place.check()


@pytest.mark.slow
def test_a_page_of_postgres_that_cannot_be_read_is_told_and_the_rest_is_read(
    private_postgres: Postgres, private_place: Place
) -> None:
    outbox_ = private_place.outbox()
    for number in range(120):
        private_place.enqueue(outbox_, f"m{number}", {"photo": b"bytes"} if number in (0, 119) else None)
    flip(at_rest(private_place, "m119"), 0)
    with private_place.database.begin() as connection:
        where = connection.execute(sa.text("SELECT pg_relation_filepath('outbox_message')")).scalar_one()
        folder = connection.execute(sa.text("SHOW data_directory")).scalar_one()
    private_place.engine.dispose()
    private_place.database.close()
    outbox_.close()
    private_postgres.stop()
    flip(Path(folder) / where, 8192 + 4000)
    private_postgres.start_again()

    verification = Verification(outbox_)
    found = list(verification.run())

    damaged = [each for each in found if each.kind == "database_damaged"]
    assert any("outbox_message" in each.text and "page" in each.text for each in damaged), found
    assert [(120,)] == [each.messages for each in found if each.kind == "file_changed"]
    assert 80 <= verification.tally.messages < 120


def test_a_file_that_was_freed_while_it_was_looked_for_is_none_that_is_missing(place: Place) -> None:
    outbox_ = place.outbox()
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    path = at_rest(place, "a")

    class Freeing:
        """Frees the file between the reading of its row and of its bytes."""

        def begin(self, what: str, total: int | None) -> None:
            self.files = what == "files"

        def advance(self, by: int = 1) -> None:
            if self.files:
                with place.database.begin() as connection:
                    connection.execute(sa.update(file).values(freed_at=place.clock.wall))
                path.unlink()

    with place.database.begin() as connection:
        done = {"state": "delivered", "finished_at": place.clock.wall}
        connection.execute(sa.update(message).values(done))

    assert [] == verified(outbox_, progress=Freeing())
