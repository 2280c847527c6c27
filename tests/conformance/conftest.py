"""A migrated database of each kind, and the same one as another process sees it."""

from collections.abc import Callable, Iterator

import pytest

from outbox.database import Database


@pytest.fixture
def sqlite_url(migrated_sqlite_url: str) -> str:
    return migrated_sqlite_url


@pytest.fixture
def postgres_url(migrated_postgres_url: str) -> str:
    return migrated_postgres_url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def reopen(database: Database, database_url: str) -> Iterator[Callable[[], Database]]:
    """Opens the database once more, with connections of its own."""
    opened: list[Database] = []

    def open_again() -> Database:
        opened.append(Database(database_url))
        return opened[-1]

    yield open_again
    for each in opened:
        each.close()


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[Database]:
    """For what only a database with many writers at a time can show."""
    database = Database(postgres_url)
    yield database
    database.close()


@pytest.fixture
def reopen_postgres(postgres_database: Database, postgres_url: str) -> Iterator[Callable[[], Database]]:
    """Opens the Postgres database once more, with connections of its own."""
    opened: list[Database] = []

    def open_again() -> Database:
        opened.append(Database(postgres_url))
        return opened[-1]

    yield open_again
    for each in opened:
        each.close()
