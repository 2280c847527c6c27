"""What travels between processes arrives as it was; what holds secrets or connections says that it does not."""

from __future__ import annotations

import inspect
import pickle
import traceback
from typing import Any

import pytest

from outbox import (
    DirectorySpool,
    EnosEvents,
    Enqueued,
    Entry,
    Event,
    Fault,
    File,
    FileChanged,
    FileMissing,
    KeyConflict,
    NotSent,
    Outbox,
    OutboxError,
    Policy,
    Refused,
    Retention,
    Selection,
    SpooledFile,
    State,
    Token,
    UnknownDestination,
    env,
    errors,
)

PLACE = {"name": "enos", "url": "https://a.example", "org_id": "o"}
THINGS = [
    DirectorySpool("spool"),
    EnosEvents(**PLACE, policy=Policy(senders=2)),
    Enqueued(1, True, State.PENDING),
    Entry({"a": 1}, {"photo": File("x")}, key="k"),
    Event(asset_id="a", time=1, events={"crack": {"photo": File(b"x")}}),
    Retention(),
    Selection(ids=(1,)),
    SpooledFile("f", 1, "a", "b"),
]
ERRORS = [
    Refused([Fault("a", "is wrong"), Fault("", "all of it")]),
    UnknownDestination("x", ["a", "b"]),
    KeyConflict("enos", "k", 7),
    FileMissing("f"),
    FileChanged("f", "it is longer"),
    NotSent("cut off", begun=True),
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda each: type(each).__name__)
def test_what_is_plain_arrives_as_it_was(thing: Any) -> None:
    assert repr(thing) == repr(pickle.loads(pickle.dumps(thing)))


@pytest.mark.parametrize("error", ERRORS, ids=lambda each: type(each).__name__)
def test_an_error_arrives_with_its_words_and_all_that_it_holds(error: OutboxError) -> None:
    arrived = pickle.loads(pickle.dumps(error))

    assert (type(error), str(error), vars(error)) == (type(arrived), str(arrived), vars(arrived))
    assert traceback.format_exception_only(error) == traceback.format_exception_only(arrived)


#: Every error that is made of its words alone.
IN_WORDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, OutboxError)
    if not any("__init__" in vars(each) for each in kind.__mro__ if each.__module__ == errors.__name__)
]


@pytest.mark.parametrize("kind", IN_WORDS)
def test_so_does_every_other(kind: type[OutboxError]) -> None:
    arrived = pickle.loads(pickle.dumps(kind("in words")))

    assert (kind, "in words") == (type(arrived), str(arrived))


@pytest.mark.parametrize(
    "thing",
    [
        env("SOME_SECRET"),
        Token(url="https://a.example", app_key="k", app_secret=env("SOME_SECRET")),
        EnosEvents(**PLACE, token=Token(url="https://a.example", app_key="k", app_secret=env("SOME_SECRET"))),
        Outbox("sqlite:///x.db", spool="spool", destinations=[EnosEvents(**PLACE)]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_holds_secrets_or_connections_says_that_it_does_not_travel(thing: Any) -> None:
    with pytest.raises(TypeError, match="is not pickled"):
        pickle.dumps(thing)
