"""The access token: fetched once for everybody, renewed before it ends, and told to nobody else."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from outbox.destinations import Token
from outbox.destinations.token import CredentialsRefused
from outbox.errors import ConfigurationError, NotSent, OutboxError, TransportError
from outbox.testing import Body, HangUp, Receiver, Status
from outbox.transport import Answer, RequestsTransport
from tests.pure.making import NOW
from tests.pure.recorder import Recorder

SECRET = "app-secret-which-nobody-sees"


class Service:
    """A token service whose clock is ours, and a token of it."""

    def __init__(self, lifetime: float = 7200, **options: Any) -> None:
        self.monotonic = 1000.0
        self.now = NOW
        clocks: dict[str, Any] = {"monotonic": lambda: self.monotonic, "wall": self.wall}
        self.receiver = Receiver(app_secret=SECRET, token_lifetime=lifetime, **clocks, **options)
        self.transport = RequestsTransport()

    def wall(self) -> float:
        return self.now.timestamp()

    def token(self, **changes: Any) -> Token:
        usual = {"url": self.receiver.token_url, "app_key": "app-key", "app_secret": SECRET, "allow_plain_http": True}
        return Token(**(usual | changes))

    def ask(self, token: Token, transport: RequestsTransport | None = None) -> str:
        (value,) = token.headers(transport or self.transport, self.now, self.monotonic).values()
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


def test_processes_that_sign_at_the_same_millisecond_do_not_meet_again_and_again(service: Service) -> None:
    """Each that comes a fixed step later meets all those before it once more."""
    values = {service.ask(service.token()) for _ in range(8)}

    assert 1 == len(values)
    assert service.asked[0] < 8 + 7 + 7


def test_a_repeated_signature_is_made_with_a_later_time(service: Service) -> None:
    token = service.token()
    service.receiver.misbehave_for_tokens(*[says(1001)] * 4)

    assert service.receiver.issue_token() == service.ask(token)
    assert (5, 0) == service.asked
    token.renew()
    service.ask(token)
    assert (5, 1) == service.asked


def test_a_service_that_always_sees_a_replay_is_tried_later_and_no_refusal(service: Service) -> None:
    service.receiver.misbehave_for_tokens(*[says(1001)] * 10)

    with pytest.raises(TransportError, match="1001"):
        service.ask(service.token())

    assert (5, 0) == service.asked


def test_a_clock_that_steps_back_and_is_put_right_gets_its_token_all_the_same(service: Service) -> None:
    token = service.token()
    service.ask(token)
    service.now -= timedelta(hours=1)
    token.renew()
    service.ask(token)

    service.now += timedelta(hours=1)
    token.renew()
    service.ask(token)

    # The signature of the first time comes up again, is refused as a repetition, and signed anew.
    assert (1, 3) == service.asked


# Refusals.


@pytest.mark.parametrize(
    ("changes", "words"), [({"app_key": "nobody"}, "app key does not exist"), ({"app_secret": "wrong"}, "app secret is wrong")]
)
def test_a_service_that_does_not_know_us_is_told_to_a_person(service: Service, changes: dict[str, str], words: str) -> None:
    with pytest.raises(CredentialsRefused, match=words):
        service.ask(service.token(**changes))


@pytest.mark.parametrize("status", [1002, 1003, 1004, 1202])
def test_a_code_that_refuses_is_no_outage(service: Service, status: int) -> None:
    service.receiver.misbehave_for_tokens(says(status))

    with pytest.raises(CredentialsRefused, match=str(status)):
        service.ask(service.token())


def test_what_is_said_of_refreshing_means_nothing_in_an_answer_to_get(service: Service) -> None:
    service.receiver.misbehave_for_tokens(says(1204))

    with pytest.raises(TransportError, match="nobody documents"):
        service.ask(service.token())


OUTAGES = {
    "its own trouble": says(1005),
    "a status that nobody documents": says(7),
    "what only a refresh may hear": says(1204),
    "a token with an HTTP status that is no success": Body(
        b'{"status":0,"data":{"accessToken":"x","expire":7200}}', status=500
    ),
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


def test_while_its_token_lives_a_refusal_stops_nothing_but_is_logged(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """A secret may be rotated while a worker runs: there is time until the token ends."""
    token = service.token()
    first = service.ask(token)
    service.receiver.rotate_secret("another one")
    service.pass_by(6700)

    during = [service.ask(token), service.ask(token)]
    asked = service.asked
    service.pass_by(500)

    assert [first, first] == during
    assert (1, 1) == asked
    assert ["the app secret is wrong" in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(CredentialsRefused):
        service.ask(token)


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


@pytest.mark.parametrize("host", ["[x", "gate\u2100way.example", "gateway.example:x", "gateway.example:99999"])
def test_an_address_that_is_none_is_refused_without_a_word_of_it(host: str) -> None:
    with pytest.raises(ConfigurationError, match="expected a URL that begins with https://") as caught:
        Token(f"https://ada:{SECRET}@{host}", "app-key", SECRET)

    assert SECRET not in "".join(traceback.format_exception(caught.value))


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


class Gate(RequestsTransport):
    """Stands before the service: what reaches it waits until it is let through."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.reached = threading.Semaphore(0)
        self.opened = threading.Event()
        self.error = error

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        self.reached.release()
        assert self.opened.wait(10)
        if self.error is not None:
            raise self.error
        return super().post_json(url, body, deadline, connect)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts the threads that begin to wait for what another one asks."""
    bell = threading.Semaphore(0)

    class Belled(Future[str]):
        def result(self, timeout: float | None = None) -> str:
            bell.release()
            return super().result(timeout)

    monkeypatch.setattr("outbox.destinations.token.Future", Belled)
    return bell


def test_nobody_waits_for_an_early_renewal(service: Service) -> None:
    token, gate = service.token(), Gate()
    first = service.ask(token)
    service.pass_by(6700)

    with ThreadPoolExecutor(2) as pool:
        renewing = pool.submit(service.ask, token, gate)
        assert gate.reached.acquire(timeout=10)
        during = [pool.submit(service.ask, token).result(timeout=5) for _ in range(3)]
        gate.opened.set()
        new = renewing.result()

    assert [first] * 3 == during
    assert first != new == service.ask(token)
    assert (1, 1) == service.asked


def test_one_whose_token_was_refused_waits_for_a_renewal_that_is_under_way(
    service: Service, waiting: threading.Semaphore
) -> None:
    token, gate = service.token(), Gate()
    first = service.ask(token)
    service.pass_by(6700)

    with ThreadPoolExecutor(2) as pool:
        renewing = pool.submit(service.ask, token, gate)
        assert gate.reached.acquire(timeout=10)
        token.renew()
        refused = pool.submit(service.ask, token)
        assert waiting.acquire(timeout=10)
        gate.opened.set()
        values = {renewing.result(), refused.result()}

    assert 1 == len(values)
    assert first not in values
    assert (1, 1) == service.asked


@pytest.mark.parametrize(
    ("answer", "expected"), [(Status(503), TransportError), (says(1002), CredentialsRefused)], ids=["outage", "refusal"]
)
def test_those_who_wait_for_the_one_who_asks_share_its_failure(
    service: Service, waiting: threading.Semaphore, answer: Any, expected: type[Exception]
) -> None:
    """Each asking in turn, and waiting for its own deadline, would hold up the last of them for minutes."""
    token, gate = service.token(), Gate()
    service.receiver.misbehave_for_tokens(answer)

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(service.ask, token, gate) for _ in range(6)]
        for _ in range(5):
            assert waiting.acquire(timeout=10)
        gate.opened.set()
        failures = [future.exception() for future in futures]

    assert {expected} == {type(failure) for failure in failures}
    assert 1 == len({str(failure) for failure in failures})
    assert (1, 0) == service.asked
    assert service.receiver.issue_token() == service.ask(token)


@pytest.mark.parametrize(
    ("error", "heard"), [(RuntimeError("a bug"), RuntimeError), (KeyboardInterrupt(), TransportError)], ids=["bug", "interrupt"]
)
def test_whatever_ends_the_asking_leaves_nobody_waiting(
    service: Service, waiting: threading.Semaphore, error: BaseException, heard: type[BaseException]
) -> None:
    token, gate = service.token(), Gate(error)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(service.ask, token, gate)
        assert gate.reached.acquire(timeout=10)
        second = pool.submit(service.ask, token)
        assert waiting.acquire(timeout=10)
        gate.opened.set()

        assert error is first.exception()
        assert heard is type(second.exception())
    assert service.receiver.issue_token() == service.ask(token)


# The clock.


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1500, "it is 25 min behind the token service's"),
        (-1500, "it is 25 min ahead of the token service's"),
        (100, "it is 100 s behind the token service's"),
        (10_800, "it is 3 h behind the token service's"),
        (-40 * 86_400, "it is 40 days ahead of the token service's"),
    ],
)
def test_a_refusal_that_a_wrong_clock_explains_says_how_wrong_it_is(
    make_service: Callable[..., Service], seconds: float, words: str
) -> None:
    service = make_service(max_skew=60, token_clock_skew=seconds)

    with pytest.raises(CredentialsRefused, match=f"the app secret is wrong, or this machine's clock is: {words}"):
        service.ask(service.token())


@pytest.mark.parametrize("seconds", [0, 60, -60])
def test_a_clock_that_is_right_is_not_blamed(make_service: Callable[..., Service], seconds: float) -> None:
    service = make_service(token_clock_skew=seconds)

    with pytest.raises(CredentialsRefused, match="the app secret is wrong") as caught:
        service.ask(service.token(app_secret="another one"))

    assert "the token service's" not in str(caught.value)


@pytest.mark.parametrize(("changes", "answer"), [({"app_key": "nobody"}, None), ({}, says(1005)), ({}, Body(b"<html>"))])
def test_any_refusal_tells_of_a_wrong_clock(
    make_service: Callable[..., Service], changes: dict[str, str], answer: Body | None
) -> None:
    service = make_service(token_clock_skew=-7200)
    service.receiver.misbehave_for_tokens(*([answer] if answer else []))

    with pytest.raises(OutboxError, match="; this machine's clock is 2 h ahead of the token service's"):
        service.ask(service.token(**changes))


@pytest.mark.parametrize("date", ["", "soon", "Wed, 21 Oct 2015 07:28:00", "Wed, 21 Oct 99999 07:28:00 GMT"])
def test_a_date_that_is_none_says_nothing_of_a_clock(date: str) -> None:
    body = b'{"status":1003,"msg":"no"}'
    head = f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with Recorder([head.encode() + body]) as service:
        token = Token(service.url, "app-key", SECRET, allow_plain_http=True)

        with pytest.raises(CredentialsRefused) as caught:
            token.headers(RequestsTransport(), NOW, 0.0)

    said = "the token service refused us: the app secret is wrong, or this machine's clock is (1003: no)"
    assert said == str(caught.value)


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
    assert not any(value in said for value in values)
    assert "encryption" not in caplog.text
    assert not any(value in caplog.text + repr(token) for value in values)


class Echo(RequestsTransport):
    """A service that gives a token once and then repeats what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[dict[str, str]] = []

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        self.bodies.append(json.loads(body))
        if len(self.bodies) == 1:
            return Answer(200, {}, b'{"status":0,"data":{"accessToken":"the-token","expire":7200}}')
        return Answer(200, {}, json.dumps({"status": 1004, "msg": f"bad: {body.decode()} {SECRET}"}).encode())


