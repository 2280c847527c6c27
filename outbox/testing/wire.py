"""The strict check of one EnOS upload: what arrived goes in, every fault found comes out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import parse_qsl, urlsplit

MESSAGE_PART: Final = "enos-message"
FILE_PART: Final = "enos-file"
REFERENCE: Final = "local://"
_DEVICE: Final = frozenset({"assetId", "productKey", "deviceKey"})
_DEVICE_FORMS: Final = (frozenset({"assetId"}), frozenset({"productKey", "deviceKey"}))


class Action(NamedTuple):
    """What one value of the query's ``action`` asks of the message."""

    method: str
    member: str
    timed: bool
    #: Every member a struct may have.
    known: frozenset[str]


def _action(method: str, member: str, *, timed: bool) -> Action:
    return Action(method, member, timed, _DEVICE | {"time", member})


ACTIONS: Final[Mapping[str, Action]] = {
    "postEvent": _action("integration.event.post", "events", timed=True),
    "postMeasurepoint": _action("integration.measurepoint.post", "measurepoints", timed=True),
    "postAttribute": _action("integration.attribute.post", "attributes", timed=False),
}

#: Milliseconds since 1970: from 1973 to 5138. Seconds and microseconds of our time both fall outside.
_PLAUSIBLE_TIME: Final = range(10**11, 10**14)

_DISPOSITION: Final = re.compile(r'form-data; *name="[^"]*"(; *filename="[^"]*")?;? *')
_DIGITS: Final = re.compile(r"[0-9]+")
_MD5: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Part:
    """One part of the form as it arrived; ``content`` is kept for the message only, and only while it is small."""

    name: str
    filename: str | None
    headers: tuple[tuple[str, str], ...]
    size: int
    sha256: str
    md5: str
    content: bytes | None = None

    @cached_property
    def value(self) -> Any:
        """What the content says as strict JSON; ValueError if it does not, or was not kept."""
        if self.content is None:
            raise ValueError("the content was not kept")
        return strict_json(self.content)


@dataclass(frozen=True)
class Findings:
    """What the check understood of a request, and everything that is wrong with it."""

    action: str | None
    query: dict[str, str]
    message: dict[str, Any] | None
    faults: tuple[str, ...]


class Reference(NamedTuple):
    """One ``local://`` value: where it stands below the struct's member, and the transfer name it points at."""

    path: tuple[str, ...]
    transfer_name: str
    in_list: bool

    @property
    def feature_id(self) -> str:
        """The event, measurement point or attribute that holds the file."""
        return self.path[0]


def check(target: str, headers: Sequence[tuple[str, str]], parts: Sequence[Part], *, org_id: str | None = None) -> Findings:
    """Check a whole request: its target, its headers (lower-case names) and the parts of its form, in order."""
    query, faults = _check_query(target, org_id)
    faults += _check_headers(headers)
    faults += _check_order(parts)
    for number, part in enumerate(parts, start=1):
        faults += _check_part(part, f"part {number}")

    name = query.get("action")
    action = ACTIONS.get(name or "")
    message: dict[str, Any] | None = None
    if parts and parts[0].content is not None:
        try:
            value = parts[0].value
        except ValueError as error:
            faults.append(f"{MESSAGE_PART}: {error}")
        else:
            if isinstance(value, dict):
                message = value
                faults += _check_message(message, action, parts)
            else:
                faults.append(f"{MESSAGE_PART}: not a JSON object")
    return Findings(name, query, message, tuple(faults))


def strict_json(content: bytes) -> Any:
    """Parse UTF-8 JSON without the liberties Python takes by default; ValueError says which one was taken."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object_without_duplicates
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if "\\u" not in text:
        # Only an escape brings half a pair into a text that was UTF-8; looking for one takes as long as the parsing.
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair") from None
    return value


def structs_of(message: Mapping[str, Any] | None) -> tuple[dict[str, Any], ...]:
    """The message's params, as far as they are structs."""
    params = message.get("params") if message is not None else None
    return tuple(struct for struct in params if isinstance(struct, dict)) if isinstance(params, list) else ()


def references_of(struct: Mapping[str, Any], member: str) -> Iterator[Reference]:
    """Every file reference below ``struct[member]``, wherever it stands."""
    features = struct.get(member)
    if isinstance(features, dict):
        yield from _references((), features.items(), in_list=False)


