"""Doctor: every trouble it knows of is made real, found by its check, and comes with a remedy."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Credentials, EnosEvents, Outbox, Token, migrate
from outbox.checkup import Doctor, Finding, Level
from outbox.checkup.database_looks import DatabaseLooks
from outbox.checkup.places import mount_of
from outbox.store import living
from outbox.tables import destination, worker
from outbox.testing import Receiver
from outbox.transport import Transport
from tests.factories import Clock, add_row, an_outbox, enos, real_clock
from tests.story.conftest import Place

pytestmark = pytest.mark.long
#: What every test's outbox has: the machine's SQLite, no quota, and a server that is fast rather than safe.
ALWAYS = {"wal_race", "quota", "reserve", "power"}


def looked(outbox: Outbox, **options: Any) -> list[Finding]:
    return list(Doctor(outbox, **({"offline": True} | options)).run())


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [each for each in findings if each.check == check]


def troubles(findings: list[Finding]) -> dict[str, Level]:
    """What is not well, but for what never is in a test."""
    return {each.check: each.level for each in findings if each.level is not Level.OK and each.check not in ALWAYS}


def the_one(findings: list[Finding], check: str) -> Finding:
    (found,) = of(findings, check)
    return found


def of_ones_own(place: Place, *destinations: EnosEvents, url: str | None = None) -> Outbox:
    """An outbox with these destinations, or on another database; closed with the place."""
    place._outboxes.append(an_outbox(url or place.url, place.spool, *destinations))
    return place._outboxes[-1]


@pytest.fixture
def clock() -> Clock:
    return real_clock()


@pytest.fixture
def well(place: Place, clock: Clock) -> Outbox:
    """An outbox with a worker and nothing wrong."""
    outbox_ = place.outbox(clock=clock)
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    place.hand(outbox_).turn()
    place.folder.joinpath("outbox.toml").touch(0o600)
    return outbox_


def test_a_well_outbox_has_nothing_but_what_is_ok_and_tells_what_was_looked_at(well: Outbox, place: Place) -> None:
    found = looked(well, offline=False, settings_file=place.folder / "outbox.toml")

    assert {} == troubles(found), [each for each in found if each.level is not Level.OK]
    assert all(each.remedy for each in found if each.level is not Level.OK)
    expected = {"database", "schema", "clock", "settings", "permissions", "spool", "file_system", "disk", "workers"}
    assert expected | {"served", "stops", "dead", "orphans", "files", "reach", "token"} <= {each.check for each in found}


def test_offline_asks_nobody(well: Outbox) -> None:
    assert not {"reach", "token"} & {each.check for each in looked(well)}


# The database


def test_a_database_that_is_away_is_told_once_and_the_rest_is_looked_at(place: Place) -> None:
    url = "postgresql+psycopg://nobody:canary-secret@127.0.0.1:1/nowhere"
    found = looked(of_ones_own(place, url=url))

    assert Level.PROBLEM is the_one(found, "database").level
    assert "schema" in the_one(found, "left_out").text
    assert of(found, "disk")
    assert "canary" not in str(found)


def test_a_database_that_is_none_is_told_with_what_to_do(place: Place) -> None:
    path = place.folder / "rubbish.db"
    path.write_bytes(b"rubbish " * 1000)

    found = the_one(looked(of_ones_own(place, url=f"sqlite:///{path}")), "database")

    assert "rubbish.db cannot be read" in found.text
    assert "outbox verify" in found.remedy


@pytest.mark.parametrize("what", ["nothing", "an empty file", "a directory"])
def test_a_place_without_a_database_is_told_with_what_is_there(tmp_path: Path, what: str) -> None:
    path = tmp_path / "outbox.db"
    if what == "an empty file":
        path.touch()
    elif what == "a directory":
        path.mkdir()
    outbox_ = an_outbox(f"sqlite:///{path}", tmp_path / "spool")

    found = looked(outbox_)

    outbox_.close()
    told = {
        "nothing": ("database", f"there is no database {path}", "if there was one, look first whether its disk is mounted"),
        "an empty file": ("schema", "the schema is missing", "run: outbox db upgrade"),
        "a directory": ("database", f"{path} is a directory", "name the file of the database itself"),
    }
    check, text, remedy = told[what]
    assert (Level.PROBLEM, True, True) == (
        the_one(found, check).level,
        the_one(found, check).text.startswith(text),
        the_one(found, check).remedy.startswith(remedy),
    )
    assert [] == [each for each in found if "cannot be looked at" in each.text or "no such table" in each.text]
    for name in ("workers", "served", "stops", "dead", "orphans", "files", "quota", "reserve"):
        assert [] == of(found, name)
        assert name in the_one(found, "left_out").text
    assert bool(of(found, "integrity")) is (what == "an empty file"), "what needs no table of ours is looked at"


@pytest.mark.parametrize(("revision", "looked_at"), [("outbox_0001", False), ("outbox_9999", True)])
def test_what_an_older_schema_lacks_is_not_asked_for_and_a_newer_one_has_it(
    well: Outbox, place: Place, revision: str, looked_at: bool
) -> None:
    with place.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '{revision}'"))
    try:
        found = looked(well)
    finally:
        with place.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '{migrate.newest()}'"))

    assert looked_at is bool(of(found, "workers"))
    assert looked_at is not bool(of(found, "left_out"))


@pytest.mark.parametrize(
    ("revision", "remedy"), [("outbox_0001", "outbox db upgrade"), ("outbox_9999", "upgrade durable-outbox")]
)
def test_another_schema_is_a_problem(well: Outbox, place: Place, revision: str, remedy: str) -> None:
    with place.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '{revision}'"))
    try:
        found = the_one(looked(well), "schema")
    finally:
        with place.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '{migrate.newest()}'"))

    assert (Level.PROBLEM, True) == (found.level, remedy in found.remedy)


@pytest.mark.postgres
def test_a_server_that_may_lose_commits_is_a_problem(postgres_place: Place) -> None:
    with postgres_place.database.read() as connection:
        careless = "off" == connection.execute(sa.text("SHOW fsync")).scalar_one()

    found = the_one(looked(postgres_place.outbox()), "power")

    assert (Level.PROBLEM if careless else Level.OK) is found.level
    assert not careless or ("fsync" in found.text and "switch them on" in found.remedy)


def test_a_damaged_database_is_sent_to_verify(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    sqlite_place.hand(outbox_)
    with closing(sqlite3.connect(sqlite_place.folder / "outbox.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'outbox_audit'").fetchone()[0]
    with (sqlite_place.folder / "outbox.db").open("r+b") as database:
        database.seek((root - 1) * 4096 + 3)
        database.write(b"\xff\xff")

    found = the_one(looked(outbox_), "integrity")

    assert (Level.PROBLEM, True) == (found.level, "outbox verify" in found.remedy)


def test_a_file_from_before_us_keeps_its_space_and_is_told_how_not_to(sqlite_place: Place) -> None:
    url = f"sqlite:///{sqlite_place.folder / 'old.db'}"
    with closing(sqlite3.connect(sqlite_place.folder / "old.db")) as connection:
        connection.execute("CREATE TABLE theirs (id)")
    outbox_ = of_ones_own(sqlite_place, url=url)
    migrate.upgrade(outbox_.database)

    found = the_one(looked(outbox_), "vacuum")

    assert Level.WARNING is found.level
    assert "PRAGMA auto_vacuum=INCREMENTAL; VACUUM;" in found.remedy


def test_the_race_between_checkpointers_is_told_with_the_version(sqlite_place: Place) -> None:
    found = the_one(looked(sqlite_place.outbox()), "wal_race")

    assert sqlite3.sqlite_version in found.text
    assert (Level.OK if sqlite3.sqlite_version_info >= (3, 51, 3) else Level.WARNING) is found.level


def test_a_log_that_nobody_moves_is_told(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    outbox_.close()
    sqlite_place.database.close()
    log = sqlite_place.folder / "outbox.db-wal"
    log.touch()
    os.truncate(log, 200 * 1024 * 1024)

    found = DatabaseLooks(outbox_)._wal()

    assert [Level.WARNING] == [each.level for each in found]


# The machine


def test_a_clock_that_was_never_set_is_a_problem(place: Place) -> None:
    found = the_one(looked(place.outbox(clock=Clock(wall=datetime(1970, 1, 2, tzinfo=UTC)))), "clock")

    assert (Level.PROBLEM, True) == (found.level, "has not been set" in found.text)


@pytest.mark.postgres
@pytest.mark.parametrize(("seconds", "word"), [(-90, "behind"), (3600, "ahead of")])
def test_a_clock_that_differs_from_the_databases_is_a_problem(postgres_place: Place, seconds: int, word: str) -> None:
    clock = real_clock()
    clock.move(seconds)

    found = the_one(looked(postgres_place.outbox(clock=clock)), "clock")

    assert (Level.PROBLEM, True) == (found.level, word in found.text)


def test_settings_that_everybody_may_write_are_a_problem(well: Outbox, place: Place) -> None:
    settings = place.folder / "outbox.toml"
    settings.chmod(0o666)

    found = the_one(looked(well, settings_file=settings), "settings")

    assert (Level.PROBLEM, f"run: chmod o-w {settings}") == (found.level, found.remedy)


def test_permissions_of_spool_and_database_are_told_path_by_path(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    sqlite_place.enqueue(outbox_, "a", {"photo": b"bytes"})
    (sqlite_place.folder / "outbox.db").chmod(0o644)
    sqlite_place.spool.chmod(0o777)
    (file,) = (each for each in sqlite_place.spool.rglob("*") if each.is_file() and not each.name.startswith("."))
    file.chmod(0o640)

    found = of(looked(outbox_), "permissions")

    assert {
        (Level.WARNING, f"run: chmod 600 {sqlite_place.folder / 'outbox.db'}"),
        (Level.PROBLEM, f"run: chmod 700 {sqlite_place.spool}"),
        (Level.WARNING, f"run: chmod 600 {file}"),
    } == {(each.level, each.remedy) for each in found}


def test_a_file_of_another_user_is_a_problem(sqlite_place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    outbox_ = sqlite_place.outbox()
    sqlite_place.enqueue(outbox_, "a", {"photo": b"bytes"})
    (path,) = (each for each in sqlite_place.spool.rglob("*") if each.is_file() and not each.name.startswith("."))
    os.chown(path, 12345, 12345)

    found = of(looked(outbox_), "permissions")

    assert [Level.PROBLEM] == [each.level for each in found]
    assert "belongs to user 12345" in found[0].text


def test_a_spool_that_is_not_mounted_is_a_problem_when_files_should_be_in_it(place: Place) -> None:
    outbox_ = place.outbox()
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    place.spool.rename(place.folder / "elsewhere")
    place.spool.mkdir(0o700)

    found = the_one(looked(outbox_), "spool")

    assert (Level.PROBLEM, "look whether its disk is mounted") == (found.level, found.remedy)


MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:50 / {folder} rw,relatime shared:1 - {kind} server:/export rw
41 27 0:51 / /mnt/with\\040blank rw - cifs //server/share rw
42 27 0:52 / /mnt/over rw - ext4 /dev/vdb rw
43 27 0:53 / /mnt/over rw - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("nfs4", Level.PROBLEM),
        ("fuse.sshfs", Level.PROBLEM),
        ("9p", Level.PROBLEM),
        ("tmpfs", Level.PROBLEM),
        ("xfs", Level.OK),
    ],
)
def test_the_file_system_under_spool_and_database_is_told(place: Place, kind: str, level: Level) -> None:
    told = MOUNTS.format(folder=place.folder.resolve(), kind=kind)

    found = of(looked(place.outbox(), mounts=lambda: told), "file_system")

    assert {level} == {each.level for each in found}
    assert all(f"is on {kind}" in each.text for each in found)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/mnt/with blank/x", "cifs"), ("/mnt/over/x", "tmpfs"), ("/mnt/overseas", "ext4"), ("/", "ext4")],
)
def test_the_mount_of_a_path_is_the_nearest_and_the_last(path: str, kind: str) -> None:
    mount = mount_of(Path(path), MOUNTS.format(folder="/x", kind="nfs"))

    assert mount is not None
    assert kind == mount.kind


def test_where_nothing_is_told_of_mounts_that_is_said(place: Place) -> None:
    assert "not looked at" in the_one(looked(place.outbox(), mounts=lambda: None), "file_system").text


def test_a_quota_that_is_used_up_is_a_problem(place: Place) -> None:
    place.enqueue(place.outbox(), "a", {"photo": bytes(1000)})

    found = {quota: the_one(looked(place.outbox(quota=quota)), "quota").level for quota in (1000, 1100, 2000)}

    assert {1000: Level.PROBLEM, 1100: Level.WARNING, 2000: Level.OK} == found


# Who delivers


def test_messages_that_nobody_delivers_are_a_problem_and_an_idle_outbox_is_not(place: Place, clock: Clock) -> None:
    outbox_ = place.outbox(clock=clock)
    idle = the_one(looked(outbox_), "workers")
    place.enqueue(outbox_, "a")

    busy = the_one(looked(outbox_), "workers")

    assert (Level.WARNING, Level.PROBLEM) == (idle.level, busy.level)
    assert "outbox worker" in busy.remedy


def test_a_worker_without_a_beat_is_told_and_what_it_holds(place: Place, clock: Clock) -> None:
    outbox_ = place.outbox(clock=clock)
    place.enqueue(outbox_, "a")
    hand = place.hand(outbox_)
    with place.database.begin() as connection:
        add_row(connection, "claimed", claimed_by="gone", delivery_id=7, key="b")
        connection.execute(
            sa.text(
                "INSERT INTO outbox_delivery (id, destination, lane, worker, messages, bytes, probe, started_at)"
                " VALUES (7, 'enos', 'normal', 'gone', 1, 1, false, '2026-03-01 12:00:00.000000')"
            )
        )
    clock.move(minutes=5)

    found = of(looked(outbox_), "workers")

    assert [Level.WARNING, Level.PROBLEM, Level.PROBLEM] == [each.level for each in found]
    assert hand.presence.id[-8:] in found[0].text
    assert "5 min ago" in found[0].text
    assert "1 delivery was left behind" in found[2].text


def test_another_version_and_a_destination_that_nobody_serves_are_told(place: Place, clock: Clock) -> None:
    outbox_ = place.outbox(clock=clock)
    with place.database.begin() as connection:
        living.register(connection, "w1", "host", 1, clock.wall, ["warehouse"], "0.0.1")
        add_row(connection, key="a")
        add_row(connection, key="b", destination="fax")

    found = looked(outbox_)

    assert "0.0.1" in of(found, "workers")[0].text
    (undeclared, unserved) = sorted(of(found, "served"), key=lambda each: each.text)
    assert "1 message is for fax, which nobody declares" in undeclared.text
    assert "no worker that is alive serves enos" in unserved.text
    assert {Level.PROBLEM} == {undeclared.level, unserved.level}


@pytest.mark.parametrize(
    ("stop", "level"), [("pause", Level.WARNING), ("credentials", Level.PROBLEM), ("reject_streak", Level.PROBLEM)]
)
def test_a_stop_is_told_with_who_and_why(well: Outbox, place: Place, stop: str, level: Level) -> None:
    with place.database.begin() as connection:
        values = {"stop": stop, "stop_text": "until noon", "stopped_by": "anna", "stopped_at": datetime.now(UTC)}
        connection.execute(sa.update(destination).values(values))

    found = the_one(looked(well), "stops")

    assert (level, True, True) == (found.level, "until noon" in found.text, "outbox resume enos" in found.remedy)


def test_dead_messages_are_counted(well: Outbox, place: Place) -> None:
    with place.database.begin() as connection:
        add_row(connection, "dead")

    assert "1 message for enos is dead" in the_one(looked(well), "dead").text


def test_a_write_lock_that_somebody_keeps_is_a_problem(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    with sqlite_place.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        kept = the_one(looked(outbox_), "lock")

    assert (Level.PROBLEM, True) == (kept.level, "has kept the write lock" in kept.text)
    assert Level.OK is the_one(looked(outbox_), "lock").level


# The spool's rows and files


def test_files_without_a_row_and_rows_without_a_file_are_told(well: Outbox, place: Place, clock: Clock) -> None:
    (path,) = (each for each in place.spool.rglob("*") if each.is_file() and not each.name.startswith("."))
    path.rename(path.with_name("0" * 30 + path.name[-2:]))
    fresh = the_one(looked(well), "orphans")
    clock.move(hours=27)

    found = looked(well)

    assert (Level.OK, Level.WARNING) == (fresh.level, the_one(found, "orphans").level)
    assert (Level.PROBLEM, True) == (the_one(found, "files").level, path.name in the_one(found, "files").text)


# The other side


def test_a_destination_that_refuses_connections_is_a_problem(place: Place, receiver: Receiver) -> None:
    receiver.close()

    found = the_one(looked(place.outbox(), offline=False), "reach")

    assert (Level.PROBLEM, True) == (found.level, "the connection was refused" in found.text)


def test_a_name_that_nobody_knows_is_a_problem(place: Place) -> None:
    outbox_ = of_ones_own(place, enos("http://nowhere.invalid"))

    assert "its name is not known" in the_one(looked(outbox_, offline=False), "reach").text


def test_a_port_that_speaks_no_tls_is_a_problem(place: Place, receiver: Receiver) -> None:
    outbox_ = of_ones_own(place, enos(receiver.url.replace("http:", "https:")))

    found = the_one(looked(outbox_, offline=False), "reach")

    assert (Level.PROBLEM, True) == (found.level, "TLS failed" in found.text)


def with_token(place: Place, receiver: Receiver, secret: str) -> Outbox:
    token = Token(receiver.token_url, "app-key", secret, allow_plain_http=True)
    return of_ones_own(place, enos(receiver.url, token=token))


def test_a_token_is_asked_for_and_a_refusal_is_told_without_the_secret(place: Place, receiver: Receiver) -> None:
    good = looked(with_token(place, receiver, "app-secret"), offline=False)
    bad = looked(with_token(place, receiver, "canary-secret"), offline=False)

    assert Level.OK is of(good, "token")[0].level
    assert (Level.PROBLEM, True) == (of(bad, "token")[0].level, "the app secret is wrong" in of(bad, "token")[0].text)
    assert receiver.token_requests["get"] == 2
    assert "canary" not in str(bad)
    assert [] == receiver.requests


def test_a_token_services_clock_that_differs_is_told(place: Place) -> None:
    with Receiver(token_clock_skew=600, max_skew=None) as receiver:
        found = of(looked(with_token(place, receiver, "app-secret"), offline=False), "token")

    assert [Level.OK, Level.WARNING] == [each.level for each in found]
    assert "behind that of enos's token service" in found[1].text


# One that fails or hangs


class Broken:
    """Credentials with a bug in them, or that never come."""

    def __init__(self, hold: threading.Event | None) -> None:
        self._hold = hold

    def headers(self, transport: Transport, now: datetime, monotonic: float) -> Mapping[str, str]:
        if self._hold is None:
            raise RuntimeError("a bug of theirs")
        self._hold.wait()
        return {}

    def renew(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class WithCredentials(EnosEvents):
    given: Credentials

    @property
    def credentials(self) -> Credentials:
        return self.given


def test_a_look_that_fails_or_hangs_does_not_take_the_others_along(place: Place, receiver: Receiver) -> None:
    hold = threading.Event()
    common = {"url": receiver.url, "org_id": "o1", "allow_plain_http": True}
    failing = WithCredentials(name="failing", given=Broken(None), **common)
    hanging = WithCredentials(name="hanging", given=Broken(hold), **common)
    outbox_ = of_ones_own(place, failing, hanging)

    found = looked(outbox_, offline=False, deadline=2.0)
    hold.set()

    broken, late = of(found, "token")
    assert (Level.PROBLEM, "cannot be looked at: a bug of theirs") == (broken.level, broken.text)
    assert (Level.PROBLEM, "not finished within 2 s") == (late.level, late.text)
    assert [Level.OK] * 2 == [each.level for each in of(found, "reach") if "reached at" in each.text]


def test_a_table_that_cannot_be_read_spoils_one_look(sqlite_place: Place, clock: Clock) -> None:
    outbox_ = sqlite_place.outbox(clock=clock)
    sqlite_place.hand(outbox_)
    with closing(sqlite3.connect(sqlite_place.folder / "outbox.db")) as connection:
        connection.execute(f"ALTER TABLE {destination.name} RENAME COLUMN stop_text TO stop_texu")
        connection.commit()

    found = looked(outbox_)

    assert (Level.PROBLEM, True) == (the_one(found, "stops").level, "outbox verify" in the_one(found, "stops").remedy)
    assert Level.OK is the_one(found, "workers").level


def test_looking_changes_no_row(well: Outbox, place: Place) -> None:
    def rows() -> list[Any]:
        with place.database.read() as connection:
            return [connection.execute(sa.select(each)).all() for each in (worker, destination)]

    before = rows()
    looked(well, offline=False)

    assert before == rows()


@pytest.mark.parametrize("what", ["an empty file", "a directory"])
def test_what_is_no_database_yet_is_not_looked_at_as_if_it_were_one(tmp_path: Path, what: str) -> None:
    path = tmp_path / "outbox.db"
    if what == "an empty file":
        path.touch(0o600)
    else:
        path.mkdir(0o755)
    outbox_ = an_outbox(f"sqlite:///{path}", tmp_path / "spool")

    found = looked(outbox_)

    outbox_.close()
    assert not [each for each in found if "prepare(engine)" in each.remedy and each.check != "wal_race"]
    assert not [each for each in found if "chmod" in each.remedy or "auto_vacuum" in each.remedy]
