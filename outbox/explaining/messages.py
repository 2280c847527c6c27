"""Why a message is not moving."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import assert_never

from outbox.explaining.causes import Code, Found, Weight, found
from outbox.explaining.destinations import (
    THEN_OR_LATER,
    crowded,
    if_refused,
    learned,
    locked,
    not_declared,
    said,
    stopped,
    without_worker,
)
from outbox.explaining.facts import Answered, DestinationFacts, MessageFacts, StreamFacts, Upload
from outbox.explaining.words import at_time, brief, counted, nth, waits
from outbox.model import Lane, Message, Outcome, Reason, State
from outbox.policy import GONE_AFTER, send_deadline
from outbox.timekeeping import When, plausible
from outbox.units import in_words
from outbox.verdict import Facts, Unknown, settle

#: With its own key nothing would be added: as long as the message is kept, it is the one of that key.
_AGAIN = "enqueue it again under another key"


def of_message(message: MessageFacts, place: DestinationFacts) -> list[Found]:
    """Why a message is not moving."""
    state = State(message.state)
    match state:
        case State.DELIVERED:
            return [_delivered(message)]
        case State.CANCELLED:
            return [_cancelled(message)]
        case State.DEAD:
            return [_dead(message), *_holds_up(message, place)]
        case State.CLAIMED:
            return [
                *locked(place),
                *_claimed(message, place),
                *not_declared(place),
                *stopped(place, message),
                *_key_paused(message, place),
            ]
        case State.PENDING:
            return _pending(message, place)
        case _:
            assert_never(state)


def _pending(message: MessageFacts, place: DestinationFacts) -> list[Found]:
    causes = [
        *locked(place),
        *_of_its_files(message),
        *_of_its_time(message, place.when),
        *_key_paused(message, place),
        *_of_its_order(message, place),
        *_of_its_company(message, place),
        *not_declared(place),
        *without_worker(place),
        *stopped(place, message),
        *crowded(place, Lane(message.lane)),
        *learned(place, message),
    ]
    held = any(each.weight in (Weight.ACT, Weight.WAIT) for each in causes)
    if message.before and place.when.has_come(message.due_at, chosen=message.scheduled):
        causes.append(_before(message, place, Weight.NOTE if held else Weight.WAIT))
    elif not held:
        sentence = f"nothing stands in the way of {message}: it goes with the next turn"
        causes.append(found(Weight.NOTE, Code.READY, sentence, f"a worker of {place.name} takes it at its next look"))
    return causes


def _delivered(message: MessageFacts) -> Found:
    sentence = f"{message} was delivered at {at_time(message.finished_at)}"
    goes, at = _purged(message)
    sooner = ", or before if room runs short" if at else ""
    return found(Weight.NOTE, Code.DELIVERED, sentence, f"nothing more: it is {goes}{sooner}", at)


def _cancelled(message: MessageFacts) -> Found:
    sentence = f"{message} was cancelled by a person at {at_time(message.finished_at)}"
    goes, at = _purged(message)
    next_ = f"nothing more: it is {goes}; to send it after all: outbox replay {message.id}"
    return found(Weight.NOTE, Code.CANCELLED, sentence, next_, at)


def _purged(message: MessageFacts) -> tuple[str, datetime | None]:
    """What becomes of a message that is over, and when."""
    if message.kept is None or message.finished_at is None:
        return "kept for ever", None
    return "kept until then and purged soon after", message.finished_at + message.kept


def _dead(message: MessageFacts) -> Found:
    reason = Reason(message.reason or "")
    words = brief(message.reason_text) or (str(message.last) if message.last else "nothing was said about it")
    sentence = f"{message} is dead since {at_time(message.finished_at)} ({reason}): {words}"
    lost = [each for each in message.attached if each.freed_at is not None and each.missing]
    next_ = f"nothing by itself; {_remedy(reason, message.id)}"
    if lost:
        next_ = f"nothing by itself, and it cannot be replayed, since its file {lost[0].name!r} was freed; {_AGAIN}"
    return found(Weight.ACT, Code.DEAD, sentence, next_)


def _remedy(reason: Reason, number: int) -> str:
    """What a person can do about a dead message."""
    replay, cancel = f"outbox replay {number}", f"outbox cancel {number}"
    match reason:
        case Reason.REJECTED:
            return f"mend what the answer names, at the destination or in its settings, then: {replay}; or let it go: {cancel}"
        case Reason.EXHAUSTED:
            return f"find out why it fails where others do not (outbox show {number}), then: {replay}; or let it go: {cancel}"
        case Reason.EXPIRED:
            return f"if it is of use after its time: {replay}; or let it go: {cancel}"
        case Reason.FILE_MISSING:
            return f"put its file back into the spool, then: {replay}; or {_AGAIN}, and: {cancel}"
        case Reason.FILE_CHANGED:
            return f"put the bytes that were enqueued back into the spool, then: {replay}; or {_AGAIN}, and: {cancel}"
        case Reason.TOO_LARGE:
            return f"have the destination take larger requests, then: {replay}; or enqueue less at a time, and: {cancel}"
        case Reason.OUTCOME_UNKNOWN:
            return f"look whether the destination has it; if it has: {cancel}; if not: {replay}"
        case _:
            assert_never(reason)


def _holds_up(message: MessageFacts, place: DestinationFacts) -> Iterator[Found]:
    stream = message.stream
    if stream is None or stream.blocked_by is None or stream.blocked_by.id != message.id:
        return
    behind = f"{counted(stream.behind, 'message')} of ordering key {stream.ordering_key!r} {waits(stream.behind)} behind it"
    yield found(Weight.ACT, Code.HOLDS_UP, f"{message} holds up its ordering key: {behind}", _past(place, stream, message.id))


def _past(place: DestinationFacts, stream: StreamFacts, dead: int) -> str:
    """What lets a stream go on past a dead message."""
    if place.policy.on_dead == "skip":
        return "a worker of this destination, which skips the dead, lets the others go on at its next look"
    choices = (
        f"outbox replay {dead}, or outbox cancel {dead}, or outbox resume {place.name} --key {shlex.quote(stream.ordering_key)}"
    )
    return f"nothing by itself; let the others go on with: {choices}"


def _claimed(message: MessageFacts, place: DestinationFacts) -> Iterator[Found]:
    upload, now = message.upload, place.when.now
    if upload is None:
        sentence = f"{message} is claimed by worker {message.claimed_by}, in a delivery that has no row"
        yield found(Weight.WAIT, Code.ABANDONED, sentence, "its worker settles it; if that is gone, look with: outbox workers")
        return
    company = f", with {counted(upload.messages - 1, 'other')}" if upload.messages > 1 else ", alone"
    where = f"since {at_time(upload.since)}, in delivery {upload.id}{company}"
    if place.is_abandoned(upload):
        yield _abandoned(message, place, upload, where)
        return
    ends = upload.since + timedelta(seconds=send_deadline(upload.bytes, place.policy))
    others = [each.patience for each in place.serving if each.id != upload.worker_id]
    rescue = f"another must be started, which takes it back after {in_words(GONE_AFTER)}"
    if others:
        rescue = f"another takes it back within {in_words(min(others))}"
    back = f"should its worker die, {rescue}"
    if ends > now:
        next_, at = f"its answer settles it; without one the upload is given up {THEN_OR_LATER}; {back}", ends
    else:
        over = "its time is over, unless a token had to be asked for meanwhile"
        next_, at = f"{over}; its worker records what became of it as soon as it can; {back}", None
    yield found(Weight.WAIT, Code.CLAIMED, f"{message} is being sent by {upload.worker} {where}", next_, at)


def _abandoned(message: MessageFacts, place: DestinationFacts, upload: Upload, where: str) -> Found:
    """A claim that waits for its rescue: by a live worker that serves the destination."""
    worker, now = upload.worker, place.when.now
    if worker is None:
        sentence = f"{message} is claimed by worker {upload.worker_id}, which has no row, {where}"
    elif worker.gone:
        sentence = f"{message} is claimed by {worker}, which is gone, {where}"
    else:
        silence = f"which has not beaten for {in_words(now - worker.beat_at)}"
        sentence = f"{message} is claimed by {worker}, {silence}, {where}"
    becomes = f"and then it is {_after_rescue(message, place, upload)}"
    if place.locked:
        next_ = f"a worker of {place.name} that is alive takes it back when it can write, {becomes}"
        return found(Weight.WAIT, Code.ABANDONED, sentence, next_)
    if not place.serving:
        next_ = f"there is no worker of {place.name} to take it back; start one: outbox worker"
        return found(Weight.ACT, Code.ABANDONED, sentence, next_)
    if worker is None or worker.gone:
        at = now + timedelta(seconds=GONE_AFTER)  # at the latest: what the gone leave behind is looked for all the time
    else:
        seen = [(min(now, max(worker.beat_at, each.started_at)), each.patience) for each in place.serving]
        at = max(now, min(since + timedelta(seconds=patience) for since, patience in seen))
    next_ = f"a live worker takes it back by then at the latest, {becomes}"
    return found(Weight.WAIT, Code.ABANDONED, sentence, next_, at)


def _after_rescue(message: MessageFacts, place: DestinationFacts, upload: Upload) -> str:
    """What the state machine makes of a message whose worker is gone."""
    counters = (message.attempt, message.failures, message.unknowns, message.batch_limit, message.size, message.file_bytes)
    tried = Message(message.id, message.key, "", *counters, suspect=message.suspect)
    lost = Unknown(Facts(), gone=True)
    settled = settle(tried, lost, upload.messages, place.policy, place.when.invented, 1.0, recovered=True)
    if settled.reason is not None:
        return f"dead ({settled.reason}), since nobody knows whether it arrived"
    if settled.batch_limit and settled.batch_limit > 1:
        return f"pending again, to travel in at most {settled.batch_limit}"
    return "pending again, to travel alone"


def _of_its_files(message: MessageFacts) -> Iterator[Found]:
    dies = "the next try finds that out, and then it is dead (file_missing); "
    if len(message.attached) != message.files:
        sentence = f"{message} has {len(message.attached)} of its {message.files} files: it was committed half enqueued"
        yield found(Weight.ACT, Code.ATTACHMENTS, sentence, f"{dies}{_AGAIN}, with all of them")
    for each in message.attached:
        file = f"file {each.name!r} of {message}"
        if each.unreadable is not None:
            next_ = "until it can be, tries fail and the destination is left alone between them; mount the spool"
            yield found(Weight.ACT, Code.SPOOL, f"{file} cannot be looked at: {each.unreadable}", next_)
        elif each.missing and each.freed_at is not None:
            yield found(Weight.ACT, Code.FILE_FREED, f"{file} was freed at {at_time(each.freed_at)}", dies + _AGAIN)
        elif each.missing:
            next_ = dies + f"put {each.spooled} back into the spool before, or {_AGAIN}"
            yield found(Weight.ACT, Code.FILE_MISSING, f"{file} is missing from the spool", next_)
        elif each.changed is not None:
            next_ = "the next try finds that out, and then it is dead (file_changed); put the bytes back that were enqueued"
            yield found(Weight.ACT, Code.FILE_CHANGED, f"{file} is not what was enqueued: {each.changed}", next_)


def _of_its_time(message: MessageFacts, when: When) -> Iterator[Found]:
    if not when.has_come(message.due_at, chosen=message.scheduled):
        yield _put_off(message, when)
    if message.expires_at is None:
        return
    until = at_time(message.expires_at)
    if not message.clock_plausible:
        sentence = f"{message} does not expire at {until} as it says: it was enqueued by a clock that had not been set"
        yield found(Weight.NOTE, Code.EXPIRES, sentence, "it is tried until it is delivered or dead")
    elif not plausible(when.chosen):
        sentence = f"{message} expires at {until}, but no such time counts while this machine's clock has not been set"
        yield found(Weight.NOTE, Code.EXPIRES, sentence, "it is tried until the clock has been set and says that it is over")
    elif message.expires_at <= when.chosen:
        next_ = "a worker gives it up in a moment: dead (expired)"
        yield found(Weight.WAIT, Code.EXPIRED, f"the time of {message} is over: its expires_at was {until}", next_)
    else:
        sentence = f"{message} expires at {until}, in {in_words(message.expires_at - when.chosen)}"
        next_ = "if it has not been delivered then, it is dead (expired)"
        yield found(Weight.NOTE, Code.EXPIRES, sentence, next_, message.expires_at)


def _put_off(message: MessageFacts, when: When) -> Found:
    left = message.due_at - (when.chosen if message.scheduled else when.invented)
    until = f"before {at_time(message.due_at)}, in {in_words(left)}"
    last = f" ({message.last})" if message.last else ""
    if message.scheduled:
        sentence = f"{message} is not due {until}: its producer chose that"
        return found(Weight.WAIT, Code.NOT_DUE, sentence, "it is due then, and goes with the next turn", message.due_at)
    if message.unknowns and (message.last is None or message.last.outcome == Outcome.UNKNOWN):
        sentence = f"{message} is not tried again {until}: {counted(message.unknowns, 'try')} had no answer{last}"
        next_ = "it is tried again then"
    elif message.failures:
        sentence = f"{message} is not tried again {until}: it has failed for the {nth(message.failures)} time{last}"
        next_ = "it is tried again then"
    else:
        sentence = f"{message} is not due {until}"
        return found(Weight.WAIT, Code.NOT_DUE, sentence, "it is due then, and goes with the next turn", message.due_at)
    return found(Weight.WAIT, Code.BACKOFF, sentence, next_, message.due_at)


def _key_paused(message: MessageFacts, place: DestinationFacts) -> Iterator[Found]:
    pause = message.pause
    if pause is None:
        return
    resume = f"outbox resume {place.name} --key {shlex.quote(pause.ordering_key)}"
    sentence = f"ordering key {pause.ordering_key!r} of {message} is paused {said(pause)}"
    if message.state == State.CLAIMED:
        next_ = f"what is being sent is finished; should it have to be tried again, it waits for: {resume}"
        yield found(Weight.NOTE, Code.KEY_PAUSED, sentence, next_)
    else:
        next_ = f"nothing of that key is sent until a person lets it go on: {resume}"
        yield found(Weight.ACT, Code.KEY_PAUSED, sentence, next_)


def _of_its_order(message: MessageFacts, place: DestinationFacts) -> Iterator[Found]:
    stream = message.stream
    if stream is None:
        return
    key = f"ordering key {stream.ordering_key!r}"
    more = f"; {counted(stream.before, 'message')} {'is' if stream.before == 1 else 'are'} before it" if stream.before else ""
    if (died := stream.blocked_by) is not None:
        words = f" ({died.reason}: {brief(died.reason_text)})" if died.reason_text else f" ({died.reason})"
        sentence = f"{message} waits for its {key}, whose head, {died}, is dead{words}{more}"
        weight = Weight.WAIT if place.policy.on_dead == "skip" else Weight.ACT
        yield found(weight, Code.ORDER_DEAD, sentence, _past(place, stream, died.id))
    elif stream.tried is not None and stream.tried.id != message.id:
        sentence = f"{message} waits for its {key}, which is under way: {stream.tried} is being sent{more}"
        next_ = f"it goes on when that has ended; see: outbox explain {stream.tried.id}"
        yield found(Weight.WAIT, Code.ORDER_UNDER_WAY, sentence, next_)
    elif stream.first is not None and stream.first.id != message.id:
        sentence = f"{message} waits behind {stream.first}, the first of its {key}{more}"
        at = None if place.when.has_come(stream.first.due_at, chosen=stream.first.scheduled) else stream.first.due_at
        goes = "goes first" if at is None else "is due then, and goes first"
        next_ = f"message {stream.first.id} {goes}; see: outbox explain {stream.first.id}"
        yield found(Weight.WAIT, Code.ORDER_BEHIND, sentence, next_, at)
    elif stream.claimed_by is not None:
        sentence = f"{message} waits for its {key}, which worker {stream.claimed_by} has left marked as under way"
        yield found(Weight.WAIT, Code.ORDER_UNDER_WAY, sentence, "a worker frees it at its next look")


def _of_its_company(message: MessageFacts, place: DestinationFacts) -> Iterator[Found]:
    """With how many others it may travel."""
    if message.suspect:
        sentence = f"{message} travels alone: a worker died while it was being sent alone"
        if place.suspect_under_way:
            sentence += ", and another message of which that is true is under way"
            yield found(Weight.WAIT, Code.SUSPECT, sentence, "it goes when that one has ended")
        else:
            dies = f"past {counted(place.policy.max_unknown, 'try')} without an answer it is dead (outcome_unknown)"
            yield found(Weight.NOTE, Code.SUSPECT, sentence, f"it goes with no other such message under way; {dies}")
        return
    if message.batch_limit is None:
        return
    why = _why_apart(message.last_with_others or message.last)
    if message.batch_limit == 1:
        sentence = f"{message} travels alone: {why}"
        next_ = f"its own answer decides: it is delivered, or if it is refused, it {if_refused(place, 'is dead')}"
        yield found(Weight.NOTE, Code.ALONE, sentence, next_)
    else:
        sentence = f"{message} travels in at most {message.batch_limit} with its like: {why}"
        next_ = "they are halved again if they are refused, until the guilty one is found"
        yield found(Weight.NOTE, Code.BATCH_LIMIT, sentence, next_)


def _why_apart(last: Answered | None) -> str:
    if last is None:
        return "a request that carried it with others went wrong"
    what = {Outcome.REJECT: "was refused", Outcome.UNKNOWN: "had no answer"}.get(Outcome(last.outcome), "failed")
    others = f"with {counted(last.messages - 1, 'other')} " if last.messages and last.messages > 1 else ""
    return f"the request that carried it {others}{what} ({last})"


def _before(message: MessageFacts, place: DestinationFacts, weight: Weight) -> Found:
    are = "is" if message.before == 1 else "are"
    ahead = f"{counted(message.before, message.before_it)} {are} before {message} in the {message.lane} lane of {place.name}"
    next_ = f"they go first, and up to {counted(place.policy.batch_messages, 'message')} in one request"
    return found(weight, Code.BEFORE, ahead, next_)
