"""What a person does to an outbox: pause, resume, replay, cancel, purge. Each leaves one row in the audit."""

from __future__ import annotations

from collections.abc import Callable, Collection

from outbox import secret
from outbox.acts import Act, Begun
from outbox.ambient import Ambient
from outbox.database import Database, nudge_at_commit
from outbox.destinations.base import Destination
from outbox.errors import ConfigurationError, Fault, Refused, UnknownDestination
from outbox.intake import KEY_LIMIT
from outbox.model import Pause, Selection
from outbox.patience import paused, resumed
from outbox.payload import brief, has_controls
from outbox.store import acting, breaker, living, pausing, streams
from outbox.store.acting import Action, Preview
from outbox.timekeeping import When
from outbox.verdict import cleaned

#: Characters of the reason for a pause: it stands in one line of the status.
_REASON_LIMIT = 500


class Operations:
    """The part of an Outbox that is for its operator; `by` is always the name of whoever does it.

    What is done to many messages is done in short transactions, a handful in each. `replay`, `cancel` and `purge` take one
    after the other; `wait`, such as `time.sleep`, then lets others have the database in between. `begin` gives the steps into
    the caller's own hands.
    """

    database: Database
    destinations: dict[str, Destination]
    ambient: Ambient

    def free_files(self) -> int:
        """Delete the bytes of files that nothing needs any more; returns how many."""
        raise NotImplementedError

    def destination(self, name: str) -> Destination:
        """A destination by name. Raises UnknownDestination, which lists those that are declared."""
        try:
            return self.destinations[name]
        except (KeyError, TypeError):
            raise UnknownDestination(name, self.destinations) from None

    def pause(self, destination: str, reason: str, by: str, ordering_key: str | None = None) -> None:
        """Let no upload to a destination begin any more, on any worker, until `resume`; those in hand are finished.

        With `ordering_key` only messages of that key are held back, whether or not their order matters, and whether or not
        there are any yet. Messages go on to be enqueued, and expire. `reason` has at most 500 characters.

        Raises UnknownDestination; Refused for a reason or a key that is none.
        """
        name = self.destination(destination).name
        words = _reason(reason)
        now = self.ambient.now()
        if ordering_key is not None:
            _require_key(ordering_key)
            with self.database.begin() as connection:
                pausing.write(connection, name, Pause(ordering_key, now, cleaned(by, 255), words))
                acting.note(connection, now, by, "pause", f"destination {name}; ordering key {ordering_key}: {words}")
            return
        with self.database.begin() as connection:
            breaker.declare(connection, [name])
            seen = breaker.read(connection, name, lock=True)
            breaker.stop(connection, name, paused(seen), now, words, cleaned(by, 255))
            acting.note(connection, now, by, "pause", f"destination {name}: {words}")

    def resume(self, destination: str, by: str, *, ordering_key: str | None = None) -> bool:
        """Let a destination go on, whatever stopped it; or an ordering key of it, if it is paused, and past its dead messages.

        False if nothing was stopped. A destination that was in trouble is tried with one message first. Raises
        UnknownDestination; Refused for a key that is none.
        """
        name = self.destination(destination).name
        now = self.ambient.now()
        if ordering_key is not None:
            _require_key(ordering_key)
        with self.database.begin() as connection:
            if ordering_key is not None:
                lifted = pausing.lift(connection, name, ordering_key)
                changed = streams.forgive(connection, name, ordering_key, When.certain(now)) or lifted
            else:
                seen = breaker.read(connection, name, lock=True)
                changed = seen.stop is not None or seen.is_open
                breaker.move(connection, name, seen, resumed(seen, now), now)
            if changed:
                what = f"destination {name}" + (f"; ordering key {ordering_key}" if ordering_key else "")
                acting.note(connection, now, by, "resume", what)
                nudge_at_commit(connection, name)
        return changed

    def stop_workers(self, by: str, ids: Collection[str] | None = None) -> list[str]:
        """Ask these workers, or every one that is alive, to end as on SIGTERM, wherever they run; they see it with their beat.

        Returns the ids of those that were there to be asked.
        """
        now = self.ambient.now()
        with self.database.begin() as connection:
            asked = living.ask_to_stop(connection, ids)
            if asked:
                acting.note(connection, now, by, "stop", f"workers {', '.join(asked)}")
        return asked

    def replay(self, selection: Selection, by: str, *, wait: Callable[[float], object] | None = None) -> int:
        """Give messages that are final a fresh start, in the bulk lane; their history stays. Returns how many.

        Passed over are messages that are not final, and those whose files have been freed. Those of a paused ordering key wait
        in its lane until it is resumed; but where order does not matter, one that was replayed before has no key any more.
        An interruption leaves the rest as it was, and `go_on` goes on. Raises ConfigurationError when nothing narrows the
        selection.
        """
        return self.begin("replay", selection, by).run(wait)

    def cancel(self, selection: Selection, by: str, *, wait: Callable[[float], object] | None = None) -> int:
        """Withdraw messages that are pending or dead; a stream goes on without them. Returns how many.

        One that is being sent at this moment is passed over. Raises ConfigurationError when nothing narrows the selection.
        """
        return self.begin("cancel", selection, by).run(wait)

    def purge(self, selection: Selection, by: str, *, wait: Callable[[float], object] | None = None) -> int:
        """Delete messages that are final, for ever: with their attempts, and the files that nobody else refers to.

        Returns how many. A stream goes on without them. Raises ConfigurationError when nothing narrows the selection.
        """
        return self.begin("purge", selection, by).run(wait)

    def begin(self, action: Action, selection: Selection, by: str, *, rate: float | None = None) -> Act:
        """Begin an act, for whoever takes its steps: each of them says how long to wait before the next.

        `rate` is in messages a second. The act is for messages that are in their state now; its row is in the audit from its
        first step on, if there is a message for it.
        Raises ConfigurationError when nothing narrows the selection.
        """
        self._require_narrow(action, selection)
        _require_rate(rate)
        return self._act(Begun(action, selection, by, self.ambient.now()), rate=rate)

    def go_on(self, act_id: int, action: Action | None = None, *, rate: float | None = None) -> Act:
        """Go on with an act that was interrupted, from where it was, with the selection and the moment it began with.

        Raises ConfigurationError when there is no such act, when it is another than `action`, or when it is over.
        """
        _require_rate(rate)
        with self.database.read() as connection:
            row = acting.act(connection, act_id)
        if row is None or row["chosen"] is None:
            raise ConfigurationError(f"there is no act {act_id} to go on with; outbox audit lists them")
        if action is not None and row["action"] != action:
            raise ConfigurationError(
                f"act {act_id} is a {row['action']}; go on with: outbox {row['action']} --continue {act_id}"
            )
        if row["finished_at"] is not None:
            many = "1 message" if row["messages"] == 1 else f"{row['messages']} messages"
            raise ConfigurationError(f"act {act_id} is over; it was done to {many}")
        try:
            selection = Selection.from_json(row["chosen"])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):  # a damaged row
            raise ConfigurationError(
                f"what act {act_id} was to be done to cannot be read any more; begin another, and name the messages"
            ) from None
        self._require_narrow(row["action"], selection)
        begun = Begun(row["action"], selection, row["actor"], row["at"], act_id, row["messages"], row["position"] or 0)
        return self._act(begun, rate=rate, again=True)

    def preview(self, action: Action, selection: Selection) -> Preview:
        """What an act would be done to; nothing is written. Raises ConfigurationError when nothing narrows the selection."""
        self._require_narrow(action, selection)
        with self.database.read() as connection:
            return acting.preview(connection, action, selection)

    def _act(self, begun: Begun, *, rate: float | None, again: bool = False) -> Act:
        skipping = [each.name for each in self.destinations.values() if each.policy.on_dead == "skip"]
        return Act(self.database, self.ambient, begun, skipping, self.free_files, rate=rate, again=again)

    def _require_narrow(self, action: Action, selection: Selection) -> None:
        if action not in acting.FROM:
            raise ConfigurationError(f"expected an act of {', '.join(acting.FROM)}, got {action!r}")
        if not selection.narrows:
            raise ConfigurationError(f"say which messages to {action}: by id, key, destination, state, reason or ordering key")
        if selection.destination is not None:
            self.destination(selection.destination)


def _reason(reason: object) -> str:
    """Why something is paused, fit for a row. Raises Refused when it says nothing, or too much."""
    if not isinstance(reason, str):
        raise Refused([Fault("reason", f"expected words, got {brief(reason)}")])
    if len(reason) > _REASON_LIMIT:
        raise Refused([Fault("reason", f"has {len(reason)} characters; say it in {_REASON_LIMIT} at most")])
    secret.learn()  # somebody may have typed one that nothing has used here yet
    words = cleaned(reason).strip()
    if not words:
        raise Refused([Fault("reason", "says nothing; say why, for whoever finds it stopped")])
    return words


def _require_key(ordering_key: object) -> None:
    if not isinstance(ordering_key, str) or not 0 < len(ordering_key) <= KEY_LIMIT or has_controls(ordering_key):
        raise Refused(
            [Fault("ordering_key", f"no message has {brief(ordering_key)}; it is 1 to {KEY_LIMIT} characters without controls")]
        )


def _require_rate(rate: float | None) -> None:
    if rate is not None and not rate > 0:
        raise ConfigurationError(f"expected a rate of more than 0 messages a second, got {rate}")
