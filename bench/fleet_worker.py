"""A worker of a fleet that is measured: claims and records whatever there is, without HTTP, each time that it is told to.

python -m bench.fleet_worker URL
"""

from __future__ import annotations

import sys

from bench.figures.claiming import Loop
from bench.ground import Ground


def main() -> None:
    with Ground("postgresql", url=sys.argv[1]) as ground:
        loop = Loop(ground)
        print("ready", flush=True)
        for _ in sys.stdin:
            while loop.stretch():
                pass
            print("done", flush=True)


if __name__ == "__main__":
    main()
