"""Destinations as settings declare them: what may be said of each type, and the Destination that is made of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

from outbox import faults
from outbox.destinations import (
    Destination,
    EnosAttributes,
    EnosEvents,
    EnosMeasurePoints,
    Form,
    StaticToken,
    Token,
    Webhook,
)
from outbox.errors import ConfigurationError
from outbox.policy import Policy
from outbox.route import Route
from outbox.secret import Secret, env, literal, secret_file

#: Takes numbers that are written as text, as the environment gives them.
_POLICY = TypeAdapter(Policy)

_ENOS: dict[str, type[EnosEvents]] = {
    "enos-events": EnosEvents,
    "enos-measurepoints": EnosMeasurePoints,
    "enos-attributes": EnosAttributes,
}
TYPES: dict[str, type[Destination]] = {**_ENOS, "form": Form, "webhook": Webhook}


def _place_of_secret(value: str) -> str:
    kind, _, place = value.partition(":")
    if not value.startswith(("env:", "file:")):
        raise ValueError("expected where the secret is, env:NAME or file:PATH, not the secret itself")
    if not place.strip():
        raise ValueError(f"{kind}: names nothing; expected where the secret is, env:NAME or file:PATH")
    return value


PlaceOfSecret = Annotated[str, AfterValidator(_place_of_secret)]


class Strict(BaseModel):
    """Settings that are told of a name nobody knows, and never repeat what they were given."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class TokenSettings(Strict):
    """Where an access token of EnOS comes from."""

    url: str
    app_key: str
    app_secret: PlaceOfSecret


class StaticTokenSettings(Strict):
    """A token that somebody gave us."""

    secret: PlaceOfSecret
    header: str = "Authorization"
    scheme: str = "Bearer"


def _proxy(value: str) -> str:
    if value.startswith(("env:", "file:")):
        return _place_of_secret(value)
    if "@" in value:
        raise ValueError(
            "expected a proxy's address without a password in it; with one, say where it is: env:NAME or file:PATH"
        )
    return value


class RouteSettings(Strict):
    """How a destination is reached: see Route."""

    proxy: Annotated[str, AfterValidator(_proxy)] | None = None
    proxy_decides: bool = False
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None


class _Common(Strict):
    """What may be said of every destination; `policy` holds what differs from the defaults."""

    type: str
    url: str
    allow_plain_http: bool = False
    public_only: bool = False
    allowed_networks: list[str] = []
    route: RouteSettings | None = None
    policy: dict[str, Any] = {}


class EnosSettings(_Common):
    """One of the three EnOS types."""

    type: Literal["enos-events", "enos-measurepoints", "enos-attributes"]
    org_id: str
    token: TokenSettings | None = None
    realtime: bool = True
    max_message_bytes: int = 512_000
    max_file_bytes: int = 100_000_000


class _ByStatusSettings(_Common):
    """What a form and a webhook share."""

    token: StaticTokenSettings | None = None
    headers: dict[str, str] = {}
    accept_html: bool = False
    max_file_bytes: int | None = None


class FormSettings(_ByStatusSettings):
    """Any upload form."""

    type: Literal["form"]
    fields: dict[str, str] | None = None
    files: dict[str, str] | None = None
    key_header: str = "Idempotency-Key"  #: "" sends none


class WebhookSettings(_ByStatusSettings):
    """A signed webhook."""

    type: Literal["webhook"]
    secrets: list[PlaceOfSecret] = []
    format: Literal["auto", "json", "multipart"] = "auto"
    event_field: str = "event"


class NoSuchSettings(_Common):
    """What a type that nobody knows is told."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["enos-events", "enos-measurepoints", "enos-attributes", "form", "webhook"]


def _kind(value: object) -> str:
    """The settings that a declaration's type has; a step that errors name them by, and people never see."""
    said = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    found: dict[str, type[_Common]] = {**dict.fromkeys(_ENOS, EnosSettings), "form": FormSettings, "webhook": WebhookSettings}
    return faults.step_of(found.get(said, NoSuchSettings) if isinstance(said, str) else NoSuchSettings)


DestinationSettings: TypeAlias = Annotated[
    Annotated[EnosSettings, Tag(faults.step_of(EnosSettings))]
    | Annotated[FormSettings, Tag(faults.step_of(FormSettings))]
    | Annotated[WebhookSettings, Tag(faults.step_of(WebhookSettings))]
    | Annotated[NoSuchSettings, Tag(faults.step_of(NoSuchSettings))],
    Discriminator(_kind),
]


