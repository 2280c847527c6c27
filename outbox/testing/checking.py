"""`check_destination`: whether a destination of your own keeps the rules that outbox relies on, each fault in one sentence."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from outbox import payload as json_payload
from outbox.destinations import Answer, Destination, Draft, Fault
from outbox.errors import ConfigurationError, Refused
from outbox.model import FileSource
from outbox.secret import SHORTEST, Secret
from outbox.testing import encodings, judgements
from outbox.testing.samples import NOW, Sample, sample_of

#: What people enqueue by mistake, and what is no JSON at all.
_ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    "text",
    [],
    {},
    [{}],
    {"": None},
    {"a": {"b": [1, None, "ü"]}},
    {1: 2},
    {"a": math.nan},
    {"a": b"bytes", "b": {1, 2}, "c": object},
)
_TELLING = ("secret", "password", "token", "api_key", "apikey", "credential")


def check_destination(
    destination: Destination,
    *,
    payload: Any,
    files: Mapping[str, FileSource] | None = None,
    success: Answer | None = None,
    html_is_success: bool = False,
) -> None:
    """Run a destination with a message of its kind, `payload` and `files`, and raise AssertionError with all that is wrong.

    What is checked: `check` finds faults in whatever comes, and never raises; what it lets in can be encoded. `encode` gives
    the same upload for the same batch, asks no clock, changes nothing, and makes a request that can be sent, in which every
    message travels, every attachment once, and no secret. `credentials` and `sign` give what can be used. `weigh` is a number,
    and not less than what a message adds, where there is a `text_limit`. `judge` has a verdict for every answer, and says
    delivered to none that cannot confirm: no redirect, no error, no login page, none that came before the request was sent
    whole.

    `success` is an answer to which `judge` must say delivered. `html_is_success`: an HTML page with status 200 may be one, at a
    destination that answers so; else it is taken for a captive portal.
    """
    found = [*_secrets_shown(destination), *_credentials(destination)]
    at_the_door = [*_door(destination)]
    found += at_the_door
    try:
        sample = sample_of(destination, payload, files)
    except Exception as error:  # noqa: BLE001 (whatever a destination of somebody else's raises)
        words = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        found.append(f"the payload and files given to check_destination cannot be enqueued: {words}")
    else:
        found += _weight(sample)
        secrets = [value for _, value in _secrets_of(destination)]
        found += encodings.faults(sample, secrets)
        if files:
            with contextlib.suppress(Refused):
                found += encodings.faults(sample_of(destination, payload, None), secrets, " without files")
        if not at_the_door:
            found += _let_in(sample)
        found += judgements.faults(destination, sample.batch(1), NOW, success, html_is_success=html_is_success)
    if found := list(dict.fromkeys(found)):
        many = "1 thing is" if len(found) == 1 else f"{len(found)} things are"
        raise AssertionError("\n- ".join([f"{many} wrong with {type(destination).__name__} {destination.name!r}:", *found]))


def _door(destination: Destination) -> Iterator[str]:
    """Whether `check` has only faults to tell of whatever comes."""
    for odd in _ODD:
        for files in ({}, {"unheard-of": "x.bin"}):
            text = json_payload.written(odd) or ""
            try:
                told: Any = destination.check(Draft(odd, text, files, dict.fromkeys(files, 1)))
            except Exception as error:  # noqa: BLE001 (as above)
                yield (
                    f"check raised {type(error).__name__} for the payload {json_payload.brief(odd)}; it must return Faults, "
                    "whatever comes: look at the payload's type before its members"
                )
                return
            if not isinstance(told, list) or not all(isinstance(each, Fault) for each in told):
                yield f"check returned {json_payload.brief(told)}; it must return a list of Fault(path, text), empty if none is"
                return


def _weight(sample: Sample) -> Iterator[str]:
    """Whether `weigh` gives a number: it is added up with those of others."""
    weight: object = sample.request.size
    if not isinstance(weight, int) or isinstance(weight, bool) or weight < 0:
        yield f"weigh returned {json_payload.brief(weight)}; it must return a number of bytes, an int that is not negative"
        sample.request.size = len(sample.request.text.encode())


def _credentials(destination: Destination) -> Iterator[str]:
    """Whether what lets us in can be asked for it. It is not asked: that may take a network."""
    wanted = "expected None, or what has `headers` and `renew`, such as StaticToken(env('NAME'))"
    try:
        given: object = destination.credentials
    except Exception as error:  # noqa: BLE001 (as above)
        yield f"credentials raised {type(error).__name__}; {wanted}, which is asked for secrets when a request is sent"
        return
    if given is not None and not all(callable(getattr(given, each, None)) for each in ("headers", "renew")):
        yield f"credentials is a {type(given).__name__}; {wanted}"


def _let_in(sample: Sample) -> Iterator[str]:
    """Whether what the door lets in can be sent: what cannot would be tried for ever."""
    document = sample.request
    given = json.loads(document.text)
    without = [{key: value for key, value in given.items() if key != name} for name in given] if isinstance(given, dict) else []
    files: dict[str, FileSource] = {each.name: b"x" for each in document.files}
    for odd in (*_ODD, *without):
        for attached in (files, None):
            doing = "weigh"
            try:
                let_in = sample_of(sample.destination, odd, attached)
                doing = "encode"
                sample.destination.encode(let_in.batch(1))
            except Refused:
                continue
            except Exception as error:  # noqa: BLE001 (as above)
                yield (
                    f"check lets in the payload {json_payload.brief(odd)}, and {doing} raises {type(error).__name__} for it; "
                    "let check return a Fault for what cannot be sent"
                )
                return


def _secrets_shown(destination: Destination) -> Iterator[str]:
    shown = repr(destination)
    for where, value in _secrets_of(destination):
        # As a field shows it; or anywhere, if it is no word that a repr has in it anyhow, such as the name of a field.
        alone = len(value) >= SHORTEST and re.search(rf"(?<!\w){re.escape(value)}(?![\w=(])", shown)
        if alone or (value and f"{where.rpartition('.')[2]}={value!r}" in shown):
            yield f"repr shows the secret in {where}; keep it in a Secret, such as env('NAME'), or say field(repr=False)"


def _secrets_of(destination: Destination) -> Iterator[tuple[str, str]]:
    """Where secrets are, as far as can be told: Secrets, and text in fields that are called so."""
    for name, value in _members(destination):
        holders = [(name, value)]
        if not isinstance(value, str | Secret):
            holders += [(f"{name}.{inner}", each) for inner, each in _members(value)]
        for where, each in holders:
            if isinstance(each, Secret):
                with contextlib.suppress(ConfigurationError):
                    yield where, each.reveal()
            elif isinstance(each, str) and where.lower().endswith(_TELLING):
                yield where, each


def _members(value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        yield from ((str(number), each) for number, each in enumerate(value))
    elif isinstance(value, Mapping):
        yield from ((str(name), each) for name, each in value.items())
    else:
        yield from getattr(value, "__dict__", {}).items()
