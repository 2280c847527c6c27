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
from outbox.errors import (
    DatabaseDamaged,
    FileChanged,
    FileMissing,
    NoSuchMessage,
    OutboxError,
    OutOfRoom,
    SchemaError,
    SpoolError,
)
from outbox.explaining import Cause, Found
from outbox.explaining.facts import AttachedFile, DestinationFacts, MessageFacts
from outbox.model import FINAL, Lane, State
from outbox.policy import Policy, Retention
from outbox.reserve import Room
from outbox.spool.base import Spool
from outbox.store import causes
from outbox.timekeeping import When
from outbox.units import bytes_in_words

#: Seconds in which a writer has had its turn, unless somebody does not let go.
_PATIENCE = 1.0


class Explaining:
    """The part of an Outbox that says why something is not moving."""

    database: Database
    destinations: dict[str, Destination]
    ambient: Ambient
    spool_store: Spool
    room: Room
    retention: Retention

    def explain(self, what: str | int, destination: str | None = None) -> list[Cause]:
        """Why a message (by id or key) or a destination (by name) is not moving, and what happens next and when.

        The causes that matter most come first; there is always at least one, if only that nothing stands in its way.
        `destination` narrows a key that several destinations have. A word that means more than one thing is explained in
        each of its meanings. A database that cannot be read, or has another schema, is a cause too.

        Writes nothing; of SQLite's write lock, it looks whether it can be had. Raises NoSuchMessage when nothing has that id,
        key or name.
        """
        try:
            migrate.require_current(self.database)
            return explaining.in_order(self._explained(str(what), destination))
        except SchemaError as error:
            return [explaining.of_schema(str(error), self._revision(), migrate.newest()).cause]
        except (DatabaseDamaged, OutOfRoom) as error:
            return [explaining.of_database(str(error), lost=isinstance(error, DatabaseDamaged)).cause]
        except SQLAlchemyError as error:
            return [explaining.of_database(f"the database cannot be read: {getattr(error, 'orig', None) or error}").cause]

    def _revision(self) -> str | None:
        try:
            with self.database.read() as connection:
                return migrate.current(connection)
        except SchemaError:
            return None  # there is no database at all

    def _explained(self, word: str, destination: str | None) -> list[Found]:
        claims = Claims(self.database, self.destinations, self.ambient, lambda: "")
        messages, place = self._meant(word, destination)
        unfinished = place is not None or any(each.state not in FINAL for each in messages)
        locked = unfinished and self._is_locked()
        found = [*explaining.of_clock(self.ambient.now()), *self._of_room(inside=unfinished and not locked)]
        if len(messages) + (place is not None) > 1:
            meanings = [f"message {each.id} of {each.destination}, with the key {each.key!r}" for each in messages]
            found.append(explaining.of_several(word, meanings + ([f"the destination {place}"] if place else [])))
        for each in messages:
            found += self._of_message(claims, each.id, each.destination, locked=locked)
        return found + (self._of_destination(claims, place, locked=locked) if place else [])

    def _is_locked(self) -> bool:
        """Whether somebody does not let go of SQLite's write lock."""
        try:
            return not self.database.takes_writers(_PATIENCE)
        except (SQLAlchemyError, OutboxError):
            return False  # whoever may only read is told the rest

    def _of_room(self, *, inside: bool) -> Iterator[Found]:
        """What a producer would be told who came with a message now, or else one who came with files.

        `inside`: also whether a SQLite database may grow. That is asked on our connection that writes, which may be waiting.
        """
        refused = "new messages"
        try:
            self.room.admit(0, 0)
            if inside:
                self._admit_inside()
            refused = "new messages with files"
            self.room.admit(1, 0)
        except OutOfRoom as error:
            yield explaining.of_room(str(error), refused)

    def _admit_inside(self) -> None:
        """Raises OutOfRoom when a SQLite database may not grow any more, as far as our own connection is limited too."""
        pages = self.database.pages()
        if pages is not None and pages.limited and pages.room < self.room.least_inside(pages) + self.room.cost(0):
            raise OutOfRoom(
                f"the database is full: it may have {pages.most} pages (PRAGMA max_page_count), "
                f"and {bytes_in_words(pages.room)} are left"
            )

    def _meant(self, word: str, destination: str | None) -> tuple[list[causes.Named], str | None]:
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

    def _of_message(self, claims: Claims, number: int, name: str, *, locked: bool) -> list[Found]:
        when = self._when(claims, name)
        with self.database.snapshot() as connection:
            place = self._place(connection, name, when, locked=locked)
            message = causes.message_facts(connection, number, when)
        if message is None:
            raise NoSuchMessage(f"message {number} has been purged just now")
        message = replace(self._looked_at(message), kept=self.retention.of(State(message.state)))
        return explaining.of_message(message, place)

    def _of_destination(self, claims: Claims, name: str, *, locked: bool) -> list[Found]:
        when = self._when(claims, name)
        with self.database.snapshot() as connection:
            return explaining.of_destination(self._place(connection, name, when, locked=locked))

    def _when(self, claims: Claims, name: str) -> When:
        """The time as a worker's claim would see it."""
        if name in self.destinations:
            claims.anything_due(name, list(Lane))  # looks how far away messages are, which tells whether a clock was wrong
        return claims.when(name)

    def _place(self, connection: Connection, name: str, when: When, *, locked: bool) -> DestinationFacts:
        declared = self.destinations.get(name)
        policy = declared.policy if declared else Policy()
        return causes.destination_facts(connection, name, policy, when, declared=declared is not None, locked=locked)

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