@contextlib.contextmanager
def naming(place: Sequence[str], owner: str = "") -> Iterator[None]:
    """What is refused in here is told with the setting's place, where Python names its `owner`, and as it is said in TOML."""
    try:
        yield
    except ConfigurationError as error:
        table = ".".join(place[:2])
        words = str(error).removeprefix(f"{owner}: ")
        for setting in ("allow_plain_http", "public_only"):
            words = words.replace(f"{setting}=True", f"{setting} = true in [{table}]")
        words = words.replace("say token=StaticToken(env(...))", f'say secret = "env:NAME" in [{table}.token]')
        raise ConfigurationError(f"{faults.named(place)}: {words}") from None


def destination(name: str, settings: DestinationSettings, folder: Path, model: type[BaseModel]) -> Destination:
    """The destination that is declared so. Raises ConfigurationError in the words of the settings, `model`."""
    place = ["destinations", name]
    common: dict[str, Any] = {
        "name": name,
        "url": settings.url,
        "allow_plain_http": settings.allow_plain_http,
        "public_only": settings.public_only,
        "allowed_networks": tuple(settings.allowed_networks),
        "route": _route(settings.route, folder, place),
        "policy": _policy(settings, place, model),
    }
    match settings:
        case EnosSettings():
            token = _token(settings, folder, place)
            with naming(place, f"destination {name}"):
                return _ENOS[settings.type](
                    **common,
                    org_id=settings.org_id,
                    token=token,
                    realtime=settings.realtime,
                    max_message_bytes=settings.max_message_bytes,
                    max_file_bytes=settings.max_file_bytes,
                )
        case FormSettings():
            common |= _by_status(settings, folder, place)
            with naming(place, f"destination {name}"):
                return Form(**common, fields=settings.fields, files=settings.files, key_header=settings.key_header or None)
        case WebhookSettings():
            common |= _by_status(settings, folder, place)
            secrets = tuple(secret(each, folder) for each in settings.secrets)
            with naming(place, f"destination {name}"):
                return Webhook(**common, secrets=secrets, format=settings.format, event_field=settings.event_field)
        case NoSuchSettings():
            raise AssertionError("no declaration is valid whose type nobody knows")


def _by_status(settings: FormSettings | WebhookSettings, folder: Path, place: Sequence[str]) -> dict[str, Any]:
    token = None
    if settings.token is not None:
        with naming([*place, "token"]):
            token = StaticToken(secret(settings.token.secret, folder), settings.token.header, settings.token.scheme)
    return {
        "token": token,
        "headers": settings.headers,
        "accept_html": settings.accept_html,
        "max_file_bytes": settings.max_file_bytes,
    }


def _policy(settings: DestinationSettings, place: Sequence[str], model: type[BaseModel]) -> Policy:
    known = {each.name for each in fields(Policy)}
    if unknown := settings.policy.keys() - known:
        raise ConfigurationError(
            f"{'.'.join(place)}.policy: no setting named {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    try:
        with naming([*place, "policy"]):
            return _POLICY.validate_python(settings.policy)
    except ValidationError as error:
        raise ConfigurationError(faults.told(error.errors(), model, (*place, "policy"))) from None


def _token(settings: EnosSettings, folder: Path, place: Sequence[str]) -> Token | None:
    if settings.token is None:
        return None
    key, app_secret = (secret(each, folder) for each in (settings.token.app_key, settings.token.app_secret))
    with naming([*place, "token", "url"], "token"):
        return Token(settings.token.url, key, app_secret, allow_plain_http=settings.allow_plain_http)


def _route(settings: RouteSettings | None, folder: Path, place: Sequence[str]) -> Route | None:
    if settings is None:
        return None
    files = {each: str(folder / path) for each in ("ca_file", "client_cert", "client_key") if (path := getattr(settings, each))}
    proxy = None if settings.proxy is None else secret(settings.proxy, folder)
    with naming([*place, "route"]):
        return Route(proxy=proxy, proxy_decides=settings.proxy_decides, **files)


def secret(value: str, folder: Path) -> Secret:
    """The secret that is kept where a setting says."""
    kind, _, place = value.partition(":")
    if kind == "env":
        return env(place)
    if kind == "file":
        return secret_file(folder / place)
    return literal(value)
