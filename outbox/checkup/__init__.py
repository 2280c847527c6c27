"""Whether an outbox is well: `doctor` looks around it, `verify` reads every byte it keeps, `check` answers a monitor."""

from outbox.checkup.doctor import Doctor
from outbox.checkup.findings import Finding, Level
from outbox.checkup.monitoring import Limits, Reading, monitor
from outbox.checkup.verify import Damage, Tally, Verification

__all__ = ["Damage", "Doctor", "Finding", "Level", "Limits", "Reading", "Tally", "Verification", "monitor"]