def test_a_service_that_repeats_what_it_was_asked_makes_nobody_else_repeat_it() -> None:
    echo = Echo()
    token = Token("https://gateway.example", "app-key", SECRET)
    token.headers(echo, NOW, 0.0)
    token.renew()

    with pytest.raises(CredentialsRefused, match="bad: ") as caught:
        token.headers(echo, NOW, 1.0)

    said = "".join(traceback.format_exception(caught.value))
    assert "the-token" == echo.bodies[-1]["accessToken"]
    assert not any(each in said for each in (SECRET, "the-token", echo.bodies[-1]["encryption"]))


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


def test_a_secret_that_the_service_has_changed_is_seen_at_the_next_asking(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox import env

    monkeypatch.setenv("OUTBOX_TEST_SECRET", SECRET)
    token = service.token(app_secret=env("OUTBOX_TEST_SECRET"))
    service.ask(token)
    service.receiver.rotate_secret("the new one")
    token.renew()
    with pytest.raises(CredentialsRefused):
        service.ask(token)

    monkeypatch.setenv("OUTBOX_TEST_SECRET", "the new one")

    assert service.ask(token) == service.receiver.issue_token()


def test_now_is_an_instant_and_not_a_place(service: Service) -> None:
    elsewhere = datetime.fromisoformat("2026-03-01T17:30:00+05:30")

    headers = service.token().headers(service.transport, elsewhere, 0.0)

    assert {service.receiver.issue_token()} == set(headers.values())
