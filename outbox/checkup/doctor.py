"""Doctor: everything around an outbox that is known to go wrong, each looked at by itself, each with its remedy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from outbox.app import Outbox
from outbox.checkup import places
from outbox.checkup.database_looks import DatabaseLooks
from outbox.checkup.delivery_looks import DeliveryLooks
from outbox.checkup.findings import AS_ITS_USER, Check, Finding, Level, in_words, problem
from outbox.checkup.machine_looks import MachineLooks
from outbox.checkup.remote_looks import RemoteLooks
from outbox.errors import DatabaseDamaged, SchemaError
from outbox.secret import conceal
from outbox.transport import RequestsTransport, Transport

#: Seconds that one look may take.
DEADLINE = 12.0


class Doctor:
    """Looks around an outbox and changes nothing. `settings_file` is where it was described, if anywhere.

    `offline` leaves out what goes over the network to destinations; the database is asked in any case. `deadline` is how many
    seconds one look may take. `mounts` gives the text of /proc/self/mountinfo.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        offline: bool = False,
        settings_file: Path | None = None,
        transport: Transport | None = None,
        deadline: float = DEADLINE,
        mounts: Callable[[], str | None] = places.mounts,
    ) -> None:
        self._offline = offline
        self._deadline = deadline
        self._database = DatabaseLooks(outbox)
        self._others = (
            MachineLooks(outbox, settings_file, mounts),
            DeliveryLooks(outbox, deadline),
            RemoteLooks(outbox, transport or RequestsTransport()),
        )

    def run(self) -> Iterator[Finding]:
        """Every finding, in a fixed order. First whether the database answers, then whether it has our tables; all other looks
        begin at once, those that can be made. None is waited for longer than its own deadline."""
        answered = _Running(Check("database", self._database.answers), self._deadline).findings()
        yield from answered
        well = all(each.level is not Level.PROBLEM for each in answered)
        if well:
            yield from _Running(Check("schema", self._database.schema), self._deadline).findings()
        tables = self._database.has_tables
        left_out = [] if well else ["schema"]
        looks: list[tuple[Check, _Running | None]] = []
        for each in self._checks():
            if not (each.network and self._offline):
                can = (well or not each.database) and (tables or not _asks_tables(each))
                looks.append((each, _Running(each, self._deadline) if can else None))
        for each, look in looks:
            found = [] if look is None else look.findings()
            if look is None or (not tables and look.wanted_database):
                left_out.append(each.name)
            else:
                yield from found
        if left_out:
            when = "the schema is that of this code" if well else "the database answers"
            yield Finding("left_out", Level.WARNING, f"not looked at: {', '.join(left_out)}", f"run this again when {when}")

    def _checks(self) -> list[Check]:
        return [check for looks in (self._database, *self._others) for check in looks.checks()]


#: Of what is asked of the database, what needs none of our tables: its own settings, its soundness, its time.
_WITHOUT_TABLES = frozenset({"power", "integrity", "vacuum", "wal_race", "checksums", "transactions", "clock"})


def _asks_tables(check: Check) -> bool:
    return check.database and check.name not in _WITHOUT_TABLES


class _Running:
    """A look under way, on a thread of its own: one that hangs is left hanging."""

    def __init__(self, check: Check, deadline: float) -> None:
        self._check = check
        self._deadline = deadline
        self._found: list[Finding] = []
        self._error: Exception | None = None
        self._ends = time.monotonic() + deadline
        self._thread = threading.Thread(target=self._look, name=f"outbox-doctor-{check.name}", daemon=True)
        self._thread.start()

    def findings(self) -> list[Finding]:
        """What was found; that it failed or took too long is a finding too."""
        self._thread.join(max(0.0, self._ends - time.monotonic()))
        if self._thread.is_alive():
            text = f"not finished within {self._deadline:g} s"
            found = [problem(text, "look at the disk and the network: something does not answer")]
        elif self._error is not None:
            text = f"cannot be looked at: {in_words(self._error)}"
            refused = isinstance(self._error, PermissionError)
            remedy = AS_ITS_USER if refused else "look at the log of this machine; if the database is damaged: outbox verify"
            found = [*self._found, problem(text, remedy)]
        else:
            found = self._found
        return [replace(each, check=self._check.name, text=conceal(each.text)) for each in found]

    @property
    def wanted_database(self) -> bool:
        """Whether it ended because the database had no answer for it: some ask only if there is something to ask about."""
        return isinstance(self._error, SQLAlchemyError | SchemaError | DatabaseDamaged)

    def _look(self) -> None:
        try:
            self._found.extend(self._check.look())
        except Exception as error:  # noqa: BLE001 (it becomes a finding)
            self._error = error
