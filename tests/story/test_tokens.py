"""Tokens end, secrets change, the token service dawdles: no message is charged, and no secret is found anywhere afterwards."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, State, Token, Worker
from outbox.destinations.token import HEADER, SIGNATURES
from outbox.patience import Stop
from outbox.secret import secret_file
from outbox.tables import destination, message, metadata
from outbox.testing import ApimExpired, Expired, Hold, Receiver, Slow
from tests import warm
from tests.factories import Clock, deliveries, in_full, outcomes, states
from tests.story.conftest import ROOT, Place, eventually

pytestmark = pytest.mark.long
APP_KEY = "app-key"


class Vault:
    """Everything that must not be found: secrets, the tokens that were issued, and how each request was signed."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.secrets = [f"canary-{uuid.uuid4().hex}"]
        self.tokens: set[str] = set()
        self.signatures: set[str] = set()
        #: The time and the status of each answer.
        self.answered: list[tuple[str, int]] = []
        self.file = folder / "secret"
        self.file.write_text(self.secrets[0])
        self.said: list[str] = []
        self._caplog = caplog
        caplog.set_level(logging.DEBUG)

    def watch(self, receiver: Receiver) -> None:
        """Note what goes in and out of the token service."""
        desk = receiver._tokens
        honest = desk.answer

        def noted(operation: str, body: bytes) -> dict[str, Any]:
            answer = honest(operation, body)
            asked = json.loads(body)
            self.signatures.add(asked["encryption"])
            self.answered.append((asked["timestamp"], answer["status"]))
            if answer["data"]:
                self.tokens.add(answer["data"]["accessToken"])
            return answer

        desk.answer = noted  # type: ignore[method-assign]

    def another(self) -> str:
        """A secret to come."""
        self.secrets.append(f"canary-{uuid.uuid4().hex}")
        return self.secrets[-1]

    def check(self, place: Place, *, tokens: bool = True) -> None:
        """None of it is anywhere, although all of it was used. `tokens`: some were issued, and sent with an upload."""
        stamps = {stamp for stamp, _ in self.answered}
        signed = {_signature(stamp, secret) for stamp in stamps for secret in self.secrets}
        assert self.signatures & signed, "the secret was never used"
        shown = {request.headers.get(HEADER) for request in place.receiver.requests}
        assert bool(self.tokens & shown) == tokens, "no token was ever used"
        assert set() == self.found(place)

    def found(self, place: Place) -> set[str]:
        """Where any of it is."""
        canaries = [each.encode() for each in (*self.secrets, *self.tokens, *self.signatures)]
        return {name for name, text in self._everything(place) if any(each in text for each in canaries)}

    def _everything(self, place: Place) -> Iterator[tuple[str, bytes]]:
        yield "the log", self._caplog.text.encode()
        yield "what the log carries", "\n".join(repr(vars(record)) for record in self._caplog.get_records("call")).encode()
        yield "what was said", "\n".join(self.said).encode()
        for path in place.folder.rglob("*"):  # the database and its journal, the spool, what processes said
            if path.is_file():
                yield str(path), path.read_bytes()
        with place.database.read() as connection:
            for table in metadata.tables.values():
                yield table.name, repr(connection.execute(sa.select(table)).all()).encode()


def _signature(stamp: str, secret: str) -> str:
    return hashlib.sha256(f"{APP_KEY}{stamp}{secret}".encode()).hexdigest()


