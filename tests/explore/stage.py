"""One database in memory, on which operations of the real objects are taken one transaction at a time.

An operation of a worker (a turn, a rescue) that has been interrupted between two of its transactions has no stack that could be
put away. It is run again from its beginning instead: what it found in the database is recalled, without touching the database,
and where it had come to it goes on for real. So a moment is a plain value, and any number of futures can be tried from it.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from unittest.mock import patch

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from outbox import Ambient, Outbox, presence
from outbox.claims import Claims
from outbox.database import Database
from outbox.dispatcher import Dispatcher
from outbox.errors import NoAnswer
from outbox.presence import Presence
from outbox.store import acting, living, streams
from outbox.transport import Answer, Upload
from tests.factories import NOW

#: What the future depends on. Parents first; the audit is not among them, nobody decides anything by it.
TABLES = ("stream", "head", "share", "pause", "destination", "worker", "message", "file", "attachment", "delivery", "attempt")
#: What operations find in the database and go on with; each is the only one in its transaction.
RECALLED: tuple[tuple[Any, str], ...] = (
    (Claims, "claim_for"),
    (Dispatcher, "_write_all"),
    (living, "deliveries_of_the_gone"),
    (living, "deliveries_of"),
    (living, "left_behind"),
    (living, "beats"),
    (living, "declare_gone"),
    (living, "beat"),
    (living, "stop_asked"),
    (streams, "idle"),
    (streams, "blocked"),
    (acting, "named"),
    (acting, "bounds"),
    (acting, "candidates"),
)

_TABLE = re.compile(r"outbox_([a-z]+)")

#: The rows of every table, in its order.
Rows = tuple[tuple[tuple[Any, ...], ...], ...]


class Interrupted(BaseException):
    """An operation has come to where another step begins."""

    def __init__(self, point: str, memory: Memory) -> None:
        super().__init__(point)
        self.point = point
        self.memory = memory


class Trouble(sa.exc.SQLAlchemyError):
    """The database went away at a moment that was chosen for it."""


class Memory(NamedTuple):
    """What a worker's process knows besides the database; a process that dies forgets it."""

    identity: str = ""
    held: frozenset[int] = frozenset()
    unrecorded: tuple[Any, ...] = ()
    claiming: int = 0
    untold: frozenset[Any] = frozenset()


class _Alone(list[Any]):
    """A list of one dictionary, from its items."""

    def __init__(self, items: Any) -> None:
        super().__init__([dict(items)])


class Found(NamedTuple):
    """What a function found in the database, as something that can be compared."""

    by: str
    kind: type | None
    value: Any

    @classmethod
    def of(cls, by: str, found: Any) -> Found:
        match found:
            case dict():
                return cls(by, dict, tuple(found.items()))
            case [dict() as alone]:
                return cls(by, _Alone, tuple(alone.items()))
            case list() | set():
                return cls(by, type(found), tuple(found))
            case Exception():
                return cls(by, type(found), found.args)
            case _:
                return cls(by, None, found)

    @property
    def raised(self) -> bool:
        """Whether this is what it raised."""
        return self.kind is not None and issubclass(self.kind, Exception)

    @property
    def thawed(self) -> Any:
        """As it was."""
        if self.kind is None:
            return self.value
        return self.kind(*self.value) if self.raised else self.kind(self.value)


class Part(NamedTuple):
    """What an operation did in one step: the memory it went on with, and what it found in the database."""

    memory: Memory
    found: tuple[Found, ...] = ()


class Place(NamedTuple):
    """Where an operation stands that is not over."""

    operation: str
    point: str  #: what it is about to do: begin, read, send, or go on after a commit
    parts: tuple[Part, ...]
    arrived: bool = False  #: of a turn: its request has come to the receiver, whole

    @property
    def batch(self) -> Any:
        """Of a turn: what it has claimed; None when it was told that its worker is gone."""
        return None if self.parts[0].found[0].raised else self.parts[0].found[0].value[0]


class Played(NamedTuple):
    """What became of one step of an operation."""

    place: Place | None  #: None: the operation is over
    memory: Memory
    error: str = ""


