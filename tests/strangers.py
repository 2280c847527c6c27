"""Receivers that are not ours: a Flask and a Starlette application on real sockets, which keep what they were sent."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import flask
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from werkzeug.serving import WSGIRequestHandler, make_server


@dataclass
class Arrived:
    """One request as the application saw it."""

    headers: dict[str, str]
    body: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)  #: by name: file name, type and bytes

    @property
    def event(self) -> Any:
        """What the JSON in it says."""
        return json.loads(self.fields.get("event") or self.body)


@dataclass
class Stranger:
    """An application at an address; `answer` says what it answers to each request."""

    url: str
    arrived: list[Arrived]
    answers: list[tuple[int, str]]  #: one after the other, the last one for ever


@contextlib.contextmanager
def flask_app() -> Iterator[Stranger]:
    app = flask.Flask("depot")
    here = Stranger("", [], [(201, '{"stored": true}')])

    @app.post("/upload")
    def upload() -> tuple[str, int, dict[str, str]]:
        request = flask.request
        headers = {name.lower(): value for name, value in request.headers.items()}
        files = {name: (each.filename or "", each.mimetype, each.read()) for name, each in request.files.items()}
        body = request.get_data() if request.is_json else b""
        here.arrived.append(Arrived(headers, body, request.form.to_dict(), files))
        status, text = _next(here)
        return text, status, {"Content-Type": "application/json"}

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any, **__: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    here.url = f"http://127.0.0.1:{server.server_port}/upload"
    yield here
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def starlette_app() -> Iterator[Stranger]:
    here = Stranger("", [], [(200, '{"stored": true}')])

    async def upload(request: Request) -> Response:
        headers = dict(request.headers)
        if headers["content-type"] == "application/json":
            here.arrived.append(Arrived(headers, await request.body()))
        else:
            arrived = Arrived(headers)
            async with request.form() as form:
                for name, value in form.multi_items():
                    if isinstance(value, UploadFile):
                        arrived.files[name] = (value.filename or "", value.content_type or "", await value.read())
                    else:
                        arrived.fields[name] = value
            here.arrived.append(arrived)
        status, text = _next(here)
        return JSONResponse(json.loads(text), status)

    app = Starlette(routes=[Route("/upload", upload, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    ends = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < ends, "it does not start"
        thread.join(0.01)
    here.url = f"http://127.0.0.1:{listener.getsockname()[1]}/upload"
    yield here
    server.should_exit = True
    thread.join()
    listener.close()


APPS: dict[str, Callable[[], contextlib.AbstractContextManager[Stranger]]] = {"flask": flask_app, "starlette": starlette_app}


def _next(here: Stranger) -> tuple[int, str]:
    return here.answers.pop(0) if len(here.answers) > 1 else here.answers[0]
