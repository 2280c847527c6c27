"""What can happen next at a moment, and what becomes of it: each step is a transaction of the real objects, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from outbox import Lane, Selection
from outbox.claims import WorkerGone
from outbox.errors import NotSent
from outbox.transport import Answer
from tests.explore.moment import NEW, Moment, Named, Process, Step, Truth
from tests.explore.stage import TABLES, Memory, Place, Played, Rows, Stage

LANES = (Lane.NORMAL, Lane.BULK)
#: What the receiver says; `ok` and no word at all only once it has the request.
ANSWERS: Mapping[str, Answer | Exception | None] = {
    "ok": Answer(200, {}, b'{"code": 0, "msg": "OK"}'),
    "lost": None,
    "refused": Answer(200, {}, b'{"code": 99400, "msg": "a parameter is invalid"}'),
    "fails": Answer(503, {}, b""),
    "not sent": NotSent("connection refused"),
}
_AFTER_ARRIVAL = ("ok", "lost")
_NOT_KEPT = frozenset(ANSWERS) - {"", *_AFTER_ARRIVAL}


@dataclass(frozen=True)
class Scope:
    """What is explored: what there is in the beginning, what may happen, and how often at most."""

    name: str
    prepare: Callable[[Stage], None]
    steps: frozenset[str]  #: what may happen, in the words of `offered`
    most: Mapping[str, int] = field(default_factory=dict)  #: how often; nothing said is as often as it likes
    committed: bool = False  #: a claim can be interrupted between its COMMIT and the moment its worker knows of it
    workers: int = 2


def offered(moment: Moment, named: Named, scope: Scope) -> Iterator[Step]:
    """Everything that may happen next."""
    for step in _conceivable(moment, named, scope):
        kinds = [step.what, step.answer, step.trouble and "trouble"]
        if all(not kind or moment.truth.spent_on(kind) < scope.most[kind] for kind in kinds if kind in scope.most):
            yield step


def _conceivable(moment: Moment, named: Named, scope: Scope) -> Iterator[Step]:
    open_deliveries = [row for row in named["delivery"] if row["finished_at"] is None]
    alive = [row["id"] for row in named["worker"] if not row["gone"]]
    # Of the dead, those that hold something.
    known = {row["worker"] for row in open_deliveries} | {each.memory.identity for each in moment.processes}
    for who, process in enumerate(moment.processes):
        mine = any(row["worker"] == process.memory.identity for row in open_deliveries)
        if mine or process.hand is not None or process.memory.unrecorded:  # one that has nothing loses nothing
            yield from _of(scope, Step(who, "crashes"))
        yield from _hand(who, process, scope)
        if process.pulse is not None:
            yield Step(who, f"goes on with its {process.pulse.operation}")
            continue
        yield from _of(scope, Step(who, "beats"))
        for each in alive:
            if each != process.memory.identity and each in known:
                yield from _of(scope, Step(who, "looks around", whom=each))
        if open_deliveries:
            yield from _of(scope, Step(who, "rescues"))
            if mine:
                yield from _of(scope, Step(who, "releases"))
        if process.memory.unrecorded:
            yield from _of(scope, Step(who, "records what is left"))
            if "trouble" in scope.steps:
                yield Step(who, "records what is left", trouble="before")
        if named["head"]:
            yield from _of(scope, Step(who, "frees streams"))
    yield from _desk(moment, named, scope)


def _hand(who: int, process: Process, scope: Scope) -> Iterator[Step]:
    hand = process.hand
    if hand is None:
        if not process.memory.unrecorded:
            yield from _of(scope, Step(who, "claims"))
            if "trouble" in scope.steps:
                yield Step(who, "claims", trouble="after")
    elif hand.point != "send":
        yield Step(who, "goes on with its turn")
    else:
        if not hand.arrived:
            yield from _of(scope, Step(who, "sends"))
        for answer in ANSWERS:
            if answer in scope.steps and ("sends" not in scope.steps or (answer in _AFTER_ARRIVAL) == hand.arrived):
                yield Step(who, "hears", answer)
                if "trouble" in scope.steps and answer == "ok":
                    yield Step(who, "hears", answer, "before")
                    yield Step(who, "hears", answer, "after")


def _desk(moment: Moment, named: Named, scope: Scope) -> Iterator[Step]:
    if moment.desk is not None:
        yield Step(-1, f"goes on to {moment.desk.operation.split()[0]}")
        return
    for row in named["message"]:
        yield from _of(scope, Step(-1, "cancels", message=row["id"]))
        yield from _of(scope, Step(-1, "replays", message=row["id"]))
    paused = any(row["stop"] == "pause" for row in named["destination"])
    yield from _of(scope, Step(-1, "resumes" if paused else "pauses"))
    if any(row["blocked_by"] is not None for row in named["head"]):
        yield from _of(scope, Step(-1, "lets the stream go on"))


def _of(scope: Scope, step: Step) -> Iterator[Step]:
    if step.what in scope.steps:
        yield step


class Player:
    """Takes steps on a stage. What was played once is not played again where the tables that it has asked are the same."""

    def __init__(self, stage: Stage, scope: Scope, named: Callable[[Rows], Named]) -> None:
        self._stage = stage
        self._named = named
        self._scope = scope
        self._stops = frozenset({"committed"} if scope.committed else ())
        #: By what was asked: the tables that it has asked, and what came of it by what was in them.
        self._known: dict[Any, dict[tuple[int, ...], dict[Any, tuple[Any, Played]]]] = {}
        self.played = 0

    def take(self, moment: Moment, step: Step) -> Moment:
        """The moment after a step."""
        kinds = {step.what, step.answer, "trouble" if step.trouble else ""} & set(self._scope.most)
        spent = dict(moment.truth.spent)
        truth = moment.truth._replace(
            spent=tuple(sorted({**spent, **{each: spent.get(each, 0) + 1 for each in kinds}}.items()))
        )
        if step.who < 0:
            rows, played = self._play(
                moment.rows, Memory(), _place_of(step, moment.desk), step, self._at_the_desk(step, moment)
            )
            after = moment._replace(rows=rows, desk=played.place, truth=truth)
        elif step.what == "sends":
            after = self._with(moment._replace(truth=truth), step, *self._sent(moment.processes[step.who], truth))
        else:
            process = Process(Memory()) if step.what == "crashes" else moment.processes[step.who]
            rows, process, truth = self._do(moment, step, process, truth)
            after = self._with(moment._replace(rows=rows), step, process, truth)
        return self._explained(moment, after)

    def _with(self, moment: Moment, step: Step, process: Process, truth: Truth) -> Moment:
        processes = tuple(process if number == step.who else each for number, each in enumerate(moment.processes))
        minded = set().union(*(each.in_hand for each in processes))
        return moment._replace(processes=processes, truth=truth._replace(confirmed=truth.confirmed & minded))

    def _sent(self, process: Process, truth: Truth) -> tuple[Process, Truth]:
        assert process.hand is not None
        return process._replace(hand=process.hand._replace(arrived=True)), _arrived(truth, process)

    def _explained(self, before: Moment, after: Moment) -> Moment:
        """What may have arrived without a word, and what a person has asked for again, explains a copy."""
        if before.rows == after.rows:
            return after
        was, now, truth = self._named(before.rows), self._named(after.rows), after.truth
        known = {(row["message_id"], row["number"]) for row in was["attempt"]}
        for row in now["attempt"]:
            if row["outcome"] == "unknown" and (row["message_id"], row["number"]) not in known:
                truth = truth.counting(row["message_id"], explained=1)
        replays = {row["id"]: row["replays"] for row in was["message"]}
        for row in now["message"]:
            if more := row["replays"] - replays[row["id"]]:
                truth = truth.counting(row["id"], explained=more)
        return after._replace(truth=truth)

    def _do(self, moment: Moment, step: Step, process: Process, truth: Truth) -> tuple[Rows, Process, Truth]:
        place, by_hand = _operation_of(step, process)
        if step.answer == "ok":
            truth = truth._replace(confirmed=truth.confirmed | {process.hand.batch.delivery})
        rows, played = self._play(moment.rows, process.memory, place, step, self._operation(place))
        if step.answer in _NOT_KEPT and "sends" not in self._scope.steps:
            truth = _arrived(truth, process, -1)
        process = process._replace(memory=played.memory, **{"hand" if by_hand else "pulse": played.place})
        if step.what == "claims" and process.hand is not None and process.hand.batch and "sends" not in self._scope.steps:
            truth = _arrived(truth, process)  # as soon as it can
        return rows, process, truth

    def _play(
        self,
        rows: Rows,
        memory: Memory,
        place: Place | str,
        step: Step,
        operation: Callable[[], object],
    ) -> tuple[Rows, Played]:
        known = self._known.setdefault((memory, place, step.answer, step.trouble, step.whom), {})
        for tables, results in known.items():
            if result := results.get(tuple(rows[each] for each in tables)):
                return _with_changes(rows, result[0]), result[1]
        played = self._stage.play(
            rows,
            memory,
            operation,
            place,
            answer=ANSWERS.get(step.answer),
            trouble=step.trouble,
            to_the_end=bool(step.answer) or (step.who < 0 and isinstance(place, Place)) or step.what in ("pauses", "resumes"),
            stops=self._stops if (place if isinstance(place, str) else place.operation) == "turn" else frozenset(),
            new_id=NEW,
            whom=step.whom,
        )
        self.played += 1
        now = self._stage.rows()
        changes = tuple((each, now[each]) for each in range(len(now)) if now[each] != rows[each])
        tables = tuple(number for number, name in enumerate(TABLES) if name in self._stage.touched)
        assert {each for each, _ in changes} <= set(tables)
        known.setdefault(tables, {})[tuple(rows[each] for each in tables)] = changes, played
        return now, played

    def _operation(self, place: Place | str) -> Callable[[], object]:
        stage = self._stage
        match place if isinstance(place, str) else place.operation:
            case "turn":
                return lambda: _turn(stage)
            case "beat":
                return lambda: _beat(stage)
            case "look":
                return stage.presence.look
            case "rescue":
                return stage.dispatcher.rescue
            case "release":
                return stage.dispatcher.release_unheld
            case "leftovers":
                return stage.dispatcher.record_leftovers
            case "streams":
                return stage.dispatcher.free_streams
            case "start":
                return stage.presence.arrive
            case other:
                raise AssertionError(other)

    def _at_the_desk(self, step: Step, moment: Moment) -> Callable[[], object]:
        outbox = self._stage.outbox
        name, _, number = (moment.desk.operation if moment.desk else f"{step.what} {step.message}").partition(" ")
        match name:
            case "cancels":
                return lambda: outbox.cancel(Selection(ids=(int(number),)), "somebody")
            case "replays":
                return lambda: outbox.replay(Selection(ids=(int(number),)), "somebody")
            case "pauses":
                return lambda: outbox.pause("enos", "a walk", "somebody")
            case "resumes":
                return lambda: outbox.resume("enos", "somebody")
            case "lets":
                return lambda: outbox.resume("enos", "somebody", ordering_key="k")
            case other:
                raise AssertionError(other)


def _turn(stage: Stage) -> None:
    """As a worker's loop does."""
    try:
        stage.dispatcher.turn("enos", LANES, peek=False)
    except WorkerGone as gone:
        _start_anew(stage, str(gone))


