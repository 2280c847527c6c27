"""Log lines for a person or for a machine, and never with a secret in them."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, get_args

from outbox.payload import printable
from outbox.secret import conceal, learn

Form = Literal["text", "json"]
FORMS: tuple[Form, ...] = get_args(Form)
LEVELS = ("debug", "info", "warning", "error")

#: What a record has without anybody's `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: Others that would talk about every turn of theirs.
_QUIET = {"apscheduler": logging.ERROR, "alembic": logging.WARNING}


class TextFormatter(logging.Formatter):
    """One line for a person, with the traceback below it, set in: whatever is in a record, none of it can look like another."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.message, record.asctime = record.getMessage(), self.formatTime(record)
        below = [self.formatException(record.exc_info)] if record.exc_info else []
        below += [self.formatStack(record.stack_info)] if record.stack_info else []
        lines = [f"    {printable(line)}" for each in below for line in conceal(each).splitlines()]
        return "\n".join([printable(conceal(self.formatMessage(record)).rstrip()), *lines])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, text, whatever is in `extra`, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        said |= {name: value for name, value in vars(record).items() if name not in _OWN and value is not None}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            said["stack"] = self.formatStack(record.stack_info)
        return json.dumps({name: _concealed(value) for name, value in said.items()})


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        """A line that cannot be written is given up: what the library prints then would hold its arguments as they are."""


def configure(level: str = "info", form: Form = "text", stream: TextIO | None = None) -> None:
    """Let every log line of this process go to `stream` (standard error) in this form.

    For a program of one's own that is nothing but a worker; a library never does this by itself. Warnings go the same way.
    """
    learn()
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name, at_least in _QUIET.items():
        logging.getLogger(name).setLevel(at_least)


def traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it, without secrets."""
    learn()
    return conceal("".join(traceback.format_exception(error)))


def _concealed(value: object) -> object:
    match value:
        case bool() | int() | float() | None:
            return value
        case str():
            return conceal(value)
        case list() | tuple() | set() | frozenset():
            return [_concealed(each) for each in value]
        case dict():
            return {conceal(str(name)): _concealed(each) for name, each in value.items()}
        case _:
            return conceal(str(value))
