"""What a person does to an outbox: pause, resume, replay, cancel. Each leaves a row in the audit."""

from __future__ import annotations

from typing import Literal

from outbox.ambient import Ambient
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.errors import ConfigurationError, UnknownDestination
from outbox.model import Selection
from outbox.patience import paused, resumed
from outbox.policy import HANDFUL
from outbox.store import acting, breaker, streams
from outbox.timekeeping import When
from outbox.verdict import cleaned


class Operations:
    """The part of an Outbox that is for its operator; `by` is always the name of whoever does it."""

    database: Database
    destinations: dict[str, Destination]
    ambient: Ambient

    def destination(self, name: str) -> Destination:
        """A destination by name. Raises UnknownDestination, which lists those that are declared."""
        try:
            return self.destinations[name]
        except (KeyError, TypeError):
            raise UnknownDestination(name, self.destinations) from None

    def pause(self, destination: str, reason: str, by: str) -> None:
        """Let no upload to a destination begin any more, on any worker, until `resume`; those in hand are finished.

        Messages go on to be enqueued. Raises UnknownDestination.
        """
        name = self.destination(destination).name
        now = self.ambient.now()
        with self.database.begin() as connection:
            breaker.declare(connection, [name])
            seen = breaker.read(connection, name, lock=True)
            breaker.stop(connection, name, paused(seen), now, cleaned(reason), cleaned(by, 255))
            acting.note(connection, now, by, "pause", f"destination {name}: {reason}", 0)

    def resume(self, destination: str, by: str, *, ordering_key: str | None = None) -> bool:
        """Let a destination go on, whatever stopped it; or a stream of it, past its dead messages. False if nothing was.

        A destination that was in trouble is tried with one message first. Raises UnknownDestination.
        """
        name = self.destination(destination).name
        now = self.ambient.now()
        with self.database.begin() as connection:
            if ordering_key is not None:
                changed = streams.forgive(connection, name, ordering_key, When.certain(now))
            else:
                seen = breaker.read(connection, name, lock=True)
                changed = seen.stop is not None or seen.is_open
                breaker.move(connection, name, seen, resumed(seen, now), now)
            if changed:
                what = f"destination {name}" + (f"; ordering key {ordering_key}" if ordering_key else "")
                acting.note(connection, now, by, "resume", what, 0)
        return changed

    def replay(self, selection: Selection, by: str) -> int:
        """Give messages that are final a fresh start, in the bulk lane; their history stays. Returns how many.

        Passed over are messages that are not final, and those whose files have been freed. In bounded transactions: an
        interruption leaves the rest as it was. Raises ConfigurationError when nothing narrows the selection.
        """
        return self._act("replay", selection, by)

    def cancel(self, selection: Selection, by: str) -> int:
        """Withdraw messages that are pending or dead; a stream goes on without them. Returns how many.

        One that is being sent at this moment is passed over. Raises ConfigurationError when nothing narrows the selection.
        """
        return self._act("cancel", selection, by)

    def count(self, action: Literal["replay", "cancel"], selection: Selection) -> int:
        """How many messages of a selection `replay` or `cancel` would be done to."""
        self._require_narrow(action, selection)
        with self.database.read() as connection:
            return acting.count(connection, action, selection)

    def _require_narrow(self, action: str, selection: Selection) -> None:
        if not selection.narrows:
            raise ConfigurationError(f"say which messages to {action}: by id, key, destination, state, reason or ordering key")
        if selection.destination is not None:
            self.destination(selection.destination)

    def _act(self, action: Literal["replay", "cancel"], selection: Selection, by: str) -> int:
        self._require_narrow(action, selection)
        done, held = self._act_in_handfuls(action, selection, by)
        for stream_id in sorted(held):
            done += self._act_in_handfuls(action, selection, by, stream_id)[0]
        return done

    def _act_in_handfuls(
        self, action: Literal["replay", "cancel"], selection: Selection, by: str, stream_id: int | None = None
    ) -> tuple[int, set[int]]:
        """How many messages it was done to, and the streams that were passed over because somebody held them."""
        skipping = [each.name for each in self.destinations.values() if each.policy.on_dead == "skip"]
        done, after = 0, 0
        held: set[int] = set()
        while True:
            now = self.ambient.now()
            with self.database.begin() as connection:
                chosen = acting.choose(connection, action, selection, after, HANDFUL, stream_id)
                act = acting.replay if action == "replay" else acting.cancel
                touched = act(connection, chosen.ids, now)
                for skip in (True, False):
                    mine = acting.streams_of(connection, touched, skipping, skip=skip)
                    streams.release(connection, mine, When.certain(now), skip=skip)
                if touched:
                    acting.note(connection, now, by, action, str(selection), len(touched))
            done, held = done + len(touched), held | chosen.held
            if chosen.last is None:
                return done, held
            after = chosen.last
