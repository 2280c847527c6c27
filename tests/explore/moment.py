"""A moment of two workers on one database, as a value: everything that its futures depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from tests.explore.stage import TABLES, Found, Memory, Part, Place, Rows

Named = Mapping[str, list[dict[str, Any]]]

#: What a worker is called that has just arrived, until the moment is put in order.
NEW = "new"


class Process(NamedTuple):
    """A worker: what it remembers, where its sender stands, and where its pulse does."""

    memory: Memory
    hand: Place | None = None
    pulse: Place | None = None

    @property
    def in_hand(self) -> set[int]:
        """Deliveries that somebody in this process still minds."""
        mine = {each.delivery for each in self.memory.unrecorded}
        if self.pulse is not None and self.pulse.operation == "leftovers":
            mine |= {each.delivery for each in self.pulse.parts[0].memory.unrecorded}
        return mine | ({self.hand.batch.delivery} if self.hand is not None and self.hand.batch else set())

    @property
    def places(self) -> list[Place]:
        return [each for each in (self.hand, self.pulse) if each is not None]


class Truth(NamedTuple):
    """What nobody on the stage knows: what the receiver has, and what was done so far."""

    #: How often each message came to the receiver, and how many copies beyond the first are explained.
    copies: tuple[tuple[int, tuple[int, int]], ...] = ()
    confirmed: frozenset[int] = frozenset()  #: deliveries to which it said yes, as long as somebody minds them
    spent: tuple[tuple[str, int], ...] = ()  #: how often there was already what there is only so much of

    def copies_of(self, message: int) -> tuple[int, int]:
        return dict(self.copies).get(message, (0, 0))

    def counting(self, message: int, *, copies: int = 0, explained: int = 0) -> Truth:
        """With so many more of them."""
        were = self.copies_of(message)
        counts = {**dict(self.copies), message: (were[0] + copies, were[1] + explained)}
        return self._replace(copies=tuple(sorted(counts.items())))

    @property
    def evened(self) -> tuple[tuple[int, tuple[int, int]], ...]:
        """The copies without those that are explained."""
        return tuple(
            (each, (came - (less := max(0, min(came - 1, explained))), explained - less))
            for each, (came, explained) in self.copies
        )

    def spent_on(self, what: str) -> int:
        return dict(self.spent).get(what, 0)


class Moment(NamedTuple):
    """Where everything stands."""

    rows: Rows
    processes: tuple[Process, ...]
    desk: Place | None = None  #: an operator's act that is under way
    truth: Truth = Truth()


class Step(NamedTuple):
    """Something that may happen next."""

    who: int  #: a process; -1 for the operator
    what: str
    answer: str = ""
    trouble: str = ""
    message: int = 0
    whom: str = ""  #: whose beats a look is for

    def __str__(self) -> str:
        who = "somebody" if self.who < 0 else f"worker {'AB'[self.who]}"
        about = f" {self.message}" if self.message else ""
        trouble = {"": "", "before": ", but it is rolled back", "after": ", but is not told so"}[self.trouble]
        return f"{who} {self.what}{about}{f' {self.answer}' if self.answer else ''}{trouble}"


class Order:
    """Puts moments in order, so that those with the same future are the same value as far as `key` goes.

    Names are given anew, deliveries are numbered anew in their order, and what is over is forgotten as far as nobody refers to
    it, as the product itself may at any time. Who of the workers is the first is no matter.
    """

    def __init__(self, columns: Mapping[str, list[str]], named: Callable[[Rows], Named]) -> None:
        self._columns = columns
        self._named = named
        self._known: dict[Any, Rows] = {}
        self._renamed: dict[Any, Process] = {}

    def put(self, moment: Moment) -> tuple[Moment, Any, tuple[int, ...]]:
        """The same moment in order, its key, and which of its workers each of the workers was."""
        outlines = [_outline(each) for each in moment.processes]
        numbers = tuple(sorted(range(len(outlines)), key=outlines.__getitem__))
        ordered = self._with(moment, numbers)
        found = ordered, key(ordered, self._columns), numbers
        if len(outlines) == 2 and outlines[0] == outlines[1]:  # what else they differ in decides
            other = self._with(moment, numbers[::-1])
            found = min(found, (other, key(other, self._columns), numbers[::-1]), key=lambda each: hash(each[1]))
        return found

    def _with(self, moment: Moment, numbers: tuple[int, ...]) -> Moment:
        processes = [moment.processes[each] for each in numbers]
        named = self._named(moment.rows)
        who = {name: f"w{number}" for number, name in enumerate(_names(processes, named))}
        minded = _minded(processes)
        last = max((row["id"] for row in named["delivery"] if row["outcome"] == "delivered"), default=0)
        under_way = {row["id"] for row in named["delivery"] if row["finished_at"] is None}
        which = {each: number for number, each in enumerate(sorted({*minded, *under_way, last} - {0}), 1)}
        tries: dict[int, list[int]] = {}
        for row in sorted(named["attempt"], key=lambda row: row["number"]):
            if row["delivery_id"] in minded:
                tries.setdefault(row["message_id"], []).append(row["delivery_id"])
        change = _Renaming(who, which, tries, last, {row["id"]: row["beat"] for row in named["worker"]})
        known = (moment.rows, tuple(who.items()), tuple(which), frozenset(minded))
        rows = self._known.get(known)
        if rows is None:
            rows = self._known[known] = self._rows(moment.rows, change)
        ordered = tuple(self._process(each, change) for each in processes)
        confirmed = frozenset(which[each] for each in moment.truth.confirmed if each in which)
        truth = moment.truth._replace(confirmed=confirmed, copies=moment.truth.evened)
        return moment._replace(rows=rows, processes=ordered, truth=truth)

    def _process(self, process: Process, change: _Renaming) -> Process:
        known = (process, change.said)
        if known not in self._renamed:
            self._renamed[known] = change.process(process)
        return self._renamed[known]

    def _rows(self, rows: Rows, change: _Renaming) -> Rows:
        changed = []
        for name, table in zip(TABLES, rows, strict=True):
            columns = self._columns[name]
            kept = [change.row(name, dict(zip(columns, row, strict=True))) for row in table]
            changed.append(
                tuple(sorted((tuple(row[each] for each in columns) for row in kept if row), key=lambda row: row[:2]))
            )
        return tuple(changed)


@dataclass
class _Renaming:
    """New names and numbers for those that somebody refers to."""

    who: Mapping[str, str]
    which: Mapping[int, int]
    tries: Mapping[int, list[int]]  #: by message, the deliveries that a process may yet ask about
    last: int  #: the last one that went well; 0 for none
    beats: Mapping[str, int]

    @cached_property
    def said(self) -> Any:
        """All of it, to be compared."""
        tries = tuple((each, tuple(mine)) for each, mine in self.tries.items())
        return tuple(self.who.items()), tuple(self.which.items()), tries, tuple(self.beats.items())

    def row(self, table: str, row: dict[str, Any]) -> dict[str, Any] | None:
        """A row with them; None for one that is forgotten."""
        match table:
            case "worker" if row["id"] in self.who:
                return {**row, "id": self.who[row["id"]], "beat": 0, "host": "host", "pid": 1, "gone_after": None}
            case "delivery" if row["finished_at"] is None:
                return {**row, "id": self.which[row["id"]], "worker": self.who[row["worker"]]}
            case "delivery" if row["id"] in self.which:  # it is over
                over = {"worker": "", "messages": 0, "bytes": 0, "status": None, "code": None, "text": None, "answer": None}
                return {**row, **over, "id": self.which[row["id"]]}
            case "worker" | "delivery":
                return None
            case "message":
                return {
                    **row,
                    "delivery_id": row["delivery_id"] and self.which[row["delivery_id"]],
                    "faulted_in": None if row["faulted_in"] is None else self.fault(row["faulted_in"]),
                    "claimed_by": row["claimed_by"] and self.who[row["claimed_by"]],
                    "attempt": len(self.tries.get(row["id"], ())) + (row["state"] == "claimed"),
                    "replays": int(row["replays"] > 0),
                    "failures": 0,
                    "unknowns": 0,
                    "reason_text": None,
                }
            case "head":
                claimed_by = row["claimed_by"] and self.who.get(row["claimed_by"], "")
                return {**row, "claimed_by": claimed_by, "served": self.rank(row["served"])}
            case "share":
                return {**row, "served": self.rank(row["served"])}
            case "attempt":
                mine = self.tries.get(row["message_id"], [])
                if row["delivery_id"] not in mine:
                    return None
                return {**row, "delivery_id": self.which[row["delivery_id"]], "number": mine.index(row["delivery_id"]) + 1}
            case _:
                return row

    def rank(self, served: int) -> int:
        """The same for a delivery that a stream or a share was last part of."""
        return sum(each <= served for each in self.which)

    def fault(self, delivery: int) -> int:
        """Instead of the delivery that went wrong one that is compared with others as it was."""
        return self.which[self.last] if 0 < self.last < delivery else 0

    def process(self, process: Process) -> Process:
        return Process(self.memory(process.memory), self.place(process.hand), self.place(process.pulse))

    def memory(self, memory: Memory) -> Memory:
        return memory._replace(
            identity=self.who[memory.identity],
            held=frozenset(self.which[each] for each in memory.held),
            unrecorded=tuple(self.minded(each) for each in memory.unrecorded),
        )

    def minded(self, what: Any) -> Any:
        """The same for a batch, or for what became of one."""
        messages = tuple(self.message(each, what.delivery) for each in what.messages)
        return replace(what, delivery=self.which[what.delivery], worker=self.who[what.worker], messages=messages)

    def message(self, message: Any, delivery: int) -> Any:
        mine = self.tries.get(message.id, [])
        number = mine.index(delivery) + 1 if delivery in mine else len(mine) + 1
        return message._replace(attempt=number, failures=0, unknowns=0)

    def place(self, place: Place | None) -> Place | None:
        if place is None or not place.parts:
            return place
        parts = (Part(self.memory(part.memory), tuple(self.found(each) for each in part.found)) for part in place.parts)
        return place._replace(parts=tuple(parts))

    def found(self, found: Found) -> Found:
        value = found.value
        match found.by:
            case "claim_for" if found.raised:
                value = tuple(self.who[each] for each in value)
            case "claim_for":
                value = tuple(each and self.minded(each) for each in value)
            case "deliveries_of" | "deliveries_of_the_gone":
                value = tuple(self.which[each] for each in value)
            case "left_behind":
                value = tuple(
                    each._replace(
                        id=self.which[each.id],
                        worker=self.who[each.worker],
                        messages=tuple(self.message(message, each.id) for message in each.messages),
                    )
                    for each in value
                )
            case "beats":
                # One that nobody refers to any more matters to nobody.
                mine = ((self.who[name], int(beat == self.beats.get(name)) - 1) for name, beat in value if name in self.who)
                value = tuple(sorted(mine))
        return found._replace(value=value)


def _outline(process: Process) -> tuple[Any, ...]:
    """Something of a worker in which two workers mostly differ, whatever their names."""
    memory = process.memory
    places = (process.hand, process.pulse)
    return (
        *((each.operation, each.point, len(each.parts), each.arrived) if each else () for each in places),
        len(memory.unrecorded),
        tuple(sorted(memory.held)),
    )


def _names(processes: Iterable[Process], named: Named) -> dict[str, None]:
    """Everybody whom somebody refers to."""

    def all_of_them() -> Iterator[str]:
        for each in processes:
            yield each.memory.identity
        for each in processes:
            for place in each.places:
                for part in place.parts:
                    yield part.memory.identity
                    for found in part.found:
                        match found.by:
                            case "claim_for" if found.raised:
                                yield from found.value
                            case "claim_for":
                                yield from (batch.worker for batch in found.value if batch is not None)
                            case "left_behind":
                                yield from (left.worker for left in found.value)
            yield from (result.worker for result in each.memory.unrecorded)
        yield from (row["worker"] for row in named["delivery"] if row["finished_at"] is None)

    return dict.fromkeys(all_of_them())


def _minded(processes: Iterable[Process]) -> set[int]:
    """Every delivery that a process may yet ask about."""
    minded: set[int] = set()
    for each in processes:
        minded |= each.in_hand | set(each.memory.held)
        for place in each.places:
            for part in place.parts:
                minded |= set(part.memory.held) | {result.delivery for result in part.memory.unrecorded}
                for found in part.found:
                    match found.by:
                        case "deliveries_of" | "deliveries_of_the_gone":
                            minded |= set(found.value)
                        case "left_behind":
                            minded |= {left.id for left in found.value}
    return minded


_DESTINATION = TABLES.index("destination")


def key(moment: Moment, columns: Mapping[str, list[str]]) -> Any:
    """What the future of a moment in order depends on: those with the same key have the same.

    Of a destination not what is charged to it, since no limit is near.
    """
    stands = [columns["destination"].index(each) for each in ("stop", "open_until", "ramp")]
    destinations = tuple(tuple(row[each] for each in stands) for row in moment.rows[_DESTINATION])
    return (
        (*moment.rows[:_DESTINATION], destinations, *moment.rows[_DESTINATION + 1 :]),
        tuple((_place(each.hand), _place(each.pulse), _memory(each.memory)) for each in moment.processes),
        _place(moment.desk),
        moment.truth,
    )


def _memory(memory: Memory) -> Any:
    return memory.identity, memory.held, memory.claiming, memory.untold, tuple(_result(each) for each in memory.unrecorded)


def _result(result: Any) -> Any:
    return result.delivery, result.worker, type(result.verdict).__name__, tuple(each.id for each in result.messages)


def _place(place: Place | None) -> Any:
    """Where an operation stands, without what it remembers and asks for no more."""
    if place is None:
        return None
    parts = tuple(
        (
            part.memory.identity,
            part.memory.held if place.operation == "release" else (),
            tuple(_result(each) for each in part.memory.unrecorded),
            part.found,
        )
        for part in place.parts
    )
    return place.operation, place.point, place.arrived, parts
