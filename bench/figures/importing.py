"""What it takes to import outbox: a producer pays for it once, at its start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from bench.harness import Figure, Target, benchmark, ratios

#: What a producer has anyway, the database library and that for HTTP.
ALONE = "import sqlalchemy, requests"
#: `import outbox` loads nothing until a name is asked for; the second is what a producer really does.
FORMS = {"import_cost_bare": "import outbox", "import_cost": "from outbox import EnosEvents, Outbox"}
_ROUNDS = 15


def seconds(statement: str) -> float:
    """What a new interpreter takes for it, its own start left out: CPU, so that neighbours count less."""
    program = f"import time; began = time.process_time(); {statement}; print(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


@benchmark("import_cost", "importing outbox in a new process, as a multiple of `import sqlalchemy, requests`")
def import_cost() -> Iterator[Figure]:
    for name, statement in FORMS.items():
        pairs = []
        seconds(statement), seconds(ALONE)  # compiled and read once
        for number in range(_ROUNDS):
            if number % 2:
                measured, compared = seconds(statement), seconds(ALONE)
            else:
                compared, measured = seconds(ALONE), seconds(statement)
            pairs.append((measured * 1000, compared * 1000))
        yield ratios(name, pairs, Target(1.3, 1.15, "lower"), what=statement, against=ALONE, unit="ms CPU")
