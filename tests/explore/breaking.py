"""A function of the product with one snippet of it replaced, for as long as a test runs: the tests are tested with it."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from outbox.statements import Ready, _Plan

#: What keeps a worker from recording what is not its claim any more, in `recording._settle`.
FENCE = """\
        # Not as they are: a planner would take the index of what is claimed, which is small, but for what was in it once.
            message.c.state.concat("") == literal_column("'claimed'"),
            message.c.claimed_by.concat("") == parameter(message.c.claimed_by, "worker"),
            message.c.delivery_id == claims.delivery_id,
"""


def broken(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], before: str, after: str = "") -> None:
    """Let a function have `after` where it has `before`, wherever it is called from."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(before) == 1, f"{function.__qualname__} has this {source.count(before)} times:\n{before}"
    annotations = __future__.annotations.compiler_flag
    made: dict[str, Any] = {}
    code = compile(source.replace(before, after), inspect.getfile(function), "exec", flags=annotations, dont_inherit=True)
    exec(code, function.__globals__, made)
    # What was made of it before is not used meanwhile, and what is made meanwhile not afterwards.
    monkeypatch.setattr(Ready, "_plan", lambda ready, connection: _Plan(ready._build(connection), connection.dialect))
    monkeypatch.setattr(function, "__code__", made[function.__name__].__code__)
