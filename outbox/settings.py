"""`outbox.toml` and the environment, made into an `Outbox`.

The environment wins over the file: OUTBOX_DATABASE, OUTBOX_SPOOL, OUTBOX_DESTINATIONS__ENOS__URL and so on, two underscores for
each step down. Secrets are never in the file, only where to find them: `env:NAME` or `file:PATH`.
"""

from __future__ import annotations

import os
import stat
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)
from sqlalchemy import URL

from outbox import faults, units
from outbox.app import Outbox
from outbox.database import parsed
from outbox.declaring import DestinationSettings, PlaceOfSecret, Strict, destination, naming, secret
from outbox.errors import ConfigurationError
from outbox.policy import GONE_AFTER, POLL, RESERVE, STOP_GRACE, Retention

DEFAULT_FILE = "outbox.toml"


def _length_of_time(value: object) -> object:
    """What was said, 7d or forever, as a Retention has it. A bare number would not say of what."""
    if value == "forever":
        return None
    if value is None or isinstance(value, timedelta):
        return value
    try:
        return units.duration(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f'expected a time such as "12h", "7d" or "forever", got {value!r}') from None


def _number_of_bytes(value: object) -> object:
    if isinstance(value, str):
        return units.size(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f'expected a size such as "20 GiB", or a number of bytes, got {value!r}')
    return value


def _something(value: int) -> int:
    if value < 1:
        raise ValueError(f"expected a size of at least 1 byte, got {value}; for no limit but the disk leave it out")
    return value


def _not_negative(value: int) -> int:
    if value < 0:
        raise ValueError(f"expected a size, from 0 bytes on, got {value}")
    return value


def _seconds(value: object) -> object:
    """No truth value, which Python takes for a number."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number of seconds, got {str(value).lower()}")
    return value


def _at_most_a_day(value: float) -> float:
    if not 0 <= value <= _DAY:  # nan neither
        raise ValueError(f"expected seconds, from 0 to {_DAY:,}, got {value:g}")
    return value


def _more_than_nothing(value: float) -> float:
    if not 0 < value <= _DAY:
        raise ValueError(f"expected seconds, more than 0 and at most {_DAY:,}, got {value:g}")
    return value


_DAY = 86_400

Length = Annotated[timedelta | None, BeforeValidator(_length_of_time)]
Size = Annotated[int, BeforeValidator(_number_of_bytes), AfterValidator(_not_negative)]
SomeSize = Annotated[int, BeforeValidator(_number_of_bytes), AfterValidator(_something)]
Seconds = Annotated[float, BeforeValidator(_seconds), AfterValidator(_at_most_a_day)]
SomeSeconds = Annotated[float, BeforeValidator(_seconds), AfterValidator(_more_than_nothing)]


class RetentionSettings(Strict):
    """How long what is over is kept: 7d, 12h, or forever; Retention says what 0s means."""

    delivered: Length = Retention.delivered
    cancelled: Length = Retention.cancelled
    dead: Length = Retention.dead
    free_after: Length = Retention.free_after


class WorkerSettings(Strict):
    """How a worker process behaves; seconds."""

    gone_after: SomeSeconds = GONE_AFTER
    stop_grace: Seconds = STOP_GRACE
    poll: SomeSeconds = POLL
    http: str | None = None  #: where /livez, /readyz and /metrics are; nowhere by default


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=faults.PREFIX, env_nested_delimiter=faults.STEP, extra="forbid", hide_input_in_errors=True
    )

    database: str = "sqlite:///outbox.db"
    database_password: PlaceOfSecret | None = None
    spool: str = "spool"
    roots: list[str] = []
    durability: Literal["warn", "strict", "ignore"] = "warn"
    quota: SomeSize | None = None
    reserve: Size = RESERVE
    nudge: bool = True
    retention: RetentionSettings = RetentionSettings()
    destinations: dict[str, DestinationSettings] = {}
    worker: WorkerSettings = WorkerSettings()


def load(file: Path | None = None) -> tuple[Settings, Path]:
    """The settings, and the folder that relative paths in them start from.

    Without `file` it is OUTBOX_CONFIG, or outbox.toml in the working directory; where there is none, the environment may say
    everything. Raises ConfigurationError with every fault found.
    """
    given = file or (Path(os.environ["OUTBOX_CONFIG"]) if os.environ.get("OUTBOX_CONFIG") else None)
    path = given or Path(DEFAULT_FILE)
    there = _is_there(path)
    if given is not None and not there:
        where = "" if given.is_absolute() else f" in {Path.cwd()}"
        raise ConfigurationError(f"there is no settings file {given}{where}; write one with: outbox --config {given} init")
    loaded = _loaded(path, f"{path} and OUTBOX_..." if there else f"OUTBOX_...; there is no {path.absolute()}")
    if not there and not loaded.model_fields_set & {"database", "destinations"}:
        raise ConfigurationError(
            f"there is no settings file; looked for {path.absolute()}; write one with outbox init, or say where it is with "
            "--config (OUTBOX_CONFIG), or which program has the Outbox with --app module:attribute (OUTBOX_APP)"
        )
    return loaded, path.absolute().parent


def _is_there(path: Path) -> bool:
    """Whether there is a settings file. Raises ConfigurationError when it is something else, or nobody can tell."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = f"a directory; say which file in it, such as {path / DEFAULT_FILE}" if stat.S_ISDIR(mode) else "no regular file"
        raise ConfigurationError(f"the settings file {path} is {kind}")
    return True