def _references(path: tuple[str, ...], items: Iterable[tuple[Any, Any]], *, in_list: bool) -> Iterator[Reference]:
    for key, value in items:
        if isinstance(value, str):
            if value.startswith(REFERENCE):
                yield Reference((*path, str(key)), value.removeprefix(REFERENCE), in_list)
        elif isinstance(value, dict):
            yield from _references((*path, str(key)), value.items(), in_list=in_list)
        elif isinstance(value, list):
            yield from _references((*path, str(key)), enumerate(value), in_list=True)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large a number")
    return number


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the member {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return result


def _check_query(target: str, org_id: str | None) -> tuple[dict[str, str], list[str]]:
    raw = urlsplit(target).query
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, strict_parsing=True, encoding="utf-8", errors="strict")
    except ValueError:
        return {}, [f"the query {raw!r} cannot be read"]
    query, faults = dict(pairs), []
    if len(query) != len(pairs):
        faults.append("the query names something twice")
    if query.get("action") not in ACTIONS:
        faults.append(f"Invalid Argument action: {query.get('action', 'missing')!r}; known: {', '.join(ACTIONS)}")
    if not query.get("orgId"):
        faults.append("orgId is missing")
    elif org_id is not None and query["orgId"] != org_id:
        faults.append(f"orgId {query['orgId']!r} does not exist")
    if unknown := sorted(query.keys() - {"action", "orgId"}):
        faults.append(f"unknown in the query: {', '.join(unknown)}")
    return query, faults


def _check_headers(headers: Sequence[tuple[str, str]]) -> list[str]:
    names = [name for name, _ in headers]
    single = ("content-type", "content-length", "transfer-encoding", "apim-accesstoken", "host")
    faults = [f"the header {name} appears twice" for name in single if names.count(name) > 1]
    if "host" not in names:
        faults.append("no Host header")
    if "content-length" in names and "transfer-encoding" in names:
        faults.append("both Content-Length and Transfer-Encoding")
    if "content-encoding" in names:
        faults.append("Content-Encoding: no request of this service is compressed")
    return faults


def _check_order(parts: Sequence[Part]) -> list[str]:
    faults = []
    messages = [number for number, part in enumerate(parts) if part.name == MESSAGE_PART]
    if len(messages) != 1:
        faults.append(f"{len(messages)} parts are named {MESSAGE_PART}, there must be one")
    elif messages != [0]:
        faults.append(f"{MESSAGE_PART} is not the first part")
    names = [part.filename for part in parts if part.filename is not None]
    if len(set(names)) != len(names):
        faults.append("two file parts share a filename")
    return faults


def _check_part(part: Part, where: str) -> list[str]:
    where = f"{where} ({part.name})"
    headers = {name.lower(): value for name, value in part.headers}
    faults = []
    if len(headers) != len(part.headers):
        faults.append(f"{where}: a header appears twice")
    if not _DISPOSITION.fullmatch(headers.get("content-disposition", "")):
        faults.append(f"{where}: Content-Disposition is {headers.get('content-disposition')!r}")
    if headers.get("content-length", str(part.size)) != str(part.size):
        faults.append(f"{where}: Content-Length is {headers['content-length']}, {part.size} bytes came")
    known = {"content-disposition", "content-length"}

    if part.name == MESSAGE_PART:
        if part.filename is not None:
            faults.append(f"{where}: the message has no filename")
        if "content-type" in headers:
            faults.append(f"{where}: the message has no Content-Type")
            known |= {"content-type"}
    elif part.name == FILE_PART:
        known |= {"content-type", "content-md5"}
        if not part.filename:
            faults.append(f"{where}: no filename")
        if "content-length" not in headers:
            faults.append(f"{where}: no Content-Length")
        if headers.get("content-type") != "application/octet-stream":
            faults.append(f"{where}: Content-Type is {headers.get('content-type')}, not application/octet-stream")
        if headers.get("content-md5", part.md5) != part.md5:
            faults.append(f"{where}: Content-MD5 is {headers['content-md5']}, the bytes have {part.md5}")
    else:
        faults.append(f"{where}: only {MESSAGE_PART} and {FILE_PART} are known")
    if unknown := sorted(headers.keys() - known):
        faults.append(f"{where}: unknown headers {', '.join(unknown)}")
    return faults


def _check_message(message: Mapping[str, Any], action: Action | None, parts: Sequence[Part]) -> list[str]:
    faults = []
    if unknown := sorted(message.keys() - {"method", "id", "version", "params", "files", "isRealtimeIntegration"}):
        faults.append(f"{MESSAGE_PART}: unknown members {', '.join(unknown)}")
    if action is not None and message.get("method") != action.method:
        faults.append(f"method is {message.get('method')!r}, the query's action wants {action.method!r}")
    if message.get("version") != "1.1":
        faults.append(f"version is {message.get('version')!r}, not '1.1'")
    if "id" in message and not _is_count(message["id"]):
        faults.append(f"id is {message['id']!r}, not an integer or its digits")
    if not isinstance(message.get("isRealtimeIntegration", True), bool):
        faults.append("isRealtimeIntegration is not a boolean")
    params = message.get("params")
    if not isinstance(params, list) or not params:
        return [*faults, "params is not a list with at least one struct"]
    entries = message.get("files", {})
    if not isinstance(entries, dict):
        return [*faults, "files is not an object"]

    if action is not None:
        for index, struct in enumerate(params):
            faults += _check_struct(struct, action, f"params[{index}]")
        faults += _check_references(params, entries, action, parts)
    by_name = {part.filename: part for part in parts if part.name == FILE_PART}
    for name, entry in entries.items():
        faults += _check_entry(name, entry, by_name.get(name))
    return faults


