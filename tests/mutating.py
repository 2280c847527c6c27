"""`make mutation MINUTES=n`: the rules that decide about messages are changed here and there, and a test must notice it.

`python -m tests.mutating [--minutes N] [MODULE...]`. mutmut makes the changes and runs the tests that come by the changed
function, in a copy of the tree. Ends with 1 when less than nine of ten changes that were tried are noticed, in any module. A
change that no test comes by counts as one that nobody noticed. One that cannot be noticed is passed over, and is named in
`SAME` with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Of the changes that were tried, so many in a hundred must be noticed.
ENOUGH = 90.0
_RULES = ("pure/test_verdict.py", "pure/test_verdict_table.py", "pure/test_policy.py", "pure/test_walk.py")
_CLAIMS = (
    "conformance/test_claims.py",
    "conformance/test_claims_looks.py",
    "conformance/test_expiry.py",
    "conformance/test_store_arriving.py",
    "conformance/test_store_claiming.py",
    "conformance/test_store_paused_keys.py",
    "conformance/test_store_shares.py",
    "conformance/test_store_streams.py",
    "story/test_order.py",
    "story/test_lanes.py",
    "story/test_limits.py",
    "story/test_probes.py",
    "story/test_isolation.py",
    "story/test_clocks.py",
    "story/test_delivery.py",
)
#: The modules that are changed together, and the tests that must notice.
GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("outbox/verdict.py", "outbox/policy.py"), _RULES),
    (("outbox/claims.py", "outbox/store/claiming.py"), _CLAIMS),
)
#: What mutmut says of a change by a number (its own `status_by_exit_code`). Whatever else it says is a change that was noticed.
SURVIVED, NO_TEST, NOT_TRIED = (0,), (5, 33), (None, 2, 34)


@dataclass(frozen=True)
class Same:
    """A change that makes no difference that a test should look at."""

    module: str
    old: str  #: what stood there: a part of a line that the change took away
    new: str  #: and of the one that it put there
    reason: str


_OUT_OF_REACH = "no value comes here: the type checker proves it"
_NO_ROW_LOCKS = "SQLite has none; the tests that look at them need a Postgres, and are not run here"
_OPEN_STREAM = "the time counts where a producer has the stream open, for which there are row locks"
_LOOKED_AT_TWICE = "it is looked at twice; only two workers in the same moment tell one look from the other"
_ANY = "only whether there is any counts"
_FOREIGN_KEY = "the foreign key says the same"
_CLAIMING = "outbox/store/claiming.py"
_IN_THE_INDEX = "the index that SQLite goes by has them in that order"
_BY_MESSAGE = "they are put under their messages anyway"
SAME: tuple[Same, ...] = (
    Same("outbox/verdict.py", "assert_never(", "", _OUT_OF_REACH),
    Same("outbox/policy.py", "assert_never(", "", _OUT_OF_REACH),
    Same("outbox/verdict.py", '"utf-8"', '"UTF-8"', "two names of one encoding"),
    Same("outbox/policy.py", "62)", "63)", "the cap is reached long before"),
    Same("outbox/claims.py", "(connection, mine, when,", "(connection, mine, None,", _OPEN_STREAM),
    Same("outbox/claims.py", "(connection, of_streams, when,", "(connection, of_streams, None,", _OPEN_STREAM),
    Same("outbox/claims.py", "lock=True)", "lock=None)", _NO_ROW_LOCKS),
    Same("outbox/claims.py", "lock=True)", "lock=False)", _NO_ROW_LOCKS),
    Same("outbox/claims.py", "lock=True)", "connection, name, )", _NO_ROW_LOCKS),
    Same("outbox/claims.py", "and breaker.hold(", "or breaker.hold(", _LOOKED_AT_TWICE),
    Same("outbox/claims.py", "suspect_under_way(connection, name)", "suspect_under_way(connection, None)", _LOOKED_AT_TWICE),
    Same("outbox/claims.py", "if alone and not", "if alone or not", _LOOKED_AT_TWICE),
    Same("outbox/claims.py", "when, 1):", "when, None):", _ANY),
    Same("outbox/claims.py", "when, 1):", "when, 2):", _ANY),
    Same(_CLAIMING, "if with_files else", "if (with_files) or True else", "of no messages there are none"),
    Same(_CLAIMING, ".order_by(message.c.due_at, message.c.id)", ".order_by(message.c.due_at, ", _IN_THE_INDEX),
    Same("outbox/claims.py", "if limited else", "if (limited) or True else", "where nothing limits it, everything is let in"),
    Same(_CLAIMING, "limit(1).exists()", "exists()", _ANY),
    Same(_CLAIMING, "select(worker.c.id).where(worker.c.id == worker_id,", "select(None)", _ANY),
    Same(
        _CLAIMING,
        "message.c.lane == lane, pending, loose, ~message",
        "message.c.lane != lane",
        "all the lanes are asked in turn",
    ),
    Same(_CLAIMING, "message.c.due_at.desc(), message.c.id.desc()", "message.c.due_at.desc(), ", _IN_THE_INDEX),
    Same(_CLAIMING, "select(message.c.id).where(*tried)", "select(None)", _ANY),
    Same(_CLAIMING, ".limit(1)).one_or_none()", ".limit(None)", "there is never more than one"),
    Same(_CLAIMING, ".limit(1)).one_or_none()", ".limit(2)", "there is never more than one"),
    Same(_CLAIMING, "skip_locked=True", "skip_locked=None", _NO_ROW_LOCKS),
    Same(_CLAIMING, "skip_locked=True", "skip_locked=False", _NO_ROW_LOCKS),
    Same(_CLAIMING, ".order_by(attachment.c.message_id,", ".order_by(None, attachment.c.position", _BY_MESSAGE),
    Same(_CLAIMING, ".order_by(attachment.c.message_id,", ".order_by(attachment.c.position", _BY_MESSAGE),
    Same(_CLAIMING, ".order_by(attachment.c.message_id,", ".order_by(attachment.c.message_id, None", _IN_THE_INDEX),
    Same(_CLAIMING, ".order_by(attachment.c.message_id,", ".order_by(attachment.c.message_id, )", _IN_THE_INDEX),
    Same(_CLAIMING, ".order_by(message.c.expires_at,", ".order_by(message.c.expires_at, None", _IN_THE_INDEX),
    Same(_CLAIMING, ".order_by(message.c.expires_at,", ".order_by(message.c.expires_at, )", _IN_THE_INDEX),
    Same(_CLAIMING, "attachment.c.file == file.c.name", ".join(file, )", _FOREIGN_KEY),
    Same(_CLAIMING, "attachment.c.file == file.c.name", ".join(file, None)", _FOREIGN_KEY),
)


@dataclass
class Tally:
    """What became of the changes to a module."""

    module: str
    made: int = 0
    tried: int = 0
    noticed: int = 0
    survivors: dict[str, str] = field(default_factory=dict)  #: the difference each makes, by its name
    passed_over: dict[str, str] = field(default_factory=dict)  #: why each makes none, by its name
    words: str = ""  #: why there are no figures

    @property
    def share(self) -> float:
        return 100.0 * self.noticed / self.tried if self.tried else 0.0


def mutate(modules: Sequence[str], tests: Sequence[str], seconds: float) -> list[Tally]:
    """Change modules for so long, and count."""
    with tempfile.TemporaryDirectory(prefix="outbox-mutation-") as folder:
        copy = Path(folder)
        _copy_tree(copy, modules, tests)
        said = _run(copy, seconds)
        return [_tally(copy, module, said) for module in modules]


def _copy_tree(copy: Path, modules: Sequence[str], tests: Sequence[str]) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    settings = {
        "source_paths": ["outbox/"],
        "only_mutate": list(modules),
        "also_copy": ["migrations", "tests", "docs", "README.md"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-p", "no:randomly", "-x", "-m", "not merge and not postgres"],
        "pytest_add_cli_args_test_selection": [f"tests/{each}" for each in tests],
        # The tests start threads, which no fork of the process that ran them would have.
        "process_isolation": "forkserver",
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with (copy / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n".join(["\n[tool.mutmut]", *lines, ""]))


#: How mutmut begins a line that only shows that it is alive.
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def _run(copy: Path, seconds: float) -> str:
    """mutmut, until it is done or its time is up; returns the end of what it said."""
    program = [
        sys.executable,
        "-c",
        "from mutmut.__main__ import cli; cli()",
        "run",
        "--max-children",
        str(2 * (os.cpu_count() or 1)),  # the tests wait as long as they work
    ]
    log = copy / "mutmut.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            program, cwd=copy, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # a SIGTERM would tear the file of results that it is writing
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # it may leave some of its own behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text("utf-8", "replace").replace("\r", "\n").splitlines()
    return "\n".join([line for line in said if line.strip() and line[0] not in _SPINNER][-30:])


def _tally(copy: Path, module: str, said: str) -> Tally:
    tally = Tally(module)
    results = copy / "mutants" / f"{module}.meta"
    codes = json.loads(results.read_text("utf-8"))["exit_code_by_key"] if results.is_file() else {}
    tally.made = len(codes)
    if all(code in NOT_TRIED for code in codes.values()):
        tally.words = said
        return tally
    unnoticed = [name for name, code in codes.items() if code in SURVIVED or code in NO_TEST]
    differences = _differences(copy, module, unnoticed)
    for name in unnoticed:
        removed, added = _sides(differences[name])
        same = next((each for each in SAME if each.module == module and each.old in removed and each.new in added), None)
        if same is not None:
            tally.passed_over[name] = same.reason
        else:
            tally.survivors[name] = ("no test comes by\n" if codes[name] in NO_TEST else "") + differences[name]
    tally.noticed = sum(code not in (*SURVIVED, *NO_TEST, *NOT_TRIED) for code in codes.values())
    tally.tried = tally.noticed + len(tally.survivors)
    return tally


_SHOW = """
import json, sys
from mutmut.mutation.diff_apply import get_diff_for_mutant
module, *names = json.load(sys.stdin)
print(json.dumps({name: get_diff_for_mutant(name, path=module) for name in names}))
"""


def _differences(copy: Path, module: str, names: Sequence[str]) -> dict[str, str]:
    given = json.dumps([module, *names])
    shown = subprocess.run([sys.executable, "-c", _SHOW], cwd=copy, input=given, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(shown.stdout.splitlines()[-1])
    return found


def _sides(difference: str) -> tuple[str, str]:
    """What a change took away, and what it put there."""
    lines = [line for line in difference.splitlines() if not line.startswith(("---", "+++"))]
    return tuple("\n".join(line[1:] for line in lines if line.startswith(sign)) for sign in "-+")  # type: ignore[return-value]


def table(tallies: Sequence[Tally]) -> str:
    cells = [("module", "changes", "tried", "noticed", "survived", "passed over", "%")]
    for each in tallies:
        counts = (each.made, each.tried, each.noticed, len(each.survivors), len(each.passed_over))
        cells.append((each.module, *map(str, counts), f"{each.share:.1f}"))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutating", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0, help="for all the modules; each takes its share (default: 30)")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as outbox/verdict.py (default: all)")
    given = parser.parse_args(arguments)
    known = [module for modules, _ in GROUPS for module in modules]
    wanted = given.modules or known
    if unknown := [each for each in wanted if each not in known]:
        parser.error(f"no tests are named for {', '.join(unknown)}, only for {', '.join(known)}")
    # A shell ignores it for what it runs in the background, and so would mutmut, which must hear it in the end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    groups = [([each for each in modules if each in wanted], tests) for modules, tests in GROUPS]
    groups = [(modules, tests) for modules, tests in groups if modules]
    ends, tallies = time.monotonic() + given.minutes * 60, []
    for number, (modules, tests) in enumerate(groups):
        share = max(0.0, ends - time.monotonic()) / (len(groups) - number)
        for tally in mutate(modules, tests, share):
            tallies.append(tally)
            tell(tally)
    print(table(tallies))
    return 0 if all(each.share >= ENOUGH for each in tallies) else 1


def tell(tally: Tally) -> None:
    for name, difference in tally.survivors.items():
        print(f"survived: {name}\n{difference}", flush=True)
    for name, reason in tally.passed_over.items():
        print(f"passed over: {name}: {reason}", flush=True)
    if tally.words:
        print(f"{tally.module}: nothing was tried. The last that was said:\n{tally.words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
