"""`Outbox.explain`: what a word means, the facts about that, and why it is not moving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from outbox import explaining, migrate
from outbox.ambient import Ambient
from outbox.claims import Claims
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.errors import DatabaseDamaged, FileChanged, FileMissing, NoSuchMessage, OutOfRoom, SchemaError, SpoolError
from outbox.explaining import Cause, Found
from outbox.explaining.facts import AttachedFile, DestinationFacts, MessageFacts
from outbox.model import Lane, State
from outbox.policy import Policy
from outbox.reserve import Room
from outbox.spool.base import Spool
from outbox.store import causes
from outbox.timekeeping import When


class Explaining:
    """The part of an Outbox that says why something is not moving."""

    database: Database
    destinations: dict[str, Destination]
    ambient: Ambient
    spool_store: Spool
    room: Room

    def explain(self, what: str | int, destination: str | None = None) -> list[Cause]:
        """Why a message (by id or key) or a destination (by name) is not moving, and what happens next and when.

        The causes that matter most come first; there is always at least one, if only that nothing stands in its way.
        `destination` narrows a key that several destinations have. A word that means more than one thing is explained in
        each of its meanings. A database that cannot be read, or has another schema, is a cause too.

        Reads only. Raises NoSuchMessage when nothing has that id, key or name.
        """
        try:
            migrate.require_current(self.database)
            return explaining.in_order(self._explained(str(what), destination))
        except SchemaError as error:
            return [explaining.of_schema(str(error), newer=self._is_newer()).cause]
        except (DatabaseDamaged, OutOfRoom) as error:
            return [explaining.of_database(str(error)).cause]
        except SQLAlchemyError as error:
            return [explaining.of_database(f"the database cannot be read: {getattr(error, 'orig', None) or error}").cause]

    def _is_newer(self) -> bool:
        try:
            with self.database.read() as connection:
                return (migrate.current(connection) or "") > migrate.newest()
        except SchemaError:
            return False  # there is no database at all

    def _explained(self, word: str, destination: str | None) -> list[Found]:
        claims = Claims(self.database, self.destinations, self.ambient, lambda: "")
        found = [*explaining.of_clock(self.ambient.now()), *self._of_room()]
        messages, place = self._meant(word, destination)
        if len(messages) + (place is not None) > 1:
            meanings = [f"message {number} of {name}, with the key {key!r}" for number, key, name in messages]
            found.append(explaining.of_several(word, meanings + ([f"the destination {place}"] if place else [])))
        for number, _, name in messages:
            found += self._of_message(claims, number, name)
        return found + (self._of_destination(claims, place) if place else [])

    def _of_room(self) -> Iterator[Found]:
        """What a producer would be told who came with a message now."""
        try:
            self.room.admit(1, 0)
        except OutOfRoom as error:
            yield explaining.of_room(str(error))

    def _meant(self, word: str, destination: str | None) -> tuple[list[tuple[int, str, str]], str | None]:
        """The messages that a word means, and the destination. Raises NoSuchMessage when it means none."""
        with self.database.read() as connection:
            among = sorted({*causes.names(connection), *self.destinations})
            wanted = among if destination is None else [name for name in among if name == destination]
            messages = causes.named(connection, word, wanted) if _can_be_stored(word) else []
        place = word if destination is None and word in among else None
        if not messages and place is None:
            where = f" for {destination}" if destination is not None else ""
            raise NoSuchMessage(
                f"no message{where} has the id or key {word!r}, and no destination that name; there are: "
                f"{', '.join(among) or 'none'}"
            )
        return messages, place

    def _of_message(self, claims: Claims, number: int, name: str) -> list[Found]:
        when = self._when(claims, name)
        with self.database.read() as connection:
            place = self._place(connection, name, when)
            message = causes.message_facts(connection, number, when)
        if message is None:
            raise NoSuchMessage(f"message {number} has been purged just now")
        return explaining.of_message(self._looked_at(message), place)

    def _of_destination(self, claims: Claims, name: str) -> list[Found]:
        when = self._when(claims, name)
        with self.database.read() as connection:
            return explaining.of_destination(self._place(connection, name, when))

    def _when(self, claims: Claims, name: str) -> When:
        """The time as a worker's claim would see it."""
        if name in self.destinations:
            claims.anything_due(name, list(Lane))  # looks how far away messages are, which tells whether a clock was wrong
        return claims.when(name)

    def _place(self, connection: Connection, name: str, when: When) -> DestinationFacts:
        declared = self.destinations.get(name)
        policy = declared.policy if declared else Policy()
        return causes.destination_facts(connection, name, policy, when, declared=declared is not None)

    def _looked_at(self, message: MessageFacts) -> MessageFacts:
        """With what the spool says about its files, as far as they are still needed."""
        if message.state in _WITHOUT_FILES:
            return message
        return replace(message, attached=tuple(self._look_at(each) for each in message.attached))

    def _look_at(self, attached: AttachedFile) -> AttachedFile:
        try:
            size = self.spool_store.size(attached.spooled)
        except FileMissing:
            return replace(attached, missing=True)
        except FileChanged as error:
            return replace(attached, changed=str(error))
        except SpoolError as error:
            return replace(attached, unreadable=str(error))
        if size != attached.size:
            return replace(attached, changed=f"it has {size} bytes instead of {attached.size}")
        return attached


#: States in which a message's files may be gone without harm.
_WITHOUT_FILES = frozenset({State.DELIVERED, State.CANCELLED})


def _can_be_stored(word: str) -> bool:
    """Whether a database may be asked for it; no key has these."""
    return "\0" not in word and not any("\ud800" <= letter <= "\udfff" for letter in word)