def _check_struct(struct: Any, action: Action, where: str) -> list[str]:
    if not isinstance(struct, dict):
        return [f"{where} is not a struct"]
    faults = _check_device(struct, where)
    time = struct.get("time")
    if not action.timed:
        if "time" in struct:
            faults.append(f"{where}: attributes have no time")
    elif not isinstance(time, int) or isinstance(time, bool) or time not in _PLAUSIBLE_TIME:
        faults.append(f"{where}: time is {time!r}, not milliseconds since 1970")
    features = struct.get(action.member)
    if not isinstance(features, dict) or not features:
        faults.append(f"{where}: {action.member} is missing or empty")
    elif action.member == "events":
        faults += [f"{where}: event {name!r} is not an object" for name, v in features.items() if not isinstance(v, dict)]
    if not struct.keys() <= action.known:
        faults.append(f"{where}: unknown members {', '.join(sorted(struct.keys() - action.known))}")
    return faults


def _check_device(owner: Mapping[str, Any], where: str) -> list[str]:
    given = _DEVICE & owner.keys()
    if given not in _DEVICE_FORMS:
        return [f"{where}: the device is named by {sorted(given)}, not by assetId or by productKey and deviceKey"]
    return [f"{where}: {name} is not a text" for name in sorted(given) if not isinstance(owner[name], str) or not owner[name]]


def _device(owner: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(owner.get(name) for name in ("assetId", "productKey", "deviceKey"))


def _check_references(params: Sequence[Any], entries: Mapping[str, Any], action: Action, parts: Sequence[Part]) -> list[str]:
    faults = []
    referenced = set()
    for index, struct in enumerate(params):
        if not isinstance(struct, dict):
            continue
        for reference in references_of(struct, action.member):
            where = f"params[{index}]: the file {reference.transfer_name!r}"
            referenced.add(reference.transfer_name)
            if not _may_stand(reference, action):
                faults.append(f"{where} stands where the model has no file: {'.'.join(reference.path)}")
            entry = entries.get(reference.transfer_name)
            if isinstance(entry, dict):
                if entry.get("featureId") != reference.feature_id:
                    faults.append(f"{where}: featureId is {entry.get('featureId')!r}, not {reference.feature_id!r}")
                if _device(entry) != _device(struct):
                    faults.append(f"{where}: its entry names another device")

    sent = {part.filename for part in parts if part.name == FILE_PART and part.filename is not None}
    for these, those, words in (
        (referenced, entries.keys(), "referenced, but not in files"),
        (entries.keys(), referenced, "in files, but nothing refers to it"),
        (entries.keys(), sent, "in files, but not sent"),
        (sent, entries.keys(), "sent, but not in files"),
    ):
        faults += [f"the file {name!r} is {words}" for name in sorted(these - those)]
    return faults


def _may_stand(reference: Reference, action: Action) -> bool:
    if action.member == "events":
        return len(reference.path) == 2 and not reference.in_list
    return len(reference.path) <= 2


def _check_entry(name: str, entry: Any, part: Part | None) -> list[str]:
    where = f"files[{name!r}]"
    if not isinstance(entry, dict):
        return [f"{where} is not an object"]
    faults = _check_device(entry, where)
    if not isinstance(entry.get("featureId"), str) or not entry["featureId"]:
        faults.append(f"{where}: featureId is missing")
    if "produckKey" in entry:
        faults.append(f"{where}: produckKey is the documentation's misprint, it is productKey")
    if entry.get("fileName", name) != name:
        faults.append(f"{where}: fileName is {entry['fileName']!r}")
    extension = entry.get("fileExt", "")
    if not isinstance(extension, str) or (extension and (not extension.startswith(".") or extension == ".")):
        faults.append(f"{where}: fileExt is {extension!r}, neither empty nor a dot and an extension")
    original = entry.get("originalFilename", name)
    if not isinstance(original, str) or not original:
        faults.append(f"{where}: originalFilename is {original!r}")
    md5, length = entry.get("md5"), entry.get("fileLength")
    if "md5" in entry and not (isinstance(md5, str) and _MD5.fullmatch(md5)):
        faults.append(f"{where}: md5 is {md5!r}, not 32 lower-case hexadecimal digits")
    elif "md5" in entry and part is not None and md5 != part.md5:
        faults.append(f"{where}: md5 is {md5}, the bytes have {part.md5}")
    if "fileLength" in entry and not _is_count(length):
        faults.append(f"{where}: fileLength is {length!r}, not a number or its digits")
    elif "fileLength" in entry and part is not None and str(length) != str(part.size):
        faults.append(f"{where}: fileLength is {length}, {part.size} bytes came")
    known = {"featureId", "assetId", "productKey", "deviceKey", "md5", "fileName", "produckKey"}
    if unknown := sorted(entry.keys() - known - {"originalFilename", "fileExt", "fileLength"}):
        faults.append(f"{where}: unknown members {', '.join(unknown)}")
    return faults


def _is_count(value: Any) -> bool:
    if isinstance(value, str):
        return _DIGITS.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
