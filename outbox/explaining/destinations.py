"""Why nothing goes to a destination."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import assert_never

from outbox.explaining.causes import Code, Found, Weight, found
from outbox.explaining.facts import DestinationFacts, MessageFacts
from outbox.explaining.words import at_time, brief, counted, waits
from outbox.limits import LEARNED_DOUBLES_IN, drawn, has_room, learned_limit, refill_wait, refilled
from outbox.model import Lane, Pause
from outbox.patience import Passage, Stop, passage, resumed, spares
from outbox.policy import send_deadline
from outbox.units import bytes_in_words, in_words

#: A send has its time from when it begins, and once more after its token was renewed; when that was, no row says.
THEN_OR_LATER = "then, or later if a token had to be asked for meanwhile"


def of_destination(place: DestinationFacts) -> list[Found]:
    """Why nothing goes to a destination."""
    causes = [
        *locked(place),
        *not_declared(place),
        *without_worker(place),
        *stopped(place, None),
        *crowded(place, Lane.NORMAL),
        *learned(place, None),
    ]
    if _large_is_busy(place):
        causes.append(_large_busy(place, Weight.NOTE))
    if place.blocked_keys:
        keys = f"{counted(place.blocked_keys, 'ordering key')} of {place.name} {waits(place.blocked_keys)} for a dead message"
        next_ = f"nothing by itself; see: outbox status, then replay or cancel, or: outbox resume {place.name} --key KEY"
        if place.policy.on_dead == "skip":
            next_ = "a worker of this destination, which skips the dead, lets the others go on at its next look"
        causes.append(found(Weight.NOTE, Code.ORDER_DEAD, keys, next_))
    if place.paused_keys:
        causes.append(_keys_paused(place))
    held = any(each.weight in (Weight.ACT, Weight.WAIT) for each in causes)
    if not place.due:
        busy = place.traffic.small + place.traffic.large
        more = f"; {counted(busy, 'upload')} {'is' if busy == 1 else 'are'} under way" if busy else ""
        goes = f"waits for what holds {place.name} up" if held else "goes at once"
        next_ = "the next message is due then" if place.next_due else f"what is enqueued {goes}"
        causes.append(found(Weight.NOTE, Code.IDLE, f"nothing is due for {place.name}{more}", next_, place.next_due))
    elif not held:
        sentence = f"nothing stands in the way of {place.name}: what is due goes with the next turn"
        causes.append(found(Weight.NOTE, Code.READY, sentence, "a worker takes it at its next look"))
    return causes


def _keys_paused(place: DestinationFacts) -> Found:
    number, named = place.paused_keys, [f"{each.ordering_key!r} {said(each)}" for each in place.paused]
    more = f"; and {number - len(named):,} more" if number > len(named) else ""
    sentence = (
        f"{counted(number, 'ordering key')} of {place.name} {'is' if number == 1 else 'are'} paused: {'; '.join(named)}{more}"
    )
    next_ = f"nothing of such a key is sent until a person lets it go on: outbox resume {place.name} --key KEY"
    return found(Weight.NOTE, Code.KEY_PAUSED, sentence, next_)


def said(pause: Pause) -> str:
    """Who paused an ordering key, since when, and why."""
    words = f": {brief(pause.text)}" if pause.text else ""
    return f"by {pause.paused_by or 'somebody'} since {at_time(pause.paused_at)}{words}"


def locked(place: DestinationFacts) -> Iterator[Found]:
    if place.locked:
        sentence = "somebody holds the write lock of the database: nobody else can claim, record or enqueue anything"
        next_ = (
            "whoever waits goes on by itself as soon as that transaction ends, and what else is said holds from then on; if it "
            "does not end, find the program that has the file open, and end that"
        )
        yield found(Weight.ACT, Code.LOCKED, sentence, next_)


def not_declared(place: DestinationFacts) -> Iterator[Found]:
    if place.declared:
        return
    sentence = f"destination {place.name} is not declared in these settings"
    if serving := [each for each in place.serving if each.serves is not None]:
        next_ = f"{serving[0]} serves it: ask with that one's settings, these know nothing of its limits"
        yield found(Weight.FIRST, Code.NOT_DECLARED, sentence, next_)
    else:
        next_ = "nothing is sent to it; declare it, and start a worker with that: outbox worker"
        yield found(Weight.ACT, Code.NOT_DECLARED, sentence, next_)


def without_worker(place: DestinationFacts) -> Iterator[Found]:
    if place.locked:
        return  # nobody can write a beat, or that it has begun
    if not place.alive:
        silent = max(place.workers, key=lambda each: each.beat_at, default=None)
        last = ""
        if silent is not None:
            ago = in_words(place.when.now - silent.beat_at)
            last = f"; the last beat, of {silent}, was at {at_time(silent.beat_at)}, {ago} ago"
        sentence = f"no worker is alive{last}"
        yield found(Weight.ACT, Code.NO_WORKER, sentence, "nothing is sent until one runs; start it with: outbox worker")
    elif not place.serving:
        serving = [each for each in place.alive if each.may_serve(place.name)]
        others = serving or place.alive
        does = "was asked to stop" if serving else f"serves only {', '.join((others[0].serves or '').split())}"
        more = f", and so on for {counted(len(others) - 1, 'other')}" if len(others) > 1 else ""
        sentence = f"no live worker serves {place.name}: {others[0]} {does}{more}"
        next_ = f"nothing is sent to it until one does; start it with: outbox worker --destination {place.name}"
        yield found(Weight.ACT, Code.NOT_SERVED, sentence, next_)


def stopped(place: DestinationFacts, message: MessageFacts | None) -> Iterator[Found]:
    """Its pause, its stop or its breaker, and the probe that is under way."""
    breaker, name = place.breaker, place.name
    since = f"since {at_time(place.stopped_at)}"
    words = f": {brief(place.stop_text)}" if place.stop_text else ""
    match breaker.stop:
        case Stop.PAUSE:
            sentence = f"{name} is paused by {place.stopped_by or 'somebody'} {since}{words}"
            first = ", with one message first, since it was in trouble" if resumed(breaker, place.when.now).is_open else ""
            next_ = f"no upload begins until a person lets it go on{first}: outbox resume {name}"
            yield found(Weight.ACT, Code.PAUSED, sentence, next_)
        case Stop.CREDENTIALS:
            next_, at = _next_probe(place, message)
            yield found(Weight.ACT, Code.CREDENTIALS, f"{name} refuses our credentials {since}{words}", next_, at)
        case Stop.REJECT_STREAK:
            next_, at = _next_probe(place, message)
            yield found(Weight.ACT, Code.REJECT_STREAK, f"{name} is left alone {since}, because it{words[1:]}", next_, at)
        case None if breaker.is_open:
            next_, at = _next_probe(place, message)
            last = f" (the last: {place.last_failure})" if place.last_failure else ""
            until = f"until {at_time(at)}, in {in_words(at - place.when.now)}," if at else "but for a probe"
            after = f"after {counted(breaker.failures, 'failure')} in a row{last}"
            yield found(Weight.WAIT, Code.BREAKER, f"{name} is left alone {until} {after}", next_, at)
        case None:
            pass
        case _:
            assert_never(breaker.stop)
    probe = place.probe
    mine = message is not None and message.upload is not None and probe is not None and probe.id == message.upload.id
    if probe is None or mine or breaker.stop is Stop.PAUSE or not (breaker.is_open or breaker.stop):
        return
    sender = probe.worker or f"worker {probe.worker_id}"
    sentence = f"a probe of {name} is under way since {at_time(probe.since)}, sent by {sender}"
    ends = probe.since + timedelta(seconds=send_deadline(probe.bytes, place.policy))
    if place.is_abandoned(probe):
        next_, at = "its worker is gone: when another has taken it back, the next probe may begin", None
    elif ends > place.when.now:
        ending = f"without an answer it is given up {THEN_OR_LATER}"
        next_, at = f"nothing else goes before it ends; {ending}; if it is delivered, the others go", ends
    else:
        next_, at = "nothing else goes before its worker has recorded what became of it", None
    yield found(Weight.WAIT, Code.PROBE, sentence, next_, at)


def _next_probe(place: DestinationFacts, message: MessageFacts | None) -> tuple[str, datetime | None]:
    """What ends a stop that heals itself, and when; no time means now, or when what is under way has ended."""
    if place.probe is not None:
        return "the answer to the probe that is under way decides", None
    breaker = place.breaker
    waits = passage(breaker, place.when.invented, place.policy) is Passage.NONE
    sooner = " (sooner if a worker is started)" if breaker.stop and waits else ""
    begins = "one message is tried then" if waits else "one message is tried with the next turn"
    nothing = "" if place.due else ", if one is due"
    if message is not None and message.lane == Lane.LARGE and place.smaller_due:
        nothing = ", a smaller one before those of the large lane"
    return f"{begins}{sooner}{nothing}; if it is delivered, the others go", breaker.open_until if waits else None


def if_refused(place: DestinationFacts, dies: str) -> str:
    """What becomes of a message that is refused alone, which usually `dies`."""
    if spares(place.breaker, place.policy):
        return f"stays: none dies of that while {place.name} refuses one message after the other"
    return dies


def crowded(place: DestinationFacts, lane: Lane) -> Iterator[Found]:
    """Its rate, and how many uploads may be under way at a time."""
    policy, traffic, name = place.policy, place.traffic, place.name
    under_way = traffic.small + traffic.large
    if policy.rate is not None:
        bucket = refilled(place.bucket, place.when.now, policy)
        if drawn(bucket) is None:
            wait = refill_wait(bucket, policy)
            sentence = f"the rate of {name}, {policy.rate:g} requests a second, is used up for {in_words(wait)}"
            at = place.when.now + timedelta(seconds=wait)
            yield found(Weight.WAIT, Code.RATE, sentence, "the next request may go then, by whichever sender is first", at)
    if policy.in_flight is not None and not has_room(traffic, lane, policy.in_flight, None):
        spared = ", of which the large lane leaves one to the others" if under_way < policy.in_flight else ""
        are = "is" if under_way == 1 else "are"
        sentence = f"{counted(under_way, 'upload')} to {name} {are} under way, and {policy.in_flight} may be{spared}"
        yield found(Weight.WAIT, Code.IN_FLIGHT, sentence, "the next upload begins when one of them ends")
    ramp = place.breaker.ramp
    if ramp is not None:
        full = not has_room(traffic, lane, None, ramp)
        sentence = f"{name} is recovering: {counted(ramp, 'upload')} at a time for now"
        busy = ", and as many are under way; the next begins when one of them ends" if full else ""
        next_ = f"with each delivery one more, until there are {policy.ramp_until}{busy}"
        yield found(Weight.WAIT if full else Weight.NOTE, Code.RECOVERING, sentence, next_)
    if lane is Lane.LARGE:
        if _large_is_busy(place):
            yield _large_busy(place, Weight.WAIT)
    elif place.serving and traffic.small >= policy.senders * len(place.serving):
        sentence = f"every sender for {name} is busy: {counted(traffic.small, 'upload')} under way"
        yield found(Weight.WAIT, Code.SENDERS, sentence, "the next upload begins when one of them ends")


def _large_is_busy(place: DestinationFacts) -> bool:
    return bool(place.serving) and place.traffic.large >= place.policy.large_senders * len(place.serving)


def _large_busy(place: DestinationFacts, weight: Weight) -> Found:
    sentence = f"the large lane of {place.name} is busy: {counted(place.traffic.large, 'upload')} under way"
    return found(weight, Code.LARGE_BUSY, sentence, "the next large upload begins when one of them ends")


def learned(place: DestinationFacts, message: MessageFacts | None) -> Iterator[Found]:
    limit, learned = learned_limit(place.learned, place.when.now), place.learned
    if limit is None or learned.size is None or learned.at is None:
        return
    weight = 0 if message is None else message.size + message.file_bytes
    if message is not None and weight > limit:
        too_much = f"more than the {bytes_in_words(limit)} that {place.name} takes in one request, as far as we know"
        next_ = f"it goes alone; if that is refused too, it {if_refused(place, 'is dead (too_large)')}"
        yield found(Weight.NOTE, Code.TOO_LARGE, f"{message} has {bytes_in_words(weight)}, {too_much}", next_)
    elif limit < place.policy.batch_bytes:
        doublings = math.log2(place.policy.batch_bytes / learned.size)
        at = learned.at + timedelta(seconds=LEARNED_DOUBLES_IN * doublings)
        sentence = f"{place.name} refused larger requests: at most {bytes_in_words(limit)} go into one for now"
        usual = bytes_in_words(place.policy.batch_bytes)
        yield found(Weight.NOTE, Code.LEARNED, sentence, f"twice as much each day, until it is the usual {usual} then", at)
