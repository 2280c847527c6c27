"""Forms and webhooks on their whole way: enqueued, sent by a worker over a socket, and taken by an application not ours."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import standardwebhooks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox import File, Form, Outbox, State, StaticToken, Webhook, Worker, env
from outbox.checkup.remote_looks import RemoteLooks
from outbox.cli.show import _curl as request_of
from outbox.destinations import Destination
from outbox.destinations.bystatus import unfit_name
from outbox.multipart import FieldPart, FilePart
from outbox.payload import has_controls
from outbox.secret import secret_file
from outbox.store import breaker
from outbox.tables import attempt, delivery
from outbox.tables import destination as place_of_destinations
from outbox.transport import RequestsTransport, Upload
from tests.factories import an_outbox, deliveries, reasons, states
from tests.pure.making import Crate
from tests.strangers import APPS, Stranger

PHOTO = os.urandom(300_000)
OLD, NEW, OTHER = (f"whsec_{base64.b64encode(letter * 32).decode()}" for letter in (b"o", b"n", b"x"))


@pytest.fixture(params=APPS)
def stranger(request: pytest.FixtureRequest) -> Iterator[Stranger]:
    with APPS[request.param]() as here:
        yield here


@pytest.fixture
def flask_stranger() -> Iterator[Stranger]:
    with APPS["flask"]() as here:
        yield here


Make = Callable[[Destination], Outbox]


@pytest.fixture
def outbox_with(database_url: str, tmp_path: Path) -> Iterator[Make]:
    made: list[Outbox] = []

    def make(destination: Destination) -> Outbox:
        made.append(an_outbox(database_url, tmp_path / "spool", destination))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def deliver(outbox: Outbox, payload: Any = None, key: str = "k-1", **options: Any) -> None:
    """Enqueue a message and let a worker do all it can."""
    name = next(iter(outbox.destinations))
    with outbox.database.begin() as connection:
        outbox.enqueue(connection, name, payload or {"assetId": "t-7"}, key=key, **options)
    Worker(outbox).run(until_idle=True)


# Forms.


def test_a_form_arrives_with_its_fields_and_its_files(stranger: Stranger, outbox_with: Make) -> None:
    form = Form(
        name="depot",
        url=stranger.url,
        fields={"device": "assetId", "note": "meta.note?", "size": "meta.size"},
        files={"picture": "photo"},
        token=StaticToken("hunter2hunter2"),
        headers={"X-Site": "north"},
        allow_plain_http=True,
    )
    outbox = outbox_with(form)

    photo = File(PHOTO, filename='img "ü".jpg', content_type="image/jpeg")
    deliver(outbox, {"assetId": "türbine 7", "meta": {"size": [1, 2.5]}}, "prüf 1", files={"photo": photo})

    (arrived,) = stranger.arrived
    assert {"prüf 1": State.DELIVERED} == states(outbox.database)
    assert {"device": "türbine 7", "size": "[1,2.5]"} == arrived.fields
    filename, content_type, content = arrived.files["picture"]
    assert ("image/jpeg", hashlib.sha256(PHOTO).digest()) == (content_type, hashlib.sha256(content).digest())
    assert 'img "ü".jpg' == filename.replace("%22", '"')
    assert ("pr%C3%BCf%201", "Bearer hunter2hunter2", "north") == tuple(
        arrived.headers[name] for name in ("idempotency-key", "authorization", "x-site")
    )


def test_a_form_of_every_member_and_every_attachment_arrives_too(stranger: Stranger, outbox_with: Make) -> None:
    outbox = outbox_with(Form(name="depot", url=stranger.url, allow_plain_http=True))

    deliver(outbox, {"a": "x", "b": None, "c": {"d": True}}, files={"photo": PHOTO, "log": b""})

    (arrived,) = stranger.arrived
    assert {"k-1": State.DELIVERED} == states(outbox.database)
    assert {"a": "x", "b": "null", "c": '{"d":true}'} == arrived.fields
    assert {"photo": PHOTO, "log": b""} == {name: content for name, (_, _, content) in arrived.files.items()}


def test_each_message_is_a_request_of_its_own(flask_stranger: Stranger, outbox_with: Make) -> None:
    outbox = outbox_with(Form(name="depot", url=flask_stranger.url, allow_plain_http=True))
    with outbox.database.begin() as connection:
        for number in range(5):
            outbox.enqueue(connection, "depot", {"n": number}, key=f"k-{number}", ordering_key="t-7")

    Worker(outbox).run(until_idle=True)

    assert [str(number) for number in range(5)] == [each.fields["n"] for each in flask_stranger.arrived]
    assert [1] * 5 == [each.messages for each in deliveries(outbox.database)]


def test_a_form_that_is_refused_is_dead_with_what_was_said(flask_stranger: Stranger, outbox_with: Make) -> None:
    flask_stranger.answers[:] = [(422, '{"error": "no such device"}'), (200, '{"stored": true}')]
    outbox = outbox_with(Form(name="depot", url=flask_stranger.url, allow_plain_http=True))

    deliver(outbox)

    assert {"k-1": State.DEAD} == states(outbox.database)
    assert {"k-1": "rejected"} == reasons(outbox.database)


# Webhooks.


@pytest.mark.parametrize("files", [{}, {"photo": PHOTO, "ü.log": b"abc"}], ids=["json", "multipart"])
def test_a_webhook_is_verified_by_the_standards_own_library(
    stranger: Stranger, outbox_with: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    monkeypatch.setenv("HOOK_SECRET_NEW", NEW)
    (tmp_path / "old").write_text(f"{OLD}\n")
    secrets = [env("HOOK_SECRET_NEW"), secret_file(tmp_path / "old")]
    outbox = outbox_with(Webhook(name="hook", url=stranger.url, secrets=secrets, allow_plain_http=True))

    deliver(outbox, {"type": "crack.found", "data": {"size": 1.0, "note": "ü"}}, "prüf 1.2", files=files)

    (arrived,) = stranger.arrived
    body = arrived.fields["event"].encode() if files else arrived.body
    assert {"prüf 1.2": State.DELIVERED} == states(outbox.database)
    for secret in (NEW, OLD):
        event = standardwebhooks.Webhook(secret).verify(body, arrived.headers)
    assert {"type": "crack.found", "data": {"size": 1.0, "note": "ü"}} == (event["payload"] if files else event)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(OTHER).verify(body, arrived.headers)
    assert "pr%C3%BCf%201%2E2" == arrived.headers["webhook-id"]
    if files:
        assert {name: hashlib.sha256(content).hexdigest() for name, (_, _, content) in arrived.files.items()} == {
            name: entry["sha256"] for name, entry in event["files"].items()
        }
        assert files == {name: content for name, (_, _, content) in arrived.files.items()}
    else:
        assert "application/json" == arrived.headers["content-type"]


@pytest.mark.parametrize("value", [None, "canary-5e1f9a77"], ids=["missing", "malformed"])
def test_a_secret_that_is_missing_or_none_stops_the_destination_and_costs_the_message_nothing(
    flask_stranger: Stranger,
    outbox_with: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str | None,
) -> None:
    if value is not None:
        monkeypatch.setenv("HOOK_SECRET", value)
    outbox = outbox_with(Webhook(name="hook", url=flask_stranger.url, secrets=[env("HOOK_SECRET")], allow_plain_http=True))

    deliver(outbox)

    with outbox.database.read() as connection:
        stopped = breaker.read(connection, "hook").stop
        rows = [
            str(row) for table in (attempt, delivery, place_of_destinations) for row in connection.execute(sa.select(table))
        ]
        failures = connection.execute(sa.text("SELECT failures, unknowns FROM outbox_message")).one()
    assert ({"k-1": State.PENDING}, "credentials", (0, 0)) == (states(outbox.database), str(stopped), tuple(failures))
    assert [] == flask_stranger.arrived
    assert any("environment variable HOOK_SECRET" in row for row in rows)
    assert "canary" not in "".join(rows) + caplog.text


def test_a_retry_is_signed_anew_with_the_time_it_began(flask_stranger: Stranger, outbox_with: Make) -> None:
    flask_stranger.answers[:] = [(401, "{}"), (200, "{}")]
    token = StaticToken("hunter2hunter2", header="X-Api-Key", scheme="")
    outbox = outbox_with(Webhook(name="hook", url=flask_stranger.url, secrets=[NEW], token=token, allow_plain_http=True))

    deliver(outbox)

    first, second = flask_stranger.arrived
    assert {"k-1": State.DELIVERED} == states(outbox.database)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "k-1"
    standardwebhooks.Webhook(NEW).verify(second.body, second.headers)


def test_a_doctor_says_whether_there_is_what_signs(
    flask_stranger: Stranger, outbox_with: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = outbox_with(Webhook(name="hook", url=flask_stranger.url, secrets=[env("HOOK_SECRET")], allow_plain_http=True))
    (look,) = [each.look for each in RemoteLooks(outbox, RequestsTransport()).checks() if each.name == "token"]

    missing = [str(each.text) for each in look()]
    monkeypatch.setenv("HOOK_SECRET", NEW)
    there = [str(each.text) for each in look()]

    assert ["hook: environment variable HOOK_SECRET is not set; it should hold a secret"] == missing
    assert ["hook signs its requests"] == there


def test_a_webhook_is_shown_without_its_signature(flask_stranger: Stranger, outbox_with: Make) -> None:
    hook = Webhook(
        name="hook", url=flask_stranger.url, secrets=[NEW], token=StaticToken("hunter2hunter2"), allow_plain_http=True
    )
    outbox = outbox_with(hook)
    deliver(outbox, {"a": "it's"})

    shown = shlex.split(request_of(outbox, outbox.message(1)).replace("\\\n", " "))

    assert {"webhook-id: k-1", "webhook-signature: ***", "Authorization: ***", "Content-Type: application/json"} <= set(shown)
    assert ["--data-raw", '{"a":"it\'s"}'] == shown[-2:]


# Odd names.

_NAMES = st.text(min_size=1, max_size=12).filter(
    lambda name: not unfit_name(name) and name.strip() == name and "%22" not in name
)


@pytest.mark.parametrize("app", APPS)
def test_names_of_any_letters_arrive_as_they_are(app: str) -> None:
    """A quote is %22 in a form, as browsers have it; not everybody turns that back."""
    crate, transport = Crate(), RequestsTransport()
    with APPS[app]() as here:

        @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
        @given(field=_NAMES, value=st.text(max_size=20), file=_NAMES, filename=_NAMES)
        def arrives(field: str, value: str, file: str, filename: str) -> None:
            if has_controls(value):
                return
            attached = crate.attach(file, filename, value.encode())
            parts = [FieldPart(field, value.encode()), FilePart(file, filename, attached.file)]

            transport.send(Upload(here.url, parts), crate.open, 20, 10)

            arrived = here.arrived[-1]
            assert {field: value} == {_unquoted(name): text for name, text in arrived.fields.items()}
            assert {file: value.encode()} == {_unquoted(name): each[2] for name, each in arrived.files.items()}

        arrives()
    transport.close()


def _unquoted(name: str) -> str:
    return name.replace("%22", '"')
