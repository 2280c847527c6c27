"""S21: what an outbox makes is its owner's alone whatever the umask, and nothing that was put in its way is written through."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from outbox import DirectorySpool, OutboxError, SpoolError, Worker, migrate
from outbox.cli.init import _write
from outbox.database import Database
from outbox.errors import ConfigurationError
from outbox.reserve import Reserve
from outbox.testing import Receiver
from tests.factories import an_outbox, enos, event

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="this system has no modes")

MIB = 1024 * 1024


@pytest.fixture(params=[0o000, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """What is below a folder, and who may do what with it, but for what is as private as it should be."""
    return {
        str(path.relative_to(folder)): stat.filemode(path.lstat().st_mode)
        for path in sorted(folder.rglob("*"))
        if stat.S_IMODE(path.lstat().st_mode) != (0o700 if path.is_dir() else 0o600)
    }


def test_all_that_is_made_in_a_life_is_its_owners_alone(umask: int, tmp_path: Path, receiver: Receiver) -> None:
    here = tmp_path / "here"
    here.mkdir(mode=0o700)
    here.chmod(0o700)
    outbox = an_outbox(f"sqlite:///{here / 'outbox.db'}", here / "spool", enos(receiver.url), reserve=MIB)
    migrate.upgrade(outbox.database)
    outbox.spool_store.prepare()
    with outbox.database.begin() as connection:
        for key in ("a", "b"):
            outbox.enqueue(connection, "enos", event(key, "photo"), files={"photo": b"bytes"}, key=key)
    outbox.spool(b"ahead of time")
    orphan = outbox.spool_store.put("0" * 32, io.BytesIO(b"of a transaction that never was")).name
    os.utime(here / "spool" / "00" / orphan, (0, 0))
    with outbox.database.read() as reading:  # so that a WAL with something in it, and its index, are there
        reading.exec_driver_sql("SELECT count(*) FROM outbox_message")
        during = modes(here)
        names = {path.name for path in here.rglob("*")}
    Worker(outbox, poll=0.05).run(until_idle=True)
    outbox.sweep(timedelta(hours=1))
    after = modes(here)
    outbox.close()

    assert {"outbox.db", "outbox.db-wal", "outbox.db-shm", "spool", ".unfinished", ".swept"} <= names
    assert {"outbox.db-reserve", ".outbox"} <= {path.name for path in here.rglob("*")}
    assert (here / "spool" / ".swept" / orphan).exists()
    assert ({}, {}, {}) == (during, after, modes(here))
    assert umask == os.umask(umask), "and it is still what it was"


# What somebody put there before us.


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    return path


def test_a_reserve_is_not_taken_through_a_link(tmp_path: Path, victim: Path) -> None:
    reserve = Reserve(tmp_path / "outbox.db-reserve", MIB)
    (tmp_path / f"outbox.db-reserve.{os.getpid()}").symlink_to(victim)
    reserve.path.symlink_to(victim)

    assert reserve.take()

    assert b"precious" == victim.read_bytes()
    assert (MIB, False, 0o600) == (reserve.path.stat().st_size, reserve.path.is_symlink(), reserve.path.stat().st_mode & 0o777)
    reserve.path.unlink()
    reserve.path.symlink_to(victim)
    assert reserve.release()
    assert b"precious" == victim.read_bytes()


def test_what_a_crash_left_of_a_reserve_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f"r.{os.getpid()}").write_bytes(b"half")

    assert Reserve(tmp_path / "r", MIB).take()
    assert ["r"] == [path.name for path in tmp_path.iterdir()]


def test_no_database_is_made_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").symlink_to(tmp_path / "elsewhere.db")
    database = Database(f"sqlite:///{tmp_path / 'outbox.db'}")

    with pytest.raises(OutboxError):
        migrate.upgrade(database)

    assert ["outbox.db"] == [path.name for path in tmp_path.iterdir()]


def test_no_settings_are_written_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "outbox.toml").symlink_to(tmp_path / "elsewhere.toml")

    with pytest.raises(ConfigurationError, match="File exists"):
        _write(tmp_path / "outbox.toml")

    assert not (tmp_path / "elsewhere.toml").exists()


@pytest.mark.parametrize("folder", [".unfinished", ".swept", "0a"])
def test_a_spool_with_a_link_for_a_folder_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "spool").mkdir(mode=0o700)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool" / folder).symlink_to(tmp_path / "elsewhere")
    spool = DirectorySpool(tmp_path / "spool")

    with pytest.raises(SpoolError, match="is a link, and files would go where it leads"):
        spool.put("0" * 30 + "0a", io.BytesIO(b"x"))

    assert [] == list((tmp_path / "elsewhere").iterdir())


def test_a_spool_may_itself_be_behind_a_link(tmp_path: Path) -> None:
    """The person who names it chose that; whoever could put a link inside of it did not ask."""
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "spool").symlink_to(tmp_path / "disk")

    DirectorySpool(tmp_path / "spool").prepare()

    assert {".unfinished", ".swept"} == {path.name for path in (tmp_path / "disk").iterdir()}


@pytest.mark.parametrize("where", ["", ".unfinished"])
def test_a_spool_that_somebody_else_made_is_refused(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool" / where).mkdir(parents=True)
    mine = os.geteuid() or 1
    for path in (tmp_path / "spool", tmp_path / "spool" / where):
        path.chmod(0o777)
    really = Path.stat

    def of_another(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = list(really(self, follow_symlinks=follow_symlinks))
        found[stat.ST_UID] = mine + 1 if self == tmp_path / "spool" / where else mine
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", of_another)
    monkeypatch.setattr(os, "geteuid", lambda: mine)
    spool = DirectorySpool(tmp_path / "spool")

    with pytest.raises(SpoolError, match=rf"belongs to user {mine + 1}, and not to us \(user {mine}\)"):
        spool.prepare()


def test_root_may_work_in_anybodys_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    DirectorySpool(tmp_path / "spool").prepare()


def test_in_a_spool_that_is_everybodys_the_files_are_still_ours_alone(tmp_path: Path) -> None:
    """A file system without modes says so of every folder; `outbox doctor` says it where there are modes."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o777)
    spool = DirectorySpool(tmp_path / "spool")
    spool.put("0" * 32, io.BytesIO(b"x"))

    assert {} == modes(tmp_path / "spool")
