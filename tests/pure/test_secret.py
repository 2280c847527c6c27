"""A secret is read when it is used and never shown."""

from __future__ import annotations

import copy
import html
import json
import logging
import pickle
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from outbox.destinations import EnosEvents, Token
from outbox.errors import ConfigurationError
from outbox.secret import Secret, as_secret, conceal, env, literal, remember, secret_file
from outbox.verdict import Facts, fit_for_a_row

VALUE = "s3cr3t-Value-0123456789"
BROKEN = {
    "line end": f"{VALUE}\nX-Injected: yes",
    "carriage return": f"{VALUE}\r{VALUE}",
    "NUL": f"{VALUE}\x00",
    "not ASCII": f"{VALUE}é",
    "tab": f"{VALUE}\t{VALUE}",
}


@pytest.fixture(params=["literal", "env", "file"])
def keep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Secret]:
    """Puts a value where a secret of each kind reads it."""

    def in_env(value: str) -> Secret:
        monkeypatch.setenv("OUTBOX_TEST_SECRET", value)
        return env("OUTBOX_TEST_SECRET")

    def in_file(value: str) -> Secret:
        (tmp_path / "secret").write_bytes(value.encode())
        return secret_file(tmp_path / "secret")

    kinds: dict[str, Callable[[str], Secret]] = {"literal": literal, "env": in_env, "file": in_file}
    if request.param == "env":
        return lambda value: in_env(value.replace("\x00", "\x01"))  # an environment holds no NUL
    return kinds[request.param]


def test_it_is_revealed_without_the_white_space_around_it(keep: Callable[[str], Secret]) -> None:
    assert VALUE == keep(f"  {VALUE}\r\n").reveal()


def test_it_is_shown_nowhere(keep: Callable[[str], Secret], caplog: pytest.LogCaptureFixture) -> None:
    secret = keep(VALUE)
    logging.getLogger("test").warning("%s %r", secret, secret)

    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>200}", repr([secret]), caplog.text]

    assert not any(VALUE in each for each in shown)
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_one_that_would_break_a_header_is_refused_without_a_word_of_it(keep: Callable[[str], Secret], broken: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII") as caught:
        keep(broken).reveal()

    assert VALUE not in "".join(traceback.format_exception(caught.value))
    assert VALUE not in repr(caught.value.args)


@pytest.mark.parametrize("nothing", ["", "  ", "\n"], ids=ascii)
def test_an_empty_one_is_refused(keep: Callable[[str], Secret], nothing: str) -> None:
    with pytest.raises(ConfigurationError, match="is empty"):
        keep(nothing).reveal()


def test_one_from_the_environment_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = env("OUTBOX_TEST_SECRET")
    with pytest.raises(ConfigurationError, match="environment variable OUTBOX_TEST_SECRET is not set"):
        secret.reveal()

    monkeypatch.setenv("OUTBOX_TEST_SECRET", "old")
    before = secret.reveal()
    monkeypatch.setenv("OUTBOX_TEST_SECRET", "new")

    assert ("old", "new") == (before, secret.reveal())
    assert "Secret(environment variable OUTBOX_TEST_SECRET)" == repr(secret)


def test_one_from_a_file_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = secret_file(path)
    with pytest.raises(ConfigurationError, match=r"cannot read the secret file .*No such file"):
        secret.reveal()

    path.write_text("old\n")
    before = secret.reveal()
    path.write_text("new\n")

    assert ("old", "new") == (before, secret.reveal())
    assert f"Secret(file {path})" == repr(secret)


def test_a_file_that_is_no_text_is_refused_without_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(VALUE.encode() + b"\xff")

    with pytest.raises(ConfigurationError, match="not UTF-8") as caught:
        secret_file(tmp_path / "secret").reveal()

    assert VALUE not in "".join(traceback.format_exception(caught.value))


def test_a_directory_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the secret file"):
        secret_file(tmp_path).reveal()


@pytest.mark.parametrize("carry_off", [pickle.dumps, copy.deepcopy, copy.copy], ids=lambda each: each.__name__)
def test_it_is_not_carried_off(carry_off: Callable[[object], object]) -> None:
    for each in (literal(VALUE), Token("https://gateway.example", "key", VALUE)):
        with pytest.raises(TypeError, match="not pickled"):
            carry_off(each)


def test_a_string_is_wrapped_and_a_secret_kept() -> None:
    secret = literal(VALUE)

    assert secret is as_secret(secret)
    assert VALUE == as_secret(VALUE).reveal()


def test_what_holds_one_does_not_show_it() -> None:
    token = Token("https://gateway.example", "app-key", VALUE)
    destination = EnosEvents(name="enos", url="https://integration.example", org_id="o1", token=token)

    assert VALUE not in repr(token) + repr(destination) + str(destination)


def test_a_secret_that_was_used_is_concealed_wherever_it_comes_back() -> None:
    literal("canary-in-an-answer").reveal()

    assert "you sent *** and ***" == conceal("you sent canary-in-an-answer and canary-in-an-answer")


def test_it_is_concealed_in_whatever_form_it_comes_back() -> None:
    value = 'canary"7f+3a/9c<é>&'
    remember(value)
    echoes = {
        "plain": value,
        "in a URL": quote(value, safe=""),
        "in a path": quote(value),
        "in a form": quote_plus(value),
        "in a URL of another language's": re.sub("%..", lambda found: found[0].lower(), quote(value, safe="")),
        "in JSON": json.dumps(value)[1:-1],
        "in JSON of another language's": json.dumps(value)[1:-1].replace("/", r"\/"),
        "on a page": html.escape(value),
        "in Python's words": repr(value)[1:-1],
    }

    assert dict.fromkeys(echoes, "said ***!") == {name: conceal(f"said {each}!") for name, each in echoes.items()}


def test_one_that_was_never_used_is_not_known() -> None:
    literal("canary-never-used")

    assert "canary-never-used" == conceal("canary-never-used")


def test_a_short_value_is_not_looked_for() -> None:
    remember("of")

    assert "out of order" == conceal("out of order")


def test_what_an_answer_echoes_is_masked_before_it_is_kept() -> None:
    remember("canary-token-1")

    assert "token *** has ended" == fit_for_a_row(Facts(text="token canary-token-1 has ended")).text
    assert "Hello ***" == fit_for_a_row(Facts(answer="Hello canary-token-1")).answer


def test_the_values_kept_in_mind_are_the_latest() -> None:
    for number in range(200):
        remember(f"canary-rotated-{number:03}")

    assert "canary-rotated-000 ***" == conceal("canary-rotated-000 canary-rotated-199")
