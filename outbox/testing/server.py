"""The HTTP side of a receiver: one thread per connection reads requests, answers them, and misbehaves as told."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Final, TypeAlias, assert_never, cast
from urllib.parse import parse_qsl, urlsplit

from outbox.testing.answers import Reply, canned_reply, enos_reply, json_reply
from outbox.testing.behaviours import (
    Answer,
    ApimExpired,
    Behaviour,
    Body,
    Drip,
    EarlyStatus,
    Expired,
    GzipBomb,
    HangUp,
    Hold,
    Silence,
    Slow,
    SlowRead,
    Status,
    Truncated,
    keeps,
)
from outbox.testing.books import Books, Structs
from outbox.testing.ledger import Received, ReceivedFile
from outbox.testing.tokens import TOKEN_PATHS, TokenDesk
from outbox.testing.upload import BLOCK, BadFraming, BodyLost, FormReader, body_blocks, boundary_of
from outbox.testing.wire import FILE_PART, MESSAGE_PART, Findings, Part, check, structs_of

INTEGRATION_PATH: Final = "/connect-service/v2.1/integration"
_RESET_ON_CLOSE: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
#: The longest answer that is sent under the books' lock: the socket's buffer takes it without waiting for the client.
_SHORT: Final = 1 << 14


@dataclass(frozen=True)
class Rules:
    """What a receiver expects and allows; sizes in bytes, times in seconds."""

    org_id: str | None
    check_token: bool
    token_refusal: Expired | ApimExpired
    max_message_bytes: int
    max_file_bytes: int
    max_request_bytes: int | None
    early_413: bool
    latency: float
    keep_files: Path | None
    monotonic: Callable[[], float]


@dataclass
class _Visit:
    """One upload request while it is being served."""

    number: int
    behaviour: Behaviour | None
    started: float
    headers: list[tuple[str, str]]
    action: str | None = None
    query: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    faults: tuple[str, ...] = ()
    stored: bool = False
    kept: Structs = ()
    #: Whether the message has come and was looked at for something to break on.
    seen: bool = False
    wire_bytes: int = 0
    message: dict[str, Any] | None = None
    files: dict[str, ReceivedFile] = field(default_factory=dict)


class _AnswerNow(Exception):
    """The answer is due although there is more of the body to read."""

    def __init__(self, reply: Reply, *, drain: bool) -> None:
        super().__init__(reply.status)
        self.reply = reply
        self.drain = drain


#: Runs the last step of an answer, which says whether the answer is whole now, and writes the record.
Settle: TypeAlias = Callable[[Reply | None, Callable[[], bool]], None]


class Server(ThreadingHTTPServer):
    """Accepts connections until it is stopped, then ends every one of them."""

    request_queue_size = 256
    block_on_close = False

    def __init__(self, address: tuple[str, int], *, rules: Rules, books: Books, tokens: TokenDesk) -> None:
        self.rules = rules
        self.books = books
        self.tokens = tokens
        self.stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        #: Also those that have given up their connection and are about to end.
        self._serving: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._guard = threading.Lock()
        super().__init__(address, Handler)
        self._acceptor = threading.Thread(target=self._accept, name="receiver", daemon=True)
        self._acceptor.start()

    def server_bind(self) -> None:
        # Not HTTPServer's: that one asks DNS for our own name, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.stopping.is_set():
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name="receiver-connection", daemon=True
        )
        with self._guard:
            self._connections.add(request)
            self._serving.add(thread)
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.books.note_violation(f"the receiver itself failed: {sys.exception()!r}")
        super().handle_error(request, client_address)

    def stop(self) -> None:
        """End every connection and thread; returns when they are gone."""
        self.stopping.set()
        self.books.stop()
        # A connection to ourselves wakes the acceptor, which waits without a time-out.
        with suppress(OSError):
            socket.create_connection((self.server_name, self.server_port), timeout=5).close()
        self._acceptor.join(timeout=5)
        self.server_close()
        with self._guard:
            threads = list(self._serving)
            for connection in self._connections:
                # Wakes the thread that reads from it or writes to it; closing the socket would not.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(timeout=5)

    def _accept(self) -> None:
        while not self.stopping.is_set():
            self.handle_request()


class _Head:
    """The lines of a request's head. The library would take the beginning of one that breaks off for all of it."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream

    def readline(self, limit: int) -> bytes:
        line = self._stream.readline(limit)
        if not line.endswith(b"\n") and len(line) < limit:
            raise ConnectionAbortedError("the client left within the head of its request")
        return line


