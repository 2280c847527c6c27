"""A worker: senders that take turns until told to stop, housekeeping, and the pulse that proves that it is alive."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from outbox import migrate
from outbox.app import Outbox
from outbox.dispatcher import Dispatcher, WorkerGone
from outbox.errors import ConfigurationError, DatabaseDamaged, OutboxError, OutOfRoom, SpoolError
from outbox.lookout import Lookout
from outbox.marks import ForeignSpool
from outbox.metronome import Loop, Metronome
from outbox.policy import GONE_AFTER, HANDFUL, POLL, STOP_GRACE
from outbox.presence import Presence
from outbox.store import breaker, looking
from outbox.transport import RequestsTransport, Transport
from outbox.watching import Watcher, Watchers

log = logging.getLogger("outbox.worker")

#: Seconds between two rounds of each kind of housekeeping; and while nobody has written anything since.
_CHECKPOINT_EVERY = (10.0, 60.0)
_FREE_EVERY = (60.0, 60.0)
_EXPIRE_EVERY = 5.0
_STRAYS_EVERY = (5.0, 300.0)
_SWEEP_EVERY = (3600.0, 3600.0)
_TIDY_EVERY = 60.0
_ROOM_EVERY = (5.0, 30.0)
_OLD_TRANSACTIONS_EVERY = (30.0, 60.0)
#: Seconds between two looks whether a signal came; and, if it shall end then, whether nothing is left.
_LOOK_FOR_SIGNALS, _LOOK_FOR_THE_END = 0.5, 0.2
#: What asks for the end. Nobody can send SIGTERM on Windows: there it is Ctrl-C, or the Ctrl-Break of a service manager.
_STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name))
#: Seconds that one step of the pulse may take, or a loop be late: more than the longest wait for a locked SQLite database.
STUCK_AFTER = 180.0


class Worker:
    """Delivers what an outbox holds, in as many threads as its destinations have senders, until it is stopped.

    `destinations` limits it to some by name. `gone_after` is after how many seconds without a beat another worker is taken for
    gone, `stop_grace` how many seconds an upload in hand is given at a stop before it is cut. `poll` is how many seconds a loop
    with nothing to do waits before it looks again, where no nudge comes. `watcher` is told what happens. `stuck_after` is how
    many seconds one step of the pulse may take, or a loop be late, before `ailments` speaks of it.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        destinations: Sequence[str] | None = None,
        transport: Transport | None = None,
        gone_after: float = GONE_AFTER,
        stop_grace: float = STOP_GRACE,
        poll: float = POLL,
        watcher: Watcher | None = None,
        stuck_after: float = STUCK_AFTER,
    ) -> None:
        self.outbox = outbox
        self.destinations = [outbox.destination(name).name for name in destinations or outbox.destinations]
        if not self.destinations:
            raise ConfigurationError("this worker has nothing to do: no destination is declared")
        for what, value in (("gone_after", gone_after), ("poll", poll)):
            if not 0 < value < math.inf:
                raise ConfigurationError(f"expected {what} to be more than 0 seconds, got {value}")
        if not stop_grace >= 0:
            raise ConfigurationError(f"expected stop_grace to be at least 0 seconds, got {stop_grace}")
        self._transport = transport or RequestsTransport()
        self._stop = threading.Event()
        self._stop_grace = stop_grace
        declared = [outbox.destinations[name] for name in self.destinations]
        skipping = [each.name for each in declared if each.policy.on_dead == "skip"]
        self._presence = Presence(outbox.database, outbox.ambient, gone_after, self.destinations, skipping)
        self._identity_lock = threading.Lock()
        self._failing: set[str] = set()
        self._signals = _Signals()
        self._ended = False
        self._watcher = Watchers([watcher] if watcher else [])
        self._stuck_after = stuck_after
        self._ticked_at: float | None = None
        self._ticked = 0  #: the news at the last tick
        self._moved = False  #: a step of this tick has changed something
        self._broken: DatabaseDamaged | None = None
        self._metronome = Metronome(self._stop, self._went_well, self._went_wrong)
        self._lookout = Lookout(self._metronome, self._stop, poll, lambda: self._presence.seen.others)
        self._dispatcher = Dispatcher(
            outbox.database,
            outbox.spool_store,
            outbox.destinations,
            outbox.ambient,
            self._transport,
            lambda: self._presence.id,
            self._stop.is_set,
            Watchers([self._lookout, self._watcher, outbox.hooks.watcher]),
            outbox.hooks.finished,
        )
        self._dispatcher.free_after = outbox.retention.free_after
        self._room_loop = self._lookout.seldom(_ROOM_EVERY, outbox.care.keep_room, "room")
        senders = self._lookout.serve(self._dispatcher, {each.name: each.policy for each in declared})
        self._loops: list[Loop] = [*senders, self._lookout.loop, *self._housekeeping()]
        self._pulse = threading.Thread(target=self._keep_pulse, name="outbox-pulse", daemon=True)

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()

    @property
    def id(self) -> str:
        """This worker's present identity."""
        return self._presence.id

    def run(self, *, until_idle: bool = False) -> None:
        """Work until SIGTERM, SIGINT or `stop()`; with `until_idle`, until nothing is due and nothing is claimed.

        Call it in the main thread if signals shall stop it. Raises SchemaError when the database is not migrated, or newer than
        this code, ConfigurationError when the spool belongs to another database, and DatabaseDamaged when the database is
        damaged, or was deleted or replaced meanwhile.
        """
        with self._signals, self:
            while not self._stop.wait(_LOOK_FOR_THE_END if until_idle else _LOOK_FOR_SIGNALS):
                # While a loop runs there is something: the database is asked only when all are at rest.
                if self._signals.seen or (until_idle and not self._metronome.busy and self._nothing_left()):
                    break
        if self._broken is not None:
            raise self._broken

    def start(self) -> None:
        """Begin to work in the background; once in a worker's life."""
        if self.id or self._stop.is_set():
            raise ConfigurationError("a worker works once; make another one")
        migrate.require_current(self.outbox.database)
        try:
            self._arrive()
        except OutOfRoom as error:  # what is kept for this lets us in
            self.outbox.care.give_way(error)
            self._arrive()
        log.info("worker %s delivers to %s", self.id, ", ".join(self.destinations), extra={"worker_id": self.id})
        try:
            self._pulse.start()
            self._ticked_at = time.monotonic()
            self._metronome.start(self._loops)
            self._lookout.listen(self.outbox.database.nudges() if self.outbox.nudge else None)
        except BaseException:
            self.join()
            raise
        self._watcher.started(self.id)

    def _arrive(self) -> None:
        try:
            self.outbox.mark_spool()
        except SpoolError as error:  # what has no files can be delivered all the same
            log.warning("the spool cannot be marked for now: %s", error)
        with self.outbox.database.begin() as connection:
            breaker.declare(connection, self.outbox.destinations)
            breaker.try_again(connection, self.destinations, self.outbox.ambient.now())
        self._presence.arrive()

    def stop(self) -> None:
        """Ask for the end: sends in hand are finished, none is begun. Returns at once."""
        self._stop.set()

    def ailments(self) -> list[str]:
        """What keeps this worker's threads from turning, in sentences; nothing of it is asked of the database."""
        if self._ticked_at is None or self._stop.is_set():
            return []  # it has not begun, or is ending
        now = time.monotonic()
        found = []
        if not self._pulse.is_alive():
            found.append("the pulse has ended")
        elif (silent := now - self._ticked_at) > self._stuck_after + self._presence.look_every:
            found.append(f"the pulse has stood still for {silent:.0f} s, most likely waiting for the database")
        late = self._metronome.late(self._stuck_after)
        return [*found, *(f"the loop {name} is {seconds:.0f} s late" for name, seconds in late)]

    def join(self) -> None:
        """Wait for the end: at most `stop_grace` seconds, or until a second signal, then what is still being sent is cut."""
        self._stop.set()
        if self.id and not self._ended:
            self._watcher.stopping()
        ends = time.monotonic() + self._stop_grace
        while self._metronome.busy and time.monotonic() < ends and not self._signals.insistent:
            time.sleep(0.02)
        if self._metronome.busy:
            log.warning("cutting off what is still being sent")
            self._transport.cut()
        self._metronome.shut_down()
        self._lookout.close()
        if self._pulse.is_alive():
            self._pulse.join()
        if self._ended or not self.id:
            return
        self._ended = True
        if self._broken is not None:
            return  # nothing is written any more to what is damaged
        for step in (self._dispatcher.record_leftovers, self._dispatcher.release_unheld, self._presence.leave):
            self._attempt(step)
        log.info("worker %s has stopped", self.id, extra={"worker_id": self.id})

    def _housekeeping(self) -> list[Loop]:
        def every(seconds: tuple[float, float], chore: Callable[[], int | None], name: str) -> Loop:
            # A full handful means that there is more: the disk must not fill up while delivery goes well.
            return self._lookout.seldom(seconds, lambda: 0.0 if chore() == HANDFUL else None, name)

        return [
            every(_CHECKPOINT_EVERY, self.outbox.database.checkpoint, "checkpoint"),
            Loop("expire", self._expire, _EXPIRE_EVERY, _EXPIRE_EVERY),
            every(_STRAYS_EVERY, self._dispatcher.find_strays, "strays"),
            every(_FREE_EVERY, self.outbox.free_files, "free"),
            Loop("tidy", self.outbox.care.tidy, _TIDY_EVERY, _TIDY_EVERY),
            self._room_loop,
            every(_OLD_TRANSACTIONS_EVERY, self.outbox.care.look_for_old_transactions, "transactions"),
            every(_SWEEP_EVERY, self.outbox.sweep, "sweep"),
        ]

    def _expire(self) -> float | None:
        """Give up messages whose time is over; the last look has told when that may be."""
        if time.monotonic() < self._lookout.expires_at:
            return None
        expired = self._dispatcher.expire()
        self._lookout.expires_at = math.inf
        self._lookout.look_now()
        return 0.0 if expired == HANDFUL else None

    def _minded(self, error: SQLAlchemyError | OutboxError) -> bool:
        """Whether an error needs more than another try: a full disk is given room, and a damaged database ends the work."""
        match error:
            case DatabaseDamaged():
                if self._broken is None:
                    self._broken = error
                    log.critical("worker %s ends: %s", self.id, error, extra={"worker_id": self.id})
                self.stop()
            case OutOfRoom():
                self.outbox.care.give_way(error)
                if not self._stop.is_set() and not self._room_loop.running:
                    self._metronome.arm(self._room_loop, 0.0)
            case ForeignSpool():  # said each time: whoever passes it over loses files
                log.error("worker %s sweeps nothing: %s", self.id, error, extra={"worker_id": self.id})
            case _:
                return False
        return True

    def _went_well(self, loop: Loop) -> None:
        self._failing.discard(loop.name)

    def _went_wrong(self, loop: Loop, error: Exception) -> None:
        match error:
            case WorkerGone():
                self._start_anew(str(error))
                return
            case SQLAlchemyError() | OutboxError():
                if not self._minded(error):
                    # Said once, until it goes well again: a database may be away for a month.
                    grave = logging.DEBUG if loop.name in self._failing else logging.WARNING
                    log.log(grave, "loop %s: %s; it goes on in %s s", loop.name, _brief(error), loop.retry)
                    self._failing.add(loop.name)
            case _:
                log.error("loop %s failed; it goes on in %s s", loop.name, loop.retry, exc_info=error)
        self._watcher.loop_failed(loop.name)

    def _keep_pulse(self) -> None:
        """Beats, rescue, and the watch over the scheduler; by the monotonic clock, on a thread of its own."""
        while not self._stop_pulse():
            for step in self._steps():  # each by itself: one that fails must not take the others along
                self._attempt(step)
            self._metronome.watch()

    def _steps(self) -> Iterator[Callable[[], object]]:
        """What this tick has to do. Of what is asked of the database, a beat tells whether there is any reason to."""
        beats, news, holds = self._presence.beats, self._lookout.news, self._dispatcher.holds
        yield self._beat
        yield self._dispatcher.record_leftovers
        self._moved = self._dispatcher.holds < holds
        declared: list[str] = []

        def look() -> None:
            declared.extend(self._look())

        yield look
        seen, beaten = self._presence.seen, self._presence.beats != beats
        if beaten and seen.unfinished:
            yield self._dispatcher.release_unheld
        if (beaten and seen.unfinished) or declared:
            yield self._dispatcher.rescue
        if (beaten and seen.stuck) or self._dispatcher.owes or self._ticked != news:
            yield self._dispatcher.free_streams
        self._ticked = news
        if self._moved or self._lookout.unsure:
            yield self._lookout.look_aside  # on another thread: a beat waits for no look

    def _stop_pulse(self) -> bool:
        """Wait for the next beat; beats go on while a stopping worker still finishes a send."""
        if not self._stop.wait(self._presence.look_every):
            return False
        if self._metronome.busy:
            time.sleep(min(0.05, self._presence.look_every))
            return False
        return True

    def _attempt(self, step: Callable[[], object]) -> None:
        """Take a step of the pulse; what goes wrong is said once, until it goes well again."""
        name = step.__name__.strip("_")
        try:
            if step():
                self._moved = True
            self._failing.discard(name)
        except WorkerGone as gone:
            self._start_anew(str(gone))
        except (SQLAlchemyError, OutboxError) as error:
            if not self._minded(error) and name not in self._failing:
                log.warning("worker %s cannot %s for now: %s", self.id, name.replace("_", " "), _brief(error))
            self._failing.add(name)
            self._watcher.loop_failed(f"pulse-{name}")
        except Exception:
            log.exception("worker %s failed to %s", self.id, name.replace("_", " "))
            self._watcher.loop_failed(f"pulse-{name}")
        self._ticked_at = time.monotonic()

    def _beat(self) -> None:
        identity = self.id
        alive = self._presence.beat(at_rest=self._dispatcher.holds == 0)
        if self._presence.stop_asked and not self._stop.is_set():
            log.info("worker %s was asked to stop, through the database", identity, extra={"worker_id": identity})
            self.stop()
        if not alive:
            raise WorkerGone(identity)

    def _look(self) -> list[str]:
        declared = self._presence.look()
        for gone in declared:
            log.warning("worker %s is gone; its claims are taken back", gone, extra={"worker_id": gone})
        return declared

    def _start_anew(self, gone: str) -> None:
        """Take a new identity, once, however many threads found out that the old one is gone."""
        with self._identity_lock:
            if self.id != gone:
                return
            log.warning("worker %s was declared gone; it goes on under a new name", gone, extra={"worker_id": gone})
            try:
                self._presence.arrive()
            except (SQLAlchemyError, OutboxError) as error:
                if not self._minded(error):
                    log.warning("cannot take a new name yet: %s", _brief(error))

    def _nothing_left(self) -> bool:
        try:
            # Of one moment: what comes back between two looks would not be due at the first, nor claimed at the second.
            with self.outbox.database.snapshot() as connection:
                left = looking.anything_left(connection, self.destinations, self.outbox.ambient.now())
        except (SQLAlchemyError, OutboxError) as error:
            if not self._minded(error):
                log.warning("cannot look at the database: %s", _brief(error))
            return False
        return not left and self._dispatcher.holds == 0


class _Signals:
    """Notes what asks for the end while it is entered; elsewhere than in the main thread it hears nothing.

    The handler only sets a mark: an Event's lock might be held by the very thread that the signal interrupts.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._before: dict[int, object] = {}

    @property
    def insistent(self) -> bool:
        """Whether somebody does not want to wait."""
        return self.seen > 1

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]  # what signal.signal returned

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.seen += 1


def _brief(error: BaseException) -> str:
    """The first line of an error; the rest of a database error is its statement."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
