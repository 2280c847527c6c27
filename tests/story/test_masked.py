"""The first error is the one that is told: nothing that fails because of it takes its place, and nothing half-written stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox import prepare
from outbox.errors import DatabaseDamaged, SchemaError
from outbox.store import arriving
from tests.factories import an_outbox, enos, event, states
from tests.story.conftest import Place

PHOTO = {"photo": b"x"}


def _interrupted(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Whatever is raised between the row of a message and those of its files: by a signal, or by a listener of the caller's."""

    def attach(*_: object) -> None:
        raise error

    monkeypatch.setattr(arriving, "attach", attach)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a time limit")], ids=lambda error: type(error).__name__)
def test_whoever_goes_on_after_an_interruption_commits_no_message_without_its_files(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    outbox = sqlite_place.outbox()
    _interrupted(monkeypatch, error)

    with sqlite_place.engine.begin() as connection, pytest.raises(type(error)):
        outbox.enqueue(connection, "enos", event("a", "photo"), files=PHOTO, key="k")

    assert {} == states(sqlite_place.database)


def test_an_error_is_told_although_what_it_left_cannot_be_withdrawn(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = sqlite_place.outbox()
    _interrupted(monkeypatch, sa.exc.OperationalError("INSERT", None, Exception("the first")))

    def withdraw(*_: object) -> None:
        raise RuntimeError("the second")

    monkeypatch.setattr(arriving, "withdraw", withdraw)

    with sqlite_place.engine.connect() as connection, pytest.raises(sa.exc.OperationalError, match="the first"):
        outbox.enqueue(connection, "enos", event("a", "photo"), files=PHOTO, key="k")


def _no_database(folder: Path) -> Path:
    path = folder / "a.db"
    path.write_bytes(b"this is no database at all" * 100)
    return path


def _no_folder(folder: Path) -> Path:
    return folder / "gone" / "a.db"


@pytest.mark.parametrize(
    ("make", "told"), [(_no_database, DatabaseDamaged), (_no_folder, sa.exc.OperationalError)], ids=["no database", "no folder"]
)
def test_a_session_that_cannot_even_connect_says_why(
    tmp_path: Path, make: Callable[[Path], Path], told: type[Exception]
) -> None:
    url = f"sqlite:///{make(tmp_path)}"
    outbox, engine = an_outbox(url, tmp_path / "spool", enos()), prepare(sa.create_engine(url))

    with pytest.raises(told), Session(engine) as session, session.begin():
        outbox.enqueue(session, "enos", event("a"))

    engine.dispose()
    outbox.close()


def test_without_a_schema_a_file_is_refused_as_a_message_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bare.db'}"
    with sa.create_engine(url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE theirs (a)")
        connection.engine.dispose()
    outbox = an_outbox(url, tmp_path / "spool", enos())

    with pytest.raises(SchemaError, match="outbox db upgrade"):
        outbox.spool(b"x")

    outbox.close()
