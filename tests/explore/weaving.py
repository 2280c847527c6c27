"""Two operations on one real database, statement by statement, in every order that makes a difference.

Each has a connection and a thread of its own and waits before every statement until it is its turn. Two orders that differ only
in which of two statements came first are one where neither locks what the other locks, nor ends a transaction whose changes the
other may see: only where one does is the other order taken, too (dynamic partial order reduction, with sleep sets). On Postgres
a statement may have to wait for a lock; then the other goes on, and when both wait that is told. On SQLite who would write
waits for whoever writes.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from outbox import Outbox
from outbox.database import Database
from outbox.tables import metadata

#: Seconds in which a statement that waits for nobody is over, mostly; and in which all must have come to an end.
_SOON, _LATE = 0.01, 60.0
#: Whoever adds to these adds a row of its own, and asks for no other's.
_NEW = frozenset({"delivery"})
#: Whoever acts has a row of its own there.
_APART = frozenset({"audit"})
#: An INSERT into the one locks a row of the other.
_LOCKED_TOO = {
    "attempt": frozenset({"message"}),
    "message": frozenset({"stream"}),
    "attachment": frozenset({"message", "file"}),
    "head": frozenset({"stream"}),
}
#: A DELETE from the one goes on to the rows of the other.
_DELETED_TOO = {"message": frozenset({"attempt", "attachment"})}
_LOOKED_AT = ("message", "delivery", "attempt", "head", "worker")
#: What a transaction of SQLite's that began with BEGIN looks at, and every COMMIT changes.
_SNAPSHOT = frozenset({"SQLite's database"})
_WAITS = sa.text("""
    SELECT EXISTS (
        SELECT * FROM pg_stat_activity AS mine JOIN pg_stat_activity AS other ON other.pid = ANY (pg_blocking_pids(mine.pid))
        WHERE mine.application_name = :mine AND other.application_name = :other
    )
