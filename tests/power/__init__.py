"""Power cuts and crash points: what is left when everything stops at once, and whether it keeps every promise.

    report = crash_states(folder, count=5000, seed=7)        # modelled: needs a C compiler, no root
    report = cuts(folder, seed=7, count=100)                 # real: needs root, mkfs.ext4 and a loop device
    report = cuts(folder, seed=7, seconds=60)
    assert report.faults == []                               # sentences; report.counts is a Counter of what was done

Both raise `Unavailable` with the reason where a tool is missing. Nothing of theirs is left behind outside `folder`, which may
be on any disk (a memory-backed one is faster), and no mount or loop device outlives a call, however it ends.

    recorder.c   writes down every file operation of a process, and lets chosen ones fail
    building     builds it
    recording    runs a program of `workloads` with it
    notes        what that program was told, among its operations
    model        a disk that remembers what was synced
    checking     whether what is left of it keeps its promises
    successor    who comes after a crash, delivers everything and adds up
    states       all of that together, as often as asked
    disk, ext4   the same with a real file system

    points       where a process may be killed
    operations   everything that an outbox does
    sweep        each of these, killed at each of those
    tracing      the same at system calls
"""

from __future__ import annotations

from pathlib import Path

from tests.power.report import Report, Unavailable

__all__ = ["Report", "Unavailable", "crash_states", "cuts"]

# Imported where they are used: the programs of this package begin here, too, and are started often.


def crash_states(folder: Path, count: int, seed: int) -> Report:
    """So many states that a power cut may leave, rebuilt from recordings; see `states`."""
    from tests.power import states

    return states.crash_states(folder, count, seed)


def cuts(folder: Path, seed: int, *, count: int | None = None, seconds: float | None = None) -> Report:
    """So many real power cuts, or as many as fit in the time; with neither, twenty. See `ext4`."""
    from tests.power import ext4

    return ext4.cuts(folder, seed, count=count, seconds=seconds)
