"""One lane's way through its rounds: how long it may go on, and what it came to."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from tests.ledger.balance import Balance, Counts
from tests.power.report import Report, Unavailable
from tests.torture.ground import Ground, Template
from tests.torture.knobs import Knobs

#: How a sentence begins that is against an invariant.
INVARIANT = re.compile(r"I\d+\b")


@dataclass(frozen=True)
class News:
    """What a round came to."""

    lane: str
    seed: int
    counts: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)  #: of these the largest counts
    ledger: Mapping[str, int] = field(default_factory=dict)
    looked: tuple[str, ...] | None = None  #: invariants that were looked at; None where there is no ledger
    found: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: what is wrong, by invariant
    kept: str | None = None  #: the folder of what went wrong
    seconds: float = 0.0
    missing: str | None = None  #: what the lane cannot do without, in words

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> News:
        said = json.loads(line)
        said["looked"] = None if said["looked"] is None else tuple(said["looked"])
        said["found"] = {number: tuple(sentences) for number, sentences in said["found"].items()}
        return cls(**said)


@dataclass
class Course:
    """What a lane was asked for: `target` of `what`, within some seconds. `tell` is given the news of each round."""

    lane: str
    folder: Path
    seed: int
    what: str
    target: int
    seconds: float
    tell: Callable[[News], object]
    counts: Counter[str] = field(default_factory=Counter)
    stopped: bool = False  #: somebody wants it to end: the round that is under way is brought to its end

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + self.seconds
        self._dice = random.Random(self.seed)
        self._rounds = 0

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._ends - time.monotonic())

    @property
    def missing(self) -> int:
        """Of what was asked for."""
        return self.target - self.counts[self.what]

    @property
    def goes_on(self) -> bool:
        """Whether there is time left, and something left to do."""
        return not self.stopped and self.left > 0 and self.missing > 0

    def goes_on_with(self, ground: Ground) -> bool:
        """The same in the middle of a round."""
        return self.goes_on and ground.counts[self.what] < self.missing

    def next_folder(self) -> tuple[int, Path]:
        """A seed and an empty folder for a round."""
        self._rounds += 1
        folder = self.folder / f"round-{self._rounds}"
        folder.mkdir(parents=True)
        return self._dice.randrange(2**32), folder

    @contextmanager
    def round(self, template: Template, knobs: Callable[[random.Random], Knobs]) -> Iterator[Ground]:
        """A ground of its own for each round, which must add up in the end; where it does not, it is kept as it is."""
        seed, folder = self.next_folder()
        began = time.monotonic()
        dice = random.Random(seed)
        url = template.copy(folder)
        ground = Ground(url, folder, dice, knobs(dice))
        balance, odd = Balance(), []
        try:
            yield ground
            balance = ground.balance()
        except Exception:  # noqa: BLE001 (whatever it is, it is told, and the next round begins)
            odd.append(traceback.format_exc())
        finally:
            ground.close()
        odd += ground.odd_logs()
        found = {number: tuple(said) for number, said in {**balance.found, "odd": odd}.items() if said}
        news = News(
            self.lane,
            seed,
            dict(ground.counts),
            dict(ground.most),
            dict(vars(balance.counts)) if balance.looked else {},
            balance.looked or None,
            found,
            str(folder) if found else None,
            time.monotonic() - began,
        )
        if found:
            ground.keep_rows()
            (folder / "found.json").write_text(json.dumps(asdict(news) | {"knobs": repr(ground.knobs)}, indent=1))
        template.drop(url)
        self.report(news, folder)

    def report(self, news: News, folder: Path) -> None:
        """Tell the news; what adds up leaves nothing behind."""
        self.counts.update(news.counts)
        if not news.found:
            shutil.rmtree(folder, ignore_errors=True)
        self.tell(news)

    def borrowed(self, do: Callable[[Path, int], Report], number: str) -> None:
        """A round of something that looks at everything itself: what it did, and what it found, if need be as `number`."""
        seed, folder = self.next_folder()
        began = time.monotonic()
        counts: Counter[str] = Counter()
        found: dict[str, tuple[str, ...]] = {}
        try:
            report = do(folder, seed)
            counts = report.counts
            for sentence in report.faults:
                which = INVARIANT.match(sentence)
                name = which[0] if which else number
                found[name] = (*found.get(name, ()), sentence)
        except Unavailable as error:
            self.stopped = True
            self.report(News(self.lane, seed, missing=str(error)), folder)
            return
        except Exception:  # noqa: BLE001 (whatever it is, it is told, and the next round begins)
            found = {"odd": (traceback.format_exc(),)}
        told = {each.name: counts.pop(each.name.replace("_", " "), 0) for each in fields(Counts)}
        most = {name: counts.pop(name) for name in list(counts) if name.startswith("milliseconds")}
        news = News(
            self.lane,
            seed,
            dict(counts),
            most,
            {name: many for name, many in told.items() if many},
            found=found,
            kept=str(folder) if found else None,
            seconds=time.monotonic() - began,
        )
        self.report(news, folder)
