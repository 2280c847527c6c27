"""A spool knows its database: what belongs to another one is refused by everybody who would write there or sweep."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from outbox import ConfigurationError, DirectorySpool, Outbox, OutboxError, SpoolError, State, migrate
from outbox import worker as worker_module
from outbox.checkup import Doctor, Finding, Level, Verification
from outbox.errors import SpoolFull
from outbox.marks import Marks
from outbox.store import marking
from outbox.tables import message, metadata
from outbox.tables import spool as spool_table
from outbox.worker import Worker
from tests import warm
from tests.factories import an_outbox, event, real_clock, states
from tests.story.conftest import ROOT, Place, eventually

PHOTO = {"photo": b"bytes"}
FOREIGN = "belongs to another database"
NO_MARK = "to this one before it was lost"
ADOPT = "run: outbox init --adopt-spool"

# What is a matter of the spool is marked as long, to be told on one of the two databases in turn.


def command_line(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The `outbox` command on a place, as a process of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
    settings = {
        "OUTBOX_DATABASE": place.url,
        "OUTBOX_SPOOL": str(place.spool),
        "OUTBOX_DESTINATIONS__ENOS__TYPE": "enos-events",
        "OUTBOX_DESTINATIONS__ENOS__URL": place.receiver.url,
        "OUTBOX_DESTINATIONS__ENOS__ORG_ID": "o1",
        "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
        "PYTHONPATH": str(ROOT),
    }
    return warm.run(
        [sys.executable, "-m", "outbox", *arguments],
        cwd=place.folder,
        env=kept | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )


def in_place(place: Place) -> Marks:
    """The marks, read by nobody of ours."""
    path = place.spool / ".outbox"
    with place.engine.connect() as connection:
        row = connection.execute(sa.select(spool_table.c.mark)).scalar_one_or_none()
    return Marks(row, path.read_text().removesuffix("\n") if path.exists() else None)


def is_settled(place: Place) -> bool:
    """Whether database and spool have the same mark."""
    marks = in_place(place)
    return marks.database is not None and marks.database == marks.spool


def lose(place: Place) -> None:
    """What is in the database is gone: with SQLite its file, with Postgres every row."""
    place.damaged = True
    place.database.close()
    place.engine.dispose()
    if place.database.path is None:
        with place.engine.begin() as connection:
            for table in reversed(spool_table.metadata.sorted_tables):
                connection.execute(sa.delete(table))
    else:
        for path in place.folder.glob("outbox.db*"):
            path.unlink()


def told(outbox: Outbox) -> Finding:
    """What a doctor says of the marks."""
    (found,) = (each for each in Doctor(outbox, offline=True).run() if each.check == "mark")
    return found


def other_outbox(place: Place, name: str) -> Outbox:
    """An outbox with a database of its own and the spool of this place."""
    found = an_outbox(f"sqlite:///{place.folder / name}.db", place.spool)
    found.database.create()
    with found.database.begin() as connection:
        metadata.create_all(connection)
    return found


def give_mark(place: Place) -> str:
    """A mark for the database, which its spool does not have."""
    with place.database.begin() as connection:
        return marking.give(connection, "9a" * 16, place.clock.wall)


@pytest.fixture
def outbox(place: Place) -> Outbox:
    return place.outbox()


@pytest.fixture
def theirs(place: Place) -> Iterator[Outbox]:
    """Another outbox on the same spool, which is its own by now, with a message that has a file."""
    found = other_outbox(place, "theirs")
    found.spool_store.prepare()
    found.mark_spool()
    with found.database.begin() as connection:
        found.enqueue(connection, "enos", event("theirs", "photo"), files=PHOTO, key="theirs")
    yield found
    found.close()


# Marks are written


@pytest.mark.long
def test_a_worker_marks_what_is_there_from_the_version_before(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)
    before = in_place(place)

    place.run("work", until_idle=True).ended()

    assert Marks(None, None) == before
    assert is_settled(place)
    assert {"a": State.DELIVERED} == states(place.database)
    assert 0o600 == stat.S_IMODE((place.spool / ".outbox").stat().st_mode)
    place.check()


@pytest.mark.long
def test_init_marks_both(place: Place) -> None:
    run = command_line(place, "init", "--json")

    assert 0 == run.returncode, run.stderr
    assert is_settled(place)
    assert json.loads(run.stdout)["adopted"] is False


@pytest.mark.long
def test_a_sweep_marks_first(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)

    outbox.sweep()

    assert is_settled(place)


@pytest.mark.long
def test_a_spool_without_a_mark_takes_that_of_the_database(place: Place, outbox: Outbox) -> None:
    """One that was made anew; or its file was lost, or could not be written before a crash."""
    place.enqueue(outbox, "a", PHOTO)
    outbox.mark_spool()
    before = in_place(place)
    (place.spool / ".outbox").unlink()

    place.outbox().mark_spool()

    assert before == in_place(place)


@pytest.mark.long
def test_a_spool_that_is_not_there_is_not_made(place: Place, outbox: Outbox) -> None:
    outbox.mark_spool()
    outbox.sweep()

    with Worker(outbox):
        place.enqueue(outbox, "a")
        eventually(lambda: states(place.database) == {"a": State.DELIVERED})

    assert not place.spool.exists()


@pytest.mark.long
def test_whoever_only_looks_marks_nothing(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)

    outbox.status()
    outbox.message("a")
    list(Doctor(outbox, offline=True).run())
    list(Verification(outbox).run())
    place.enqueue(outbox, "b", PHOTO)

    assert Marks(None, None) == in_place(place)


def test_of_many_who_begin_at_once_all_have_the_same_mark(place: Place) -> None:
    several = [place.outbox() for _ in range(4)]
    several[0].spool_store.prepare()
    together = threading.Barrier(len(several))

    def begin(outbox: Outbox) -> Marks:
        together.wait()
        outbox.mark_spool()
        return outbox.marks.look()

    with ThreadPoolExecutor(len(several)) as threads:
        seen = set(threads.map(begin, several))

    assert {in_place(place)} == seen
    assert is_settled(place)


def test_who_looks_while_another_marks_sees_no_spool_of_anothers(place: Place) -> None:
    another = place.outbox()
    another.spool_store.prepare()

    class JustMarked(DirectorySpool):
        def mark(self) -> str | None:
            another.mark_spool()
            return super().mark()

    looking = an_outbox(place.url, JustMarked(place.spool))

    marks = looking.marks.look()

    looking.close()
    assert in_place(place) == marks


def test_of_several_databases_that_begin_at_once_one_gets_the_spool(place: Place) -> None:
    several = [place.outbox(), *(other_outbox(place, f"other-{number}") for number in range(3))]
    several[0].spool_store.prepare()
    together = threading.Barrier(len(several))

    def begin(outbox: Outbox) -> bool:
        together.wait()
        try:
            outbox.mark_spool()
        except ConfigurationError:
            return False
        return True

    with ThreadPoolExecutor(len(several)) as threads:
        got_it = list(threads.map(begin, several))

    assert 1 == sum(got_it)
    winner = several[got_it.index(True)]
    assert winner.marks.look().database == winner.marks.look().spool
    for each in several[1:]:
        each.close()


# What is another's is refused


def start_a_worker(place: Place, outbox: Outbox) -> None:
    Worker(outbox).start()


def sweep(place: Place, outbox: Outbox) -> None:
    outbox.sweep(timedelta(0))


def enqueue(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)


def spool_ahead(place: Place, outbox: Outbox) -> None:
    outbox.spool(io.BytesIO(b"bytes"))


@pytest.mark.parametrize("marked", [True, False])
def test_nobody_uses_the_spool_of_another_database(place: Place, theirs: Outbox, marked: bool) -> None:
    mine = give_mark(place) if marked else None
    before = in_place(place), place.spooled()
    refusals = set()

    for act in (start_a_worker, sweep, enqueue, spool_ahead):
        with pytest.raises(ConfigurationError, match=FOREIGN) as refusal:
            act(place, place.outbox())
        refusals.add(str(refusal.value))

    (sentence,) = refusals
    assert f"its mark is {theirs.marks.look().spool}, this database" in sentence
    assert (f"this database's {mine}" if marked else NO_MARK) in sentence
    assert sentence.endswith(ADOPT)
    assert before == (in_place(place), place.spooled())
    assert {} == states(place.database)


@pytest.mark.long
def test_a_worker_ends_with_a_sentence_and_the_code_of_what_is_set_up_wrongly(place: Place, theirs: Outbox) -> None:
    run = command_line(place, "worker")

    (sentence,) = [line for line in run.stderr.splitlines() if line.startswith("outbox: ")]
    assert 2 == run.returncode
    assert f"outbox: the spool {place.spool} {FOREIGN}" in sentence
    assert ADOPT in sentence
    assert "Traceback" not in run.stderr


@pytest.mark.long
def test_messages_without_files_are_taken_whosever_the_spool_is(place: Place, outbox: Outbox, theirs: Outbox) -> None:
    place.enqueue(outbox, "a")

    assert {"a": State.PENDING} == states(place.database)


@pytest.mark.long
def test_who_found_no_mark_looks_again(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)
    DirectorySpool(place.spool).set_mark("9a" * 16)

    with pytest.raises(ConfigurationError, match=FOREIGN):
        place.enqueue(outbox, "b", PHOTO)


def test_the_door_waits_for_no_writer_and_its_own_caller_least(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)
    outbox.mark_spool()
    began = time.monotonic()

    with place.engine.begin() as connection:
        connection.execute(sa.update(message).values(lane="express"))
        place.outbox().enqueue(connection, "enos", event("b", "photo"), files=PHOTO, key="b")

    assert time.monotonic() - began < 10
    assert {"a", "b"} == set(states(place.database))


def test_nor_does_it_where_the_callers_database_is_in_no_wal(sqlite_place: Place) -> None:
    outbox = sqlite_place.outbox()
    sqlite_place.enqueue(outbox, "a", PHOTO)
    outbox.mark_spool()
    outbox.close()
    sqlite_place.database.close()
    sqlite_place.engine.dispose()
    engine = sa.create_engine(sqlite_place.url)
    began = time.monotonic()

    with engine.connect() as connection:
        assert "delete" == connection.exec_driver_sql("PRAGMA journal_mode = DELETE").scalar_one()
        connection.execute(sa.update(message).values(lane="express"))
        sqlite_place.outbox().enqueue(connection, "enos", event("b", "photo"), files=PHOTO, key="b")
        connection.commit()

    engine.dispose()
    assert time.monotonic() - began < 10
    assert {"a", "b"} == set(states(sqlite_place.database))


@pytest.mark.long
def test_a_worker_that_runs_stops_sweeping_says_so_each_time_and_goes_on(
    place: Place, outbox: Outbox, theirs: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "_SWEEP_EVERY", (0.02, 0.02))
    give_mark(place)
    outbox.mark_spool(adopt=True)
    with caplog.at_level(logging.ERROR, "outbox.worker"), Worker(outbox, poll=0.02):
        theirs.mark_spool(adopt=True)
        eventually(lambda: caplog.records)
        for path in place.spool.glob("??/*"):
            os.utime(path, (0, 0))
        said = len(caplog.records)

        place.enqueue(outbox, "a")

        eventually(lambda: len(caplog.records) > said + 1 and states(place.database) == {"a": State.DELIVERED})
    assert all("sweeps nothing" in each.message and FOREIGN in each.message for each in caplog.records)
    assert [each for each in place.spooled() if each[0] != "."]
    found = told(outbox)
    assert (Level.PROBLEM, True, True) == (found.level, FOREIGN in found.text, ADOPT in found.remedy)


def test_a_producer_goes_on_when_the_schema_was_taken_back(place: Place, outbox: Outbox) -> None:
    """Workers go back first, and their schema; producers of this version are left, beside a spool with a mark."""
    outbox.spool_store.prepare()
    outbox.mark_spool()
    before = in_place(place)
    with place.database.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.downgrade(config, "outbox_0003")  # which knows of no mark

    place.enqueue(place.outbox(), "a", PHOTO)
    with pytest.raises(ConfigurationError, match=NO_MARK):
        place.outbox().sweep()

    migrate.upgrade(place.database)
    assert {"a": State.PENDING} == states(place.database)
    with pytest.raises(ConfigurationError, match=NO_MARK):
        Worker(place.outbox()).start()
    place.outbox().mark_spool(adopt=True)
    after = in_place(place)
    assert after.spool == after.database != before.database, "should the other still be used, it is refused"


# What was lost


@pytest.mark.long
def test_nor_does_an_upgrade(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)
    outbox.mark_spool()
    outbox.close()
    lose(place)

    run = command_line(place, "db", "upgrade")

    assert 2 == run.returncode
    assert NO_MARK in run.stderr


@pytest.mark.long
def test_init_makes_no_empty_database_beside_a_full_spool(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)
    outbox.mark_spool()
    outbox.close()
    lose(place)
    before = contents(place.folder)

    run = command_line(place, "init")

    assert (2, before) == (run.returncode, contents(place.folder))
    assert f"outbox: the spool {place.spool} {FOREIGN}" in run.stderr
    assert NO_MARK in run.stderr


def test_an_empty_file_is_no_database(sqlite_place: Place) -> None:
    """What `touch` leaves, or a crash before the first page."""
    outbox = sqlite_place.outbox()
    sqlite_place.enqueue(outbox, "a", PHOTO)
    outbox.mark_spool()
    outbox.close()
    lose(sqlite_place)
    sqlite_place.folder.joinpath("outbox.db").touch()
    before = contents(sqlite_place.folder)

    run = command_line(sqlite_place, "init")

    assert (2, before) == (run.returncode, contents(sqlite_place.folder))
    assert NO_MARK in run.stderr
    assert Level.PROBLEM is told(sqlite_place.outbox()).level


def test_whoever_only_looks_leaves_an_empty_file_alone(sqlite_place: Place) -> None:
    path = sqlite_place.folder / "outbox.db"
    outbox = sqlite_place.outbox()
    lose(sqlite_place)
    path.touch()
    looks: list[Callable[[], object]] = [
        outbox.status,
        outbox.messages,
        lambda: list(Doctor(outbox, offline=True).run()),
        lambda: list(Verification(outbox).run()),
        lambda: Worker(outbox).start(),
        outbox.marks.look,
    ]

    for look in looks:
        with contextlib.suppress(OutboxError, sa.exc.SQLAlchemyError):
            look()
        assert b"" == path.read_bytes()

    migrate.upgrade(outbox.database)
    outbox.mark_spool()
    assert Marks(None, None) == outbox.marks.look()  # there is no spool


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_a_person_may_give_the_spool_up_to_a_new_database(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)
    outbox.mark_spool()
    outbox.close()
    mark = in_place(place).spool
    lose(place)

    run = command_line(place, "init", "--adopt-spool", "--json")

    assert 0 == run.returncode, run.stderr
    assert json.loads(run.stdout)["adopted"] is True
    found = in_place(place)
    assert found.spool == found.database != mark, "should the other still be used, it is refused"


@pytest.mark.long
def test_what_was_given_up_is_swept_after_a_day_and_gone_a_week_later(place: Place, theirs: Outbox) -> None:
    clock = real_clock()
    outbox = place.outbox(clock=clock)
    outbox.mark_spool(adopt=True)
    place.enqueue(outbox, "a", PHOTO)
    found = [outbox.sweep()]

    clock.move(hours=25)
    found.append(outbox.sweep())
    clock.move(days=8)
    found.append(outbox.sweep())

    assert [0, 1, 0] == found
    (left,) = (each for each in place.spooled() if each != ".outbox")
    assert not left.startswith(".")
    place.hand(outbox).turn_while_it_moves()
    assert {"a": State.DELIVERED} == states(place.database)


def test_a_spool_that_was_given_away_is_refused_to_who_had_it(place: Place, outbox: Outbox, theirs: Outbox) -> None:
    mine = give_mark(place)

    outbox.mark_spool(adopt=True)

    assert Marks(mine, mine) == in_place(place)
    with pytest.raises(ConfigurationError, match=FOREIGN):
        theirs.sweep()


def test_the_outbox_of_a_program_can_adopt_as_well(sqlite_place: Place) -> None:
    mine, spool = give_mark(sqlite_place), str(sqlite_place.spool)
    DirectorySpool(spool).prepare()
    DirectorySpool(spool).set_mark("0f" * 16)
    program = f"from outbox import Outbox\noutbox = Outbox({sqlite_place.url!r}, spool={spool!r}, destinations=[])\n"
    sqlite_place.folder.joinpath("shop.py").write_text(program)

    run = command_line(sqlite_place, "--app", "shop:outbox", "init", "--adopt-spool")

    assert 0 == run.returncode, run.stderr
    assert "swept after a day, gone a week later" in run.stderr
    assert Marks(mine, mine) == in_place(sqlite_place)
    assert not sqlite_place.folder.joinpath("outbox.toml").exists()


# What cannot be read or written


@pytest.mark.long
def test_nonsense_stops_what_would_use_the_spool_and_nothing_else(
    place: Place, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    place.enqueue(outbox, "a")
    outbox.spool_store.prepare()
    place.spool.joinpath(".outbox").write_text("whose?")

    for act in (sweep, enqueue, spool_ahead):
        with pytest.raises(SpoolError, match=r"\.outbox does not say whose spool this is"):
            act(place, outbox)
    with caplog.at_level(logging.WARNING, "outbox.worker"), Worker(outbox):
        eventually(lambda: states(place.database) == {"a": State.DELIVERED})

    assert "the spool cannot be marked for now" in caplog.text
    assert (Level.PROBLEM, True) == (told(outbox).level, "remove it" in told(outbox).remedy)
    assert "whose?" == place.spool.joinpath(".outbox").read_text()


class Full(DirectorySpool):
    """A spool on a disk that is full."""

    def set_mark(self, mark: str, *, replace: bool = False) -> str:
        raise SpoolFull("the disk is full")


@pytest.mark.long
def test_a_full_disk_keeps_nobody_from_sweeping_or_delivering(place: Place, theirs: Outbox) -> None:
    (place.spool / ".outbox").unlink()
    clock = real_clock()
    full = an_outbox(place.url, Full(place.spool), *place.outbox().destinations.values(), ambient=clock.ambient)
    clock.move(hours=25)

    swept = full.sweep()
    place.enqueue(full, "a")
    with Worker(full):
        eventually(lambda: states(place.database) == {"a": State.DELIVERED})

    assert 1 == swept
    full.close()


@pytest.mark.long
def test_what_is_whose_is_nothing_to_a_verification(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)
    outbox.mark_spool()

    assert [] == list(Verification(outbox).run())
    assert Level.OK is told(outbox).level
