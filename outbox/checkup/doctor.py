"""Doctor: everything around an outbox that is known to go wrong, each looked at by itself, each with its remedy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from outbox.app import Outbox
from outbox.checkup import places
from outbox.checkup.database_looks import DatabaseLooks
from outbox.checkup.delivery_looks import DeliveryLooks
from outbox.checkup.findings import Check, Finding, Level, in_words, problem
from outbox.checkup.machine_looks import MachineLooks
from outbox.checkup.remote_looks import RemoteLooks
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
        """Every finding, in a fixed order. All looks begin at once, and none is waited for longer than its own deadline."""
        database = _Running(Check("database", self._database.answers), self._deadline)
        answered = list(database.findings())
        well = all(each.level is not Level.PROBLEM for each in answered)
        checks = [each for each in self._checks() if not (each.network and self._offline)]
        running = [_Running(each, self._deadline) for each in checks if well or not each.database]
        yield from answered
        for each in running:
            yield from each.findings()
        if not well:
            left_out = ", ".join(each.name for each in checks if each.database)
            yield Finding("left_out", Level.WARNING, f"not looked at: {left_out}", "run this again when the database answers")

    def _checks(self) -> list[Check]:
        return [check for looks in (self._database, *self._others) for check in looks.checks()]


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
            found = [*self._found, problem(text, "look at the log of this machine; if the database is damaged: outbox verify")]
        else:
            found = self._found
        return [replace(each, check=self._check.name, text=conceal(each.text)) for each in found]

    def _look(self) -> None:
        try:
            self._found.extend(self._check.look())
        except Exception as error:  # noqa: BLE001 (it becomes a finding)
            self._error = error
