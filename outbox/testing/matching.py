"""Whether a message is the one that a test expects, and if not, where it differs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outbox.testing.kept import KeptMessage

#: What a test expects of a payload: a part of it, or a function that says whether it is right.
Expected = Any
#: Of so many messages a failure tells.
_TOLD = 10
#: And of a payload so many characters.
_LONGEST = 300


@dataclass(frozen=True)
class Wanted:
    """What a test expects; None is not looked at."""

    destination: str
    payload: Expected | Callable[[Any], object] | None = None
    key: str | None = None
    ordering_key: str | None = None
    files: Collection[str] | Mapping[str, bytes] | None = None

    def __post_init__(self) -> None:
        contents = self.files.items() if isinstance(self.files, Mapping) else ()
        for name, content in contents:
            if not isinstance(content, bytes | bytearray | memoryview):
                raise TypeError(f"expected the bytes of the file {name!r}, got {type(content).__name__}; read it first")

    def differences(self, message: KeptMessage) -> list[str]:
        """In what a message differs; nothing if it is one of those that are wanted."""
        found = [f"it is for {message.destination}"] if message.destination != self.destination else []
        for name in ("key", "ordering_key"):
            wanted, got = getattr(self, name), getattr(message, name)
            if wanted is not None and wanted != got:
                found.append(f"its {name} is {got!r}")
        if callable(self.payload):
            found += _function_differences(self.payload, message.payload)
        elif self.payload is not None:
            found += _payload_differences(self.payload, message.payload, "payload")
        return found + (_file_differences(self.files, message) if self.files is not None else [])

    def __str__(self) -> str:
        said = [f"for {self.destination}"]
        said += [f"{name} {value!r}" for name in ("key", "ordering_key") if (value := getattr(self, name)) is not None]
        if self.payload is not None:
            said.append("a payload that the function asks for" if callable(self.payload) else f"payload {_shown(self.payload)}")
        if self.files is not None:
            said.append(f"files {', '.join(sorted(self.files)) or 'none'}")
        return ", ".join(said)


def _function_differences(wanted: Callable[[Any], object], got: Any) -> list[str]:
    """Whether a function says that it is right. One that stumbles over a message of another kind has not asked for that."""
    try:
        return [] if wanted(got) else ["its payload is not what the function asks for"]
    except Exception as error:  # noqa: BLE001 (whatever a test looks for)
        return [f"the function raised {type(error).__name__} for its payload: {error}"]


def _payload_differences(wanted: Expected, got: Any, at: str) -> list[str]:
    """Where a value lacks what is wanted. An object may have more members than that, a list no more items."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        found = []
        for name, value in wanted.items():
            found += _payload_differences(value, got[name], f"{at}.{name}") if name in got else [f"{at}.{name} is missing"]
        return found
    if isinstance(wanted, list | tuple) and isinstance(got, list) and len(wanted) == len(got):
        pairs = enumerate(zip(wanted, got, strict=True))
        return [each for number, (one, other) in pairs for each in _payload_differences(one, other, f"{at}[{number}]")]
    return [] if wanted == got else [f"{at} is {_shown(got)}, not {_shown(wanted)}"]


def _file_differences(wanted: Collection[str] | Mapping[str, bytes], message: KeptMessage) -> list[str]:
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    if names != set(message.files):
        return [f"its files are {', '.join(sorted(message.files)) or 'none'}"]
    if not isinstance(wanted, Mapping):
        return []
    return [f"the file {name} has other bytes" for name, content in wanted.items() if message.files[name].content != content]


def explained(wanted: Wanted, number: int | None, found: int, there: Sequence[KeptMessage]) -> str:
    """Why the messages that are there are not those that were wanted: the nearest first."""
    expected = "no message" if number is None else f"{found} of {number} messages"
    if not there:
        return f"{expected} ({wanted}); nothing was enqueued, or it is not committed: session= looks at that"
    ranked = sorted(((wanted.differences(each), each) for each in there), key=lambda pair: (len(pair[0]), pair[1].id))
    lines = [f"{expected} ({wanted}); what was enqueued, nearest first:"]
    lines += [f"  {described(each)}: {'; '.join(differences) or 'as wanted'}" for differences, each in ranked[:_TOLD]]
    return "\n".join(lines + ([f"  and {len(ranked) - _TOLD} more"] if len(ranked) > _TOLD else []))


def described(message: KeptMessage) -> str:
    """A message in a line."""
    files = f" with {', '.join(sorted(message.files))}" if message.files else ""
    return f"message {message.id} for {message.destination}, key {message.key!r}{files}, {_shown(message.payload)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