@dataclass
class _Run:
    """One run of an operation: its earlier parts from memory, and one more in earnest."""

    memory: Memory
    parts: tuple[Part, ...]
    answer: Answer | Exception | None
    trouble: str
    to_the_end: bool
    stops: frozenset[str]
    passed: int = 0
    in_earnest: bool = False

    def __post_init__(self) -> None:
        self.found: list[Found] = []
        self.recalled: Iterator[Found] = iter(())


class Stage(Database):
    """The database of the explorer, and the one process on it that is every worker in turn."""

    def __init__(self, migrated: Path) -> None:
        super().__init__("sqlite:///file:stage")
        self._raw = sqlite3.connect(":memory:", isolation_level=None)
        with closing(sqlite3.connect(migrated)) as disk:
            disk.backup(self._raw)
        engine = sa.create_engine("sqlite://", creator=lambda: self._raw, poolclass=StaticPool)

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        @sa.event.listens_for(engine, "before_cursor_execute")
        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            self.touched.update(_TABLE.findall(statement))

        self.touched: set[str] = set()  #: tables that were asked or written
        self._engine = self._reader = engine
        self._raw.execute("PRAGMA foreign_keys = ON")
        self.columns = {each: [row[1] for row in self._raw.execute(f"PRAGMA table_info(outbox_{each})")] for each in TABLES}
        self._loaded: Rows = tuple(() for _ in TABLES)
        self._run: _Run | None = None
        self._new_id = self._whom = ""

    def close(self) -> None:
        super().close()
        self._raw.close()

    def set_up(self, outbox: Outbox) -> None:
        """Build the process, on this database; `outbox` has the destinations."""
        outbox.database = self
        self.outbox = outbox
        ambient = Ambient(now=lambda: NOW, monotonic=lambda: 1000.0, new_id=lambda: self._new_id, random=lambda: 0.0)
        outbox.ambient = ambient
        # Time stands still, which is as good as any that passes: whoever looks has seen nothing of the others for as long as he
        # waits, and whoever beats does so now.
        self.presence = Presence(self, ambient, gone_after=0.0)
        self.dispatcher = Dispatcher(self, outbox.spool_store, outbox.destinations, ambient, self, lambda: self.presence.id)
        self.presence._beat_every = 0.0
        self.dispatcher.free_after = None

    @contextmanager
    def playing(self) -> Iterator[None]:
        """While it is entered, operations can be played; what is broken on purpose must be so by then."""
        with ExitStack() as patches:
            patches.enter_context(patch.object(presence, "_version", lambda: None))  # read from the disk each time
            for owner, name in RECALLED:
                patches.enter_context(patch.object(owner, name, self._recalling(getattr(owner, name))))
            yield

    def play(
        self,
        rows: Rows,
        memory: Memory,
        operation: Callable[[], object],
        place: Place | str,
        *,
        answer: Answer | Exception | None = None,
        trouble: str = "",
        to_the_end: bool = False,
        stops: frozenset[str] = frozenset(),
        new_id: str = "",
        whom: str = "",
    ) -> Played:
        """Take one step of an operation: from where it stands, or under this name from its beginning, to its next point.

        `answer` is what the transport brings, None for no answer. `trouble` strikes the transaction of this step: `before` its
        commit, or `after` it. `stops` adds points at which it can be interrupted.
        `whom` is whose beats it looks at.
        """
        self.load(rows)
        self.touched.clear()
        self._new_id, self._whom = new_id, whom
        name, parts = (place, ()) if isinstance(place, str) else (place.operation, place.parts)
        run = self._run = _Run(memory, parts, answer, trouble, to_the_end, stops)
        self._remember(parts[0].memory if parts else memory)
        try:
            operation()
            # One that had nothing left to do has not come to where its process is now.
            return Played(None, self._memory() if run.in_earnest else memory)
        except Interrupted as interrupted:
            done = (*parts, Part(run.memory, tuple(run.found)))
            return Played(Place(name, interrupted.point, done), interrupted.memory)
        except Trouble as error:
            return Played(None, self._memory(), str(error))
        finally:
            self._run = None

    def at_once(self) -> None:
        """What is done now is not interrupted any more."""
        if self._run is not None:
            self._run.to_the_end = True

    # The database.

    def load(self, rows: Rows) -> None:
        """Make these the rows of the database."""
        changed = [each for each in range(len(TABLES)) if self._loaded[each] != rows[each]]
        if not changed:
            return
        self._raw.execute("PRAGMA foreign_keys = OFF")
        self._raw.execute("BEGIN")
        for each in changed:
            name = TABLES[each]
            self._raw.execute(f"DELETE FROM outbox_{name}")
            marks = ", ".join("?" * len(self.columns[name]))
            self._raw.executemany(f"INSERT INTO outbox_{name} VALUES ({marks})", rows[each])
        for name in ("message", "delivery"):
            last = max((row[0] for row in rows[TABLES.index(name)]), default=0)
            self._raw.execute(f"UPDATE sqlite_sequence SET seq = {last} WHERE name = 'outbox_{name}'")
        self._raw.execute("COMMIT")
        self._raw.execute("PRAGMA foreign_keys = ON")
        self._loaded = rows

    def rows(self) -> Rows:
        """The rows of the database as they are now."""
        self._loaded = tuple(
            before if before == now else now
            for before, now in zip(
                self._loaded, (tuple(self._raw.execute(f"SELECT * FROM outbox_{each}")) for each in TABLES), strict=True
            )
        )
        return self._loaded

    def named(self, rows: Rows) -> Mapping[str, list[dict[str, Any]]]:
        """The same with names."""
        return {
            name: [dict(zip(self.columns[name], row, strict=True)) for row in rows[number]]
            for number, name in enumerate(TABLES)
        }

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        if not self._pass("begin"):
            yield None  # type: ignore[misc]
        else:
            with super().begin() as connection:
                yield connection
                if self._run and self._run.trouble == "before":
                    raise Trouble("rolled back")
            if self._run and self._run.trouble == "after":
                raise Trouble("the news of the commit was lost")
        self._pass("committed")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        if not self._pass("read"):
            yield None  # type: ignore[misc]
        else:
            with super().read() as connection:
                yield connection

    # The transport.

    def send(self, upload: Upload, open_file: Callable[[str], BinaryIO], deadline: float, connect: float) -> Answer:
        assert self._pass("send"), "what comes after an answer is one step"
        answer = self._run.answer if self._run else None
        if not isinstance(answer, Answer):
            raise answer or NoAnswer("the answer was lost")
        return answer

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError

    # The process.

    def _pass(self, point: str) -> bool:
        """Come to a point at which an operation can be interrupted; whether it is gone on with in earnest."""
        run = self._run
        if run is None or (point == "committed" and point not in run.stops):
            return True
        number, run.passed = run.passed, run.passed + 1
        if number < len(run.parts):
            self._remember(run.parts[number].memory)
            run.recalled = iter(run.parts[number].found)
            return False
        if number > len(run.parts):
            if run.to_the_end:
                return True
            raise Interrupted(point, self._memory())
        if run.parts:
            self._remember(run.memory)
        run.in_earnest = True
        return True

    def _recalling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def recall(*arguments: Any, **named: Any) -> Any:
            run = self._run
            if run is None:
                return function(*arguments, **named)
            # `_write_all` has its transaction inside.
            inside = function.__name__ == "_write_all"
            earnest = run.passed >= len(run.parts) if inside else run.in_earnest
            if not earnest:
                if inside:
                    self._pass("begin")
                found = next(run.recalled)
                if found.raised:
                    raise found.thawed
                return found.thawed
            try:
                found = function(*arguments, **named)
            except Exception as error:
                run.found.append(Found.of(function.__name__, error))
                raise
            if function.__name__ == "beats":  # the others have beaten since, as far as it knows
                found = {name: beat for name, beat in found.items() if name == self._whom}
            run.found.append(Found.of(function.__name__, found))
            return found

        return recall

    def _remember(self, memory: Memory) -> None:
        self.presence.id = memory.identity
        self.dispatcher._held = set(memory.held)
        self.dispatcher._unrecorded = list(memory.unrecorded)
        self.dispatcher._claiming = memory.claiming
        self.dispatcher._untold = set(memory.untold)
        self.dispatcher._claims._lead = itertools.count()

    def _memory(self) -> Memory:
        dispatcher = self.dispatcher
        return Memory(
            self.presence.id,
            frozenset(dispatcher._held),
            tuple(dispatcher._unrecorded),
            dispatcher._claiming,
            frozenset(dispatcher._untold),
        )
