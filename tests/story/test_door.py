"""At the door: bad input is refused with every fault at once, nothing is written, and the caller's transaction goes on."""

from __future__ import annotations

import io
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox import (
    ConfigurationError,
    EnosAttributes,
    EnosEvents,
    Fault,
    File,
    KeyConflict,
    Lane,
    Outbox,
    OutboxError,
    Policy,
    Refused,
    SpooledFile,
    SpoolError,
    State,
    UnknownDestination,
    migrate,
    prepare,
)
from outbox.database import Database
from outbox.tables import attachment, file, message, stream
from tests.factories import enos
from tests.rights import like_anybody

TIME = 1579580182824
LIMIT = 1000


def event(**changes: Any) -> dict[str, Any]:
    """An event that may pass; a member that is None is left out."""
    usual = {"assetId": "turbine-7", "time": TIME, "events": {"crack": {"severity": 3}}}
    return {name: value for name, value in (usual | changes).items() if value is not None}


def with_photo(reference: str = "local://photo", **changes: Any) -> dict[str, Any]:
    return event(events={"crack": {"photo": reference}}, **changes)


class Door:
    """An outbox, and a caller with an open transaction in which it has done work of its own."""

    def __init__(self, url: str, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.spool = folder / "spool"
        self.database = Database(url)
        migrate.upgrade(self.database)
        self.engine = prepare(sa.create_engine(url))
        usual = {"url": "https://integration.example", "org_id": "o1", "max_file_bytes": LIMIT, "max_message_bytes": 256 + 2000}
        self.outbox = Outbox(
            url,
            spool=self.spool,
            destinations=[EnosEvents(name="enos", **usual), EnosAttributes(name="traits", **usual)],
            durability="ignore",  # the server of the tests is not power-safe, and says so
            **options,
        )
        with self.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE work (name VARCHAR(20))"))

    def enqueue(self, session: Any, payload: Any = None, destination: Any = "enos", **options: Any) -> Any:
        return self.outbox.enqueue(session, destination, event() if payload is None else payload, **options)

    def refused(self, payload: Any = None, destination: Any = "enos", **options: Any) -> OutboxError:
        """What enqueue says to this; meanwhile everything the door promises about a refusal is checked."""
        with Session(self.engine) as session, session.begin():
            session.execute(sa.text("DELETE FROM work"))
            session.execute(sa.text("INSERT INTO work VALUES ('before')"))
            written, kept = self.rows(session.connection()), self.kept

            with pytest.raises(OutboxError) as caught:
                self.enqueue(session, payload, destination, **options)

            assert written == self.rows(session.connection())
            assert kept == self.kept
            session.execute(sa.text("INSERT INTO work VALUES ('after')"))
            good = self.enqueue(session)
        with self.engine.connect() as connection:
            work = connection.execute(sa.text("SELECT name FROM work ORDER BY name")).scalars().all()
            assert ["after", "before"] == work
            state = connection.execute(sa.select(message.c.state).where(message.c.id == good.id)).scalar_one()
            assert State.PENDING == state
        return caught.value

    def faults(self, payload: Any = None, destination: Any = "enos", **options: Any) -> list[tuple[str, str]]:
        """The faults of a refusal."""
        error = self.refused(payload, destination, **options)
        assert isinstance(error, Refused)
        return [tuple(fault) for fault in error.faults]

    def rows(self, connection: sa.Connection) -> list[int]:
        """How many messages, attachments, files and streams there are."""
        tables = (message, attachment, file, stream)
        return [connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in tables]

    @property
    def kept(self) -> list[Path]:
        """Every file anywhere in the spool."""
        return sorted(path for path in self.spool.rglob("*") if not path.is_dir())

    def close(self) -> None:
        self.engine.dispose()
        self.outbox.close()
        self.database.close()


@pytest.fixture
def make_door(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Door]]:
    made: list[Door] = []

    def make(**options: Any) -> Door:
        made.append(Door(database_url, tmp_path, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def door(make_door: Callable[..., Door]) -> Door:
    return make_door()


# Where to.


def test_an_unknown_destination_is_refused_with_those_that_are_known(door: Door, subtests: pytest.Subtests) -> None:
    for name in ("warehose", "", "ENOS", None, 7, ["enos"]):
        with subtests.test(repr(name)):
            error = door.refused(destination=name)

            assert isinstance(error, UnknownDestination)
            assert f"no destination named {name!r}; declared: enos, traits" == str(error)


def test_what_is_no_session_is_refused(door: Door) -> None:
    for session in (None, "sqlite:///x.db", object()):
        with pytest.raises(TypeError, match="expected a SQLAlchemy Session or Connection"):
            door.enqueue(session)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"destinations": [enos(), enos()]}, "two destinations are named 'enos'"),
        ({"durability": "lax"}, "expected durability to be 'warn', 'strict' or 'ignore', got 'lax'"),
        ({"quota": 0}, "expected quota to be a number of bytes of at least 1, or None, got 0"),
        ({"reserve": -1}, "expected reserve to be a number of bytes of at least 0, got -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_outbox_is_refused_what_it_could_not_keep_to(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    usual = {"spool": tmp_path / "spool", "destinations": [enos()]}

    with pytest.raises(ConfigurationError) as refused:
        Outbox(f"sqlite:///{tmp_path / 'outbox.db'}", **(usual | options))

    assert words == str(refused.value)


# What: one fault each.


def circle() -> Any:
    around: dict[str, Any] = {}
    around["e"] = around
    return around


PAYLOADS: dict[str, tuple[Any, str, str]] = {
    "no device": (event(assetId=None), "assetId", "no device is named; expected assetId, or productKey and deviceKey"),
    "both devices": (event(productKey="p", deviceKey="d"), "assetId", "not both"),
    "half a device": (event(assetId=None, productKey="p"), "deviceKey", "productKey names a device only together with it"),
    "the other half": (event(assetId=None, deviceKey="d"), "productKey", "deviceKey names a device only together with it"),
    "an empty device": (event(assetId=""), "assetId", "expected a string that is not empty, got ''"),
    "a blank device": (event(assetId="  "), "assetId", "expected a string that is not empty"),
    "a number for a device": (event(assetId=7), "assetId", "expected a string that is not empty, got 7"),
    "a device that controls": (event(assetId="a\x1b[2J"), "assetId", "holds control characters"),
    "no time": (event(time=None), "time", "is missing; expected milliseconds since 1970 as an integer"),
    "time as text": (event(time="1579580182824"), "time", "as an integer, got '1579580182824'"),
    "time as a float": (event(time=1.5e12), "time", "as an integer, got 1500000000000.0"),
    "time as a truth": (event(time=True), "time", "as an integer, got True"),
    "time before 1970": (event(time=-1), "time", "expected milliseconds since 1970"),
    "time far too late": (event(time=2**63), "time", "expected milliseconds since 1970"),
    "no events": (event(events=None), "events", "expected an object with at least one of the device's events"),
    "empty events": (event(events={}), "events", "expected an object with at least one"),
    "events as a list": (event(events=[1]), "events", "expected an object with at least one"),
    "an event that is no object": (event(events={"crack": 3}), "events.crack", "expected an object of the event's parameters"),
    "a blank event": (event(events={" ": {}}), "events", "a name in it is empty"),
    "NaN": (event(events={"crack": {"size": math.nan}}), "events.crack.size", "nan is not JSON"),
    "infinity": (event(events={"crack": {"sizes": [1, math.inf]}}), "events.crack.sizes[1]", "inf is not JSON"),
    "bytes": (event(events={"crack": {"raw": b"x"}}), "events.crack.raw", "a bytes is not JSON"),
    "a datetime": (event(events={"e": {"at": datetime(2026, 1, 1, tzinfo=UTC)}}), "events.e.at", "a datetime is not JSON"),
    "a number for a name": (event(events={"crack": {5: 1}}), "events.crack", "the name 5 is not a string"),
    "half a letter": (event(events={"crack": {"s": "\ud83d"}}), "events.crack.s", "half of a surrogate pair"),
    "a name that controls": (event(events={"crack": {"a\x00b": 1}}), "events.crack", "holds control characters"),
    "a misprint": (event(produckKey="p"), "produckKey", "is not a member of this message; did you mean 'productKey'?"),
    "a stranger": (event(colour="red"), "colour", "is not a member of this message; known: assetId, productKey"),
    "too much text": (event(events={"crack": {"s": "x" * 3000}}), "payload", "of a request's text; enos takes at most 2000"),
    "too much in few letters": (event(events={"crack": {"s": "🙂" * 500}}), "payload", "enos takes at most 2000"),
    "no object": ([event()], "payload", "expected an object with a device, a time and events"),
    "a string": ("{}", "payload", "expected an object"),
    "one that holds itself": (event(events=circle()), "payload", "is nested more than 32 deep, has more than"),
    "a reference without a file": (with_photo(), "events.crack.photo", "refers to a file 'photo' that is not given in files="),
    "a reference to nothing": (with_photo("local://"), "events.crack.photo", "refers to a file '' that is not given"),
}


@pytest.mark.long
def test_a_faulty_payload_is_refused_with_the_place_and_the_remedy(door: Door, subtests: pytest.Subtests) -> None:
    for name, (payload, path, words) in PAYLOADS.items():
        with subtests.test(name):
            ((at, text),) = door.faults(payload)

            assert path == at
            assert words in text


def test_a_number_that_nobody_can_write_is_refused(door: Door, subtests: pytest.Subtests) -> None:
    for where in ({"time": 10**5000}, {"events": {"e": {"n": 10**5000}}}):
        with subtests.test(next(iter(where))):
            assert any("digits" in text for _, text in door.faults(event(**where)))


def test_an_attribute_has_no_time(door: Door) -> None:
    ((path, _),) = door.faults({"assetId": "a", "time": TIME, "attributes": {"x": 1}}, "traits")

    assert "time" == path


def test_a_file_may_not_stand_anywhere(door: Door, subtests: pytest.Subtests) -> None:
    places: dict[str, Any] = {
        "events.crack.photos[0]": {"photos": ["local://photo"]},
        "events.crack.deep.photo": {"deep": {"photo": "local://photo"}},
    }
    for path, parameters in places.items():
        with subtests.test(path):
            faults = door.faults(event(events={"crack": parameters}), files={"photo": b"x"})

            assert [(path, "a file cannot stand here; it is the value of an event's parameter")] == faults


# Files.


def test_a_file_nobody_refers_to_is_refused(door: Door) -> None:
    expected = ("files.photo", "is not referred to; put local://photo where it belongs in the payload")

    assert [expected] == door.faults(files={"photo": b"x"})


def directory(folder: Path) -> Any:
    return folder


def device(folder: Path) -> Any:
    return "/dev/zero"


def pipe(folder: Path) -> Any:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def unix_socket(folder: Path) -> Any:
    before = Path.cwd()
    os.chdir(folder)  # its address may not be long
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("s")
    finally:
        os.chdir(before)
    return folder / "s"


def missing(folder: Path) -> Any:
    return folder / "missing.jpg"


def dangling(folder: Path) -> Any:
    (folder / "link").symlink_to(folder / "missing.jpg")
    return folder / "link"


def circle(folder: Path) -> Any:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


def under_a_file(folder: Path) -> Any:
    (folder / "file").write_bytes(b"")
    return folder / "file" / "photo.jpg"


def over_the_limit(folder: Path) -> Any:
    (folder / "large.bin").write_bytes(b"x" * (LIMIT + 1))
    return folder / "large.bin"


def text_stream(folder: Path) -> Any:
    (folder / "text").write_text("x")
    return io.StringIO("x")


SOURCES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "directory": (directory, "is not a regular file but a directory"),
    "device": (device, "is not a regular file but a device, pipe or socket"),
    "pipe": (pipe, "is not a regular file but a device, pipe or socket"),
    "socket": (unix_socket, "is not a regular file but a device, pipe or socket"),
    "missing": (missing, "cannot be read: No such file or directory"),
    "dangling link": (dangling, "cannot be read: No such file or directory"),
    "links in a circle": (circle, "cannot be read"),
    "under a file": (under_a_file, "cannot be read: Not a directory"),
    "empty path": (lambda _: "", "is not a regular file but a directory"),
    "a path with NUL": (lambda _: "a\x00b", "cannot be read: it is not a usable path"),
    "a path too long": (lambda _: "x" * 5000, "cannot be read: File name too long"),
    "file over the limit": (over_the_limit, "has 1001 bytes; enos takes at most 1000"),
    "bytes over the limit": (lambda _: b"x" * (LIMIT + 1), "has 1001 bytes; enos takes at most 1000"),
    "a stream over the limit": (lambda _: io.BytesIO(b"x" * (LIMIT + 1)), "has more than 1000 bytes"),
    "text stream": (text_stream, "is open as text; open it with mode 'rb'"),
    "None": (lambda _: None, "expected a path, bytes, a binary stream or a SpooledFile, got NoneType"),
    "a number": (lambda _: 7, "expected a path, bytes, a binary stream or a SpooledFile, got int"),
    "a bad content type": (lambda _: File(b"x", content_type="image/jpeg\r\nX: y"), "is not a content type such as image/jpeg"),
    "a file name that controls": (lambda _: File(b"x", filename="a\r\nb"), "holds control characters"),
    "half a letter in a file name": (lambda _: File(b"x", filename="\udcff.jpg"), "holds control characters"),
    "a number for a file name": (lambda _: File(b"x", filename=7), "expected its file name to be a string, got 7"),
    "a long file name": (lambda _: File(b"x", filename="x" * 256), "expected a file name of 1 to 255 characters, got 256"),
}


