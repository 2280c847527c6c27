"""A database with its spool and its receiver, those who are at work there, and how it all adds up in the end."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox import migrate
from outbox.database import Database
from outbox.tables import delivery, head, message, unfinished
from outbox.testing import Receiver
from tests import ledger
from tests.ledger import history, trail
from tests.ledger.balance import Balance
from tests.postgres import Postgres, create_database, drop_database
from tests.torture import victims
from tests.torture.knobs import Knobs
from tests.torture.victim import Odd, Victim

#: Seconds that a victim may take until it is at work.
READY_WITHIN = 60.0
#: Seconds in which something must move once all is well, as long as there is something left to do.
MOVES_WITHIN = 30.0
STOPPED_WITHIN = 30.0
TOKEN_LIVES = 5.0
#: Uploads that wait, about, from which on producers say as little as they can: what comes in must be what can go out.
BACKLOG = 30
#: What may stand in nobody's log: none of these is what a kill or a pause should lead to.
NEVER_LOGGED = ("Traceback", "IntegrityError", "database is locked", "deadlock", "is damaged")


@dataclass(frozen=True)
class Template:
    """Where rounds get their databases from: copies of one that is migrated, with a trail and the callers' own table."""

    folder: Path
    url: str
    server: str | None = None  #: the address of the Postgres that it is on

    @classmethod
    @contextmanager
    def of(cls, kind: str, folder: Path, server: str | None = None) -> Iterator[Template]:
        """For `sqlite` or `postgres`, on a server of its own unless one is given."""
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "sqlite":
            path = folder / "template.db"
            _migrate(f"sqlite:///{path}")
            yield cls(folder, f"sqlite:///{path}")
            path.unlink()
            return
        with nullcontext() if server else Postgres() as mine:
            server = server or mine.url
            url = create_database(server)
            _migrate(url)
            yield cls(folder, url, server)
            drop_database(url)

    def copy(self, folder: Path) -> str:
        """A database for a round; its address."""
        if self.server is None:
            shutil.copy(self.folder / "template.db", folder / "outbox.db")
            return f"sqlite:///{folder / 'outbox.db'}"
        return create_database(self.server, template=str(sa.make_url(self.url).database))

    def drop(self, url: str) -> None:
        if self.server is not None:
            drop_database(url)


def _migrate(url: str) -> None:
    with closing(Database(url)) as database:
        migrate.upgrade(database)
        trail.install(url)
        with database.begin() as connection:
            victims.HOST.create(connection)


