"""Why something is not moving, and what happens next: facts in, causes out, with no I/O.

causes        what a cause is, and which ones there are
facts         what can hold something up, as it was found
messages      why a message is not moving
destinations  why nothing goes to a destination
system        why nothing moves at all
words         numbers and times in a sentence
"""

from outbox.explaining.causes import Cause, Code, Found, in_order
from outbox.explaining.destinations import of_destination
from outbox.explaining.messages import of_message
from outbox.explaining.system import of_clock, of_database, of_room, of_schema, of_several

__all__ = [
    "Cause",
    "Code",
    "Found",
    "in_order",
    "of_clock",
    "of_database",
    "of_destination",
    "of_message",
    "of_room",
    "of_schema",
    "of_several",
]