@pytest.mark.long
def test_a_source_that_is_no_file_is_refused(door: Door, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for number, (name, (make, words)) in enumerate(SOURCES.items()):
        folder = tmp_path / f"producer-{number}"
        folder.mkdir()
        with subtests.test(name):
            ((path, text),) = door.faults(with_photo(), files={"photo": make(folder)})

            assert "files.photo" == path
            assert words in text


def test_an_open_text_file_is_refused(door: Door, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")

    with (tmp_path / "notes.txt").open() as notes:
        ((_, text),) = door.faults(with_photo(), files={"photo": notes})

    assert "is open as text; open it with mode 'rb'" == text


def test_a_file_that_may_not_be_read_is_refused(door: Door, tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    path.chmod(0)

    faults = like_anybody(lambda: door.faults(with_photo(), files={"photo": path}))

    assert [("files.photo", "cannot be read: permission denied")] == faults


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_path_outside_the_allowed_roots_is_refused(
    make_door: Callable[..., Door], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    for folder in (allowed, outside):
        folder.mkdir()
    (outside / "passwd").write_bytes(b"x")
    (allowed / "link").symlink_to(outside / "passwd")
    (allowed / "folder").symlink_to(outside)
    ways = {
        "straight": outside / "passwd",
        "by dots": allowed / ".." / "outside" / "passwd",
        "through a link": allowed / "link",
        "through a linked folder": allowed / "folder" / "passwd",
    }

    door = make_door(roots=[allowed])

    for way, path in ways.items():
        with subtests.test(way):
            assert [("files.photo", "is outside the allowed roots")] == door.faults(with_photo(), files={"photo": path})


def test_a_path_inside_a_root_passes_even_if_the_root_is_a_link(make_door: Callable[..., Door], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"x")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    door = make_door(roots=[tmp_path / "root"])

    with Session(door.engine) as session, session.begin():
        enqueued = door.enqueue(session, with_photo(), files={"photo": str(tmp_path / "root" / "a.jpg")})

    assert enqueued.new


def test_roots_with_a_common_beginning_are_not_the_same(make_door: Callable[..., Door], tmp_path: Path) -> None:
    for name in ("data", "data-private"):
        (tmp_path / name).mkdir()
    (tmp_path / "data-private" / "a.jpg").write_bytes(b"x")
    door = make_door(roots=[tmp_path / "data"])

    assert 1 == len(door.faults(with_photo(), files={"photo": tmp_path / "data-private" / "a.jpg"}))


def test_a_name_that_is_none_is_refused(door: Door, subtests: pytest.Subtests) -> None:
    wanted, controls = "expected a name of 1 to 255 characters", "holds control characters"
    names = {"": wanted, "x" * 256: wanted, 7: wanted, "a\x00b": controls, "a\x1b[31m": controls, "a\x85": controls}
    for name, words in (names | {"\ud800": controls}).items():
        with subtests.test(ascii(name)[:20]):
            path, text = door.faults(files={name: b"x"})[0]

            assert "files" == path
            assert words in text


def test_a_stream_that_breaks_while_it_is_copied_leaves_nothing(door: Door) -> None:
    class Torn(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            block = super().read(10)
            if not block:
                raise OSError(5, "Input/output error")
            return block

    error = door.refused(with_photo(), files={"photo": Torn(b"x" * 100)})

    assert isinstance(error, SpoolError)


def test_of_several_files_the_good_ones_leave_nothing_either(door: Door) -> None:
    payload = event(events={"crack": {"a": "local://a", "b": "local://b"}})

    faults = door.faults(payload, files={"a": b"fine", "b": io.BytesIO(b"x" * (LIMIT + 1))})

    assert [("files.b", "has more than 1000 bytes, which is the most allowed")] == faults


def test_files_without_names_are_refused_with_whatever_else_is_wrong(door: Door) -> None:
    files = ("files", "expected names and files as in {'photo': path}, got ['a.jpg']")
    key = ("key", "expected a string, got 7")

    assert [key, files] == door.faults(with_photo(), files=["a.jpg"], key=7)


def test_a_destination_itself_is_told_to_give_its_name(door: Door) -> None:
    (fault,) = door.faults(destination=door.outbox.destinations["enos"])

    assert ("", "expected the name of a destination, 'enos', got the destination; declared: enos, traits") == fault


# Spooled ahead.


def test_what_is_no_file_is_not_spooled_ahead_either(door: Door) -> None:
    with pytest.raises(Refused) as caught:
        door.outbox.spool(door.folder / "missing.jpg")

    missing = door.folder / "missing.jpg"
    assert (Fault("files.file", f"cannot be read: No such file or directory ({missing})"),) == caught.value.faults
    assert [] == door.kept


def test_what_was_spooled_is_not_spooled_again(door: Door) -> None:
    spooled = door.outbox.spool(b"photo")

    assert spooled is door.outbox.spool(spooled)
    assert 1 == len(door.kept)


def test_a_spooled_file_that_was_freed_is_to_be_spooled_again(door: Door) -> None:
    spooled = door.outbox.spool(b"photo")
    with door.database.begin() as connection:
        connection.execute(sa.update(file).values(freed_at=sa.func.current_timestamp()))
    door.outbox.spool_store.delete(spooled.name)

    error = door.refused(with_photo(), files={"photo": spooled})

    assert isinstance(error, SpoolError)
    assert "the spooled file given as 'photo' has been freed since; spool it again" == str(error)


def test_a_spooled_file_whose_row_is_gone_is_to_be_spooled_again(door: Door) -> None:
    spooled = door.outbox.spool(b"photo")
    with door.database.begin() as connection:
        connection.execute(sa.delete(file))

    assert "spool it again" in str(door.refused(with_photo(), files={"photo": spooled}))


def test_a_forged_spooled_file_gets_nothing_out(door: Door, subtests: pytest.Subtests) -> None:
    for name in ("../../../../etc/passwd", "/etc/passwd", "", ".", "A" * 32, "0" * 31, "0" * 33, "0" * 32):
        with subtests.test(name):
            forged = SpooledFile(name, 1, "0" * 64, "0" * 32, "passwd")

            assert isinstance(door.refused(with_photo(), files={"photo": forged}), SpoolError)


def test_a_spooled_file_with_forged_facts_is_sent_as_what_it_is(door: Door) -> None:
    true = door.outbox.spool(File(b"photo", filename="a.jpg"))
    forged = SpooledFile(true.name, 1, "0" * 64, "0" * 32, "b.jpg")

    with Session(door.engine) as session, session.begin():
        door.enqueue(session, with_photo(), files={"photo": forged})

    with door.engine.connect() as connection:
        row = connection.execute(sa.select(file.c.size, file.c.sha256, file.c.md5)).one()
    assert (true.size, true.sha256, true.md5) == tuple(row)


# Keys, lanes and times.


KEYS: list[tuple[Any, str]] = [
    ("", "expected 1 to 255 characters, got 0"),
    ("x" * 256, "expected 1 to 255 characters, got 256"),
    ("inspection-None", "seems to be made from a None; flush the session first"),
    ("None", "seems to be made from a None"),
    ("a:None:b", "seems to be made from a None"),
    ("a\x00b", "holds control characters"),
    ("a\nb", "holds control characters"),
    ("a\x9bb", "holds control characters"),
    ("\ud800", "holds control characters"),
    (7, "expected a string, got 7"),
    (b"key", "expected a string, got b'key'"),
]


@pytest.mark.parametrize("which", ["key", "ordering_key"])
def test_a_key_that_is_none_is_refused(door: Door, which: str, subtests: pytest.Subtests) -> None:
    for key, words in KEYS:
        with subtests.test(ascii(key)[:20]):
            ((path, text),) = door.faults(**{which: key})

            assert which == path
            assert words in text


@pytest.mark.parametrize("which", ["key", "ordering_key"])
def test_a_key_that_only_looks_odd_passes(door: Door, which: str, subtests: pytest.Subtests) -> None:
    for key in ("Nonesuch", "canNone", "x" * 255, "größe/温度 🙂", "a'b\"c;--", "none", "%s", ":x"):
        with subtests.test(ascii(key)[:20]), Session(door.engine) as session, session.begin():
            assert door.enqueue(session, **{which: key}).new


def test_a_lane_that_is_none_is_refused_with_those_that_are(door: Door) -> None:
    assert [("lane", "no lane named 'fast'; known: express, normal, bulk, large")] == door.faults(lane="fast")


def test_whether_it_is_ordered_is_said_with_true_or_false(door: Door) -> None:
    expected = ("ordered", "expected True, False or None for the destination's own, got 'no'")

    assert [expected] == door.faults(ordered="no", ordering_key="pump")


def test_a_lane_that_is_one_passes(door: Door) -> None:
    with Session(door.engine) as session, session.begin():
        ids = [door.enqueue(session, lane=lane).id for lane in (*Lane, "bulk", None)]

    with door.engine.connect() as connection:
        lanes = connection.execute(sa.select(message.c.id, message.c.lane).order_by(message.c.id)).all()
    assert list(zip(ids, [*Lane, Lane.BULK, Lane.NORMAL], strict=True)) == [tuple(row) for row in lanes]


def test_a_time_without_its_zone_is_refused(door: Door, subtests: pytest.Subtests) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 (that is the mistake)
    for due_at in ("2026-01-01", 1579580182, naive, naive.date()):
        with subtests.test(repr(due_at)):
            ((path, text),) = door.faults(due_at=due_at)

            assert "due_at" == path
            assert text.startswith("expected a datetime with a time zone")


@pytest.mark.parametrize("later", [0, -1])
def test_a_message_that_would_expire_before_it_is_due_is_refused(door: Door, later: int) -> None:
    due_at = datetime.now(UTC) + timedelta(hours=1)

    faults = door.faults(due_at=due_at, expires_at=due_at + timedelta(seconds=later))

    assert [("expires_at", "is not after due_at: the message would expire before it is ever tried")] == faults


# All at once.


def test_several_faults_come_out_together(door: Door, tmp_path: Path) -> None:
    payload = {
        "productKey": "p",
        "time": "soon",
        "colour": "red",
        "events": {"crack": {"size": math.nan, "photo": "local://photo", "log": "local://log"}, "leak": 3},
    }

    faults = door.faults(payload, files={"photo": tmp_path, "other": b"x", "large": b"x" * 2000}, key="a-None", lane="fast")

    assert {
        "key",
        "lane",
        "files.photo",
        "files.large",
        "files.other",
        "colour",
        "deviceKey",
        "time",
        "events.leak",
        "events.crack.size",
        "events.crack.log",
    } == {path for path, _ in faults}
    assert len(faults) == len(set(faults))


def test_a_refusal_reads_as_sentences_and_holds_its_faults(door: Door) -> None:
    error = door.refused(event(time=None, assetId=None))

    assert isinstance(error, ValueError)
    assert isinstance(error, Refused)
    assert all(isinstance(fault, Fault) for fault in error.faults)
    assert str(error) == "; ".join(f"{path}: {text}" for path, text in error.faults)


ODD: list[dict[str, Any]] = [
    {"files": {"a\x1b[31m": b"x"}},
    {"files": {"p": File(b"x", filename="\x1b]0;owned\x07")}},
    {"payload": {"\x1b[2J": 1}},
    {"payload": {"assetId": "a", "time": 1, "events": {"\x1b[2J": 5}}},
    {"payload": {"assetId": "a", "time": 1, "events": {"e": {"\x1b": {"x": "local://\x1b"}}}}},
    {"payload": {"assetId": "\ud800", "time": "\ud800", "events": {}}},
    {"key": "None\x1b[31m"},
    {"lane": "\x1b[31m"},
    {"destination": "\x1b[31m"},
]


def test_no_sentence_carries_what_it_complains_about_to_a_terminal(door: Door, subtests: pytest.Subtests) -> None:
    for odd in ODD:
        with subtests.test(ascii(odd)[:60]):
            assert str(door.refused(**odd)).isprintable()


# What the door leaves in peace.


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_a_good_message_passes_with_its_file(door: Door, kind: str, tmp_path: Path) -> None:
    (tmp_path / "img.jpg").write_bytes(b"photo")

    with door.engine.begin() as connection:
        caller = Session(connection) if kind == "session" else connection
        enqueued = door.enqueue(caller, with_photo(), files={"photo": tmp_path / "img.jpg"}, key="k")

    assert (True, State.PENDING) == (enqueued.new, enqueued.state)
    with door.engine.connect() as connection:
        assert [1, 1, 1, 0] == door.rows(connection)
    assert [5] == [path.stat().st_size for path in door.kept]


def test_what_was_rolled_back_never_was(door: Door) -> None:
    with Session(door.engine) as session:
        door.enqueue(session, with_photo(), files={"photo": b"photo"}, ordering_key="a")
        session.rollback()

    with door.engine.connect() as connection:
        assert [0, 0, 0, 0] == door.rows(connection)


def test_a_stream_is_read_from_where_it_stands_and_left_open(door: Door) -> None:
    source: BinaryIO = io.BytesIO(b"skip this photo")
    source.seek(10)

    with Session(door.engine) as session, session.begin():
        door.enqueue(session, with_photo(), files={"photo": source})

    assert not source.closed
    assert [b"photo"] == [path.read_bytes() for path in door.kept]


def test_other_content_under_a_known_key_leaves_no_trace(door: Door) -> None:
    with Session(door.engine) as session, session.begin():
        door.enqueue(session, with_photo(), files={"photo": b"one"}, key="k")

    error = door.refused(with_photo(), files={"photo": b"two"}, key="k")

    assert isinstance(error, KeyConflict)
    assert [b"one"] == [path.read_bytes() for path in door.kept]


def test_a_message_at_every_limit_passes(door: Door) -> None:
    with Session(door.engine) as session, session.begin():
        enqueued = door.enqueue(session, with_photo(), files={"photo": b"x" * LIMIT}, key="x" * 255, ordering_key="y" * 255)

    assert enqueued.new


def test_a_refusal_reads_no_byte_of_a_file(door: Door) -> None:
    class Untouched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("a refused message's stream was read")

    assert door.faults(with_photo(time=None), files={"photo": Untouched()})


@pytest.mark.parametrize("over", [False, True])
def test_large_files_wait_in_a_lane_of_their_own(database_url: str, tmp_path: Path, over: bool) -> None:
    database = Database(database_url)
    migrate.upgrade(database)
    engine = prepare(sa.create_engine(database_url))
    destination = EnosEvents(name="enos", url="https://a.example", org_id="o", policy=Policy(large_over=5000))
    outbox = Outbox(database_url, spool=tmp_path / "spool", destinations=[destination], durability="ignore")

    with Session(engine) as session, session.begin():
        outbox.enqueue(session, "enos", with_photo(), files={"photo": b"x" * (5000 if over else 3000)})

    with engine.connect() as connection:
        assert ("large" if over else "normal") == connection.execute(sa.select(message.c.lane)).scalar_one()
    for each in (engine, outbox, database):
        each.dispose() if isinstance(each, sa.Engine) else each.close()