class Ground:
    """One round's database, spool and receiver, and who is at work there."""

    def __init__(self, url: str, folder: Path, dice: random.Random, knobs: Knobs) -> None:
        self.url, self.folder, self.dice, self.knobs = url, folder, dice, knobs
        self.receiver = Receiver(check_token=knobs.token, token_lifetime=TOKEN_LIVES, ledger=folder / "receiver.jsonl").start()
        for behaviour, chance in knobs.behaviours:
            self.receiver.sometimes(behaviour, chance, seed=dice.randrange(2**32))
        self.receiver.refuse(lambda struct: victims.is_poison(struct["assetId"]))
        self.database = Database(url)
        self.outbox = victims.outbox_of(self.story("look"))
        self.crew: list[Victim] = []
        self.counts: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._found: dict[str, list[str]] = {}
        self._lives: Counter[str] = Counter()

    def story(self, program: str, **more: Any) -> dict[str, Any]:
        here = {"program": program, "database": self.url, "spool": str(self.folder / "spool"), "url": self.receiver.url}
        how = {
            name: getattr(self.knobs, name) for name in ("policy", "worker", "free_after", "kept", "token", "pace", "poison")
        }
        rest = {
            "rest": 0.1,
            "dawdles": 0.03,
            "again": [],
            "messages": BACKLOG,
        }
        return here | how | rest | {"seed": self.dice.randrange(2**32)} | more

    def start(self, program: str, name: str, **more: Any) -> Victim:
        """One more life of somebody."""
        self._lives[name] += 1
        life = f"{name}.{self._lives[name]}"
        history = str(self.folder / f"{life}.jsonl")
        victim = Victim(self.folder, life, self.story(program, name=life, history=history, **more))
        self.crew.append(victim)
        return victim

    def again(self, victim: Victim) -> Victim:
        """The next life of one that died; a producer may begin with what it cannot know the end of."""
        self.crew.remove(victim)
        open_keys = [line.key for line in victim.under_way() if line.operation == "enqueue" and line.key is not None]
        # Of one that may be purged nobody could tell whether it is new.
        known = [key for key in open_keys if self.knobs.kept is None and not victims.may_be_purged(key)]
        more: dict[str, Any] = {}
        if victim.program == "produce":
            more["again"] = known if self.dice.random() < 0.5 else []
            more["messages"] = max(8, BACKLOG * min(8, self.knobs.policy["batch_messages"]) - self.left())
        return self.start(victim.program, victim.name.rpartition(".")[0], **more)

    def wait_for_work(self, victim: Victim) -> None:
        """Until it is at work. One that cannot begin is a finding."""
        ends = time.monotonic() + READY_WITHIN
        while not victim.at_work:
            if not victim.running:
                raise Odd(f"{victim.name} ended by itself:\n{victim.log[-3000:]}")
            if time.monotonic() > ends:
                raise Odd(f"{victim.name} was not at work within {READY_WITHIN:.0f} s:\n{victim.log[-3000:]}")
            time.sleep(0.002)

    def look_after(self) -> None:
        """Whoever ended without being killed is a finding."""
        for each in self.crew:
            if not each.running:
                raise Odd(f"{each.name} ended by itself:\n{each.log[-3000:]}")

    def those(self, *programs: str) -> list[Victim]:
        """Who of the crew is this or that."""
        return [each for each in self.crew if each.program in programs]

    def kill(self, victim: Victim) -> None:
        """kill -9, and note what it was in the middle of."""
        victim.kill()
        self.counts["kills" if victim.program in ("produce", "work") else "kills of operators"] += 1
        under_way = victim.under_way()
        if any(each.operation == "send" for each in under_way):
            self.counts["killed in an upload"] += 1
        if victim.program == "produce" and under_way:
            asked = [each for each in history.lines([victim.history]) if each.operation == "commit"]
            committing = bool(asked) and asked[-1].at > max(each.at for each in under_way)
            self.counts["killed in a commit" if committing else "killed in a transaction"] += 1
        if victim.program == "operate" and under_way:
            self.counts["killed in an act"] += 1

    def found(self, number: str, sentences: Iterable[str]) -> None:
        """Something is wrong that no book tells: it counts as against this invariant."""
        self._found.setdefault(number, []).extend(sentences)

    def drain(self) -> None:
        """All is well from now on: wait until nothing is left to do, and let the workers end in order."""
        for each in self.those("produce", "operate"):
            self.kill(each)
            self.crew.remove(each)
        self.receiver.never()
        self.receiver.stop_refusing()
        self.outbox.resume("enos", "torture")  # an operator may have died before that
        self._wait_until_nothing_is_left()
        for each in self.crew:
            each.send(signal.SIGTERM)
        for each in self.crew:
            try:
                code = each.ended(STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                self.found("I15", [f"{each.name} did not end within {STOPPED_WITHIN:.0f} s of SIGTERM"])
                continue
            if code:
                self.found("I15", [f"{each.name} ended with {code} after SIGTERM:\n{each.log[-3000:]}"])

    def _wait_until_nothing_is_left(self) -> None:
        """For as long as it moves. Whatever stopped the destination must heal by itself; keys that a death blocks cannot."""
        seen, moved = -1, time.monotonic()
        while (left := self.left() + self._under_way()) > 0:
            if left != seen:
                seen, moved = left, time.monotonic()
            if time.monotonic() > moved + MOVES_WITHIN:
                raise Odd(f"{left} were left, and nothing moved for {MOVES_WITHIN:.0f} s")
            self.look_after()
            for number in range(victims.STREAMS):
                self.outbox.resume("enos", "torture", ordering_key=f"stream-{number}")
            time.sleep(0.2)

    def left(self) -> int:
        """Messages that are not over."""
        with self.database.read() as connection:
            counted = sa.select(sa.func.count()).select_from(message).where(unfinished)
            return int(connection.execute(counted).scalar_one())

    def _under_way(self) -> int:
        """Deliveries that are not over, and streams that somebody has claimed."""
        with self.database.read() as connection:
            sending = sa.select(sa.func.count()).select_from(delivery).where(delivery.c.finished_at.is_(None))
            claimed = sa.select(sa.func.count()).select_from(head).where(head.c.claimed_by.is_not(None))
            return sum(int(connection.execute(each).scalar_one()) for each in (sending, claimed))

    def balance(self) -> Balance:
        """How everything adds up, once it is drained."""
        self.receiver.close()
        self.outbox.sweep(timedelta(0))
        histories = sorted(self.folder.glob("*.jsonl"))
        of_producers = [each for each in histories if each.name.startswith("produce")]
        said = history.lines([each for each in histories if each.name.startswith("work")])
        promises = history.promises(of_producers)
        found = ledger.examine(
            self.database,
            self.receiver.requests,
            promises,
            spool=self.folder / "spool",
            swept=True,
            purged=None,
            work=said,
        )
        if self.knobs.kept is not None:
            found = without_purged_uploads(found, said)
        found = found.plus("I3", self._without_its_row(of_producers, promises))
        for number, sentences in self._found.items():
            found = found.plus(number, sentences)
        return found

    def odd_logs(self) -> Iterator[str]:
        """What somebody logged that nobody should have to."""
        for path in sorted(self.folder.glob("*.err")):
            for words in NEVER_LOGGED:
                before, found, after = path.read_text(errors="replace").partition(words)
                if found:
                    yield f"{path.name}: ...{before[-300:]}{found}{after[:1500]}"

    def _without_its_row(self, paths: Iterable[Path], promises: history.Promises) -> Iterator[str]:
        """Messages and rows of the callers' own that did not come together; and what nobody ever asked to commit."""
        with self.database.read() as connection:
            there = set(connection.execute(sa.select(message.c.key)).scalars())
            rows = set(connection.execute(sa.select(victims.HOST.c.key)).scalars())
        purged = {key for key in rows if self.knobs.kept is not None or victims.may_be_purged(key)}
        yield from (f"{key} is there, and its caller's own row is not" for key in sorted(there - rows))
        yield from (f"{key} is not there, and its caller's own row is" for key in sorted(rows - there - purged))
        asked = {key for line in history.lines(paths) if line.operation == "commit" for key in line.more["keys"]}
        yield from (f"{key} is there, and nobody asked for a commit" for key in sorted(rows & promises.unknown.keys() - asked))

    def keep_rows(self) -> None:
        """Every row beside the histories, for whoever wants to understand what went wrong: a server's are gone with it."""
        with closing(Database(self.url)) as database, database.read() as connection:
            for table in (*sorted(sa.inspect(connection).get_table_names()),):
                rows = connection.execute(sa.text(f'SELECT * FROM "{table}"')).mappings()
                (self.folder / f"{table}.rows").write_text("".join(f"{json.dumps(dict(row), default=str)}\n" for row in rows))

    def close(self) -> None:
        for each in self.crew:
            if each.running:
                each.kill()
        self.receiver.close()
        self.outbox.close()
        self.database.close()


#: What the ledger says of an upload whose row is gone.
NO_UPLOAD = re.compile(r"request \d+ says it is delivery (\d+), and there is none|attempt \d+ of \S+ belongs to no delivery")


def without_purged_uploads(balance: Balance, said: Sequence[history.Line]) -> Balance:
    """Without those that the retention took: rows of uploads go with their messages, and leave no trail.

    Of a request the diary of its worker must know the delivery, then.
    """
    sent = {line.more["delivery"] for line in said if line.operation == "send" and line.kind == "invoke"}

    def purged(sentence: str) -> bool:
        found = NO_UPLOAD.fullmatch(sentence)
        return found is not None and (found[1] is None or int(found[1]) in sent)

    left = tuple(each for each in balance.found.get("I11", ()) if not purged(each))
    others = {number: sentences for number, sentences in balance.found.items() if number != "I11"}
    return replace(balance, found=others | ({"I11": left} if left else {}))
