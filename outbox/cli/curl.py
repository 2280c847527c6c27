"""An upload as a curl command: what would be sent, for a person to read and to try; what lets us in is never in it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from typing import assert_never

from outbox.exchange import Upload
from outbox.multipart import FieldPart, FilePart, Part
from outbox.secret import conceal

MASK = "***"
#: Words in the names of headers whose values are nobody's business.
_TELLING = ("auth", "token", "key", "secret", "cookie", "signature", "password", "credential")


#: And of one that is nobody's secret although it has such a word: it says which message it is.
_KNOWN = "idempotency-key"


def curl(upload: Upload, secret_headers: Collection[str], where: Callable[[str], str]) -> str:
    """The command. `secret_headers` are added with their values masked, and `where` says where a spooled file is."""
    headers = {name: MASK if _telling(name.lower()) else value for name, value in upload.headers.items()}
    headers |= dict.fromkeys(secret_headers, MASK)
    words = [f"curl --request POST {quoted(upload.url)}"]
    words += [f"--header {quoted(f'{name}: {value}')}" for name, value in headers.items()]
    words += [_part(part, where) for part in upload.parts]
    if upload.json is not None:
        text = upload.json.decode("utf-8", "surrogateescape")
        words += [f"--header {quoted('Content-Type: application/json')}", f"--data-raw {quoted(text)}"]
    return " \\\n  ".join(words)


def _telling(name: str) -> bool:
    return name != _KNOWN and any(word in name for word in _TELLING)


def _part(part: Part, where: Callable[[str], str]) -> str:
    match part:
        case FieldPart():
            return _field(part)
        case FilePart():
            # Ours says how long each file is, and curl does not by itself.
            more = [f";type={part.content_type}", f";filename={_in_form(part.filename)}", *_headers(part)]
            more.append(f";headers={_in_form(f'Content-Length: {part.size}')}")
            return f"--form {quoted(f'{part.name}=@{_in_form(where(part.file.name))}' + ''.join(more))}"
        case _:
            assert_never(part)


def _field(part: FieldPart) -> str:
    text = part.body.decode("utf-8", "surrogateescape")
    if part.filename is None and not part.headers:
        return f"--form-string {quoted(f'{part.name}={text}')}"
    # Quoted, so that no semicolon of it ends it and no @ at its beginning names a file.
    more = [*([f";filename={_in_form(part.filename)}"] if part.filename is not None else []), *_headers(part)]
    return f"--form {quoted(f'{part.name}={_in_form(text)}' + ''.join(more))}"


def _headers(part: Part) -> list[str]:
    return [f";headers={_in_form(f'{name}: {value}')}" for name, value in part.headers.items()]


def _in_form(text: str) -> str:
    """A word inside the value of --form."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def quoted(text: str) -> str:
    """One word for a shell, with nothing in it that a terminal would obey, and no secret that this process knows."""
    text = conceal(text)
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(_escaped(letter) for letter in text)}'"


def _escaped(letter: str) -> str:
    if letter in "'\\":
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
