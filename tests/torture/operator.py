"""An operator who replays, withdraws, purges, pauses and looks at everything, at random, by library and by command."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from outbox import Outbox, Selection, State
from outbox.checkup import Doctor, Level, Verification
from outbox.errors import NoSuchMessage
from outbox.tables import message
from tests.ledger.history import History
from tests.torture.victims import STREAMS, is_poison, may_be_purged

#: How many acts are commands, and which exit codes of theirs are no failure.
AT_A_TERMINAL, DONE, NOTHING_MATCHED = 0.25, 0, 3
#: Longer than any transaction here.
GRACE = timedelta(seconds=30)


def at_a_terminal(*arguments: str) -> int:
    """A command of `outbox`; its exit code, which says that it was done or that nothing matched."""
    from outbox.cli import main

    try:
        main(["--app", "tests.torture.terminal:outbox", *arguments])
    except SystemExit as ended:
        if ended.code not in (DONE, NOTHING_MATCHED):
            raise RuntimeError(f"outbox {' '.join(arguments)} ended with {ended.code}") from ended
        return int(ended.code)
    raise AssertionError("a command ends with an exit code")


class Operator:
    """A person with too much coffee."""

    def __init__(self, story: Mapping[str, Any], outbox: Outbox, history: History) -> None:
        self.outbox = outbox
        self.history = history
        self.dice = random.Random(story["seed"])
        self._rest = story["rest"]

    def run(self) -> None:
        """One act after the other; what the one before may have left paused goes on first."""
        self._do("resume", lambda: self.outbox.resume("enos", "torture"))
        for number in range(STREAMS):
            self._resume_key(f"stream-{number}")
        acts = {
            self.replay: 4,
            self.cancel: 2,
            self.purge: 3,
            self.pause: 1,
            self.pause_key: 1,
            self.free: 1,
            self.sweep: 1,
            self.look: 1,
        }
        while True:
            time.sleep(self.dice.expovariate(1 / self._rest))
            self.dice.choices(list(acts), list(acts.values()))[0]()

    def replay(self) -> None:
        states = (State.DELIVERED, State.DEAD, State.CANCELLED)
        self._act("replay", [key for key in self._some(states, 40) if not is_poison(key)][: self.dice.randint(1, 6)])

    def cancel(self) -> None:
        self._act("cancel", self._some((State.PENDING, State.DEAD), 2))

    def purge(self) -> None:
        states = (State.DELIVERED, State.DEAD, State.CANCELLED)
        self._act("purge", [key for key in self._some(states, 60) if may_be_purged(key)][: self.dice.randint(1, 8)])

    def pause(self) -> None:
        self._do("pause", lambda: self.outbox.pause("enos", "torture", "torture"))
        time.sleep(self.dice.uniform(0, 0.3))
        self._do("resume", lambda: self.outbox.resume("enos", "torture"))

    def pause_key(self) -> None:
        key = f"stream-{self.dice.randrange(STREAMS)}"
        self._do("pause", lambda: self.outbox.pause("enos", "torture", "torture", ordering_key=key))
        time.sleep(self.dice.uniform(0, 0.3))
        self._resume_key(key)

    def free(self) -> None:
        self._do("free", self.outbox.free_files)

    def sweep(self) -> None:
        self._do("sweep", lambda: self.outbox.sweep(GRACE))

    def look(self) -> None:
        """Whatever others do meanwhile, nothing may look damaged, and nothing that is asked may fail."""
        found = [each.text for each in Verification(self.outbox).run() if each.level is Level.PROBLEM]
        if found:
            raise AssertionError(f"verify says of a database that is well: {found}")
        for key in self._some(tuple(State), 3):
            with contextlib.suppress(NoSuchMessage):  # it was purged since we looked
                self.outbox.explain(key)
        self.outbox.status()
        list(Doctor(self.outbox, offline=True).run())

    def _resume_key(self, key: str) -> None:
        self._do("resume", lambda: self.outbox.resume("enos", "torture", ordering_key=key))

    def _some(self, states: Sequence[State], limit: int) -> list[str]:
        """Keys of messages in these states, the latest or any."""
        with self.outbox.database.read() as connection:
            highest = connection.execute(sa.select(sa.func.max(message.c.id))).scalar_one() or 0
            upto = self.dice.choice((highest, self.dice.randint(0, highest)))
            mine = (message.c.state.in_(states), message.c.id <= upto)
            found = sa.select(message.c.key).where(*mine).order_by(message.c.id.desc()).limit(limit)
            return list(connection.execute(found).scalars())

    def _act(self, action: Any, keys: Sequence[str]) -> None:
        if not keys:
            return
        if self.dice.random() < AT_A_TERMINAL:
            named = [word for key in keys for word in ("--key", key)]
            self._do(action, lambda: at_a_terminal(action, *named, "--yes"), keys=list(keys))
        else:
            selection = Selection(keys=tuple(keys), destination="enos")
            self._do(action, lambda: self.outbox.begin(action, selection, "torture").run(), keys=list(keys))

    def _do(self, what: str, how: Any, **more: Any) -> None:
        step = self.history.write("invoke", what, **more)
        done = how()
        self.history.write("ok", what, step=step, done=done)
