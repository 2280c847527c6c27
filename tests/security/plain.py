"""Another reader of answers, as plain as can be: what it does not see as a success may never count as delivered."""

from __future__ import annotations

import json
from typing import Any


def plainly_says_yes(document: bytes) -> bool:
    """Whether it is an object without repetitions whose `code` is the integer 0 or 200, and nothing speaks against it."""
    names: list[list[str]] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names.append([name for name, _ in pairs])
        return dict(pairs)

    try:
        found = json.JSONDecoder(object_pairs_hook=note, strict=True).decode(document.decode())
    except (ValueError, RecursionError):
        return False
    code = found.get("code") if isinstance(found, dict) else None
    plain = (type(code) is int and code in (0, 200)) or (isinstance(code, str) and _is_zero_or_200(code))
    return plain and all(len(each) == len(set(each)) for each in names) and found.get("apim_status") is None


def _is_zero_or_200(digits: str) -> bool:
    return digits.isascii() and digits.removeprefix("-").isdigit() and int(digits[:30]) in (0, 200)
