"""The answers of a receiver: the honest ones, and those that depend on nothing but a behaviour."""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from outbox.testing.behaviours import (
    SUCCESS_CODES,
    Answer,
    ApimExpired,
    Body,
    EarlyStatus,
    Expired,
    GzipBomb,
    Status,
)


@dataclass(frozen=True)
class Reply:
    """One HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def code(self) -> int | None:
        """The EnOS code in the body, read as leniently as any client might; None without one."""
        try:
            code = json.loads(self.body)["code"]
            return int(code) if isinstance(code, int | str) and not isinstance(code, bool) else None
        except (ValueError, TypeError, LookupError, RecursionError):
            return None

    @property
    def succeeds(self) -> bool:
        """Whether it tells the client that the request was taken."""
        return 200 <= self.status < 300 and self.code in SUCCESS_CODES

    def wire(self, *, close: bool = False, date: str | None = None) -> bytes:
        """The answer as bytes; with ``close`` it says that the connection ends here, with ``date`` when it was given."""
        phrase = HTTPStatus(self.status).phrase if self.status in set(HTTPStatus) else "Unheard Of"
        headers = {"Content-Length": str(len(self.body)), **({} if date is None else {"Date": date}), **self.headers}
        if close:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def canned_reply(behaviour: Status | EarlyStatus | Answer | Body | Expired | ApimExpired | GzipBomb) -> Reply:
    """The answer that depends on nothing but the behaviour."""
    match behaviour:
        case Status(status, body, headers) | EarlyStatus(status, body, headers):
            if body is None and status in (204, 304):
                body = b""
            elif body is None:
                body = f"<html><head><title>{status}</title></head><body>{status}</body></html>"
            content = body.encode() if isinstance(body, str) else body
            return Reply(status, content, {"Content-Type": "text/html", **headers})
        case Answer(code, msg):
            return enos_reply(code, msg or ("OK" if behaviour.succeeds else f"refused with {code}, as told"))
        case Body(content, content_type, status):
            return Reply(status, content, {"Content-Type": content_type})
        case Expired():
            return enos_reply(401, "access token is missing, unknown or expired", status=401)
        case ApimExpired(apim_status):
            return json_reply({"apim_status": apim_status, "apim_refreshtoken": str(uuid.uuid4())})
        case GzipBomb(megabytes):
            packer = zlib.compressobj(wbits=31)
            packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()
            return Reply(200, packed, {"Content-Type": "application/json", "Content-Encoding": "gzip"})


def enos_reply(code: int, msg: str, *, status: int = 200) -> Reply:
    """An answer of the integration service."""
    return json_reply({"code": code, "msg": msg, "requestId": str(uuid.uuid4()), "data": {}}, status=status)


def json_reply(value: Mapping[str, Any], *, status: int = 200) -> Reply:
    """An answer with any JSON."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return Reply(status, content, {"Content-Type": "application/json;charset=UTF-8"})
