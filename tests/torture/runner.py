"""Two lanes at a time, side by side, each a process of its own; what one of them leaves of its time the others get."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.course import News
from tests.torture.lanes import Lane

ROOT = Path(__file__).parents[2]
TOGETHER = 2
#: Seconds that the last round of a lane may take longer, and below which no lane is begun any more.
LAST_ROUND, SHORTEST = 45.0, 30.0
#: Seconds that a lane gets when all has been done that was asked for and time is left.
SLICE = 150.0
#: Seconds that a lane may take to end once it was asked to.
ENDS_WITHIN = 200.0
ENDLESS = 10**9


class Running:
    """A lane that is under way."""

    def __init__(self, lane: Lane, folder: Path, seed: int, target: int, seconds: float, heard: Callable[[News], None]) -> None:
        self.lane, self.seed, self.folder = lane, seed, folder
        self.ends = time.monotonic() + seconds
        folder.mkdir(parents=True)
        self.errors = folder / "lane.err"
        asked = {"--lane": lane.key, "--folder": folder, "--seed": seed, "--target": target, "--seconds": round(seconds)}
        arguments = [str(each) for pair in asked.items() for each in pair]
        with self.errors.open("wb") as errors:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.torture", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is ours to pass on
            )
        self._heard = heard
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self._heard(News.from_json(line.decode()))

    @property
    def over(self) -> bool:
        if self._popen.poll() is None and time.monotonic() > self.ends + ENDS_WITHIN:
            self._popen.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
            self._popen.kill()  # its victims go with it
        return self._popen.poll() is not None and not self._reader.is_alive()

    def stop(self) -> None:
        """Let it bring its round to its end."""
        self.ends = min(self.ends, time.monotonic())
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._popen.kill()

    def close(self) -> News | None:
        """What is to be said of a lane that did not end in order."""
        code = self._popen.wait()
        self._reader.join()
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        if code == 0:
            return None
        said = self.errors.read_text(errors="replace")[-3000:]
        return News(self.lane.key, self.seed, found={"odd": (f"the lane ended with {code}:\n{said}",)}, kept=str(self.folder))


@dataclass
class Runner:
    """Runs lanes until the time is over."""

    lanes: list[Lane]
    minutes: float
    seed: int
    folder: Path
    say: Callable[[str], object]
    news: list[News] = field(default_factory=list)
    interrupted: int = 0

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._ends = self._began + 60 * self.minutes
        self._dice = random.Random(self.seed)
        self._running: list[Running] = []
        self._lock = threading.Lock()
        self._started = 0

    def run(self) -> None:
        """Every lane once, then those again that have not done what was asked for, then all in turn."""
        todo = sorted(self.lanes, key=lambda lane: -lane.seconds)
        more = iter(self._in_turn())
        while todo or self._running:
            if self.interrupted:
                todo.clear()
            while len(self._running) < TOGETHER and not self.interrupted:
                if todo:
                    lane = todo.pop(0)
                    self._start(lane, self._share(lane, todo), self._missing(lane) if lane.target else ENDLESS)
                elif (again := self._again()) is not None:
                    self._start(again, self._left, self._missing(again))
                elif self._left > SHORTEST and (extra := self._idle(more)) is not None:
                    self._start(extra, min(self._left, SLICE), ENDLESS)
                else:
                    break
            time.sleep(0.1)
            self._reap()

    def interrupt(self) -> None:
        """The first time, end in order; the second time, end."""
        self.interrupted += 1
        for each in self._running:
            each.stop() if self.interrupted == 1 else each.kill()

    @property
    def _left(self) -> float:
        return self._ends - LAST_ROUND * min(1.0, self.minutes / 10) - time.monotonic()

    def _share(self, lane: Lane, others: Iterable[Lane]) -> float:
        """Its part of the time that is left, in proportion to what it takes, with two lanes at a time."""
        taken = sum(max(0.0, each.ends - time.monotonic()) for each in self._running)
        free = max(0.0, TOGETHER * self._left - taken)
        return min(self._left, free * lane.seconds / (lane.seconds + sum(each.seconds for each in others)))

    def _missing(self, lane: Lane) -> int:
        with self._lock:
            done = sum(each.counts.get(lane.what, 0) for each in self.news if each.lane == lane.key)
        return lane.asked(self.minutes) - done

    def _possible(self, lane: Lane) -> bool:
        with self._lock:
            return not any(each.missing for each in self.news if each.lane == lane.key)

    def _again(self) -> Lane | None:
        if self._left < SHORTEST:
            return None
        under_way = {each.lane.key for each in self._running}
        behind = [lane for lane in self.lanes if lane.key not in under_way and self._possible(lane) and self._missing(lane) > 0]
        return max(behind, key=lambda lane: self._missing(lane) / lane.asked(self.minutes), default=None)

    def _in_turn(self) -> Iterable[Lane]:
        while True:
            yield from self.lanes

    def _idle(self, lanes: Iterable[Lane]) -> Lane | None:
        """The next one that is not under way."""
        under_way = {each.lane.key for each in self._running}
        for _, lane in zip(self.lanes, lanes, strict=False):
            if lane.key not in under_way and self._possible(lane):
                return lane
        return None

    def _start(self, lane: Lane, seconds: float, target: int) -> None:
        self._started += 1
        folder = self.folder / f"{self._started:02}-{lane.kind}-{lane.database}"
        self._running.append(Running(lane, folder, self._dice.randrange(2**32), target, max(seconds, 5.0), self._hear))

    def _reap(self) -> None:
        for each in [each for each in self._running if each.over]:
            self._running.remove(each)
            if (said := each.close()) is not None:
                self._hear(said)
            if not any(news.kept for news in self.news if news.lane == each.lane.key):
                _empty(each.folder)

    def _hear(self, news: News) -> None:
        with self._lock:
            self.news.append(news)
            done = (
                sum(each.counts.get(what, 0) for each in self.news if each.lane == news.lane)
                if (what := self._what(news))
                else 0
            )
        passed = time.monotonic() - self._began
        head = f"{int(passed) // 60:3}:{int(passed) % 60:02}  {news.lane:24}"
        if news.missing:
            self.say(f"{head} not possible here: {news.missing}")
            return
        self.say(f"{head} {done:,} {what}" + ("" if news.found else ", all adds up"))
        if news.found:
            self.say(f"    seed {news.seed}, kept in {news.kept}")
            for number, sentences in news.found.items():
                for sentence in sentences[:5]:
                    self.say(f"    {number} {sentence}")
                if len(sentences) > 5:
                    self.say(f"    {number} and {len(sentences) - 5} more")

    def _what(self, news: News) -> str:
        return next((lane.what for lane in self.lanes if lane.key == news.lane), "")


def _empty(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def begin_lane(lane: Lane, folder: Path, seed: int, target: int, seconds: float) -> None:
    """Be the process of a lane."""
    from tests.torture.course import Course

    wire = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed on the way is no news

    def tell(news: News) -> None:
        wire.write(news.as_json() + "\n")
        wire.flush()

    faulthandler.register(signal.SIGUSR1)  # where it stands, before it is killed for standing there for too long
    course = Course(lane.key, folder, seed, lane.what, target, seconds, tell)

    def stop(*_: object) -> None:
        course.stopped = True

    signal.signal(signal.SIGINT, stop)
    lane.run(course)
