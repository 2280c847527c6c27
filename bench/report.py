"""docs/performance.md (to come)."""


def write(names):
    raise NotImplementedError
