"""What is explored: who is there, what may happen, and how far every order of it is taken."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from outbox import Policy, migrate
from outbox.database import Database
from tests.explore.acts import Scope
from tests.explore.explorer import Explored, explore
from tests.explore.stage import Stage
from tests.factories import an_outbox, enos, event, put

#: No limit is near: what they do is told by the tests of `settle` and of the breaker.
PATIENT = Policy(max_failures=10**6, max_unknown=10**6, breaker_after=10**6, reject_streak=10**6)


def one(stage: Stage) -> None:
    """One message."""
    with stage.begin() as connection:
        put(connection, "m1", payload=json.dumps(event("m1")))


def two(stage: Stage) -> None:
    """Two messages that travel together."""
    with stage.begin() as connection:
        for each in ("m1", "m2"):
            put(connection, each, payload=json.dumps(event(each)))


def stream(stage: Stage) -> None:
    """Two messages of one ordering key."""
    with stage.begin() as connection:
        for each in ("m1", "m2"):
            put(connection, each, payload=json.dumps(event(each)), ordering_key="k")


_DELIVERY = {"claims", "ok", "lost"}
_LIFE = {"beats", "looks around", "rescues", "crashes"}

CRASHES = Scope("two workers, one message, who dies", one, frozenset(_DELIVERY | _LIFE))
#: A commit that fails, or whose news is lost, once; and what each worker does about it.
TROUBLES = Scope(
    "two workers, one message, a database that goes away",
    one,
    frozenset(_DELIVERY | {"trouble", "releases", "records what is left", "looks around", "rescues"}),
    {"trouble": 1},
)
PEOPLE = Scope(
    "two workers, one message, an operator",
    one,
    frozenset(_DELIVERY | {"fails", "looks around", "rescues", "cancels", "replays"}),
    {"replays": 1},
)
STREAM = Scope(
    "two workers, two messages of a stream",
    stream,
    frozenset(
        _DELIVERY | {"sends", "refused", "looks around", "rescues", "crashes", "cancels", "replays", "lets the stream go on"}
    ),
    {"replays": 1},
)
BATCH = Scope(
    "two workers, a batch of two",
    two,
    frozenset(_DELIVERY | {"refused", "fails", "looks around", "rescues", "crashes", "cancels"}),
)
#: One worker: its sender and its pulse, which may come between a COMMIT and the moment the sender knows of it.
THREADS = Scope(
    "the two threads of a worker",
    one,
    frozenset(_DELIVERY | {"fails", "trouble", "releases", "records what is left", "beats"}),
    {"trouble": 2},
    committed=True,
    workers=1,
)
EVERYTHING = Scope(
    "two workers, one message, everything",
    one,
    CRASHES.steps | TROUBLES.steps | PEOPLE.steps | {"refused", "not sent", "pauses", "resumes"},
    {"trouble": 1, "replays": 1, "pauses": 1},
)


@contextmanager
def staged(migrated: Path) -> Iterator[Stage]:
    """A stage with the schema of that database."""
    with closing(Stage(migrated)) as stage:
        stage.set_up(an_outbox(f"sqlite:///{migrated}", migrated.parent / "spool", enos(policy=PATIENT)))
        yield stage


def deep(seconds: float, depth: int = 1000) -> list[Explored]:
    """For torture: every scope as deep as its part of the time carries."""
    scopes = (EVERYTHING, STREAM, BATCH, replace(TROUBLES, most={"trouble": 3}), CRASHES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outbox.db")
        database = Database(f"sqlite:///{path}")
        database.create()
        migrate.upgrade(database)
        database.close()
        with staged(path) as stage:
            return [explore(stage, each, depth, seconds=seconds / len(scopes)) for each in scopes]
