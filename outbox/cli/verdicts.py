"""`outbox verdicts`: what every answer means, printed from the tables that decide it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, assert_never

import rich_click as click

from outbox.cli.options import command

if TYPE_CHECKING:
    from outbox.destinations.base import Destination
    from outbox.destinations.table import Meaning, Rule, Verdicts
    from outbox.destinations.token import Reaction

OPENING = """\
# Verdicts

**What each answer of a destination means for a message, and who is charged for it.** This page is the output of
`outbox verdicts`, made from the tables that decide. In each table the first line that fits decides.

Only an answer in the destination's own envelope, or a 413, accuses a message; where there is no envelope, as with a form or a
webhook, the statuses do that speak of what was sent. Whatever else comes back, or does not come, is the destination's fault and
costs no message anything as long as nothing else gets through. An answer that came before the request's last byte went out can
refuse but never confirm: a success is then *not sent*.
"""

#: The one place that tells how verdicts become states.
SETTLING = """\
## How a verdict settles

- **delivered**: every message of the batch is delivered.
- **reject**: the batch is halved and its messages are tried again at once, in no other company; a message that is rejected
  alone is dead, with the destination's words. After `reject_streak` of these with no delivery between them the destination
  stops, and its refusals kill nobody any more. A 413 also teaches the destination's size limit: later requests stay under it.
- **retry** and **not sent**: the messages stay pending and wait for the destination. Only if it delivered something else since
  a message's last failure does this say something about the message too: then its batch is halved and nobody is charged, and a
  message alone is charged with a failure and put off. `max_failures` of them and it is dead (`exhausted`).
- Refused credentials, and a request of which nothing went out, never count against a message.
- **unknown**: the batch is halved and sent again, which may make a copy. A message alone is charged, under the same condition
  or if its worker died, and put off; it is dead (`outcome_unknown`) after more than `max_unknown` of them. With
  `on_unknown="dead"` there is no second try.
- Whatever charges the destination counts towards its breaker: `breaker_after` in a row open it, one probe at a time closes it,
  and then uploads ramp up one by one.
"""

#: What happened, the verdict, who is charged, what follows.
NO_ANSWER = (
    ("connection refused, no such host, no route, no TLS", "not sent", "the destination", "tried again when it is well"),
    ("the connection broke before the whole request went out", "not sent", "the destination", "tried again when it is well"),
    ("the whole request went out, no complete answer came", "unknown", "the destination", "the batch is halved and sent again"),
    ("the token service did not answer, or is in trouble", "not sent", "the destination", "tried again when it is well"),
    ("the token service refused us, or a secret is missing", "retry", "the destination", "stopped (`credentials`) and probed"),
    ("a spooled file is missing", "not sent", "that message", "dead (`file_missing`); its neighbours go again"),
    ("a spooled file is not what was enqueued", "not sent", "that message", "dead (`file_changed`); its neighbours go again"),
    ("held back on our side before it began, for instance by a stop", "not sent", "nobody", "pending again"),
    ("the spool cannot be read", "not sent", "the destination", "tried again when it is well"),
    ("a batch cannot be encoded", "reject", "the message", "the batch is halved"),
    ("a message alone cannot be encoded", "retry", "the destination", "tried again; the log has the traceback"),
    ("the answer cannot be judged, HTTP 2xx", "unknown", "the destination", "the batch is halved and sent again"),
    ("the answer cannot be judged, any other HTTP status", "retry", "the destination", "tried again when it is well"),
)

OVERRIDING = """\
## How to override

Put your own rules in front of a type's, in a subclass. A condition is a number, a set or a range of numbers, or `ABSENT`;
what is not named may be anything.

```python
from outbox import EnosEvents
from outbox.destinations.table import Meaning, Rule, first


class PatientEvents(EnosEvents):
    \"""Events of devices that may be registered later.\"""

    verdicts = (
        Rule(Meaning.RETRY, "the device may be registered later", code={99404, 1257, 11404}),
        *EnosEvents.verdicts,
    )


enos = PatientEvents(name="enos", url="https://integration.example", org_id="o15724268424841")

answer = {"status": 200, "code": 11404, "apim_status": None}
assert first(EnosEvents.verdicts, answer).meaning is Meaning.REJECT
assert first(enos.verdicts, answer).meaning is Meaning.RETRY
```