@dataclass
class Gate:
    """A place whose receiver wants a token, and the outbox there."""

    place: Place
    vault: Vault
    outbox: Outbox

    @property
    def receiver(self) -> Receiver:
        return self.place.receiver

    @property
    def clock(self) -> Clock:
        return self.place.clock

    def enqueue(self, number: int, first: int = 0, **options: Any) -> None:
        for each in range(first, first + number):
            self.place.enqueue(self.outbox, f"m{each}", {"photo": b"bytes"} if each % 3 == 0 else None, **options)

    def assert_all_delivered_and_nobody_charged(self) -> None:
        assert {State.DELIVERED} == set(states(self.place.database).values())
        assert_nobody_charged(self.place)
        self.place.check()

    def assert_quiet(self, fleet: Fleet) -> None:
        """Nobody who used the same key at the same time was taken for an intruder, and nobody asked for more than its share."""
        statuses = [status for _, status in self.vault.answered]
        print(f"asked {len(statuses)} times, {statuses.count(1001)} of them a repetition, for {len(self.vault.tokens)} tokens")
        # Of each token every process hears once, by a get or by a refresh and a get, each of them signed a few times at most.
        assert len(statuses) <= PROCESSES * len(self.vault.tokens) * 2 * SIGNATURES
        # A token may end twice within one delivery: that stops the destination until the next one succeeds.
        outcomes = [each.outcome for each in deliveries(self.place.database)]
        assert {"delivered", "retry"} >= set(outcomes)
        assert outcomes.count("retry") <= len(self.vault.tokens)
        assert [] == [log for log in fleet.logs if "is left alone" in log.read_text()], "the destination was stopped"
        self.assert_all_delivered_and_nobody_charged()
        self.vault.check(self.place)

    def status(self) -> str:
        """What `outbox status` says, with words that are too wide for a table on one line."""
        run = warm.run(
            [sys.executable, "-m", "outbox", "status", "--json"],
            cwd=self.place.folder,
            env=os.environ
            | {"OUTBOX_DATABASE": self.place.url, "OUTBOX_SPOOL": str(self.place.spool), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        self.vault.said += [run.stdout, run.stderr]
        told: str = json.loads(run.stdout)["destinations"]["enos"]["stop_text"]
        return told


def assert_nobody_charged(place: Place) -> None:
    with place.database.read() as connection:
        charged = sa.or_(message.c.failures > 0, message.c.unknowns > 0, message.c.state == State.DEAD)
        assert [] == connection.execute(sa.select(message.c.key, message.c.failures, message.c.unknowns).where(charged)).all()


@pytest.fixture
def vault(tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture) -> Vault:
    return Vault(tmp_path_factory.mktemp("vault"), caplog)


MakeGate = Callable[..., Gate]


@pytest.fixture
def make_gate(database_url: str, tmp_path: Path, vault: Vault) -> Iterator[MakeGate]:
    """Makes one gate; options are the receiver's. With a `clock` it is also what tokens live by."""
    opened: list[Place | Receiver] = []

    def make(policy: Policy | None = None, clock: Clock | None = None, **options: Any) -> Gate:
        if clock is not None:
            options = {"monotonic": lambda: clock.ticks} | options
        receiver = Receiver(app_key=APP_KEY, app_secret=vault.secrets[0], **options).start()
        opened.append(receiver)
        vault.watch(receiver)
        place = Place(database_url, tmp_path, receiver)
        opened.append(place)
        place.clock = clock or place.clock
        token = Token(receiver.token_url, APP_KEY, secret_file(vault.file), allow_plain_http=True)
        return Gate(place, vault, place.outbox(policy, clock=clock, token=token))

    yield make
    for each in reversed(opened):
        each.close()


# The search itself


def test_the_search_finds_a_canary_wherever_it_is_and_misses_one_that_was_never_used(make_gate: MakeGate) -> None:
    gate = make_gate()
    with pytest.raises(AssertionError, match="the secret was never used"):
        gate.vault.check(gate.place)
    gate.enqueue(1)
    gate.place.hand(gate.outbox).turn()
    gate.vault.check(gate.place)

    (token,), (signature,), secret = gate.vault.tokens, gate.vault.signatures, gate.vault.secrets[0]
    logging.getLogger("somebody").debug("a request", extra={"signed": signature})
    (gate.place.spool / "left-behind").write_text(f"token={token}")
    with gate.place.database.begin() as connection:
        connection.execute(sa.update(message).values(reason_text=f"refused {secret}"))

    expected = {"what the log carries", str(gate.place.spool / "left-behind"), "outbox_message"}
    assert expected <= gate.vault.found(gate.place)


# Tokens that end in the middle of a backlog


@pytest.mark.parametrize("refusal", [Expired(), ApimExpired()], ids=["401", "4011"])
def test_tokens_that_are_taken_back_in_mid_backlog_cost_nothing(make_gate: MakeGate, refusal: Expired | ApimExpired) -> None:
    gate = make_gate(Policy(batch_messages=2), Clock(), token_refusal=refusal)
    gate.enqueue(30)
    hand = gate.place.hand(gate.outbox)
    while hand.turn():
        gate.receiver.expire_tokens()

    assert {"delivered"} == {each.outcome for each in deliveries(gate.place.database)}
    assert (15, 14) == (
        len(gate.vault.tokens),
        sum(request.status != 200 or request.code is None for request in gate.receiver.requests),
    )
    assert hand.breaker().stop is None
    gate.assert_all_delivered_and_nobody_charged()
    gate.vault.check(gate.place)


@pytest.mark.parametrize("revokes", [True, False], ids=["refresh revokes", "refresh leaves the old one"])
@pytest.mark.parametrize(
    "pause",
    [pytest.param(7, marks=pytest.mark.full), 45, 4000],
    ids=["they live on", "they are renewed early", "they end while nobody looks"],
)
def test_short_lived_tokens_carry_a_long_backlog(make_gate: MakeGate, revokes: bool, pause: int) -> None:
    gate = make_gate(Policy(batch_messages=2), Clock(), token_lifetime=100, refresh_revokes=revokes)
    gate.enqueue(30)
    hand = gate.place.hand(gate.outbox)
    while hand.turn():
        gate.clock.move(pause)

    assert [200] * 15 == [request.status for request in gate.receiver.requests], "each was renewed before it was missed"
    assert {7: 2, 45: 8, 4000: 15}[pause] == len(gate.vault.tokens)
    gate.assert_all_delivered_and_nobody_charged()
    gate.vault.check(gate.place)


@pytest.mark.slow
def test_four_senders_share_tokens_that_end_every_second(make_gate: MakeGate) -> None:
    gate = make_gate(Policy(batch_messages=3), token_lifetime=2, latency=0.05)
    gate.enqueue(240)

    Worker(gate.outbox, poll=0.02).run(until_idle=True)

    assert len(gate.vault.tokens) >= 2, "no token ended in the middle"
    assert {"delivered"} == {each.outcome for each in deliveries(gate.place.database)}
    gate.assert_all_delivered_and_nobody_charged()
    gate.vault.check(gate.place)


# A secret that is replaced


@pytest.mark.parametrize("remedy", ["time", "restart"])
def test_a_rotated_secret_stops_everything_and_a_new_file_starts_it_again(make_gate: MakeGate, remedy: str) -> None:
    clock = Clock() if remedy == "time" else None
    gate = make_gate(Policy(batch_messages=2), clock)
    gate.enqueue(12)
    hand = gate.place.hand(gate.outbox)
    hand.turn()
    new = gate.vault.another()
    gate.receiver.rotate_secret(new)
    hand.turn()  # the token that is alive still opens the door
    before = len(gate.receiver.accepted)
    gate.receiver.expire_tokens()

    for _ in range(5):
        hand.turn()
    stopped, uploads, asked = hand.breaker(), len(gate.receiver.requests), gate.receiver.token_requests.total()
    for _ in range(5):
        hand.turn()
    assert_nobody_charged(gate.place)
    gate.vault.file.write_text(new + "\n")
    if remedy == "time":
        gate.clock.move(minutes=16)
        hand.turn_while_it_moves()
    else:
        Worker(gate.outbox, poll=0.05).run(until_idle=True)

    assert (4, Stop.CREDENTIALS) == (before, stopped.stop)
    assert "the app secret is wrong" in gate.vault._caplog.text
    # One upload was refused; none was begun after it, and nobody asked for a token again before the remedy came.
    assert (3, 2) == (uploads, asked)
    assert hand.breaker().stop is None
    gate.assert_all_delivered_and_nobody_charged()
    assert any(_signature(stamp, new) in gate.vault.signatures for stamp, _ in gate.vault.answered)
    gate.vault.check(gate.place)


@pytest.mark.parametrize("contents", ["", " \n", None, "caf\u00e9"], ids=["empty", "blank", "gone", "not ASCII"])
def test_a_secret_file_that_is_just_being_written_costs_a_quarter_of_an_hour_and_nothing_else(
    make_gate: MakeGate, contents: str | None
) -> None:
    gate = make_gate(None, Clock())
    gate.enqueue(3)
    if contents is None:
        gate.vault.file.unlink()
    else:
        gate.vault.file.write_text(contents, "utf-8")
    hand = gate.place.hand(gate.outbox)
    hand.turn()
    with gate.place.database.read() as connection:
        told = connection.execute(sa.select(destination.c.stop_text)).scalar_one()

    gate.vault.file.write_text(gate.vault.secrets[0])
    gate.clock.move(minutes=16)
    hand.turn_while_it_moves()

    assert str(gate.vault.file) in told
    gate.assert_all_delivered_and_nobody_charged()
    gate.vault.check(gate.place)


# A secret, or a clock, that is wrong


def time_of(clock: Clock) -> float:
    """Seconds since 1970, by a clock that is moved."""
    return clock.wall.timestamp()


@pytest.mark.parametrize(
    ("wrong", "options", "words"),
    [
        (True, {}, "the token service refused us: the app secret is wrong, or this machine's clock is (1003"),
        (
            False,
            {"token_clock_skew": 3 * 86_400, "max_skew": 300},
            "this machine's clock is: it is 3 days behind the token service's",
        ),
        (
            False,
            {"token_clock_skew": -7200, "max_skew": 300},
            "this machine's clock is: it is 2 h ahead of the token service's",
        ),
    ],
    ids=["wrong secret", "clock behind", "clock ahead"],
)
def test_who_is_not_known_is_told_why_and_every_message_waits(
    make_gate: MakeGate, wrong: bool, options: dict[str, Any], words: str
) -> None:
    clock = Clock()
    gate = make_gate(None, clock, wall=lambda: time_of(clock), **options)
    if wrong:
        gate.vault.file.write_text(gate.vault.another())
    gate.enqueue(6)
    hand = gate.place.hand(gate.outbox)

    for _ in range(12):
        hand.turn()
        gate.clock.move(minutes=16)

    assert Stop.CREDENTIALS == hand.breaker().stop
    assert words in gate.status()
    assert {State.PENDING} == set(states(gate.place.database).values())
    assert_nobody_charged(gate.place)
    assert ([], 12) == (gate.receiver.requests, gate.receiver.token_requests["get"])
    gate.vault.check(gate.place, tokens=False)


# A token service that takes its time


def test_senders_wait_for_a_slow_token_service_and_ask_it_once(make_gate: MakeGate) -> None:
    gate = make_gate(Policy(batch_messages=3))
    gate.receiver.always_for_tokens(Slow(1.0))
    gate.enqueue(24)

    with Worker(gate.outbox, poll=0.02):
        gate.receiver.wait_for(lambda receiver: receiver.token_requests["get"] == 1)
        during = len(gate.receiver.requests)
        gate.receiver.wait_for(lambda receiver: len(receiver.accepted) == 24)

    assert 0 == during
    assert {"get": 1, "refresh": 0} == gate.receiver.token_requests
    gate.assert_all_delivered_and_nobody_charged()
    gate.vault.check(gate.place)


def test_a_token_service_that_is_too_slow_is_the_destinations_trouble(
    make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.destinations.token._DEADLINE", 0.2)
    gate = make_gate(None, Clock())
    gate.receiver.always_for_tokens(Hold())
    gate.enqueue(4)
    hand = gate.place.hand(gate.outbox)

    for _ in range(7):
        hand.turn()
        gate.clock.move(minutes=16)
    without = set(states(gate.place.database).values()), hand.breaker()
    gate.receiver.always_for_tokens(None)
    gate.receiver.release()
    hand.turn_while_it_moves()

    assert {State.PENDING} == without[0]
    assert (True, None) == (without[1].is_open, without[1].stop)
    assert 4 == len(gate.receiver.accepted)
    gate.assert_all_delivered_and_nobody_charged()
    gate.vault.check(gate.place)


@pytest.mark.parametrize("early", [False, True], ids=["the first token", "after a refusal"])
def test_no_upload_begins_if_the_destination_is_paused_while_its_token_is_awaited(make_gate: MakeGate, early: bool) -> None:
    gate = make_gate(None, Clock())
    gate.enqueue(3)
    hand = gate.place.hand(gate.outbox)
    if early:
        hand.turn()
        gate.receiver.expire_tokens()
        gate.enqueue(3, first=3)
    uploads = len(gate.receiver.requests)
    gate.receiver.always_for_tokens(Hold())
    sender = threading.Thread(target=hand.turn)
    sender.start()
    gate.receiver.wait_for(lambda receiver: receiver.held == 1)

    gate.clock.move(1)
    gate.outbox.pause("enos", "a deployment", by="a person")
    gate.receiver.release()
    gate.receiver.always_for_tokens(None)
    while sender.is_alive():  # a refused refresh is followed by a get
        gate.receiver.release()
        sender.join(0.01)

    # The one that was refused, and made its sender ask.
    assert uploads + early == len(gate.receiver.requests)
    assert "not_sent" == outcomes(gate.place.database, "m5" if early else "m2")[-1][0]
    assert Stop.PAUSE == hand.breaker().stop
    assert_nobody_charged(gate.place)
    gate.outbox.resume("enos", by="a person")
    hand.turn_while_it_moves()
    gate.assert_all_delivered_and_nobody_charged()
    gate.vault.check(gate.place)


def test_a_worker_that_is_stopped_while_it_waits_for_a_token_begins_no_upload(make_gate: MakeGate) -> None:
    gate = make_gate()
    gate.receiver.always_for_tokens(Hold())
    gate.enqueue(3)
    worker = Worker(gate.outbox, poll=0.02, stop_grace=0.1)
    worker.start()
    gate.receiver.wait_for(lambda receiver: receiver.held == 1)

    worker.stop()
    worker.join()

    assert [] == gate.receiver.requests
    assert {State.PENDING} == set(states(gate.place.database).values())
    assert_nobody_charged(gate.place)
    gate.receiver.always_for_tokens(None)
    gate.receiver.release()
    Worker(gate.outbox, poll=0.02).run(until_idle=True)
    gate.assert_all_delivered_and_nobody_charged()
    gate.vault.check(gate.place)


# Many processes with the same key


PROCESSES = in_full(8, 4)


class Fleet:
    """Workers as processes of their own, all of which begin at the same moment."""

    def __init__(self, gate: Gate, policy: dict[str, Any], *, coarse: bool, size: int = PROCESSES) -> None:
        story = {
            "database": gate.place.url,
            "spool": str(gate.place.spool),
            "url": gate.receiver.url,
            "app_key": APP_KEY,
            "secret": str(gate.vault.file),
            "policy": policy,
            "coarse": coarse,
        }
        self.logs = [gate.place.folder / f"fleet-{number}.log" for number in range(size)]
        self._said = [gate.place.folder / f"fleet-{number}.out" for number in range(size)]
        self.processes = [self._process(story, *files) for files in zip(self._said, self.logs, strict=True)]

    def _process(self, story: dict[str, Any], said: Path, log: Path) -> subprocess.Popen[bytes]:
        with said.open("wb") as out, log.open("wb") as errors:
            return warm.WarmPopen(
                [sys.executable, "-m", "tests.story.token_programs"],
                cwd=ROOT,
                env=os.environ | {"STORY": json.dumps(story)},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
            )

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.processes:
            each.kill()
            each.wait()
            assert each.stdin is not None
            each.stdin.close()

    def go(self) -> None:
        eventually(lambda: all(b"ready" in each.read_bytes() for each in self._said), 180)
        begins = time.monotonic() + 0.3
        for each in self.processes:
            assert each.stdin is not None
            each.stdin.write(f"{begins}\n".encode())
            each.stdin.flush()

    def end(self) -> None:
        for each, log in zip(self.processes, self.logs, strict=True):
            assert each.wait(180) == 0, log.read_text()


@pytest.mark.slow
def test_processes_that_begin_together_all_get_their_token(make_gate: MakeGate) -> None:
    """Their clocks tick in seconds, so that they sign alike; and again and again all their tokens end at once."""
    gate = make_gate(latency=0.02)
    messages = in_full(200, 100)
    gate.enqueue(messages)

    with Fleet(gate, {"batch_messages": 2, "senders": 2}, coarse=True) as fleet:
        fleet.go()
        for number in (messages // 3, messages * 2 // 3):
            gate.receiver.wait_for(lambda receiver, number=number: len(receiver.accepted) >= number, 180)
            gate.receiver.expire_tokens()
        fleet.end()

    assert 3 == len(gate.vault.tokens)
    assert 1001 in [status for _, status in gate.vault.answered], "nobody signed at the same moment as another"
    gate.assert_quiet(fleet)


@pytest.mark.slow
def test_processes_whose_refreshes_end_each_others_tokens_go_on(make_gate: MakeGate) -> None:
    lifetime = in_full(3, 2)
    gate = make_gate(latency=0.1, token_lifetime=lifetime)
    gate.enqueue(34 * lifetime)

    with Fleet(gate, {"batch_messages": 1, "senders": 1}, coarse=False, size=3) as fleet:
        fleet.go()
        fleet.end()

    assert len(gate.vault.tokens) >= 2, "no token ended in the middle"
    gate.assert_quiet(fleet)
