"""What to say to a destination, and what its answer means: those there are, and what one of your own is made of."""

from outbox.destinations.base import Credentials, Destination, redirected, retry_after, verdict_of
from outbox.destinations.enos import EnosAttributes, EnosEvents, EnosMeasurePoints
from outbox.destinations.form import Form
from outbox.destinations.statictoken import StaticToken
from outbox.destinations.table import ABSENT, Meaning, Rule, first
from outbox.destinations.token import Token
from outbox.destinations.webhook import Webhook
from outbox.errors import Fault
from outbox.exchange import Answer, Upload
from outbox.model import Attachment, Batch, Draft, Message
from outbox.multipart import FieldPart, FilePart
from outbox.verdict import Delivered, Facts, Reject, Retry, Unknown, Verdict

__all__ = [
    "ABSENT",
    "Answer",
    "Attachment",
    "Batch",
    "Credentials",
    "Delivered",
    "Destination",
    "Draft",
    "EnosAttributes",
    "EnosEvents",
    "EnosMeasurePoints",
    "Facts",
    "Fault",
    "FieldPart",
    "FilePart",
    "Form",
    "Meaning",
    "Message",
    "Reject",
    "Retry",
    "Rule",
    "StaticToken",
    "Token",
    "Unknown",
    "Upload",
    "Verdict",
    "Webhook",
    "first",
    "redirected",
    "retry_after",
    "verdict_of",
]