Give the destination to `Outbox(destinations=[enos])`, and commands find it with `--app module:attribute`. Mind whom a verdict
charges: `breaker_after` retries in a row make a destination wait.
"""

_UPLOAD = {"status": "HTTP"}
#: What is only there or not: a condition that wants a 1 wants it there.
_FLAGS = {"html": "an HTML page"}
_TOKEN = {"http": "HTTP", "status": "`status`", "refresh": "on refresh, `status`"}


class Consequence(NamedTuple):
    """What a meaning comes to."""

    verdict: str
    charged: str
    follows: str


@command(example="outbox verdicts --type enos-events")
@click.option("--type", "names", multiple=True, metavar="TYPE", help="Only this type of destination; may be repeated.")
def verdicts(names: tuple[str, ...]) -> None:
    """What every answer means, as a page of Markdown. Needs neither settings nor a database."""
    from outbox.declaring import TYPES

    for name in names:
        if name not in TYPES:
            raise click.BadParameter(f"no destination type {name!r}; known: {', '.join(TYPES)}", param_hint="--type")
    click.echo(page({name: kind for name, kind in TYPES.items() if not names or name in names}), nl=False)


def page(types: Mapping[str, type[Destination]]) -> str:
    """The whole page for these types, by the names that settings give them."""
    from outbox.destinations.token import ANSWERS

    shared: dict[Verdicts, list[str]] = {}
    for name, kind in types.items():
        if kind.verdicts:
            shared.setdefault(kind.verdicts, []).append(name)
    tables = [_of_types(names, rules) for rules, names in shared.items()]
    return "\n".join([OPENING, *tables, _of_tokens(ANSWERS), _of_silence(), SETTLING, OVERRIDING])


def _of_types(names: Sequence[str], rules: Verdicts) -> str:
    lines = [f"## Answers to {_listed([f'`{name}`' for name in names], 'and')}", ""]
    if len(names) > 1:
        lines += ["These types share one table.", ""]
    lines += _head("the answer says", "verdict", "charged", "what follows", "why")
    lines += [_row(_said(rule, _UPLOAD), *consequence(rule.meaning), rule.note) for rule in rules]
    return "\n".join([*lines, ""])


def _of_tokens(rules: Sequence[Rule[Reaction]]) -> str:
    lines = [
        "## Answers of the token service",
        "",
        "Its codes stand in the member `status`; the same numbers mean something else above. None of them charges a message.",
        "",
        *_head("the answer says", "what follows", "why"),
    ]
    lines += [_row(_said(rule, _TOKEN), reaction(rule.meaning), rule.note) for rule in rules]
    return "\n".join([*lines, ""])


def _of_silence() -> str:
    head = _head("what happened", "verdict", "charged", "what follows")
    return "\n".join(["## No answer at all", "", *head, *(_row(*cells) for cells in NO_ANSWER), ""])


def consequence(meaning: Meaning) -> Consequence:
    """What an answer to an upload comes to."""
    from outbox.destinations.table import Meaning

    match meaning:
        case Meaning.DELIVERED:
            return Consequence("delivered", "nobody", "delivered")
        case Meaning.REJECT:
            return Consequence("reject", "the message", "in a batch: halved; alone: dead (`rejected`)")
        case Meaning.TOO_LARGE:
            return Consequence("reject", "the message", "in a batch: halved; alone: dead (`too_large`)")
        case Meaning.RENEW:
            again = "the token is renewed and the same request sent once more; refused again: stopped (`credentials`)"
            return Consequence("retry", "the destination", again)
        case Meaning.CREDENTIALS:
            return Consequence("retry", "the destination", "it is stopped (`credentials`) and probed")
        case Meaning.RETRY:
            return Consequence("retry", "the destination", "tried again when it is well; `Retry-After` is heard")
        case _:
            assert_never(meaning)


def reaction(meaning: Reaction) -> str:
    """What an answer of the token service comes to."""
    from outbox.destinations.token import SIGNATURES, Reaction

    match meaning:
        case Reaction.KEEP:
            return "the token is used, and renewed before it ends"
        case Reaction.SIGN_AGAIN:
            return f"signed again with a later timestamp, {SIGNATURES} times in all; then tried later"
        case Reaction.GET:
            return "a token is got instead"
        case Reaction.CREDENTIALS:
            return "the destination is stopped (`credentials`) and probed; while a token lives it is used"
        case Reaction.LATER:
            return "not sent; tried again when the service is well; while a token lives it is used"
        case _:
            assert_never(meaning)


def _said(rule: Rule[Meaning] | Rule[Reaction], names: Mapping[str, str]) -> str:
    return (
        ", ".join(
            _condition(names.get(name, name if name in _FLAGS else f"`{name}`"), wanted) for name, wanted in rule.when.items()
        )
        or "anything else"
    )


def _condition(name: str, wanted: Collection[int | None]) -> str:
    if name in _FLAGS:
        return _FLAGS[name] if 1 in wanted else f"not {_FLAGS[name]}"
    if wanted == frozenset({None}):
        return f"no {name}"
    if isinstance(wanted, range) and wanted == range(wanted.start, wanted.start + 100) and wanted.start % 100 == 0:
        return f"{name} {wanted.start // 100}xx"
    numbers = [str(number) for number in sorted(number for number in wanted if number is not None)]
    return f"{name} {_listed([*numbers, *(['absent'] if None in wanted else [])], 'or')}"


def _listed(words: Sequence[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _head(*cells: str) -> list[str]:
    return [_row(*cells), f"|{'---|' * len(cells)}"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