def _loaded(path: Path, sources: str) -> Settings:
    """What file and environment say together; `sources` names them in words."""

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path))

    try:
        return FromFile()
    except ValidationError as error:
        raise ConfigurationError(f"the settings ({sources}) are wrong: {faults.told(error.errors(), Settings)}") from None
    except SettingsError as error:
        raise ConfigurationError(f"the settings ({sources}) are wrong: {_no_json(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"byte 0x{error.object[error.start]:02x} in line {line}"
        raise ConfigurationError(f"{path} is not UTF-8 ({byte}); save it as that") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None


def _no_json(error: SettingsError) -> str:
    """Which variable cannot be read; a list or a table comes from the environment as JSON."""
    names = [name for name in Settings.model_fields if f'"{name}"' in str(error)]
    variable = f"{faults.PREFIX}{names[0].upper()}" if names else "one of its variables"
    return f"{variable}: expected JSON, a list or an object, got text that is none"


def build(settings: Settings, folder: Path) -> Outbox:
    """The Outbox that the settings describe."""
    return Outbox(
        _with_password(_database(settings.database, folder), settings.database_password, folder),
        spool=folder / settings.spool,
        destinations=[destination(name, each, folder, Settings) for name, each in settings.destinations.items()],
        roots=[folder / root for root in settings.roots],
        durability=settings.durability,
        quota=settings.quota,
        reserve=settings.reserve,
        nudge=settings.nudge,
        retention=_retention(settings.retention),
    )


def from_settings(file: str | os.PathLike[str] | None = None) -> Outbox:
    """The Outbox that `outbox.toml` and the environment describe, as every command of the terminal has it.

    Without `file` it is OUTBOX_CONFIG, or outbox.toml in the working directory. Raises ConfigurationError, with every fault.
    """
    return build(*load(None if file is None else Path(file)))


def _retention(settings: RetentionSettings) -> Retention:
    with naming(["retention"]):
        return Retention(**dict(settings))


def _database(url: str, folder: Path) -> str:
    """The URL with a relative SQLite path made to start from the settings file, wherever a command is run."""
    found = parsed(url)
    if found.get_backend_name() != "sqlite" or not found.database or found.database == ":memory:":
        return url
    return found.set(database=str(folder / found.database)).render_as_string(hide_password=False)


def _with_password(url: str, place: str | None, folder: Path) -> str | URL:
    """The URL with a password that is kept somewhere else, so that the URL may be shown."""
    if place is None:
        return url
    return parsed(url).set(password=secret(place, folder).reveal())


TEMPLATE = """\
# Settings of an outbox. Each can also come from the environment: OUTBOX_DATABASE, OUTBOX_SPOOL,
# OUTBOX_DESTINATIONS__ENOS__URL and so on; the environment wins. Relative paths start from this file.

# SQLite, or postgresql+psycopg://user@host/name (pip install 'durable-outbox[postgres]').
database = "sqlite:///outbox.db"
# database_password = "env:OUTBOX_PG_PASSWORD" # or file:/run/secrets/postgres; of Postgres

# Where attached files rest until they are delivered: a local directory, on a disk that survives a power cut.
spool = "spool"

# If set, files given by path must lie in one of these directories.
# roots = ["/data/images"]

# How much the spool may hold; more is refused with a sentence. Without it, the disk is the limit.
# quota = "20 GiB"
# What is kept free on the disks of spool and database for finishing what is there when the rest is full.
# reserve = "16 MiB"

# Whether an enqueue wakes idle workers. Say false here and to the producers if they commit in two phases on Postgres
# (PREPARE TRANSACTION does not go with NOTIFY), or very many of them at a time: workers look twice a second then.
# nudge = true

[retention] # how long what is over is kept: 12h, 7d or "forever"; a key is remembered as long as its message
# delivered = "7d" # with "0s" the same key may be enqueued, and delivered, again at once
# cancelled = "7d"
# dead = "90d" # one that holds up its ordering key stays until you act
# free_after = "1h" # the files of a delivered message

[destinations.enos]
type = "enos-events" # or enos-measurepoints, enos-attributes
url = "https://integration.example" # the console's Help > Environment Information > HTTP Integration Channel
org_id = "o15724268424841"
# allow_plain_http = true # only for a receiver on this machine
# public_only = true # if somebody else chooses the url: no address of this machine or its neighbours is connected to
# allowed_networks = ["10.20.0.0/16"] # but for these

[destinations.enos.token]
url = "https://gateway.example" # the API gateway: another host than the one above
app_key = "env:ENOS_APP_KEY"
app_secret = "env:ENOS_APP_SECRET" # or file:/run/secrets/enos; never the secret itself

# [destinations.enos.route] # if it is not reached just so
# proxy = "http://proxy.example:3128" # or env:NAME, file:PATH: with a password in it
# ca_file = "authorities.pem" # whom to trust, instead of the usual ones
# client_cert = "client.pem" # what to show to a server that asks for it
# client_key = "client-key.pem"

[destinations.enos.policy] # what differs from the defaults; times in seconds, sizes in bytes
# batch_messages = 100
# batch_bytes = 1048576
# senders = 4
# max_failures = 20
# in_flight = 4 # uploads at a time, across all workers
# rate = 50 # requests a second, across all workers
# max_age = 604800 # give a message up after a week
# on_dead = "skip" # a dead message does not hold up its stream

# Any other upload form: each message is one request, with fields of its payload and files.
# [destinations.archive]
# type = "form"
# url = "https://archive.example/upload"
# fields = {device = "assetId", note = "meta.note?"} # a path in the payload; with ? it may be missing; without: every member
# files = {picture = "photo"} # the name that an attachment goes under; without: its own
# headers = {X-Site = "north"}
# token = {secret = "env:ARCHIVE_TOKEN"} # Authorization: Bearer ...; or with header = "X-Api-Key", scheme = ""

# A signed webhook, as Standard Webhooks has it: the payload as JSON, files in a form.
# [destinations.hook]
# type = "webhook"
# url = "https://hooks.example/outbox"
# secrets = ["env:HOOK_SECRET"] # whsec_...; while you exchange it, the new one first and then the old one

[worker]
# gone_after = 15
# stop_grace = 30
# http = "127.0.0.1:9464" # /livez, /readyz and /metrics (pip install 'durable-outbox[metrics]')
"""
