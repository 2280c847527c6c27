"""A verdict is a line of a table: the first that fits, and there always is one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.destinations import ABSENT, EnosEvents, Meaning, Rule
from outbox.destinations.base import verdict_of
from outbox.destinations.enos import VERDICTS
from outbox.destinations.table import Reading, Verdicts, check_table, first
from outbox.destinations.token import ANSWERS, Reaction
from outbox.errors import ConfigurationError
from outbox.model import Reason
from outbox.transport import Answer
from outbox.verdict import Delivered, NotSent, Reject, Retry, Verdict
from tests.pure.making import NOW, batch

USUAL = {"name": "enos", "url": "https://integration.example", "org_id": "o1"}
ENOS = EnosEvents(**USUAL)
ACCUSING = {413, 1008, 99400, 99404, 1204, 1206, 1212, 1220, 1251, 1257, 1260, 11404}


def judged(destination: EnosEvents, status: int, body: bytes, **fields: Any) -> Verdict:
    return destination.judge(Answer(status, fields.pop("headers", {}), body, **fields), batch(), NOW)


# The table itself.


def test_the_first_rule_that_fits_decides() -> None:
    rules = (Rule(Meaning.REJECT, "one", code=1), Rule(Meaning.RENEW, "small", code=range(5)), Rule(Meaning.RETRY, "rest"))

    assert ["one", "small", "rest"] == [first(rules, {"code": code}).note for code in (1, 2, 5)]


def test_a_rule_fits_when_each_of_its_conditions_does() -> None:
    rule = Rule(Meaning.REJECT, "", status={400, 404}, code=7)

    fitting = [
        (status, code) for status in (400, 404, 500) for code in (7, 8, None) if rule.fits({"status": status, "code": code})
    ]

    assert [(400, 7), (404, 7)] == fitting


def test_a_number_that_is_not_there_fits_only_where_nothing_is_said_of_it_or_its_absence_is_asked_for() -> None:
    rules = [Rule(Meaning.RETRY, ""), Rule(Meaning.RETRY, "", code=ABSENT), Rule(Meaning.RETRY, "", code={None, 7})]
    others = [Rule(Meaning.RETRY, "", code=0), Rule(Meaning.RETRY, "", code=range(10)), Rule(Meaning.RETRY, "", code={7})]

    assert [True] * 3 == [rule.fits({"code": None}) for rule in rules]
    assert [False] * 3 == [rule.fits({"code": None}) for rule in others]


def test_a_table_of_a_status_alone_serves_another_type() -> None:
    webhook: Verdicts = (
        Rule(Meaning.DELIVERED, "taken", status=range(200, 300)),
        Rule(Meaning.REJECT, "refused", status={400, 409, 415, 422}),
        Rule(Meaning.RETRY, "anything else"),
    )
    check_table(webhook, ["status"], "webhook")

    meanings = [first(webhook, {"status": status}).meaning for status in (204, 422, 404)]

    assert [Meaning.DELIVERED, Meaning.REJECT, Meaning.RETRY] == meanings


def test_a_rule_says_what_it_is() -> None:
    assert "Rule(<Meaning.RETRY: 'retry'>, 'later', code=frozenset({11404}))" == repr(Rule(Meaning.RETRY, "later", code=11404))


# Every rule counts.


def readings(rules: tuple[Rule[Any], ...]) -> Iterator[Reading]:
    """Every combination of numbers that any rule tells apart, and of one that none mentions."""
    names = sorted({name for rule in rules for name in rule.when})
    values: list[set[int | None]] = [{None, 31_337} for _ in names]
    for rule in rules:
        for name, wanted in rule.when.items():
            values[names.index(name)] |= {wanted.start, wanted.stop - 1} if isinstance(wanted, range) else set(wanted)
    for numbers in itertools.product(*values):
        yield dict(zip(names, numbers, strict=True))


@pytest.mark.parametrize("rules", [VERDICTS, ANSWERS], ids=["enos", "token"])
def test_every_rule_decides_something(rules: tuple[Rule[Any], ...]) -> None:
    deciding = {first(rules, reading) for reading in readings(rules)}

    assert [] == [rule for rule in rules if rule not in deciding]


@pytest.mark.parametrize("rules", [VERDICTS, ANSWERS], ids=["enos", "token"])
def test_every_number_of_a_rule_decides_something(rules: tuple[Rule[Any], ...]) -> None:
    """A code that an earlier rule has taken would stand in the page and never happen."""
    decided = {
        (rule, name, reading[name]) for reading in readings(rules) for rule in [first(rules, reading)] for name in rule.when
    }
    said = {
        (rule, name, number)
        for rule in rules
        for name, wanted in rule.when.items()
        for number in ((wanted.start, wanted.stop - 1) if isinstance(wanted, range) else wanted)
    }

    assert set() == said - decided


@pytest.mark.parametrize(("rules", "kind"), [(VERDICTS, Meaning), (ANSWERS, Reaction)], ids=["enos", "token"])
def test_every_rule_has_words_and_every_meaning_a_rule(rules: tuple[Rule[Any], ...], kind: Any) -> None:
    assert set(kind) == {rule.meaning for rule in rules}
    assert all(rule.note.strip() for rule in rules)


def test_each_documented_code_has_a_line_of_its_own() -> None:
    accusing = [rule for rule in VERDICTS if rule.meaning in (Meaning.REJECT, Meaning.TOO_LARGE)]
    by_code = [rule.when["code"] for rule in accusing if "code" in rule.when]

    assert {frozenset({code}) for code in ACCUSING} == set(by_code)
    assert len(ACCUSING) == len(by_code)


# Any answer at all.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KNOWN = sorted({number for rule in VERDICTS for number in rule.when.get("code", ()) if number is not None})
CODES = st.sampled_from(KNOWN).flatmap(lambda code: st.sampled_from([code, str(code), float(code), [code]])) | VALUES
ENVELOPES = st.fixed_dictionaries(
    {}, optional={"code": CODES, "apim_status": st.sampled_from([4011, 4012, "4011", None]) | VALUES, "msg": VALUES}
)
BODIES = st.binary(max_size=60) | (ENVELOPES | VALUES).map(lambda value: json.dumps(value).encode())
STATUSES = st.sampled_from([200, 200, 201, 302, 401, 404, 413, 500]) | st.integers(100, 999)
HEADERS = st.dictionaries(st.sampled_from(["retry-after", "location", "date"]), st.text(max_size=30))
ANSWERED = st.builds(
    Answer, STATUSES, HEADERS, BODIES, st.sampled_from([True, True, False]), st.sampled_from([True, True, False])
)


def code_of(answer: Answer) -> int | None:
    """The code in the envelope, asked for in another way: an integer, or digits, in an object that was heard to its end."""
    try:
        document = json.loads(answer.body) if answer.whole else None
    except (ValueError, RecursionError):
        return None
    shown = json.dumps(document.get("code")).strip('"') if isinstance(document, dict) else ""
    return int(shown) if shown.removeprefix("-").isdecimal() and shown.isascii() and len(shown) < 19 else None


@given(ANSWERED)
def test_judge_never_raises(answer: Answer) -> None:
    assert isinstance(ENOS.judge(answer, batch(), NOW), Delivered | Reject | Retry | NotSent)


@given(ANSWERED)
def test_only_a_success_code_in_a_2xx_after_the_whole_request_delivers(answer: Answer) -> None:
    if isinstance(ENOS.judge(answer, batch(), NOW), Delivered):
        assert answer.status // 100 == 2
        assert code_of(answer) in {0, 200}
        assert answer.sent_whole


@given(ANSWERED)
def test_only_a_code_of_the_table_in_the_envelope_or_a_413_accuses_a_message(answer: Answer) -> None:
    verdict = ENOS.judge(answer, batch(), NOW)

    if isinstance(verdict, Reject):
        assert answer.status == 413 or code_of(answer) in ACCUSING
        assert (verdict.reason is Reason.TOO_LARGE) == (answer.status == 413 or code_of(answer) in {413, 1008})


@given(ANSWERED.filter(lambda answer: code_of(answer) is None and answer.status != 413))
def test_outside_the_envelope_nothing_is_accused_and_nothing_delivered(answer: Answer) -> None:
    assert isinstance(ENOS.judge(answer, batch(), NOW), Retry)


@given(st.sampled_from(KNOWN), st.integers(300, 399))
def test_a_redirect_is_heard_by_no_rule_about_codes(code: int, status: int) -> None:
    verdict = judged(ENOS, status, json.dumps({"code": code}).encode())

    assert isinstance(verdict, Retry)
    assert verdict.facts.code is None


@pytest.mark.parametrize("status", [413, 200])
@pytest.mark.parametrize("code", [413, 1008, None])
def test_which_413_was_said_shows_in_the_facts(status: int, code: int | None) -> None:
    verdict = judged(ENOS, status, json.dumps({"code": code}).encode() if code else b"<html>")

    assert (status, code) == (verdict.facts.status, verdict.facts.code)


@given(st.sampled_from(Meaning), STATUSES)
def test_every_meaning_has_its_verdict(meaning: Meaning, status: int) -> None:
    verdict = verdict_of(meaning, judged(ENOS, 500, b"").facts, Answer(status, {"retry-after": "7"}, b""), NOW)

    kinds = {Meaning.DELIVERED: Delivered, Meaning.REJECT: Reject, Meaning.TOO_LARGE: Reject}
    assert isinstance(verdict, kinds.get(meaning, Retry))
    if isinstance(verdict, Retry):
        assert (meaning is Meaning.RENEW) == verdict.renew
        assert (meaning in (Meaning.RENEW, Meaning.CREDENTIALS)) == verdict.credentials
        assert (7.0 if meaning is Meaning.RETRY else None) == verdict.wait


# Overriding.

LATER = Rule(Meaning.RETRY, "devices are made later here", code={11404})


class Plain(EnosEvents):
    verdicts = (LATER, *EnosEvents.verdicts)


@dataclass(frozen=True, kw_only=True)
class Decorated(EnosEvents):
    verdicts = (LATER, *EnosEvents.verdicts)


@dataclass(frozen=True, kw_only=True)
class Annotated(EnosEvents):
    verdicts: ClassVar[Verdicts] = (LATER, *EnosEvents.verdicts)


class Heir(Plain):
    pass


@pytest.mark.parametrize("kind", [Plain, Decorated, Annotated, Heir])
def test_a_subclass_puts_its_rules_in_front(kind: type[EnosEvents]) -> None:
    destination = kind(**USUAL)

    assert isinstance(judged(ENOS, 200, b'{"code":11404}'), Reject)
    assert isinstance(judged(destination, 200, b'{"code":11404}'), Retry)
    assert isinstance(judged(destination, 200, b'{"code":1257}'), Reject)
    assert isinstance(judged(destination, 200, b'{"code":0}'), Delivered)


@given(st.sampled_from(Meaning), st.integers(300, 399))
def test_no_override_about_a_code_hears_it_in_a_redirect(meaning: Meaning, status: int) -> None:
    class Bold(EnosEvents):
        verdicts = (Rule(meaning, "mine", code=7), *EnosEvents.verdicts)

    assert isinstance(judged(Bold(**USUAL), status, b'{"code":7}'), Retry)


def test_an_override_may_let_a_success_code_of_its_own_deliver() -> None:
    class Own(EnosEvents):
        verdicts = (Rule(Meaning.DELIVERED, "a duplicate", status=range(200, 300), code=7), *EnosEvents.verdicts)

    own = Own(**USUAL)

    assert isinstance(judged(own, 200, b'{"code":7}'), Delivered)
    assert isinstance(judged(own, 200, b'{"code":7}', sent_whole=False), NotSent)
    assert isinstance(judged(own, 500, b'{"code":7}'), Retry)


def test_a_table_that_leaves_answers_without_a_verdict_is_refused() -> None:
    class Gap(EnosEvents):
        verdicts = (LATER,)

    class Nothing(EnosEvents):
        verdicts = ()

    for kind in (Gap, Nothing):
        with pytest.raises(ConfigurationError, match=r"destination enos: .* last verdict to fit every answer"):
            kind(**USUAL)


def test_a_condition_on_what_nobody_reads_is_refused() -> None:
    class Misspelt(EnosEvents):
        verdicts = (Rule(Meaning.RETRY, "mine", cod=11404), *EnosEvents.verdicts)

    with pytest.raises(ConfigurationError, match="looks at 'cod'; known: status, code, apim_status"):
        Misspelt(**USUAL)
