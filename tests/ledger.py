"""The end of every story: nothing lost, nothing invented, and every copy that arrived is explained by an attempt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

import sqlalchemy as sa

from outbox.database import Database
from outbox.tables import attachment, attempt, delivery, file, head, message
from outbox.testing import Received

#: What a producer was told is safe: each message by its key, with the SHA-256 of its files by their names.
Acknowledged = Mapping[str, Mapping[str, str]]

FINAL = {"delivered", "dead", "cancelled"}


def check(
    database: Database,
    requests: Iterable[Received],
    acknowledged: Acknowledged,
    *,
    rolled_back: Collection[str] = (),
    drained: bool = True,
) -> None:
    """Compare what producers were told, what the database says and what the receiver saw.

    Each message's payload repeats its key as `assetId`. `drained`: the story went on until nothing was left to do.
    """
    found = faults(database, requests, acknowledged, rolled_back=rolled_back, drained=drained)
    assert [] == found, found


def faults(
    database: Database,
    requests: Iterable[Received],
    acknowledged: Acknowledged,
    *,
    rolled_back: Collection[str] = (),
    drained: bool = True,
) -> list[str]:
    """Everything that does not add up, in words."""
    found: list[str] = []
    requests = list(requests)
    with database.read() as connection:
        rows = {row.key: row for row in connection.execute(sa.select(message))}
        tries: dict[int, list[sa.Row]] = defaultdict(list)
        for row in connection.execute(sa.select(attempt).order_by(attempt.c.message_id, attempt.c.number)):
            tries[row.message_id].append(row)
        sent = {row.id: row for row in connection.execute(sa.select(delivery))}
        digests = connection.execute(
            sa.select(message.c.key, attachment.c.name, file.c.sha256)
            .join(attachment, attachment.c.message_id == message.c.id)
            .join(file, attachment.c.file == file.c.name)
        ).all()
        claimed_streams = list(connection.execute(sa.select(head.c.stream_id).where(head.c.claimed_by.is_not(None))).scalars())

    found += [f"{key} was committed and is lost" for key in acknowledged.keys() - rows.keys()]
    found += [f"{key} is there and nobody committed it" for key in rows.keys() - acknowledged.keys()]
    found += [f"{key} was rolled back and is there" for key in rows.keys() & set(rolled_back)]
    kept: dict[str, dict[str, str]] = defaultdict(dict)
    for key, name, sha256 in digests:
        kept[key][name] = sha256
    found += [
        f"{key} has other files than were given: {kept[key]}"
        for key, files in acknowledged.items()
        if key in rows and kept[key] != files
    ]

    copies: Counter[str] = Counter()
    told: Counter[str] = Counter()
    for request in requests:
        for struct in request.structs:
            key = struct["assetId"]
            copies[key] += request.stored
            if key not in acknowledged:
                found.append(f"request {request.number} carried {key}, which nobody committed")
        for taken in request.accepted:
            told[taken.struct["assetId"]] += 1
        if request.stored:
            found += _wrong_bytes(request, acknowledged)
        if request.faults:
            found.append(f"request {request.number} broke the rules: {'; '.join(request.faults)}")

    for key, row in rows.items():
        mine = tries[row.id]
        if drained and row.state not in FINAL:
            found.append(f"{key} is still {row.state}")
        finished = row.attempt - (row.state == "claimed")
        if [each.number for each in mine] != list(range(1, finished + 1)):
            found.append(f"{key} was tried {finished} times, written down are {[each.number for each in mine]}")
        if copies[key] > row.attempt:
            found.append(f"{key} arrived {copies[key]} times in {row.attempt} attempts")
        unexplained = copies[key] - 1 - sum(each.outcome == "unknown" for each in mine) - row.replays
        if unexplained > 0:
            found.append(f"{key} arrived {copies[key]} times, {unexplained} without an explanation")
        if row.state == "delivered" and not told[key]:
            found.append(f"{key} counts as delivered and no confirmation of it was ever sent")
        if row.state == "delivered" and mine and mine[-1].outcome != "delivered":
            found.append(f"{key} is delivered, yet its last attempt ended as {mine[-1].outcome}")
        found += [f"attempt {each.number} of {key} belongs to no delivery" for each in mine if each.delivery_id not in sent]
    if drained:
        found += [f"delivery {row.id} never ended" for row in sent.values() if row.finished_at is None]
        found += [f"stream {each} is still claimed" for each in claimed_streams]
    return found


def _wrong_bytes(request: Received, acknowledged: Acknowledged) -> list[str]:
    """Files that arrived with other bytes than were enqueued."""
    wrong = []
    arrived: dict[str, dict[str, str]] = defaultdict(dict)
    for struct in request.structs:
        for values in struct["events"].values():
            for name, value in values.items():
                if isinstance(value, str) and value.startswith("local://"):
                    arrived[struct["assetId"]][name] = request.files[value.removeprefix("local://")].sha256
        key = struct["assetId"]
        if arrived[key] != acknowledged.get(key, {}):
            wrong.append(f"request {request.number} brought other bytes for {key} than were enqueued")
    return wrong
