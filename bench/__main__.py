"""How fast is it?

python -m bench                       what can be measured
python -m bench NAME [NAME...]        measure it
python -m bench NAME --json           one JSON document a line, for programs
python -m bench --report              measure everything, and write docs/performance.md
"""

from __future__ import annotations

import argparse
import sys

from bench import report
from bench.figures import REGISTER
from bench.peers import NotInstalled


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON document for each figure")
    parser.add_argument("--report", action="store_true", help="measure everything and write docs/performance.md")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in REGISTER]:
        parser.error(f"nothing is named {', '.join(unknown)}; known: {', '.join(REGISTER)}")
    if given.report:
        return report.write(given.names or list(REGISTER))
    if not given.names:
        for each in REGISTER.values():
            print(f"{each.name:<28}{each.what}")
        return 0
    missing = 0
    for name in given.names:
        try:
            for figure in REGISTER[name].run():
                print(figure.as_json() if given.json else figure.as_line(), flush=True)
        except NotInstalled as error:
            print(f"{name}: {error}", file=sys.stderr)
            missing += 1
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
