"""Acts: what a person does to many messages, a handful at a time; one can be interrupted and gone on with."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice, takewhile
from typing import NamedTuple, assert_never

from sqlalchemy import Connection

from outbox.ambient import Ambient
from outbox.database import Database, nudge_at_commit
from outbox.model import Selection
from outbox.nudging import ANY
from outbox.policy import HANDFUL
from outbox.store import acting, purging, shares, streams
from outbox.store.acting import Action, Candidate, Page, Window
from outbox.timekeeping import When

#: Seconds that one transaction of an act shall take. Where one writes at a time, nobody else does meanwhile.
_SHORT, _SHORT_ALONE = 0.05, 0.01
#: After each, whoever does the act leaves the database to others for so many times as long.
_REST, _REST_ALONE = 1.0, 2.0
#: The first handful, before it is known how long one takes, and the smallest: with fewer, time goes into the commit alone.
_LEAST = 50
#: Candidates that are looked up at a time and kept in memory, and ids among which they are: so a look is short, however few
#: there are, and no database thinks of reading the whole table for it.
_PAGE, _SPAN = 10_000, 100_000
#: Handfuls a second when a rate is asked for.
_PACE = 4


class Begun(NamedTuple):
    """An act as the audit has it, or will have it."""

    action: Action
    selection: Selection
    by: str
    at: datetime
    id: int | None = None
    messages: int = 0
    position: int = 0


class Progress(NamedTuple):
    """How far an act is after one of its steps."""

    act: int  #: the number of its row in the audit
    messages: int  #: that it was done to so far, in earlier runs too
    passed_over: int  #: in this run: they had lost a file, or became something else before their turn came
    rest: float  #: seconds that the database should be left to others before the next step, or that the rate asks for


class _Did(NamedTuple):
    """What one step came to."""

    handful: list[Candidate]
    done: int  #: of the handful
    messages: int  #: in all
    later: set[int]  #: streams of the handful that somebody held
    files: int


class _Walk:
    """The candidates of an act: all by id, and at the end once more those whose streams somebody held."""

    def __init__(self, begun: Begun, *, again: bool) -> None:
        self.at_end = False
        self.held: set[int] = set()  #: streams
        self._begun = begun
        self._again = again  # which streams were held in an earlier run nobody knows: all are looked at once more
        self._looked = begun.position  # what is ahead was looked up as far as this id
        self._ahead: deque[Candidate] = deque()
        self.what = replace(begun.selection, ids=(), keys=(), limit=None)
        self._named: list[int] | None = None
        self._bounds: tuple[int, int] | None = None  # of the ids that were there when it began

    def look_ahead(self, database: Database, now: datetime) -> bool:
        """Whether there is a candidate; looks up more when none is left. It only reads, so nobody waits for it."""
        more = True
        while not self._ahead and more:
            with database.read() as connection:
                if self._bounds is None:
                    self._named, self._bounds = acting.named(connection, self._begun.selection), acting.bounds(connection)
                more = self._turn_page(connection, now)
        return bool(self._ahead)

    def next(self, most: int, position: int) -> list[Candidate]:
        """The next candidates, beyond what other runs of the act have come to; at the end, those of one stream."""
        if self.at_end:
            stream_id = self.stream
            return list(islice(takewhile(lambda each: each.stream_id == stream_id, self._ahead), most))
        while self._ahead and self._ahead[0].id <= position:
            self._ahead.popleft()
        return list(islice(self._ahead, most))

    def shares_ahead(self, most: int) -> set[int]:
        """The shares that so many of the next candidates are in."""
        return {each.share_id for each in islice(self._ahead, most) if each.share_id is not None}

    @property
    def stream(self) -> int | None:
        """At the end, the stream that is next."""
        return self._ahead[0].stream_id if self.at_end else None

    def past(self, handful: Collection[Candidate], held: Collection[int]) -> None:
        """This handful is committed."""
        self.held.update(held)
        for _ in handful:
            self._ahead.popleft()

    def _turn_page(self, connection: Connection, now: datetime) -> bool:
        """Look up the next page; False when there is none."""
        page = self._page(*(self._bounds or (0, 0))) if self._named is None else self._named_page(self._named)
        if page is None:
            return self._turn_back()
        window = Window(self._begun.at, now)
        found = acting.candidates(connection, self._begun.action, self.what, window, page, only_streams=self.at_end)
        self._looked = found[-1].id if len(found) == page.limit else page.until
        if self.at_end:
            found = sorted((each for each in found if self._again or each.stream_id in self.held), key=_by_stream)
        self._ahead.extend(found)
        return True

    def _page(self, first: int, last: int) -> Page | None:
        after = max(self._looked, first - 1)
        return Page(after, min(after + _SPAN, last), _PAGE) if after < last else None

    def _named_page(self, named: Sequence[int]) -> Page | None:
        first = bisect_right(named, self._looked)
        among = named[first : first + HANDFUL]
        return Page(self._looked, among[-1], HANDFUL + 1, tuple(among)) if among else None

    def _turn_back(self) -> bool:
        if self.at_end or not (self.held or self._again):
            return False
        self.at_end, self._looked = True, 0
        return True


def _by_stream(each: Candidate) -> tuple[int, int]:
    return each.stream_id or 0, each.id


class Act:
    """Something that is done to all messages of a selection, one `step` after the other; `Outbox.begin` and `go_on` make it.

    Each step is one short transaction with a bounded handful of messages, and writes down in it how far the act is. Nothing
    here waits: whoever takes the steps does, for as long as each of them says. Any number of runs of one act may be under way.
    """

    def __init__(
        self,
        database: Database,
        ambient: Ambient,
        begun: Begun,
        skipping: Collection[str],
        free_files: Callable[[], object],
        *,
        rate: float | None = None,
        again: bool = False,
    ) -> None:
        self.id = begun.id  #: the number of its row in the audit; None while no message was found
        self.action = begun.action
        self.selection = begun.selection
        self.messages = begun.messages  #: how many it was done to, in earlier runs too, as of the last step
        self.passed_over = 0  #: in this run
        self._database = database
        self._ambient = ambient
        self._began = begun.at
        self._by = begun.by
        self._skipping = skipping
        self._free_files = free_files
        self._rate = rate
        self._walk = _Walk(begun, again=again)
        self._choice = acting.choice(self.action, self._walk.what)
        self._alone = database.kind == "sqlite"
        self._short, self._rest = (_SHORT_ALONE, _REST_ALONE) if self._alone else (_SHORT, _REST)
        self._shares: set[int] = set()  #: whose messages can be replayed
        self._size = float(_LEAST)
        self._started: float | None = None
        self._done = 0

    def __repr__(self) -> str:
        return f"Act({self.id}, {self.action}, {str(self.selection)!r})"

    def run(self, wait: Callable[[float], object] | None = None) -> int:
        """Take steps until it is over; returns how many messages it was done to, in earlier runs too.

        `wait` waits between the steps, such as `time.sleep`; without it others may have to wait for the database.
        """
        for progress in self.steps():
            if wait is not None and progress.rest > 0:
                wait(progress.rest)
        return self.messages

    def steps(self) -> Iterator[Progress]:
        """Take steps until it is over."""
        while (progress := self.step()) is not None:
            yield progress

    def step(self) -> Progress | None:
        """Do it to one more handful; None when it is over, which is noted then.

        After an error of the database the next step goes on from what was committed.
        """
        if self._started is None:
            self._started = self._ambient.monotonic()
        if self._room() == 0 or not self._walk.look_ahead(self._database, self._ambient.now()):
            self._finish()
            return None
        act_id = self._open()
        if self.action == "replay":
            self._make_shares()
        with self._database.begin() as connection:
            ticks = self._ambient.monotonic()  # only now: it may have waited for its turn to write
            did = self._take_handful(connection, act_id)
        took = self._ambient.monotonic() - ticks
        self._note(did, took)
        if did.files:
            self._free_files()
        return Progress(act_id, self.messages, self.passed_over, max(took * self._rest, self._early()))

    def look(self) -> bool:
        """Ask the audit how far it is, and return whether it is over: what interrupts a step may come just after its COMMIT."""
        row = None
        if self.id is not None:
            with self._database.read() as connection:
                row = acting.act(connection, self.id)
        if row is None:
            self.id = None  # it was interrupted before that was committed
            return False
        self.messages = row["messages"]
        return row["finished_at"] is not None

    def _open(self) -> int:
        """Its row, from which it can be gone on with whatever happens now. What finds nothing leaves no trace."""
        if self.id is None:
            with self._database.begin() as connection:
                self.id = acting.open_act(connection, self._began, self._by, self.action, self.selection)
        return self.id

    def _make_shares(self) -> None:
        """What is replayed takes turns in the bulk lane, in shares that must be there before."""
        wanted = self._walk.shares_ahead(HANDFUL) - self._shares
        if not wanted:
            return
        with self._database.read() as connection:
            missing = shares.missing_for_replay(connection, wanted)
        # Where others write too each is committed by itself: a producer may hold one of them and wait for another.
        for some in [missing] if self._alone else [[each] for each in missing]:
            if some:
                with self._database.begin() as connection:
                    shares.make(connection, some)
        self._shares |= wanted

    def _finish(self) -> None:
        if self.id is not None:
            with self._database.begin() as connection:
                self.messages, _ = acting.hold(connection, self.id)
                acting.finish(connection, self.id, self._ambient.now())

    def _take_handful(self, connection: Connection, act_id: int) -> _Did:
        """One handful in one transaction, in which it is written down too."""
        if self._walk.stream is not None:
            acting.wait_for(connection, self._walk.stream)
        messages, position = acting.hold(connection, act_id)
        now = self._ambient.now()
        handful = self._walk.next(self._room(messages), position)
        mine = [each for each in handful if self._walk.at_end or each.stream_id not in self._walk.held]
        chosen = acting.choose(connection, self._choice, Window(self._began, now), mine)
        done, of_streams, files = self._do(connection, chosen, now)
        for skip in (True, False):
            going_on = acting.streams_of(connection, of_streams, self._skipping, skip=skip)
            if going_on:
                streams.release(connection, going_on, When.certain(now), skip=skip)
        later: set[int] = set()
        if handful and not self._walk.at_end:
            position = handful[-1].id
            later = {each.stream_id for each in handful if each.stream_id is not None} & (chosen.held | self._walk.held)
        acting.advance(connection, act_id, done, position)
        if done:
            nudge_at_commit(connection, ANY)
        return _Did(handful, done, messages + done, later, files)

    def _do(self, connection: Connection, chosen: acting.Chosen, now: datetime) -> tuple[int, set[int], int]:
        """How many it was done to, the streams that go on from another place now, and how many files nobody needs any more."""
        if not chosen.ids:
            return 0, set(), 0
        match self.action:
            case "replay":
                touched = acting.replay(connection, chosen.ids, now, chosen.with_files, chosen.shares)
            case "cancel":
                touched = acting.cancel(connection, chosen.ids, now)
            case "purge":
                purged = purging.purge(connection, chosen.ids, now)
                return purged.messages, set(purged.streams), purged.files
            case _:
                assert_never(self.action)
        return len(touched), {chosen.streams[each] for each in touched if each in chosen.streams}, 0

    def _note(self, did: _Did, took: float) -> None:
        """That is committed; the next handful takes about as long as one shall."""
        later = sum(each.stream_id in did.later for each in did.handful)
        self._walk.past(did.handful, did.later)
        self.messages = did.messages
        self.passed_over += len(did.handful) - did.done - later
        self._done += did.done
        self._size = min(max(self._size * min(max(self._short / max(took, 1e-6), 0.5), 2.0), _LEAST), HANDFUL)

    def _room(self, messages: int | None = None) -> int:
        """How many messages the next handful may have."""
        most = round(self._size)
        if self._rate is not None:
            most = min(most, max(1, int(self._rate / _PACE)))
        if self.selection.limit is not None:
            most = min(most, self.selection.limit - (self.messages if messages is None else messages))
        return max(0, most)

    def _early(self) -> float:
        """Seconds by which it is ahead of the rate that was asked for."""
        if self._rate is None or self._started is None:
            return 0.0
        return self._started + self._done / self._rate - self._ambient.monotonic()
