"""Every planted fault by its name, and the tests that must catch it.

P01 to P20 are those of the reliability programme; the others are mistakes that were nearly made here.
"""

from __future__ import annotations

from tests.planted import claims, disk, wire
from tests.planted.planting import Fault

FAULTS: dict[str, Fault] = {
    fault.name: fault for fault in sorted((*disk.FAULTS, *claims.FAULTS, *wire.FAULTS), key=lambda each: each.name)
}
