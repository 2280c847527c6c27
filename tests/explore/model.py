"""What an outbox should do, said with sets and lists; how it is done is not known here.

Whoever runs the real one tells the model what happened, and the model says what must be so now. Where an outbox may choose,
such as which messages travel together, it is told what was chosen, and says whether that was allowed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

#: Limits that are near, so that they are come to.
MAX_FAILURES, MAX_UNKNOWN = 2, 1
BACKOFF_CAP = 3600.0
#: How long the files of what was delivered stay, and how old rubbish is that is set aside.
FILES_STAY, RUBBISH_STAYS = timedelta(hours=1), timedelta(hours=24)
OVER = frozenset({"delivered", "dead", "cancelled"})


class Wrong(AssertionError):
    """Something happened that must not, or did not that must."""


@dataclass(eq=False)
class Told:
    """A message, as far as somebody sees it who was told everything about it."""

    key: str
    content: int = 0
    order: str | None = None  #: its ordering key
    ordered: bool = True  #: whether it is one of a stream, or only takes turns
    files: tuple[bytes, ...] = ()
    later: float = 0.0  #: its producer wants it to wait for so many seconds
    waits_until: float = 0.0  #: in seconds that really passed
    state: str = "pending"
    why: str | None = None  #: it is dead
    tries: int = 0
    ended: list[str] = field(default_factory=list)  #: how each try did
    replays: int = 0
    failures: int = 0
    unknowns: int = 0
    company: int | None = None  #: with how many it may travel, itself included
    suspect: bool = False  #: a worker died with it
    failed_in: int | None = None  #: the last claim that failed through no fault of it
    files_go: datetime | None = None
    files_gone: bool = False

    @property
    def in_stream(self) -> bool:
        return self.order is not None and self.ordered

    @property
    def over(self) -> bool:
        return self.state in OVER


@dataclass(eq=False)
class Claim:
    """Messages that a worker has to send together."""

    number: int
    worker: str
    messages: list[Told]


class Model:
    """Everything that is known of one outbox, its workers and its spool."""

    def __init__(self, wall: datetime) -> None:
        self.wall = wall
        self.passed = 0.0  #: seconds that really passed
        self.dice = 1.0
        self.steady = True  #: nobody has set the clock
        self.messages: dict[str, Told] = {}
        self.streams: dict[str, list[Told]] = {}  #: in the order of the commits
        self.last_place: dict[str, int] = {}
        self.place: dict[Told, int] = {}
        self.forgiven: dict[str, int] = {}  #: up to which place of a stream the dead hold up nobody
        self.under_way: list[Claim] = []
        self.claims = 0
        self.delivered_in: list[int] = []  #: claims
        self.alive: set[str] = set()  #: workers that nobody has declared gone
        self.paused: set[str | None] = set()  #: ordering keys; None is the destination
        self.rubbish: list[tuple[bytes, datetime]] = []  #: files of what was rolled back

    # What can be seen.

    def seen(self) -> dict[str, tuple[object, ...]]:
        """Each message: its state, why it is dead, tries, replays, who has it, and how its tries ended."""
        holder = {each: claim.worker for claim in self.under_way for each in claim.messages}
        return {
            key: (each.state, each.why, each.tries, each.replays, holder.get(each), tuple(each.ended))
            for key, each in self.messages.items()
        }

    def in_spool(self) -> Counter[bytes]:
        """The files that rest there."""
        kept = [each for told in self.messages.values() if not told.files_gone for each in told.files]
        return Counter(kept + [content for content, _ in self.rubbish])

    @property
    def unfinished(self) -> list[Told]:
        return [each for each in self.messages.values() if not each.over]

    @property
    def has_due(self) -> bool:
        """Whether a claim would find something."""
        return not all(self.against(each) for each in self.unfinished)

    # Producers.

    def commit(self, told: Told) -> None:
        """A transaction with it was committed."""
        self.messages[told.key] = told
        told.waits_until = self.passed + told.later
        if told.in_stream:
            self.last_place[told.order] = self.place[told] = self.last_place.get(told.order, 0) + 1
            self.streams.setdefault(told.order, []).append(told)

    def roll_back(self, told: Told) -> None:
        """It never was; its files lie about until they are swept."""
        self.rubbish += [(each, self.wall) for each in told.files]

    # Workers.

    def claim(self, worker: str, keys: list[str]) -> Claim:
        """A worker took these, to send them together."""
        if worker not in self.alive:
            raise Wrong(f"{worker} is gone and has claimed {keys}")
        messages = [self.messages[key] for key in keys if key in self.messages]
        if len(messages) < len(keys) or not keys:
            raise Wrong(f"claimed were {keys}, of which there are {[each.key for each in messages]}")
        for each in messages:
            if against := self.against(each):
                raise Wrong(f"{each.key} was claimed although {against}")
            if (each.company or len(keys)) < len(keys) or each.company != messages[0].company:
                raise Wrong(f"{keys} travel together, and {each.key} may with {each.company}")
            if each.suspect and len(keys) > 1:
                raise Wrong(f"a worker died with {each.key}, and it does not travel alone: {keys}")
        orders = [each.order for each in messages if each.in_stream]
        if len(orders) > len(set(orders)):
            raise Wrong(f"two of one stream travel together: {keys}")
        self.claims += 1
        claim = Claim(self.claims, worker, messages)
        self.under_way.append(claim)
        for each in messages:
            each.state, each.tries = "claimed", each.tries + 1
        return claim

    def claim_nothing(self) -> None:
        """A worker looked, and there was nothing to do."""
        if not self.steady:
            return  # how long something waits is for the clock to say
        for each in self.unfinished:
            if not self.against(each):
                raise Wrong(f"nothing was claimed, and nothing stands in the way of {each.key}")

    def against(self, told: Told) -> str:
        """Why a message may not be claimed now; empty when it may."""
        if told.state != "pending":
            return f"it is {told.state}"
        if self.steady and told.waits_until > self.passed:
            return f"it waits for {told.waits_until - self.passed:g} s yet"
        if None in self.paused or (told.order is not None and told.order in self.paused):
            return "a person has paused it"
        if told.suspect and any(each.suspect for claim in self.under_way for each in claim.messages):
            return "another is under way that a worker may have died of"
        for first in self.streams.get(told.order or "", []) if told.in_stream else ():
            if first is told:
                continue
            before = self.place[first] < self.place[told]
            if first.state == "claimed" or (first.state == "pending" and before):
                return f"{first.key} of its stream is {first.state}"
            if before and self._holds_up(first):
                return f"{first.key}, before it in its stream, is dead"
        return ""

    def _holds_up(self, told: Told) -> bool:
        return told.state == "dead" and self.place[told] > self.forgiven.get(told.order or "", 0)

    def record(self, claim: Claim, answer: str) -> None:
        """A worker wrote down how it went; if its claim was taken from it, that changes nothing."""
        if claim not in self.under_way:
            return
        self.under_way.remove(claim)
        if answer == "ok":
            self.delivered_in.append(claim.number)
        for each in claim.messages:
            self._settle(each, claim, answer)

    def _settle(self, each: Told, claim: Claim, answer: str) -> None:
        alone, half = len(claim.messages) == 1, (len(claim.messages) + 1) // 2
        # A destination that has delivered something else since is well again, so that it may be the message.
        fell = each.failed_in
        mended = answer == "gone" or (fell is not None and any(number > fell for number in self.delivered_in))
        each.state = "pending"
        each.ended.append(_ENDS[answer])
        match answer:
            case "ok":
                self._end(each, "delivered")
                if each.files:
                    each.files_go = self.wall + FILES_STAY
            case "refused" if alone:
                each.company = 1
                self._end(each, "dead", "rejected")
            case "refused":
                each.company = half
            case "no connection" | "never begun":
                pass
            case "fails" | "cut":
                each.failed_in = claim.number
                if mended and alone:
                    each.failures += 1
                    if each.failures >= MAX_FAILURES:
                        self._end(each, "dead", "exhausted")
                    else:
                        self._put_off(each, each.failures)
                elif mended:
                    each.company = half
            case "lost" | "gone":
                each.failed_in = claim.number
                if not alone:
                    each.company = half
                elif mended:
                    each.unknowns += 1
                    each.suspect = each.suspect or answer == "gone"
                    if each.unknowns > MAX_UNKNOWN:
                        self._end(each, "dead", "outcome_unknown")
                    elif answer == "lost":
                        self._put_off(each, each.unknowns)
            case _:
                raise NotImplementedError(answer)

    def _end(self, each: Told, state: str, why: str | None = None) -> None:
        each.state, each.why, each.suspect = state, why, False

    def _put_off(self, each: Told, times: int) -> None:
        each.waits_until = self.passed + self.dice * min(BACKOFF_CAP, 2.0 ** (times - 1))

    def declare_gone(self, workers: set[str]) -> None:
        """Somebody said so of these."""
        self.alive -= workers

    def rescue(self) -> int:
        """Somebody took back what the gone had; how many claims that were."""
        left = [each for each in self.under_way if each.worker not in self.alive]
        for each in left:
            self.record(each, "gone")
        return len(left)

    # People.

    def cancel(self, keys: list[str]) -> int:
        mine = [self.messages[key] for key in keys if self.messages[key].state in ("pending", "dead")]
        for each in mine:
            self._end(each, "cancelled")
        return len(mine)

    def replay(self, keys: list[str]) -> int:
        mine = [each for key in keys if (each := self.messages[key]).over and not (each.files and each.files_gone)]
        for each in mine:
            each.state, each.why, each.suspect = "pending", None, False
            each.failures = each.unknowns = 0
            each.failed_in, each.files_go = None, None
            each.waits_until = self.passed
            each.replays += 1
        return len(mine)

    def purge(self, keys: list[str]) -> int:
        mine = [self.messages[key] for key in keys if self.messages[key].over]
        for each in mine:
            del self.messages[each.key]
            if each.order is not None and each.ordered:
                self.streams[each.order].remove(each)
        if any(each.files and not each.files_gone for each in mine):
            self.free_files()
        return len(mine)

    def pause(self, order: str | None) -> None:
        """Of an ordering key; None is all of them."""
        self.paused.add(order)

    def resume(self, order: str | None) -> bool:
        """Returns whether something was stopped."""
        stopped = order in self.paused
        self.paused.discard(order)
        if order is not None and self.is_blocked(order):
            self.forgiven[order] = max(self.place[each] for each in self.streams[order] if each.state == "dead")
            stopped = True
        return stopped

    def is_stopped(self, order: str | None) -> bool:
        """Whether there is something to resume."""
        return order in self.paused or (order is not None and self.is_blocked(order))

    def is_blocked(self, order: str) -> bool:
        """Whether a dead message holds up a stream."""
        stream = self.streams.get(order, [])
        first = min((self.place[each] for each in stream if not each.over), default=None)
        return any(self._holds_up(each) and (first is None or self.place[each] < first) for each in stream)

    # Housekeeping.

    def free_files(self) -> int:
        """The files whose time has come; those of a message that may yet be sent stay. Returns how many went."""
        went = 0
        for each in self.messages.values():
            if each.files_go is not None and each.files_go <= self.wall and not each.files_gone:
                each.files_gone = each.state not in ("pending", "claimed", "dead")
                each.files_go = None
                went += len(each.files) * each.files_gone
        return went

    def sweep(self) -> int:
        """Rubbish that is old enough is set aside; returns how many files."""
        young = [each for each in self.rubbish if each[1] > self.wall - RUBBISH_STAYS]
        swept, self.rubbish = len(self.rubbish) - len(young), young
        return swept


_ENDS = {
    "ok": "delivered",
    "refused": "reject",
    "fails": "retry",
    "cut": "not_sent",
    "no connection": "not_sent",
    "never begun": "not_sent",
    "lost": "unknown",
    "gone": "unknown",
}
