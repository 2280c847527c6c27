"""``outbox receiver``: a receiver to point a worker at, from a terminal."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import rich_click as click

from outbox.cli.options import Number, Whole, command
from outbox.counting import counted
from outbox.testing.receiver import SPELLING, Behaviour, Received, Receiver, parse_behaviour

#: Seconds that are waited in one go: a wait without an end hears no Ctrl-C on Windows.
_WAIT = 0.5

SECRET_VARIABLE = "OUTBOX_RECEIVER_APP_SECRET"  # noqa: S105 (the name of a variable)


def _parse(_context: click.Context, _option: click.Parameter, specs: tuple[str, ...]) -> list[tuple[Behaviour, float]]:
    try:
        return [parse_behaviour(spec) for spec in specs]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@command("receiver", example="outbox receiver --port 8765 --ledger ledger.jsonl")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default=True, type=Whole(0, 65535), help="Port; 0 takes a free one.")
@click.option("--org-id", help="The only organisation to serve.  [default: any]")
@click.option("--app-key", default="app-key", show_default=True, help="The appKey the token service knows.")
@click.option(
    "--app-secret-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"File with its appSecret.  [default: ${SECRET_VARIABLE}, else 'app-secret']",
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append one line of JSON per upload request to this file.",
)
@click.option(
    "--keep-files",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the bytes of every file in this folder, named by their sha256.",
)
@click.option(
    "--misbehave",
    "misbehaviours",
    multiple=True,
    callback=_parse,
    metavar="SPEC",
    help=f"Misbehave by chance; may be repeated. SPEC is {SPELLING}. For instance 503:0.1 or hangup-after:0.05.",
)
@click.option("--refuse", "refused", multiple=True, help="Refuse (1204) requests with a struct whose JSON has this text.")
@click.option("--latency", default=0.0, show_default=True, type=Number(0), help="Seconds before each answer.")
@click.option("--seed", default=0, type=Whole(), show_default=True, help="Of the dice that --misbehave throws.")
@click.option("--json", "as_json", is_flag=True, help="Print the address and each request as JSON.")
def receiver(
    *,
    host: str,
    port: int,
    org_id: str | None,
    app_key: str,
    app_secret_file: Path | None,
    ledger: Path | None,
    keep_files: Path | None,
    misbehaviours: list[tuple[Behaviour, float]],
    refused: tuple[str, ...],
    latency: float,
    seed: int,
    as_json: bool,
) -> None:
    """Run a strict EnOS receiver with its token service, for trying things out.

    Prints its address, then a line on stderr for each upload request. Ends on SIGTERM or Ctrl-C.
    """
    service = Receiver(
        host=host,
        port=port,
        org_id=org_id,
        app_key=app_key,
        app_secret=_secret(app_secret_file),
        latency=latency,
        ledger=ledger,
        keep_files=keep_files,
        remember=100,
        on_received=_print_json if as_json else _print_line,
    )
    for number, (behaviour, probability) in enumerate(misbehaviours):
        service.sometimes(behaviour, probability, seed + number)
    for text in refused:
        service.refuse(lambda struct, text=text: text in json.dumps(struct, ensure_ascii=False))  # type: ignore[misc]

    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        service.start()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise click.ClickException(
            f"cannot start: cannot listen on {host}:{port}: {reason}; choose another address with --host and --port"
        ) from None
    with closing(service):
        address = {"url": service.url, "token_url": service.token_url, "port": service.port}
        # Whoever started us reads this line to know that the port is open.
        click.echo(json.dumps(address) if as_json else f"receiver and token service at {service.url}")
        ended = threading.Event()
        while not ended.wait(_WAIT):
            pass


def _end(_signal: int, _frame: object) -> NoReturn:
    # An exception, not an event: setting an event from a signal handler can deadlock with the wait it interrupts.
    raise SystemExit(0)


def _secret(file: Path | None) -> str:
    if file is not None:
        return file.read_text("utf-8").strip()
    return os.environ.get(SECRET_VARIABLE, "app-secret")


def _print_line(received: Received) -> None:
    size = sum(file.size for file in received.files.values())
    answer = "no answer" if received.status is None else f"{received.status}, code {received.code}"
    content = f"{counted(len(received.structs), 'struct')}, {counted(len(received.files), 'file')} ({counted(size, 'byte')})"
    words = [f"#{received.number} {received.action}: {content} -> {answer} in {received.seconds * 1000:.0f} ms"]
    if not received.complete:
        words.append("body incomplete")
    if not received.answered:
        words.append("answer not delivered")
    if received.behaviour is not None:
        words.append(f"misbehaved: {received.behaviour}")
    click.echo("; ".join([*words, *received.faults]), err=True)


def _print_json(received: Received) -> None:
    facts = {
        "number": received.number,
        "action": received.action,
        "structs": len(received.structs),
        "files": len(received.files),
        "bytes": sum(file.size for file in received.files.values()),
        "complete": received.complete,
        "status": received.status,
        "code": received.code,
        "answered": received.answered,
        "seconds": round(received.seconds, 6),
        "behaviour": received.behaviour,
        "faults": received.faults,
    }
    click.echo(json.dumps(facts), err=True)
