"""A migrated database of each kind, and the same one as another process sees it."""

from collections.abc import Callable, Iterator

import pytest

from outbox import migrate
from outbox.database import Database
from tests.factories import wipe
from tests.postgres import create_database, drop_database


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server_url: str) -> Iterator[str]:
    """One for all the tests of this process: wiping it is faster than making another."""
    url = create_database(postgres_server_url)
    database = Database(url)
    migrate.upgrade(database)
    database.close()
    yield url
    drop_database(url)


@pytest.fixture
def postgres_url(migrated_postgres: str) -> Iterator[str]:
    """A migrated Postgres database without a row."""
    yield migrated_postgres
    wipe(migrated_postgres)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    migrate.upgrade(database)
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
    migrate.upgrade(database)
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
