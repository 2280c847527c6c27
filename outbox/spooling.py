"""Files at the door come to rest in the spool, before the first statement of an enqueue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from outbox import entering, intake
from outbox.ambient import Ambient
from outbox.database import Database
from outbox.errors import Fault, FileMissing, OutOfRoom, Refused, SpoolError
from outbox.marks import Marking
from outbox.model import Attachment, SpooledFile
from outbox.reserve import Room
from outbox.spool.base import Oversize, Spool
from outbox.store import keeping
from outbox.units import bytes_in_words


class Spooling:
    """Copies what is to be attached, and takes away what nothing refers to. Any number of threads may, at the same time."""

    def __init__(self, database: Database, spool: Spool, room: Room, marks: Marking, ambient: Ambient) -> None:
        self._database = database
        self._spool = spool
        self._room = room
        self._marks = marks
        self._ambient = ambient
        self._minded = False

    def lay_down(self, requests: Iterable[intake.Request]) -> list[entering.Arrival]:
        """The requests with every file of theirs at rest in the spool; of all of them, or none is left there."""
        arrivals: list[entering.Arrival] = []
        try:
            for request in requests:
                arrivals.append(self._arrival(request))  # noqa: PERF401 (those before one that fails must be known)
        except BaseException:
            self.drop_fresh(arrivals)
            raise
        return arrivals

    def drop_fresh(self, arrivals: Iterable[entering.Arrival]) -> None:
        """Remove what was copied for messages that will not be there."""
        self.drop(file for each in arrivals for file in each.fresh)

    def drop(self, files: Iterable[SpooledFile]) -> None:
        """Remove copies that no row refers to; what cannot be removed now, a sweep finds."""
        for file in files:
            with contextlib.suppress(SpoolError):
                self._spool.delete(file.name)

    def mind(self) -> None:
        """Raises SpoolError when the spool is gone that the database has files in, ForeignSpool when it is another's.

        One made anew, on the disk that a mount should have covered, would make them look lost. Nothing is written: the caller
        may hold the write lock, and whoever sweeps writes the mark first.
        """
        if self._minded or self._database.exhausted:
            return  # the next enqueue asks; this one would wait for the connection that its own caller holds
        if not self._spool.is_there():
            with self._database.read() as connection:
                kept = keeping.any_kept(connection)
            # Another program may have made it, and committed, since we looked.
            if kept and not self._spool.is_there():
                raise SpoolError(f"{self._spool!r} is not there, and the database has files in it; is the disk mounted?")
        if self._spool.mark() is None:
            return  # nobody has begun to sweep it
        try:
            self._marks.check_at_door()
        except SQLAlchemyError:
            return  # whatever it is, the statements of the enqueue will say it
        self._minded = True

    def copy(self, offered: intake.Offered, limit: int | None) -> SpooledFile:
        """A file that was offered, in the spool. Raises Refused if it cannot be read or is too long, OutOfRoom, SpoolError."""
        source = intake.open_source(offered)
        ours = source is not offered.source
        most = limit if offered.size is not None else self._room.most_of_a_file(limit)
        try:
            copied = self._spool.put(self._ambient.new_id(), source, most)
        except Oversize as error:
            if most != limit:
                raise OutOfRoom(
                    f"file {offered.name!r} has more bytes than there is room for ({bytes_in_words(error.limit)}); deliver, "
                    "cancel or purge messages with files, raise the quota, or make room on the disk of the spool"
                ) from None
            raise Refused([Fault(offered.where, f"has more than {error.limit} bytes, which is the most allowed")]) from None
        except (TypeError, ValueError) as error:
            fault = Fault(offered.where, "cannot be read as bytes; give a stream that is open, and open as binary")
            raise Refused([fault]) from error
        finally:
            if ours:
                source.close()
        if not copied.size and not ours and _was_read(source):
            self._spool.delete(copied.name)
            raise Refused([Fault(offered.where, "is a stream at its end, and nothing is left to read; seek(0) first")])
        self._room.added(copied.size)
        return SpooledFile(copied.name, copied.size, copied.sha256, copied.md5, offered.filename)

    def _arrival(self, request: intake.Request) -> entering.Arrival:
        return entering.Arrival(request, *self._all(request)) if request.files else entering.Arrival(request, (), ())

    def _all(self, request: intake.Request) -> tuple[Sequence[Attachment], Sequence[SpooledFile]]:
        """Every file of a request at rest in the spool, and those of them that were copied just now."""
        attachments: list[Attachment] = []
        fresh: list[SpooledFile] = []
        self.mind()
        try:
            for offered in request.files:
                if isinstance(offered.source, SpooledFile):
                    file = offered.source
                    try:
                        self._spool.touch(file.name)
                    except FileMissing:
                        raise SpoolError(entering.spool_again(offered.name)) from None
                else:
                    file = self.copy(offered, request.destination.file_limit)
                    fresh.append(file)
                attachments.append(Attachment(offered.name, file, offered.filename, offered.content_type))
        except BaseException:
            self.drop(fresh)
            raise
        return attachments, fresh


def _was_read(stream: Any) -> bool:
    """Whether somebody has written or read all of it before, and has left it there: its bytes would be lost without a word."""
    try:
        return bool(stream.tell() > 0)
    except (AttributeError, OSError, ValueError, TypeError):  # it cannot tell
        return False
