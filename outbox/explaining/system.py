"""Why nothing moves at all, and words that mean more than one thing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from outbox.explaining.causes import Code, Found, Weight, found
from outbox.explaining.words import at_time, brief
from outbox.timekeeping import plausible


def of_schema(words: str, revision: str | None, newest: str) -> Found:
    """The database is not the one of this code, or there is none; `words` say so. `revision` is its own, if it has one."""
    if revision is None:
        next_ = (
            "nothing is enqueued or sent until there is one: no worker starts before that, and one that worked in it cannot go "
            "on; start it again then"
        )
    elif revision > newest:
        next_ = "no worker of this version starts until durable-outbox is upgraded here; newer ones go on"
    else:
        next_ = "no worker of this version starts until then; if an older one works in it already, that one goes on"
    return found(Weight.ACT, Code.SCHEMA, words, next_)


def of_database(words: str, *, lost: bool = False) -> Found:
    """The database cannot be asked; `words` say why. `lost`: it is damaged, or another one or none is in its place."""
    if lost:
        goes_on = "a whole one is there again: a worker that runs ends"
    else:
        goes_on = "it can be read: a worker that runs tries again by itself, or ends if the database is damaged"
    next_ = f"nothing moves until {goes_on}, and none can be started; see: outbox doctor"
    # What follows is for programmers: the driver's hints, and where SQLAlchemy explains its errors.
    said = words.partition("\n")[0].partition(" (Background on")[0]
    return found(Weight.ACT, Code.DATABASE, brief(said), next_)


def of_clock(now: datetime) -> Iterator[Found]:
    """A clock that cannot be right."""
    if not plausible(now):
        sentence = f"the clock of this machine says {at_time(now)}, which cannot be"
        next_ = "until it is set, no message expires and none is due whose producer chose a later time; the others go"
        yield found(Weight.FIRST, Code.CLOCK, sentence, next_)


def of_several(word: str, meanings: list[str]) -> Found:
    """A word that means more than one thing."""
    sentence = f"{word!r} means {len(meanings)} things: {'; '.join(meanings)}"
    next_ = "whatever holds up any of them follows, once if it holds up several; another id, or --destination, means fewer"
    return found(Weight.FIRST, Code.AMBIGUOUS, sentence, next_)


def of_room(words: str, refused: str) -> Found:
    """The quota, a disk or the database is full; `words` say which, and `refused` which messages do not come in."""
    next_ = f"{refused} are refused until there is room, and then taken by themselves; what is here goes on being delivered"
    return found(Weight.FIRST, Code.DISK_FULL, brief(words), next_)
