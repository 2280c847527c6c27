"""The access token: fetched once for everybody, renewed before it ends, and told to nobody else."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from outbox.destinations import Token
from outbox.destinations.token import CredentialsRefused
from outbox.errors import ConfigurationError, NotSent, TransportError
from outbox.testing import Body, HangUp, Receiver, Status
from outbox.transport import RequestsTransport
from tests.pure.making import NOW

SECRET = "app-secret-which-nobody-sees"


class Service:
    """A token service whose clock is ours, and a token of it."""

    def __init__(self, lifetime: float = 7200) -> None:
        self.monotonic = 1000.0
        self.now = NOW
        self.receiver = Receiver(app_secret=SECRET, token_lifetime=lifetime, monotonic=lambda: self.monotonic)
        self.transport = RequestsTransport()

    def token(self, **changes: Any) -> Token:
        usual = {"url": self.receiver.token_url, "app_key": "app-key", "app_secret": SECRET, "allow_plain_http": True}
        return Token(**(usual | changes))

    def ask(self, token: Token) -> str:
        (value,) = token.headers(self.transport, self.now, self.monotonic).values()
        return value

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.now += timedelta(seconds=seconds)

    @property
    def asked(self) -> tuple[int, int]:
        return self.receiver.token_requests["get"], self.receiver.token_requests["refresh"]


@pytest.fixture
def make_service() -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(**options: Any) -> Service:
        made.append(Service(**options))
        made[-1].receiver.start()
        return made[-1]

    yield make
    for each in made:
        each.receiver.close()
        assert each.receiver.violations == []


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()


def says(status: object, **data: Any) -> Body:
    return Body(json.dumps({"status": status, "msg": "as told", "business": "x", "data": data or None}).encode())


# Getting and keeping.


def test_it_is_fetched_when_it_is_first_wanted_and_kept(service: Service) -> None:
    token = service.token()
    before = service.asked

    values = {service.ask(token) for _ in range(5)}

    assert {service.receiver.issue_token()} == values
    assert [(0, 0), (1, 0)] == [before, service.asked]


def test_it_travels_in_its_own_header(service: Service) -> None:
    headers = service.token().headers(service.transport, service.now, service.monotonic)

    assert ["apim-accesstoken"] == list(headers)


@pytest.mark.parametrize(("lifetime", "renewed_at"), [(7200, 6600), (1300, 700), (1200, 600), (600, 300), (10, 5)])
def test_it_is_renewed_before_it_ends(make_service: Callable[..., Service], lifetime: float, renewed_at: float) -> None:
    service = make_service(lifetime=lifetime)
    token = service.token()
    first = service.ask(token)

    service.pass_by(renewed_at - 1)
    just_before, asked_before = service.ask(token), service.asked
    service.pass_by(1)
    at_last, asked_after = service.ask(token), service.asked

    assert [(1, 0), (1, 1)] == [asked_before, asked_after]
    assert first == just_before != at_last


def test_a_fixed_margin_would_ask_before_every_call(make_service: Callable[..., Service]) -> None:
    """`get` gives the token that lives already, so what is left of it can be short."""
    service = make_service(lifetime=7200)
    service.receiver.issue_token()
    service.pass_by(7000)
    token = service.token()

    for _ in range(10):
        service.ask(token)
        service.pass_by(9)

    assert (1, 0) == service.asked


def test_one_that_has_ended_is_fetched_anew(service: Service) -> None:
    token = service.token()
    first = service.ask(token)
    service.pass_by(7200)

    assert first != service.ask(token)
    assert (2, 0) == service.asked


def test_a_wall_clock_that_jumps_does_not_end_it(service: Service) -> None:
    token = service.token()
    service.ask(token)

    for jump in (timedelta(days=400), timedelta(days=-800)):
        service.now += jump
        service.ask(token)

    assert (1, 0) == service.asked


def test_one_that_was_not_accepted_is_renewed_at_the_next_asking(service: Service) -> None:
    token = service.token()
    first = service.ask(token)
    token.renew()
    asked = service.asked

    assert first != service.ask(token)
    assert [(1, 0), (1, 1)] == [asked, service.asked]


def test_one_that_cannot_be_refreshed_is_fetched(service: Service) -> None:
    token = service.token()
    service.ask(token)
    service.receiver.expire_tokens()
    token.renew()

    value = service.ask(token)

    assert service.receiver.issue_token() == value
    assert (2, 1) == service.asked


def test_a_refusal_to_refresh_falls_back_to_get(service: Service) -> None:
    token = service.token()
    service.ask(token)
    token.renew()
    service.receiver.misbehave_for_tokens(says(1204))

    service.ask(token)

    assert (2, 1) == service.asked


# Signing.


def test_each_call_is_signed_with_a_time_of_its_own(service: Service) -> None:
    """The service takes the same signature twice for a replay: 1001."""
    token = service.token()

    for _ in range(5):
        service.ask(token)
        token.renew()

    assert (1, 4) == service.asked


def test_a_signature_that_another_process_used_is_made_anew(service: Service) -> None:
    values = {service.ask(service.token()) for _ in range(3)}

    assert 1 == len(values)
    assert (6, 0) == service.asked


def test_a_service_that_always_sees_a_replay_is_no_reason_to_go_on_for_ever(service: Service) -> None:
    service.receiver.misbehave_for_tokens(*[says(1001)] * 10)

    with pytest.raises(TransportError, match="1001"):
        service.ask(service.token())

    assert (3, 0) == service.asked


def test_a_clock_that_steps_back_does_not_repeat_a_signature(service: Service) -> None:
    token = service.token()
    service.ask(token)
    service.now -= timedelta(hours=1)
    token.renew()
    service.ask(token)

    service.now += timedelta(hours=1)
    token.renew()
    service.ask(token)

    assert (1, 2) == service.asked


# Refusals.


@pytest.mark.parametrize(
    ("changes", "words"), [({"app_key": "nobody"}, "app key does not exist"), ({"app_secret": "wrong"}, "app secret is wrong")]
)
def test_a_service_that_does_not_know_us_is_told_to_a_person(service: Service, changes: dict[str, str], words: str) -> None:
    with pytest.raises(CredentialsRefused, match=words):
        service.ask(service.token(**changes))


@pytest.mark.parametrize("status", [1002, 1003, 1004, 1202, 7, 1203, 1204])
def test_a_code_that_refuses_is_no_outage(service: Service, status: int) -> None:
    service.receiver.misbehave_for_tokens(says(status))

    with pytest.raises(CredentialsRefused, match=str(status)):
        service.ask(service.token())


OUTAGES = {
    "its own trouble": says(1005),
    "empty": Body(b""),
    "html": Body(b"<html>502</html>", status=502),
    "a list": Body(b"[0]"),
    "no status": Body(b'{"data":{"accessToken":"x","expire":7200}}'),
    "misspelt": Body(b'{"stauts":0,"data":{"accessToken":"x","expire":7200}}'),
    "a true status": says(True, accessToken="x", expire=7200),
    "too deep": Body(b"[" * 60_000),
    "no data": says(0),
    "no token": says(0, expire=7200),
    "an empty token": says(0, accessToken="", expire=7200),
    "a number for a token": says(0, accessToken=5, expire=7200),
    "a token that breaks a header": says(0, accessToken="x\r\nEvil: yes", expire=7200),
    "a token that is not ASCII": says(0, accessToken="é", expire=7200),
    "a redirect": Status(302, b"", {"Location": "https://evil.example/"}),
    "a redirect that keeps the method": Status(307, b"", {"Location": "https://evil.example/"}),
    "hangs up": HangUp("after_body"),
    "hangs up early": HangUp("in_body", after_bytes=5),
}


@pytest.mark.parametrize("behaviour", OUTAGES.values(), ids=OUTAGES)
def test_anything_else_is_an_outage_and_the_next_call_asks_again(service: Service, behaviour: Any) -> None:
    token = service.token()
    service.receiver.misbehave_for_tokens(behaviour)

    with pytest.raises(TransportError) as caught:
        service.ask(token)

    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert service.receiver.issue_token() == service.ask(token)


@pytest.mark.parametrize("expire", [None, "7200", True, -5, 0, 1e300, 10**400, float("nan"), float("inf")])
def test_a_lifetime_that_makes_no_sense_is_not_trusted(service: Service, expire: object) -> None:
    token = service.token()
    service.receiver.misbehave_for_tokens(says(0, accessToken="odd", expire=expire))
    first = service.ask(token)
    service.pass_by(1e9)

    assert ["odd", service.receiver.issue_token()] == [first, service.ask(token)]


def test_while_its_token_lives_an_outage_of_the_service_stops_nothing(service: Service) -> None:
    """Early renewal is a courtesy: until the token ends there is nothing to wait for."""
    token = service.token()
    first = service.ask(token)
    service.pass_by(6700)
    service.receiver.misbehave_for_tokens(Status(503))

    during = [service.ask(token), service.ask(token)]
    service.pass_by(60)
    afterwards = service.ask(token)

    assert [first, first] == during
    assert first != afterwards


def test_a_token_that_was_refused_is_not_shown_again_because_the_service_is_away(service: Service) -> None:
    token = service.token()
    service.ask(token)
    token.renew()
    service.receiver.misbehave_for_tokens(Status(503))

    with pytest.raises(TransportError):
        service.ask(token)


def test_a_service_that_is_not_there_is_an_outage() -> None:
    token = Token("http://127.0.0.1:9", "app-key", SECRET, allow_plain_http=True)

    with pytest.raises(NotSent):
        token.headers(RequestsTransport(), NOW, 0.0)


def test_no_answer_of_the_token_service_leaves_the_upload_surely_not_sent(service: Service) -> None:
    service.receiver.misbehave_for_tokens(HangUp("after_body"))

    with pytest.raises(NotSent):
        service.ask(service.token())


@pytest.mark.parametrize("url", ["http://gateway.example", "gateway.example", "https://a:b@gateway.example"])
def test_an_address_that_would_give_it_away_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Token(url, "app-key", SECRET)


# Many threads.


def together(count: int, work: Callable[[], str]) -> list[str]:
    """The work of that many threads that begin at once."""
    gate = threading.Barrier(count)

    def begin() -> str:
        gate.wait()
        return work()

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(begin) for _ in range(count)]
        return [future.result() for future in futures]


def test_many_threads_that_want_the_first_token_ask_once(service: Service) -> None:
    token = service.token()

    values = together(16, lambda: service.ask(token))

    assert 1 == len(set(values))
    assert (1, 0) == service.asked


def test_many_threads_whose_token_was_refused_renew_it_once(service: Service) -> None:
    """Each refresh may end the token before it: renewed once for each thread, they would chase each other for ever."""
    token = service.token()
    gate = threading.Barrier(8)

    def send_and_be_refused() -> str:
        service.ask(token)
        gate.wait()
        token.renew()
        return service.ask(token)

    values = together(8, send_and_be_refused)

    assert {service.receiver.issue_token()} == set(values)
    assert (1, 1) == service.asked


def test_a_thread_that_hears_late_of_a_refusal_does_not_end_the_new_token(service: Service) -> None:
    token = service.token()
    with ThreadPoolExecutor(1) as quick, ThreadPoolExecutor(1) as slow:
        old = {each.submit(service.ask, token).result() for each in (quick, slow)}
        quick.submit(token.renew).result()
        new = quick.submit(service.ask, token).result()

        slow.submit(token.renew).result()
        seen = slow.submit(service.ask, token).result()

    assert 1 == len(old)
    assert new == seen
    assert (1, 1) == service.asked


# Silence.


def test_neither_token_nor_secret_nor_signature_is_ever_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = service.token()

    values = [service.ask(token)]
    token.renew()
    values.append(service.ask(token))
    service.receiver.misbehave_for_tokens(says(1003))
    service.pass_by(8000)
    with pytest.raises(CredentialsRefused) as caught:
        service.ask(token)

    said = caplog.text + "".join(traceback.format_exception(caught.value)) + repr(token) + repr(vars(token))
    assert SECRET not in said
    assert "encryption" not in caplog.text
    assert not any(value in caplog.text + repr(token) for value in values)


def test_a_broken_secret_is_named_by_its_place(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUTBOX_TEST_SECRET", raising=False)
    from outbox import env

    with pytest.raises(ConfigurationError, match="OUTBOX_TEST_SECRET"):
        service.ask(service.token(app_secret=env("OUTBOX_TEST_SECRET")))
    assert (0, 0) == service.asked


def test_a_rotated_secret_is_seen_without_a_restart(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from outbox import env

    monkeypatch.setenv("OUTBOX_TEST_SECRET", "the old one")
    token = service.token(app_secret=env("OUTBOX_TEST_SECRET"))
    with pytest.raises(CredentialsRefused):
        service.ask(token)

    monkeypatch.setenv("OUTBOX_TEST_SECRET", SECRET)

    assert service.receiver.issue_token() == service.ask(token)


def test_now_is_an_instant_and_not_a_place(service: Service) -> None:
    elsewhere = datetime.fromisoformat("2026-03-01T17:30:00+05:30")

    headers = service.token().headers(service.transport, elsewhere, 0.0)

    assert {service.receiver.issue_token()} == set(headers.values())