def _beat(stage: Stage) -> None:
    """As a worker's pulse does."""
    identity = stage.presence.id
    if not stage.presence.beat():
        _start_anew(stage, identity)


def _start_anew(stage: Stage, gone: str) -> None:
    stage.at_once()  # of the threads of a worker one does, the others wait for it
    if stage.presence.id == gone:
        stage.presence.arrive()


def _operation_of(step: Step, process: Process) -> tuple[Place | str, bool]:
    """The operation that a step is of, from its beginning or from where it stands; and whether it is the sender's."""
    match step.what:
        case "claims":
            return "turn", True
        case "hears" | "goes on with its turn":
            assert process.hand is not None
            return process.hand, True
        case "beats":
            return "beat", False
        case "looks around":
            return "look", False
        case "rescues":
            return "rescue", False
        case "releases":
            return "release", False
        case "records what is left":
            return "leftovers", False
        case "frees streams":
            return "streams", False
        case "crashes":
            return "start", False
        case _:
            assert process.pulse is not None
            return process.pulse, False


def _place_of(step: Step, desk: Place | None) -> Place | str:
    return desk or f"{step.what} {step.message}"


def _with_changes(rows: Rows, changes: tuple[tuple[int, Any], ...]) -> Rows:
    changed = list(rows)
    for each, table in changes:
        changed[each] = table
    return tuple(changed)


def _arrived(truth: Truth, process: Process, copies: int = 1) -> Truth:
    assert process.hand is not None
    for each in process.hand.batch.messages:
        truth = truth.counting(each.id, copies=copies)
    return truth
