"""The lookout: waits for nudges, looks what is due and what will be, and wakes whom there is something to do for."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from outbox.crews import SHORTEST_WAIT, Crew, Sender, SenderLoop, Why
from outbox.dispatcher import Dispatcher
from outbox.metronome import Loop, Metronome
from outbox.model import Batch
from outbox.nudging import ANY, Nudges
from outbox.policy import Policy
from outbox.watching import Watcher

log = logging.getLogger("outbox.lookout")

#: Who hears nudges looks so many times less often; and where there are other workers, of whose messages that come back nobody
#: tells.
_PATIENT, _PATIENT_AMONG_OTHERS = 60, 10
#: Seconds for which nudges are not counted on after something was found that they should have told of.
_DISTRUST = 300.0
#: Seconds that it waits for a nudge in one go.
_LISTEN = 30.0


class Lookout(Watcher):
    """Wakes the senders of a worker, at these destinations.

    Who hears no nudges looks every `poll` seconds. `among_others` is whether there are other workers. As a watcher of the work
    it sees when a sender has found something to send: is there more, others may help.
    """

    def __init__(
        self,
        metronome: Metronome,
        stop: threading.Event,
        poll: float,
        among_others: Callable[[], bool],
    ) -> None:
        self._metronome = metronome
        self._stop = stop
        self._poll = poll
        self._among_others = among_others
        self._dispatcher: Dispatcher | None = None
        self._names: list[str] = []
        self._nudges: Nudges | None = None
        self._deaf = False
        self._looked = (-1, False)  #: at the last look: the news, and whether nothing was known to come
        self._distrusted_until = -math.inf
        self.crews: list[Crew] = []
        self.news = 0  #: counts what may have changed something
        self.expires_at = -math.inf  #: when the time of a message is over, by the monotonic clock
        self.loop = Loop("lookout", self._look, _PATIENT * poll, poll)
        self.listener = threading.Thread(target=self._listen, name="outbox-nudges", daemon=True)

    def serve(self, dispatcher: Dispatcher, policies: Mapping[str, Policy]) -> list[SenderLoop]:
        """The loops of the senders that these destinations have."""
        self._dispatcher, self._names = dispatcher, list(policies)
        for name, policy in policies.items():
            for large, count in ((False, policy.senders), (True, policy.large_senders)):
                crew = Crew(name, large, policy.batch_messages)
                for number in range(count):
                    sender = Sender(dispatcher, name, None if large else number, policy)
                    place = f"{name}-{number + (policy.senders if large else 0)}"
                    crew.senders.append(
                        SenderLoop(place, sender, None, self._poll, crew=crew, sender=sender, after=self.look_now)
                    )
                self.crews.append(crew)
        return [each for crew in self.crews for each in crew.senders]

    # Nudges

    @property
    def hears(self) -> bool:
        """Whether nudges tell us of what comes."""
        nudges = self._nudges
        return nudges is not None and nudges.heard and time.monotonic() >= self._distrusted_until

    def listen(self, nudges: Nudges | None) -> None:
        """Wait for nudges from now on, where some may come."""
        self._nudges = nudges
        if nudges is not None:
            self.listener.start()

    def close(self) -> None:
        """Wait no more. Nobody wakes anybody by now: we have been told to stop."""
        nudges = self._nudges
        if nudges is not None:
            nudges.interrupt()
            if self.listener.is_alive():
                self.listener.join()
            self._nudges = None
            nudges.close()

    def _listen(self) -> None:
        while (nudges := self._nudges) is not None and not self._stop.is_set():
            try:
                heard = nudges.wait(_LISTEN)
                self._deaf = False
                if heard:
                    self._nudged(heard)
            except Exception as error:  # noqa: BLE001 (a hint was missed, and nothing else)
                if not self._deaf:
                    log.warning("cannot listen for nudges for now: %s: %s", type(error).__name__, error)
                self._deaf = True
                self._stop.wait(self._poll)

    def _nudged(self, names: set[str]) -> None:
        self.news += 1
        known = ANY not in names
        for crew in self.crews:
            if crew.destination in names or not known:
                crew.fruitless_until = 0.0
                # One who is woken looks for everybody when it is done; and those who are awake do.
                if known and not crew.large:
                    self._wake(crew, Why.NUDGE)
        if not known:
            self.look_now()

    # Looks

    @property
    def _patience(self) -> float:
        """Seconds until the next look, if nothing is known to come."""
        if not self.hears:
            return self._poll
        return self._poll * (_PATIENT_AMONG_OTHERS if self._among_others() else _PATIENT)

    @property
    def unsure(self) -> bool:
        """Whether there may be more than one sender has taken."""
        return any(crew.more for crew in self.crews)

    def look_now(self) -> None:
        """Look what there is to do, or let whoever is just looking look again."""
        self._metronome.run_now(self.loop)

    def look_aside(self) -> None:
        """The same on another thread, since something may have come back."""
        self.news += 1
        if self._metronome.take(self.loop):
            self._metronome.run_aside(self.loop)

    def _look(self) -> float | None:
        """Wake whom there is something to do for; returns after how many seconds to look again."""
        timed, self.loop.timed = self.loop.timed, False
        news, now = self.news, time.monotonic()
        surprising = timed and self.hears and self._looked == (news, True)
        outlooks = self._dispatcher.look_ahead(self._names) if self._dispatcher is not None else {}
        wait = patience = self._patience
        surprised = False
        for crew in self.crews:
            outlook = outlooks[crew.destination]
            prospect = outlook.large if crew.large else outlook.ordinary
            more, crew.more = crew.more, False
            if not prospect.due:
                crew.fruitless_until = 0.0
                wait = min(wait, prospect.wait, self._poll if prospect.held else math.inf)
            elif now < crew.fruitless_until:
                wait = min(wait, crew.fruitless_until - now)
            elif self._wake(crew, Why.MORE if more else Why.LOOK):
                surprised = surprised or (surprising and not more)
            elif not any(each.running for each in crew.senders):
                wait = min(wait, self._poll)
        self.expires_at = now + min((each.expires_in for each in outlooks.values()), default=math.inf)
        if surprised:
            level = logging.DEBUG if self._among_others() else logging.INFO
            log.log(level, "something was found that no nudge has told of; it is looked for more often for a while")
            self._distrusted_until = now + _DISTRUST
            wait = min(wait, self._poll)
        self._looked = (news, wait == patience)
        return max(wait, SHORTEST_WAIT)

    # Senders

    def upload_begins(self, batch: Batch) -> Mapping[str, Any]:
        loop = self._metronome.here
        self.news += 1
        if isinstance(loop, SenderLoop):
            loop.claims += 1
            loop.crew.fruitless_until = 0.0
            if loop.crew.sleeping is None:
                pass
            elif loop.claims > 1 or loop.why in (Why.MORE, Why.SIBLING) or 1 < loop.crew.full <= len(batch.messages):
                self._wake(loop.crew, Why.SIBLING)
            else:
                loop.crew.more = True  # most likely that was all; somebody looks soon
        return {}

    def _wake(self, crew: Crew, why: Why) -> bool:
        """Let one sender of a crew take turns; False when none is asleep."""
        while (loop := crew.sleeping) is not None and not self._stop.is_set():
            if self._metronome.take(loop):
                loop.woken(why)
                return self._metronome.run_aside(loop)
        return False

    # Housekeeping

    def seldom(self, seconds: tuple[float, float], chore: Callable[[], float | None], name: str) -> Loop:
        """A chore that is done every so often; and every so seldom while there is no news."""
        often, rarely = seconds
        known, rests_until = -1, -math.inf

        def take() -> float | None:
            nonlocal known, rests_until
            now = time.monotonic()
            if self.hears and known == self.news and now < rests_until:
                return None
            known = self.news
            again = chore()
            rests_until = now + rarely - often / 2 if again is None else -math.inf
            return again

        return Loop(name, take, often, often)
