"""Looks: what a doctor and a monitor say of what is rare, one look at a time."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Protocol

import pytest
import sqlalchemy as sa

from outbox import DirectorySpool, Outbox, Token
from outbox.checkup import Doctor, Finding, Level, Limits, database_looks, machine_looks, monitor, remote_looks
from outbox.checkup.database_looks import DatabaseLooks
from outbox.checkup.delivery_looks import DeliveryLooks
from outbox.checkup.findings import Check
from outbox.checkup.machine_looks import MachineLooks
from outbox.checkup.monitoring import Alarm
from outbox.checkup.places import permission_faults
from outbox.checkup.remote_looks import RemoteLooks
from outbox.store import living
from outbox.tables import destination
from outbox.testing import Receiver
from outbox.transport import Answer, RequestsTransport
from tests.certificates import Authority
from tests.conftest import missing
from tests.factories import NOW, Clock, add_row, an_outbox, enos, real_clock
from tests.postgres import Postgres
from tests.pure.recorder import read_request
from tests.rights import like_anybody
from tests.scripted import Script, Server, answering
from tests.story.conftest import Place


class Looks(Protocol):
    def checks(self) -> list[Check]: ...


def seen(looks: Looks, name: str) -> list[Finding]:
    """What the look of that name finds."""
    (check,) = (each for each in looks.checks() if each.name == name)
    return list(check.look())


def at_machine(outbox: Outbox, name: str, mounts: str | None = None) -> list[Finding]:
    return seen(MachineLooks(outbox, None, lambda: mounts), name)


def at_delivery(outbox: Outbox, name: str) -> list[Finding]:
    return seen(DeliveryLooks(outbox, 5.0), name)


def at_destination(outbox: Outbox, name: str) -> list[Finding]:
    return seen(RemoteLooks(outbox, RequestsTransport()), name)


def of_ones_own(place: Place, url: str, spool: Any = None, **options: Any) -> Outbox:
    """An outbox whose database, or whose destination, is at that address; closed with the place."""
    remote = url.startswith("http")
    given = (place.url, spool or place.spool, enos(url, **options)) if remote else (url, spool or place.spool)
    place._outboxes.append(an_outbox(*given))
    return place._outboxes[-1]


@contextmanager
def mode(path: Path, wanted: int) -> Iterator[None]:
    before = path.stat().st_mode & 0o777
    path.chmod(wanted)
    try:
        yield
    finally:
        path.chmod(before)


# The database


def test_a_database_that_we_may_not_read_is_not_called_damaged(sqlite_place: Place) -> None:
    path, looks = sqlite_place.folder / "outbox.db", DatabaseLooks(sqlite_place.outbox())
    with mode(path, 0):
        (found,) = like_anybody(lambda: list(looks.answers()))

    assert (Level.PROBLEM, f"{path} cannot be read: unable to open database file") == (found.level, found.text)
    assert "look whether we may read and write it and its folder, and at its disk" == found.remedy


def test_a_database_in_a_folder_that_we_may_not_enter_is_told_as_that(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    with mode(sqlite_place.folder, 0):
        found = like_anybody(lambda: list(Doctor(outbox_, offline=True).run()))

    assert f"{sqlite_place.folder / 'outbox.db'} cannot be looked at: Permission denied" == found[0].text
    refused = [each for each in found if "denied" in each.text and each.check != "mark"]
    assert {"database", "permissions"} <= {each.check for each in refused}
    assert {"run this as the user that the worker runs as"} == {each.remedy for each in refused}


def test_a_large_database_is_left_to_verify(sqlite_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_looks, "_QUICK", 1)

    (found,) = seen(DatabaseLooks(sqlite_place.outbox()), "integrity")

    assert (Level.OK, True) == (found.level, found.text.startswith("not read through: the database has "))


def test_what_the_quick_check_finds_is_told_with_its_first_words(sqlite_place: Place) -> None:
    """A page that nothing leads to: the file is longer by it, and its header says so."""
    path, looks = sqlite_place.folder / "outbox.db", DatabaseLooks(sqlite_place.outbox())
    raw = bytearray(path.read_bytes())
    (pages,) = struct.unpack_from(">I", raw, 28)
    struct.pack_into(">I", raw, 28, pages + 1)
    path.write_bytes(raw + bytes(4096))
    sqlite_place.damaged = True

    (found,) = seen(looks, "integrity")

    assert (Level.PROBLEM, True) == (found.level, found.text.startswith("the database is damaged: ")), found.text
    assert "outbox verify" in found.remedy


def test_a_sqlite_without_the_race_between_checkpointers_is_well(sqlite_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_looks, "_WAL_MENDED", (3, 0, 0))

    (found,) = seen(DatabaseLooks(sqlite_place.outbox()), "wal_race")

    assert (Level.OK, True) == (found.level, found.text.endswith("has no race between checkpointers"))


def test_of_a_database_that_a_uri_names_what_needs_its_path_is_left_out(sqlite_place: Place) -> None:
    outbox_ = of_ones_own(sqlite_place, f"sqlite:///file:{sqlite_place.folder / 'outbox.db'}?uri=true")

    found = {each.check: each for each in Doctor(outbox_, offline=True).run()}

    assert {Level.OK} == {found[each].level for each in ("database", "schema", "power", "lock", "vacuum")}
    assert not {"integrity", "wal", "reserve", "left_out"} & set(found)
    assert [] == [each.text for each in found.values() if "cannot be looked at" in each.text]


def test_a_transaction_that_stays_open_is_told_with_who_has_it(postgres_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_looks, "_OLD_TRANSACTION", 0.0)
    engine = sa.create_engine(postgres_place.url, connect_args={"application_name": "a-forgotten-report"})
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TEMP TABLE scratch (id int)"))
        (found,) = seen(DatabaseLooks(postgres_place.outbox()), "transactions")
    engine.dispose()

    assert Level.WARNING is found.level
    assert "a-forgotten-report" in found.text
    assert "has been open for" in found.text
    assert "let that program commit or roll back" in found.remedy


@pytest.mark.merge
def test_a_server_without_checksums_is_told_how_to_have_them(private_postgres: Postgres, tmp_path: Path) -> None:
    outbox_ = an_outbox(private_postgres.url, tmp_path / "spool")
    looks = DatabaseLooks(outbox_)
    (before,) = seen(looks, "checksums")
    outbox_.close()
    private_postgres.stop()
    disable = [private_postgres._binaries / "pg_checksums", "--disable", "-D", private_postgres._root / "data"]
    subprocess.run(disable, check=True, capture_output=True, **private_postgres._run_as)
    private_postgres.start_again()

    (found,) = seen(looks, "checksums")

    outbox_.close()
    assert [Level.OK, Level.WARNING] == [before.level, found.level]
    assert found.remedy == "stop it and run: pg_checksums --enable"


# The machine


class Elsewhere:
    """A spool that is in no directory, as far as anybody can tell."""

    def __init__(self, inside: DirectorySpool) -> None:
        self._inside = inside

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)


def test_a_spool_that_is_no_directory_is_said_to_be_none_and_its_files_are_looked_at(sqlite_place: Place) -> None:
    outbox_ = of_ones_own(sqlite_place, sqlite_place.url, Elsewhere(DirectorySpool(sqlite_place.spool)))
    sqlite_place.enqueue(outbox_, "a", {"photo": b"bytes"})
    well = at_delivery(outbox_, "files")
    (path,) = (each for each in sqlite_place.spool.rglob("*") if each.is_file() and len(each.name) == 32)
    path.unlink()

    (spool,), (files,) = at_machine(outbox_, "spool"), at_delivery(outbox_, "files")

    assert (Level.OK, "the spool is no directory") == (spool.level, spool.text)
    assert ([Level.OK], Level.PROBLEM) == ([each.level for each in well], files.level)


def test_a_file_system_that_nobody_lists_is_said_to_be_none_that_is_listed(sqlite_place: Place) -> None:
    """As in a chroot; and a line that is cut off is passed over."""
    found = at_machine(sqlite_place.outbox(), "file_system", "40 27 0:50 / /\n41 27 0:51 / /elsewhere rw - nfs server:/ rw\n")

    assert [(Level.OK, True)] * 2 == [
        (each.level, each.text.endswith("is on a file system that is not listed")) for each in found
    ]


@pytest.mark.parametrize(
    ("limits", "level", "words"),
    [
        ({"_FREE_AT_LEAST": 2**80}, Level.PROBLEM, "are free for the "),
        ({"_FREE_WORD": 2**80, "_FREE_SHARE": 2.0}, Level.WARNING, "are free for the "),
        ({"_FREE_FILES": 2**80}, Level.WARNING, "more files"),
    ],
)
def test_a_disk_that_is_nearly_full_is_told_before_it_is(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], level: Level, words: str
) -> None:
    if "_FREE_FILES" in limits and not os.statvfs(sqlite_place.folder).f_files:
        missing("a file system that counts its files")
    for name, value in limits.items():
        monkeypatch.setattr(machine_looks, name, value)

    found = at_machine(sqlite_place.outbox(), "disk")

    assert [(level, True)] * 2 == [(each.level, words in each.text) for each in found]
    assert all("outbox purge" in each.remedy for each in found)


def test_what_we_may_not_write_ourselves_is_a_problem(sqlite_place: Place) -> None:
    path, outbox_ = sqlite_place.folder / "outbox.db", sqlite_place.outbox()
    with mode(path, 0o400):
        (found,) = like_anybody(lambda: at_machine(outbox_, "permissions"))

    assert Level.PROBLEM is found.level
    assert f"may not write to {path}" in found.text
    assert "(0400)" in found.text


def test_a_path_that_we_may_not_even_look_at_is_a_fault_of_its_own(tmp_path: Path) -> None:
    with mode(tmp_path, 0):
        (fault,) = like_anybody(lambda: list(permission_faults([tmp_path / "outbox.db"])))

    assert (f"{tmp_path / 'outbox.db'} cannot be looked at: Permission denied", True) == (fault.text, fault.grave)
    assert "run this as the user that the worker runs as" == fault.remedy


def test_a_folder_of_the_spool_that_we_may_not_enter_hides_no_other_fault(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    sqlite_place.enqueue(outbox_, "a", {"photo": b"bytes"})
    (folder,) = {(sqlite_place.spool / each).parent for each in sqlite_place.spooled()}
    (sqlite_place.folder / "outbox.db").chmod(0o666)
    with mode(folder, 0):
        found = like_anybody(lambda: at_machine(outbox_, "permissions"))
    (sqlite_place.folder / "outbox.db").chmod(0o600)

    for words in (f"everybody may write to {sqlite_place.folder / 'outbox.db'}", f"may not write to {folder}"):
        assert any(words in each.text for each in found)


def test_a_link_has_no_permissions_that_mean_anything(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").symlink_to(tmp_path / "elsewhere.db")

    assert [] == list(permission_faults([tmp_path / "outbox.db"]))


# Who delivers


def test_a_worker_whose_clock_is_ahead_is_told_with_its_machine(sqlite_place: Place) -> None:
    clock = real_clock()
    outbox_ = sqlite_place.outbox(clock=clock)
    with sqlite_place.database.begin() as connection:
        living.register(connection, "w1", "pump-house", 1, clock.wall + timedelta(minutes=10), ["enos"])

    behind, alive = at_delivery(outbox_, "workers")

    assert (Level.WARNING, "this machine's clock is 10 min behind that of pump-house") == (behind.level, behind.text)
    assert "1 worker is alive" == alive.text


def test_of_a_destination_that_nobody_declares_only_what_waits_matters(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    with sqlite_place.database.begin() as connection:
        add_row(connection, "dead", destination="fax")
        stopped = {"stop": "pause", "stop_text": "old", "stopped_by": "anna", "stopped_at": NOW}
        connection.execute(sa.insert(destination).values(name="fax", **stopped))

    told = {name: [each.text for each in at_delivery(outbox_, name)] for name in ("served", "stops", "dead")}

    assert {"served": [], "stops": [], "dead": ["1 message for fax is dead"]} == told


def test_a_destination_in_trouble_is_told_with_its_next_try(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    with sqlite_place.database.begin() as connection:
        trouble = {"failures": 7, "open_until": datetime(2026, 3, 1, 12, 30, tzinfo=UTC)}
        connection.execute(sa.insert(destination).values(name="enos", **trouble))

    (found,) = at_delivery(outbox_, "stops")

    assert (Level.WARNING, "run: outbox explain enos") == (found.level, found.remedy)
    assert "enos is in trouble: 7 failures in a row; next try 12:30:00 UTC" == found.text


def test_a_monitor_minds_the_stops_of_what_it_was_asked_about_alone(sqlite_place: Place) -> None:
    outbox_ = an_outbox(sqlite_place.url, sqlite_place.spool, enos(), enos(name="fax"))
    with sqlite_place.database.begin() as connection:
        stopped = {"stop": "credentials", "stop_text": "no", "stopped_at": NOW}
        connection.execute(sa.insert(destination).values(name="fax", **stopped))

    asked = {name: monitor(outbox_, Limits(), [name]) for name in ("enos", "fax")}

    outbox_.close()
    assert {"enos": Alarm.OK, "fax": Alarm.CRITICAL} == {name: each.alarm for name, each in asked.items()}
    assert ("fax is stopped: our credentials are refused (no)",) == asked["fax"].reasons


def test_a_monitor_names_the_destinations_that_no_living_worker_serves(sqlite_place: Place) -> None:
    clock = Clock()
    outbox_ = sqlite_place.outbox(clock=clock)
    with sqlite_place.database.begin() as connection:
        living.register(connection, "w1", "host", 1, clock.wall, ["fax"])
        add_row(connection)

    reading = monitor(outbox_, Limits())

    assert (Alarm.CRITICAL, ("no worker that is alive serves enos, where messages wait for one",)) == (
        reading.alarm,
        reading.reasons,
    )


# The other side


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts a server with a script."""
    started: list[Server] = []

    def start(script: Script, *context: Any) -> Server:
        started.append(Server(script, *context))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [
        (0, Level.OK, "agrees with that of enos"),
        (7200, Level.WARNING, " behind that of enos"),
        (-7200, Level.WARNING, " ahead of that of enos"),
    ],
)
def test_a_destination_that_tells_the_time_is_compared_with_this_machine(
    sqlite_place: Place, serve: Callable[..., Server], ahead: int, level: Level, words: str
) -> None:
    def telling(connection: socket.socket) -> None:
        read_request(connection)
        told = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
        connection.sendall(f"HTTP/1.1 404 Not Found\r\nDate: {told}\r\nContent-Length: 0\r\n\r\n".encode())

    reached, compared = at_destination(of_ones_own(sqlite_place, serve(telling).url), "reach")

    assert "enos is reached at 127.0.0.1:" in reached.text
    assert (level, True) == (compared.level, words in compared.text), compared.text