""")
_TABLE = re.compile(r"outbox_([a-z]+)")
_LOCKING = re.compile(r"^\s*(INSERT|UPDATE|DELETE)|\bFOR (NO KEY UPDATE|UPDATE|SHARE|KEY SHARE)\b")


#: What matters of what there is, by table.
Rows = Mapping[str, Sequence[Any]]


class Touch(NamedTuple):
    """What a statement has to do with, by table. What it changes is seen by others, and its locks are gone, only at COMMIT."""

    words: str
    asks: frozenset[str] = frozenset()
    passes: frozenset[str] = frozenset()  #: by what is locked there
    locks: frozenset[str] = frozenset()
    adds: frozenset[str] = frozenset()  #: a row that is nobody else's
    shows: frozenset[str] = frozenset()  #: what its transaction has done there

    @classmethod
    def of(cls, statement: str, empty: frozenset[str]) -> Touch:
        """What a statement does, where these tables are empty and stay so."""
        tables = frozenset(_TABLE.findall(statement)) - empty - _APART
        if statement == "BEGIN IMMEDIATE":
            return cls(statement, locks=frozenset({"SQLite's write lock"}))
        if not _LOCKING.search(statement):
            return cls(statement, tables)
        if statement.startswith("INSERT") and (added := frozenset(_TABLE.findall(statement)[:1])) <= _NEW:
            return cls(statement, tables - added, adds=added)
        first = (*_TABLE.findall(statement)[:1], "")[0]
        too = {"INSERT": _LOCKED_TOO, "DELETE": _DELETED_TOO}.get(statement[:6], {}).get(first, frozenset())
        return cls(statement, tables, locks=tables | (too - empty))

    def without_rows(self) -> Touch:
        """The same, of which turned out that it locked nothing; perhaps because somebody else had."""
        passed = self.locks if "SKIP LOCKED" in self.words else frozenset()
        return self._replace(asks=self.asks | self.locks, passes=passed, locks=frozenset())

    def minds(self, other: Touch) -> bool:
        """Whether it may matter which of the two comes first."""
        return self._comes_before(other) or other._comes_before(self)

    def _comes_before(self, other: Touch) -> bool:
        return bool(self.locks & (other.locks | other.passes) or self.shows & (other.asks | other.locks))


class Strand:
    """One of the two operations: a thread that waits for its turn before each statement."""

    def __init__(self, name: str, url: str) -> None:
        address = sa.make_url(url)
        if address.get_backend_name() == "postgresql":
            address = address.update_query_dict({"application_name": name})
        self.name = name
        self.database = Database(address)
        self.alone = self.database.kind == "sqlite"  #: whether there is only one writer at a time
        self.next: Touch | None = None  #: what it is about to do
        self.error: BaseException | None = None
        self.result: Any = None
        self.over = True
        self.blocked = False
        self.done = Touch("")  #: what the last one turned out to be
        self.empty: frozenset[str] = frozenset()  #: tables that are empty and stay so
        self.wrote = Touch("COMMIT")  #: what its transaction has written or locked so far
        self.transaction = ""  #: how it began, on SQLite
        self._free = False
        self._turn = threading.Semaphore(0)
        self._arrived = threading.Event()
        self._thread: threading.Thread | None = None
        for engine in {self.database.engine, self.database._reader or self.database.engine}:
            self._listen(engine)

    def _listen(self, engine: sa.Engine) -> None:
        if engine.dialect.name == "sqlite":

            @sa.event.listens_for(engine, "connect")
            def wait_for_nobody(connection: Any, _record: Any) -> None:
                connection.execute("PRAGMA busy_timeout = 0")
        else:

            @sa.event.listens_for(engine, "connect")
            def stand_still_for_long(connection: Any, _record: Any) -> None:
                connection.execute("SET idle_in_transaction_session_timeout = 0")
                connection.commit()

        @sa.event.listens_for(engine, "before_cursor_execute")
        def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            touch = Touch.of(statement, self.empty)
            if self.transaction == "BEGIN":  # which sees what was there at its first look
                touch = touch._replace(asks=touch.asks | _SNAPSHOT)
            self._stop_before(touch)
            self.done = touch
            if statement.startswith("BEGIN"):
                self.transaction = statement

        @sa.event.listens_for(engine, "after_cursor_execute")
        def after(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("BEGIN"):
                return
            if cursor.rowcount == 0 and not self.alone:  # SQLite cannot say yet how many rows it returns
                self.done = self.done.without_rows()
            if done := self.done.locks | self.done.adds:
                self.wrote = self.wrote._replace(shows=self.wrote.shows | done | (_SNAPSHOT if self.alone else frozenset()))

        @sa.event.listens_for(engine, "commit")
        def before_commit(_connection: Any) -> None:
            self._stop_before(self.wrote)
            self.done = self.wrote
            self.wrote, self.transaction = Touch("COMMIT"), ""

        @sa.event.listens_for(engine, "rollback")
        def rolled_back(_connection: Any) -> None:
            self.wrote, self.transaction = Touch("COMMIT"), ""

    def start(self, operation: Callable[[], Any], *, free: bool = False) -> None:
        """Run an operation up to its first statement, or to its end if it is `free`."""
        self.error = self.result = self.next = None
        self.over = self.blocked = False
        self._free = free
        self._turn = threading.Semaphore(0)
        self._arrived.clear()
        self._thread = threading.Thread(target=self._run, args=(operation,), name=self.name, daemon=True)
        self._thread.start()
        assert self._arrived.wait(_LATE), f"{self.name} does not come to its first statement"

    def _run(self, operation: Callable[[], Any]) -> None:
        try:
            self.result = operation()
        except BaseException as error:  # noqa: BLE001 (it is what became of it)
            self.error = error
        self.over, self.next = True, None
        self._arrived.set()

    def _stop_before(self, touch: Touch) -> None:
        if threading.current_thread() is not self._thread or self._free:
            return
        self.next = touch
        self._arrived.set()
        self._turn.acquire()

    def go(self) -> None:
        """Take the statement it stands before."""
        self._arrived.clear()
        self._turn.release()

    def arrives(self, within: float) -> bool:
        """Wait until it is about to take its next statement, or is over."""
        if self._arrived.wait(within):
            self.blocked = False
            return True
        return False

    def finish(self) -> None:
        """Go on to the end without a stop."""
        self._free = True
        self._turn.release()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(_LATE)
            assert not self._thread.is_alive(), f"{self.name} came to no end"


@dataclass(frozen=True)
class Pair:
    """Two operations and what must hold when both are over."""

    name: str
    prepare: Callable[[Weaver], Any]
    operations: Callable[[Outbox, Any, int], Callable[[], Any]]  #: what each of the two does, with what was prepared
    check: Callable[[Rows, Any, Sequence[Any]], list[str]] = lambda *_: []  #: of what is there then, and what each returned
    may_raise: tuple[type[Exception], ...] = ()
    fills: frozenset[str] = frozenset()  #: tables that get their first rows; others that are empty stay so


@dataclass
class Woven:
    """What weaving two operations came to."""

    name: str
    orders: int = 0
    whole: bool = False  #: whether these are all there are
    left_out: int = 0  #: that would have been the same as one of them
    statements: int = 0
    waits: int = 0  #: statements that had to wait for a lock
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        orders = f"{self.orders} orders, all of them" if self.whole else f"the first {self.orders} of more orders"
        return (
            f"{self.name}: {orders} ({self.left_out} begun that make no difference), {self.statements:,} statements, "
            f"{self.waits} waits, {self.seconds:.1f} s, {len(self.violations)} violations"
        )


@dataclass
class _Node:
    may: Mapping[int, Touch]  #: whose turn it may be, with what it would do
    chosen: int
    asleep: set[int]  #: who need not go first here: that was taken, or makes no difference
    wanted: set[int] = field(default_factory=set)  #: who shall
    touch: Touch = field(default_factory=lambda: Touch(""))  #: what was done here


class Weaver:
    """Weaves pairs on one migrated database."""

    def __init__(self, url: str, make: Callable[[Database], Outbox]) -> None:
        self.plain = Database(url)
        self.alone = self.plain.kind == "sqlite"
        self.strands = [Strand(f"strand-{number}", url) for number in (0, 1)]
        self.outboxes = [make(each.database) for each in self.strands]
        self.outbox = make(self.plain)
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")

    def __enter__(self) -> Weaver:
        self._watching = self._engine.connect()
        self._keeper = self._engine.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()
        self._keeper.close()
        self._engine.dispose()
        for database in (self.plain, *(each.database for each in self.strands)):
            database.close()

    def weave(self, pair: Pair, most: int) -> Woven:
        """Take every order, but no more than `most`; ends at the first violation."""
        began, woven = time.monotonic(), Woven(pair.name)
        self._wipe()
        prepared = pair.prepare(self)
        unused = self._empty() - pair.fills - _APART - {"delivery", "attempt"}
        self._keep(unused)
        for each in self.strands:
            each.empty = unused
        self._warm_up(pair, prepared)
        path: list[_Node] = []
        while not woven.whole and not woven.violations and woven.orders < most:
            self._restore()
            told = self._take(pair, prepared, path, woven)
            woven.left_out += told is None
            if told is not None:
                woven.orders += 1
                assert unused <= self._empty(), f"{pair.name} fills {unused - self._empty()}"
                woven.violations = ["\n".join([each, *told]) for each in self._wrong(pair, prepared)]
            _mind_races(path)
            woven.whole = not _turn_back(path)
        woven.seconds = time.monotonic() - began
        return woven

    def _warm_up(self, pair: Pair, prepared: Any) -> None:
        """Each alone, once: what is asked of each connection only once is in none of the orders then."""
        for number, strand in enumerate(self.strands):
            self._restore()
            strand.start(pair.operations(self.outboxes[number], prepared, number), free=True)
            strand.join()

    def _take(self, pair: Pair, prepared: Any, path: list[_Node], woven: Woven) -> list[str] | None:
        try:
            for number, strand in enumerate(self.strands):
                strand.start(pair.operations(self.outboxes[number], prepared, number))
            return self._run(path, woven)
        finally:
            self._finish()

    def _wrong(self, pair: Pair, prepared: Any) -> list[str]:
        """What must not be, now that both are over."""
        raised = [each.error for each in self.strands if each.error and not isinstance(each.error, pair.may_raise)]
        if raised:
            return [f"{type(each).__name__}: {str(each).splitlines()[0]}" for each in raised]
        with self.plain.read() as connection:
            asked = {each: connection.exec_driver_sql(f"SELECT * FROM outbox_{each}") for each in _LOOKED_AT}
            rows = {each: list(found.mappings()) for each, found in asked.items()}
        return [*at_rest(rows), *pair.check(rows, prepared, [each.result for each in self.strands])]

    def _run(self, path: list[_Node], woven: Woven) -> list[str] | None:
        """Take one order, as `path` says as far as it goes; None when it would be one that was taken."""
        asleep: set[int] = set()
        told: list[str] = []
        depth = 0
        while may := {number: each.next for number, each in enumerate(self.strands) if self._may_go(number) and each.next}:
            if depth == len(path):
                awake = may.keys() - asleep
                if not awake:
                    return None
                path.append(_Node(may, min(awake), set(asleep)))
            node = path[depth]
            assert node.may.keys() == may.keys(), "the same order came to another place"
            depth += 1
            touch = may[node.chosen]
            told.append(f"  {self.strands[node.chosen].name} {' '.join(touch.words.split())[:110]}")
            woven.statements += 1
            self._step(node.chosen, woven)
            node.touch = touch if self.strands[node.chosen].blocked else self.strands[node.chosen].done
            asleep = {each for each in node.asleep if each in may and not touch.minds(may[each])}
        return [*told, *(f"  {each.name} waits for ever" for each in self.strands if not each.over)]

    def _may_go(self, number: int) -> bool:
        mine, other = self.strands[number], self.strands[1 - number]
        if mine.over or mine.blocked or mine.next is None:
            return False
        return not (mine.next.words == "BEGIN IMMEDIATE" and other.transaction == "BEGIN IMMEDIATE")

    def _step(self, number: int, woven: Woven) -> None:
        """Let one take its statement, until it is over or has to wait; and the other, if it has waited for that."""
        mine, other = self.strands[number], self.strands[1 - number]
        mine.go()
        self._settle(mine)
        woven.waits += mine.blocked
        if other.blocked:
            self._settle(other)

    def _settle(self, strand: Strand) -> None:
        ends, patience = time.monotonic() + _LATE, _SOON
        while not strand.arrives(patience):
            if not self.alone and self._waits_for_a_lock(strand):
                strand.blocked = True
                return
            assert time.monotonic() < ends, f"{strand.name} neither goes on nor waits for the other"
            patience *= 2

    def _waits_for_a_lock(self, strand: Strand) -> bool:
        """Whether one waits for the other; vacuum may be in its way, too, but not for long."""
        other = next(each for each in self.strands if each is not strand)
        return bool(self._watching.execute(_WAITS, {"mine": strand.name, "other": other.name}).scalar())

    def _finish(self) -> None:
        """Have both come to an end, wherever they are: at once, since each may wait for the other."""
        for each in self.strands:
            if not each.over:
                each.finish()
                if self.alone:
                    each.join()
        for each in self.strands:
            each.join()

    def _wipe(self) -> None:
        with self.plain.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(sa.delete(table))

    def _empty(self) -> frozenset[str]:
        """The tables without a row."""
        asked = " UNION ALL ".join(f"SELECT '{name}' WHERE NOT EXISTS (SELECT * FROM {name})" for name in metadata.tables)
        with self.plain.read() as connection:
            return frozenset(row[0].removeprefix("outbox_") for row in connection.exec_driver_sql(asked))

    def _keep(self, unused: frozenset[str]) -> None:
        """Keep what is there, to be put back before each order, but for tables that are always empty."""
        names = [table.name for table in metadata.sorted_tables if table.name.removeprefix("outbox_") not in unused]
        self._script([f"DROP TABLE IF EXISTS kept_{name}" for name in names])
        self._script([f"CREATE TEMP TABLE kept_{name} AS SELECT * FROM {name}" for name in names])
        back = [f"INSERT INTO {name} SELECT * FROM kept_{name}" for name in names]
        self._back = ["BEGIN", *(f"DELETE FROM {name}" for name in reversed(names)), *back, "COMMIT"]

    def _restore(self) -> None:
        self._script(self._back)

    def _script(self, statements: Sequence[str]) -> None:
        """In one go."""
        script = "; ".join(statements)
        driver = self._keeper.connection.dbapi_connection
        driver.executescript(script) if self.alone else driver.execute(script)


def _mind_races(path: Sequence[_Node]) -> None:
    """Where two statements of the two touched the same, the other shall go first, too."""
    for later, node in enumerate(path):
        for sooner in range(later - 1, -1, -1):
            before = path[sooner]
            if before.chosen == node.chosen or not before.touch.minds(node.touch):
                continue
            if not _settled_between(path, sooner, later):
                before.wanted |= {node.chosen} & before.may.keys()
            break


def _settled_between(path: Sequence[_Node], sooner: int, later: int) -> bool:
    """Whether one had to come before the other anyway, because of something in between."""
    mine = path[later].chosen
    return any(
        path[between].chosen == mine
        and any(each.chosen != mine and each.touch.minds(path[between].touch) for each in path[sooner:between])
        for between in range(sooner + 1, later)
    )


def _turn_back(path: list[_Node]) -> bool:
    """The next order that may make a difference; False when there is none."""
    while path:
        node = path[-1]
        node.asleep.add(node.chosen)
        if left := node.wanted - node.asleep:
            node.chosen = min(left)
            return True
        path.pop()
    return False


def at_rest(rows: Rows) -> Iterator[str]:
    """What does not add up in a database on which nothing is under way."""
    messages = rows["message"]
    under_way = {row["id"]: row for row in rows["delivery"] if row["finished_at"] is None}
    for number, row in under_way.items():
        claimed = [each["id"] for each in messages if each["delivery_id"] == number and each["claimed_by"] == row["worker"]]
        if len(claimed) != row["messages"]:
            yield f"I6: delivery {number} is of {row['messages']} messages and has claimed {len(claimed)}"
    for row in messages:
        if row["state"] == "claimed" and row["delivery_id"] not in under_way:
            yield f"I11: message {row['id']} is claimed for delivery {row['delivery_id']}, which is over"
        tries = sorted(each["number"] for each in rows["attempt"] if each["message_id"] == row["id"])
        over = row["attempt"] - (row["state"] == "claimed")
        if tries != list(range(1, over + 1)):
            yield f"I11: message {row['id']} was tried {over} times, written down are {tries}"
    for head in rows["head"]:
        mine = sorted((row for row in messages if row["stream_id"] == head["stream_id"]), key=lambda row: row["stream_number"])
        unfinished = [row for row in mine if row["state"] in ("pending", "claimed")]
        tried = [row for row in unfinished if row["state"] == "claimed"]
        if tried != unfinished[: len(tried)] or len(tried) > 1:
            yield f"I9: of stream {head['stream_id']} goes {[row['stream_number'] for row in tried]}"
        if tried and head["claimed_by"] is None:
            yield f"I9: stream {head['stream_id']} has a message under way and says that it has none"
        if unfinished and not tried and head["claimed_by"] is None and head["blocked_by"] is None and head["due_at"] is None:
            yield f"I15: stream {head['stream_id']} rests although message {unfinished[0]['id']} waits"