class Handler(BaseHTTPRequestHandler):
    """One connection; requests follow each other on it while both sides keep it open."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    raw_requestline: bytes
    _leaves_politely = False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class names it)
        """Say nothing: the books know everything."""

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        # A socket closed with unread bytes resets the connection: the polite end reads the rest first.
        if self._leaves_politely:
            with suppress(OSError):
                while self.connection.recv(BLOCK):
                    pass
        super().finish()

    def parse_request(self) -> bool:
        if not self.raw_requestline.endswith(b"\n"):
            self.close_connection = True
            return False
        stream, self.rfile = self.rfile, cast(BufferedIOBase, _Head(self.rfile))
        try:
            return super().parse_request()
        finally:
            self.rfile = stream

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.server.books.note_violation(f"{self.requestline!r} is no request: {message}")
        super().send_error(code, message, explain)

    def handle_expect_100(self) -> bool:
        # Said when the body is wanted, not before: see _body.
        return True

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if path == INTEGRATION_PATH:
            self._upload()
        elif path in TOKEN_PATHS:
            self._token(TOKEN_PATHS[path])
        else:
            self._stray()

    def do_GET(self) -> None:
        self._stray()

    do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_GET  # noqa: N815 (the base class looks for these names)

    def _stray(self) -> None:
        self.close_connection = True
        self.server.books.note_violation(f"{self.command} {self.path}: there is nothing at this address")
        self._send(enos_reply(404, "there is nothing at this address", status=404).wire(close=True))

    # One upload, from its first byte to its record.

    def _upload(self) -> None:
        books, rules = self.server.books, self.server.rules
        number, started, behaviour = books.open_visit(rules.monotonic)
        headers = [(name.lower(), value) for name, value in self.headers.items()]
        visit = _Visit(number, behaviour, started, headers)
        # What the target says is known even when the body never comes.
        visit.query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        visit.action = visit.query.get("action")

        def settle(reply: Reply | None, last_step: Callable[[], bool]) -> None:
            books.close_visit(lambda: self._record(visit, reply, answered=last_step()))

        if self._misbehaves_early(behaviour, settle):
            return
        drain = False
        try:
            honest = self._take(visit)
        except _AnswerNow as now:
            honest, drain = now.reply, now.drain
            self.close_connection = True
        except BadFraming as error:
            visit.faults = (str(error),)
            self.close_connection = True
            self._deliver(enos_reply(400, str(error), status=400), settle)
            return
        except (BodyLost, ConnectionError):
            settle(None, lambda: self._hang_up(visit.behaviour))
            return
        except BaseException:
            settle(None, self._abort)
            raise
        visit.stored = honest.succeeds and keeps(visit.behaviour)
        visit.kept = visit.kept if keeps(visit.behaviour) else ()
        if rules.latency:
            self._pause(rules.latency)
        self._answer(visit.behaviour, honest, settle)
        if drain:
            self._leave_politely()

    def _take(self, visit: _Visit) -> Reply:
        """Read the body, check everything, and say what an honest service would."""
        rules = self.server.rules
        if rules.early_413:
            self._refuse_size(self._length() or 0)
        boundary = boundary_of(self.headers.get("Content-Type"))
        form = FormReader(boundary or "-", message_limit=rules.max_message_bytes, keep_files=rules.keep_files)
        if boundary is None:
            form.fault = f"Content-Type is {self.headers.get('Content-Type')!r}, not multipart/form-data with a boundary"
        try:
            for block in self._body(visit.behaviour):
                visit.wire_bytes += len(block)
                if rules.early_413:
                    self._refuse_size(visit.wire_bytes)
                form.feed(block)
                self._maybe_break(visit, form.parts)
                self._maybe_leave_mid_body(visit.behaviour, visit.wire_bytes)
            form.finish()
        finally:
            form.abandon()
        findings = check(self.path, visit.headers, form.parts, org_id=rules.org_id)
        visit.complete = form.fault is None
        visit.query, visit.action, visit.message = findings.query, findings.action, findings.message
        visit.faults = findings.faults if form.fault is None else (form.fault, *findings.faults)
        visit.files = _files_of(findings, form.parts)
        if rules.check_token and "apim-accesstoken" not in self.headers:
            visit.faults = (*visit.faults, "no apim-accesstoken header")
        return self._judge(visit, form.parts)

    def _judge(self, visit: _Visit, parts: list[Part]) -> Reply:
        rules = self.server.rules
        if rules.max_request_bytes is not None and visit.wire_bytes > rules.max_request_bytes:
            return _too_large(visit.wire_bytes)
        if rules.check_token and not self.server.tokens.is_alive(self.headers.get("apim-accesstoken")):
            return canned_reply(rules.token_refusal)
        for part in parts:
            if part.name == MESSAGE_PART and part.size >= rules.max_message_bytes:
                return enos_reply(413, f"{MESSAGE_PART} has {part.size} bytes, too many", status=413)
            if part.name == FILE_PART and part.size > rules.max_file_bytes:
                return enos_reply(413, f"the file {part.filename!r} has {part.size} bytes, too many", status=413)
        if visit.faults:
            return enos_reply(99400, "; ".join(visit.faults))
        refusal, visit.kept = self.server.books.judge(structs_of(visit.message))
        return enos_reply(0, "OK") if refusal is None else enos_reply(refusal.code, refusal.msg)

    def _refuse_size(self, size: int) -> None:
        limit = self.server.rules.max_request_bytes
        if limit is not None and size > limit:
            raise _AnswerNow(_too_large(size), drain=True)

    def _maybe_break(self, visit: _Visit, parts: list[Part]) -> None:
        """Change the behaviour as soon as the message is there, if one of its structs asks for that."""
        if visit.seen or not self.server.books.breaks:
            return
        message = next((part for part in parts if part.name == MESSAGE_PART), None)
        if message is None:
            return
        visit.seen = True
        with suppress(ValueError):
            visit.message = message.value if isinstance(message.value, dict) else None
        behaviour = self.server.books.break_of(structs_of(visit.message))
        if behaviour is not None:
            visit.behaviour = behaviour
        if isinstance(behaviour, EarlyStatus):
            raise _AnswerNow(canned_reply(behaviour), drain=behaviour.drain)

    def _record(self, visit: _Visit, reply: Reply | None, *, answered: bool) -> Received:
        return Received(
            number=visit.number,
            action=visit.action,
            query=visit.query,
            headers=dict(visit.headers),
            complete=visit.complete,
            faults=visit.faults,
            stored=visit.stored,
            status=None if reply is None else reply.status,
            code=None if reply is None else reply.code,
            answered=answered,
            started=visit.started,
            finished=self.server.rules.monotonic(),
            wire_bytes=visit.wire_bytes,
            behaviour=None if visit.behaviour is None else str(visit.behaviour),
            message=visit.message,
            files=visit.files,
            kept=visit.kept,
        )

    # One request for a token.

    def _token(self, operation: str) -> None:
        behaviour = self.server.books.next_token_behaviour()

        def settle(_reply: Reply | None, last_step: Callable[[], bool]) -> None:
            last_step()

        if self._misbehaves_early(behaviour, settle):
            return
        body = b""
        try:
            for block in self._body(behaviour):
                body += block
                self._maybe_leave_mid_body(behaviour, len(body))
        except (BodyLost, ConnectionError):
            self._hang_up(behaviour)
            return
        kind = self.headers.get_content_type() if "Content-Type" in self.headers else None
        if kind != "application/json":
            self.server.books.note_violation(f"token/{operation}: Content-Type is {kind}, not application/json")
        answer = self.server.tokens.answer(operation, body)
        self.server.books.announce()
        self._answer(behaviour, json_reply(answer), settle)

    # Reading.

    def _body(self, behaviour: Behaviour | None) -> Iterator[bytes]:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        stream = cast(BufferedReader, self.rfile)
        match behaviour:
            case SlowRead(bytes_per_second=pace):
                # A small window in front of us, or the client would not notice: the kernel buffers megabytes.
                window = max(4096, min(BLOCK, int(pace / 20)))
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
                for block in body_blocks(stream, self._length(), block=max(1, min(BLOCK, int(pace / 20)))):
                    if self.server.stopping.wait(len(block) / pace):
                        raise BodyLost("the receiver stops")
                    yield block
            case HangUp(when="in_body", after_bytes=wanted):
                yield from body_blocks(stream, self._length(), block=max(1, min(BLOCK, wanted)))
            case _:
                # In small blocks, if the end of the message may be the place to break off.
                yield from body_blocks(stream, self._length(), block=_SHORT if self.server.books.breaks else BLOCK)

    def _length(self) -> int | None:
        """The body's length, None if it comes in chunks; a body without either is empty."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return None
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise BadFraming(f"a body of {length!r} bytes cannot be read")
        return int(length)

    def _maybe_leave_mid_body(self, behaviour: Behaviour | None, so_far: int) -> None:
        match behaviour:
            case HangUp(when="in_body", after_bytes=wanted) if so_far >= wanted:
                raise BodyLost("as told")

    # Answering.

    def _misbehaves_early(self, behaviour: Behaviour | None, settle: Settle) -> bool:
        match behaviour:
            case HangUp(when="before_body"):
                settle(None, lambda: self._hang_up(behaviour))
            case EarlyStatus(drain=drain):
                self.close_connection = True
                self._deliver(canned_reply(behaviour), settle)
                if drain:
                    self._leave_politely()
            case _:
                return False
        return True

    def _answer(self, behaviour: Behaviour | None, honest: Reply, settle: Settle) -> None:
        match behaviour:
            case Answer() if behaviour.succeeds and not honest.succeeds:
                self._deliver(honest, settle)
            case Status() | Answer() | Body() | Expired() | ApimExpired() | GzipBomb():
                self._deliver(canned_reply(behaviour), settle)
            case Slow(seconds=seconds):
                self._pause(seconds)
                self._deliver(honest, settle)
            case Hold():
                self.server.books.hold()
                self._deliver(honest, settle)
            case Silence():
                with suppress(OSError):
                    while self.connection.recv(BLOCK):
                        pass
                settle(None, self._abort)
            case Drip(seconds_per_byte=seconds):
                wire = self._wire(honest)
                for place in range(len(wire) - 1):
                    if not (self._pause(seconds) and self._send(wire[place : place + 1])):
                        settle(honest, self._abort)
                        return
                settle(honest, lambda: self._send(wire[-1:]))
            case Truncated():
                wire = self._wire(honest)[: -(len(honest.body) // 2)]
                settle(honest, lambda: self._send(wire) and self._leave_politely())
            case HangUp(when="in_answer", after_bytes=wanted):
                # Never the whole answer, whatever was asked for.
                wire = self._wire(honest)[:-1][:wanted]
                settle(honest, lambda: self._send(wire) and self._hang_up(behaviour))
            case HangUp(when="after_answer"):
                self._deliver(honest, settle)
                self._leave_politely()
            case HangUp():
                settle(None, lambda: self._hang_up(behaviour))
            case None | SlowRead() | EarlyStatus():
                self._deliver(honest, settle)
            case _:
                assert_never(behaviour)

    def _deliver(self, reply: Reply, settle: Settle) -> None:
        wire = self._wire(reply)
        if self._is_gone():
            settle(reply, self._abort)
        elif len(wire) <= _SHORT:
            settle(reply, lambda: self._send(wire))
        else:
            sent = self._send(wire)
            settle(reply, lambda: sent)

    def _wire(self, reply: Reply) -> bytes:
        for_a_token = urlsplit(self.path).path in TOKEN_PATHS
        return reply.wire(close=self.close_connection, date=self.server.tokens.date() if for_a_token else None)

    def _send(self, data: bytes) -> bool:
        try:
            self.connection.sendall(data)
        except OSError:
            self.close_connection = True
            return False
        return True

    def _abort(self) -> bool:
        """Give the connection up; what was sent of the answer was not all of it."""
        self.close_connection = True
        return False

    def _hang_up(self, behaviour: Behaviour | None) -> bool:
        """Close now, by reset if told so; False, as the answer is not whole."""
        if not (isinstance(behaviour, HangUp) and behaviour.reset):
            return self._leave_politely()
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            # The reader shares the descriptor: only when both are closed does the system close the connection.
            self.rfile.close()
            self.connection.close()
        return False

    def _leave_politely(self) -> bool:
        """Say the last word now and close once the client does; False, as the answer is not whole."""
        self.close_connection = self._leaves_politely = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        return False

    def _is_gone(self) -> bool:
        """Whether the client has hung up meanwhile; an answer would vanish without an error."""
        return not self._pause(0)

    def _pause(self, seconds: float) -> bool:
        """Wait, unless the client hangs up or the receiver stops; True if both are still there."""
        ends = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            if selector.select(max(0, seconds)):
                try:
                    if not self.connection.recv(1, socket.MSG_PEEK):
                        return False
                except OSError:
                    return False
                # The next request is already here, so a hang-up cannot be seen; the time still has to pass.
                return not self.server.stopping.wait(max(0, ends - time.monotonic()))
        return not self.server.stopping.is_set()


def _too_large(size: int) -> Reply:
    return enos_reply(413, f"the request has {size} bytes, too many", status=413)


def _files_of(findings: Findings, parts: list[Part]) -> dict[str, ReceivedFile]:
    entries = (findings.message or {}).get("files")
    files = {}
    for part in parts:
        if part.name == FILE_PART and part.filename is not None:
            entry = entries.get(part.filename) if isinstance(entries, dict) else None
            said = entry if isinstance(entry, dict) else {}
            original, feature = said.get("originalFilename"), said.get("featureId")
            files[part.filename] = ReceivedFile(
                part.size,
                part.sha256,
                part.md5,
                original_filename=original if isinstance(original, str) else None,
                feature_id=feature if isinstance(feature, str) else None,
            )
    return files