def said_of(place: Place, url: str) -> str:
    (found,) = at_destination(of_ones_own(place, url), "reach")
    assert (Level.PROBLEM, True) == (found.level, bool(found.remedy))
    return found.text


def test_a_certificate_that_uploads_would_not_trust_is_told_as_that(
    sqlite_place: Place, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(answering, Authority(tmp_path).server())

    assert "its certificate is not trusted: unable to get local issuer certificate" in said_of(sqlite_place, server.url)


def test_a_machine_that_takes_a_connection_and_says_nothing_is_told_as_that(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_looks, "_CONNECT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert said_of(sqlite_place, f"https://127.0.0.1:{silent.getsockname()[1]}").endswith(": no answer in time")


def test_what_else_goes_wrong_is_told_in_the_systems_own_words(sqlite_place: Place, serve: Callable[..., Server]) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    text = said_of(sqlite_place, serve(reset).url.replace("http:", "https:"))

    assert text.endswith(": Connection reset by peer")


class Lent:
    """A transport of somebody else's."""

    def __init__(self) -> None:
        self._inside = RequestsTransport()
        self.closed = False

    def post_json(self, *given: Any) -> Answer:
        return self._inside.post_json(*given)

    def close(self) -> None:
        self.closed = True
        self._inside.close()


def test_a_transport_of_somebody_elses_is_used_and_left_open(sqlite_place: Place, receiver: Receiver) -> None:
    token = Token(receiver.token_url, "app-key", "app-secret", allow_plain_http=True)
    lent = Lent()

    found = seen(RemoteLooks(of_ones_own(sqlite_place, receiver.url, token=token), lent), "token")

    assert (Level.OK, "enos gives us a token") == (found[0].level, found[0].text)
    assert not lent.closed
    lent.close()
