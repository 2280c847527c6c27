"""What to say to a destination, and what its answer means."""

from outbox.destinations.base import Credentials, Destination
from outbox.destinations.enos import EnosAttributes, EnosEvents, EnosMeasurePoints
from outbox.destinations.table import ABSENT, Meaning, Rule
from outbox.destinations.token import Token

__all__ = [
    "ABSENT",
    "Credentials",
    "Destination",
    "EnosAttributes",
    "EnosEvents",
    "EnosMeasurePoints",
    "Meaning",
    "Rule",
    "Token",
]
