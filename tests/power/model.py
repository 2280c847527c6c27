"""A disk that remembers what was synced: from it, whatever a power cut may leave at any moment is rebuilt.

The model is that of POSIX, which promises little. What was written to a file is safe once that file was synced; of what was
written since, each sector of 512 bytes is as it was at some moment since, each by itself, and so is the length; where a file
was cut, the length and what is written there afterwards go together, as new blocks do with a file that got them. A name in
a folder (a file that was created, renamed, removed) is safe once that folder was synced; of the changes since, the first few
may be there. A rename from one folder to another is two changes that know nothing of each other. A sync that failed has made
nothing safe, and nor does a later one that succeeds: the kernel has forgotten what it should have written.

`journaled` is the milder model of ext4, in which any sync makes every change of names safe.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.power.recording import Operation, What

SECTOR = 512


class Write(NamedTuple):
    """Bytes at a place, or with `data` None a new length."""

    at: int
    data: bytes | None
    forgotten: bool = False  #: a sync that should have made it safe has failed

    def length_after(self, before: int) -> int:
        return self.at if self.data is None else max(before, self.at + len(self.data))


def apply(write: Write, to: bytearray) -> None:
    if write.data is None and write.at < len(to):
        del to[write.at :]
    if len(to) < write.at:
        to.extend(bytes(write.at - len(to)))
    if write.data is not None:
        to[write.at : write.at + len(write.data)] = write.data


@dataclass(eq=False)
class File:
    """A file's bytes: as everybody sees them, as they are safe, and what lies between."""

    now: bytearray = field(default_factory=bytearray)
    safe: bytearray = field(default_factory=bytearray)
    pending: list[Write] = field(default_factory=list)

    def write(self, write: Write) -> None:
        apply(write, self.now)
        self.pending.append(write)

    def sync(self) -> None:
        for each in self.pending:
            if not each.forgotten:
                apply(each, self.safe)
        self.pending.clear()

    def fail(self) -> None:
        self.pending = [each._replace(forgotten=True) for each in self.pending]

    def left(self, dice: random.Random) -> bytes:
        """What may be left of it: each sector as it was after so many of the writes, and the length after so many."""
        if not self.pending:
            return bytes(self.safe)
        many = len(self.pending)
        chance = dice.choice((0.0, 0.1, 0.5, 0.9, 1.0))

        def moment() -> int:
            return many if dice.random() < chance else dice.choice((0, dice.randint(0, many)))

        moments: dict[int, int] = defaultdict(moment)
        resized = moment()
        found, frozen = bytearray(self.safe), math.inf
        for number, each in enumerate(self.pending):
            if each.data is None:
                if number < resized:
                    found[each.at :] = bytes(max(0, len(found) - each.at))
                else:
                    frozen = min(frozen, each.at)
                continue
            apply(Write(max(len(found), each.at + len(each.data)), None), found)
            for start, end in _sectors(each.at, each.at + len(each.data)):
                if start < frozen and number < moments[start // SECTOR]:
                    found[start:end] = each.data[start - each.at : end - each.at]
        length = len(self.safe)
        for each in self.pending[:resized]:
            length = each.length_after(length)
        apply(Write(length, None), found)
        return bytes(found)


def _sectors(start: int, until: int) -> Iterator[tuple[int, int]]:
    """The parts of a stretch that lie in one sector each."""
    while start < until:
        end = min(start - start % SECTOR + SECTOR, until)
        yield start, end
        start = end


@dataclass(eq=False)
class Folder:
    """The names in a folder: as everybody sees them, as they are safe, and the changes between."""

    now: dict[str, File | Folder] = field(default_factory=dict)
    safe: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def change(self, *names: tuple[str, File | Folder | None]) -> None:
        """Names that change together: each gets what it names, or with None goes."""
        rename(names, self.now)
        self.pending.append(names)

    def sync(self) -> None:
        for each in self.pending:
            rename(each, self.safe)
        self.pending.clear()

    def fail(self) -> None:
        """Nothing is made safe; a later sync finds the changes in the journal, not in pages that were dropped."""

    def left(self, many: int) -> dict[str, File | Folder]:
        """The names if so many of the changes made it to the disk."""
        found = dict(self.safe)
        for each in self.pending[:many]:
            rename(each, found)
        return found


Change = tuple[tuple[str, File | Folder | None], ...]


def rename(change: Change, names: dict[str, File | Folder]) -> None:
    for name, what in change:
        if what is None:
            names.pop(name, None)
        else:
            names[name] = what


#: What is left: the bytes of each file by its path; a folder's path ends with a slash, and it has none.
Left = dict[str, bytes]


class Disk:
    """Follows a recording, one operation after the other; at any point it tells what a power cut may leave."""

    def __init__(self, *, journaled: bool = False) -> None:
        self.root = Folder()
        self._journaled = journaled
        self._nodes: dict[int, File | Folder] = {}
        self._folders = [self.root]

    def follow(self, operation: Operation) -> None:
        match operation.what:
            case What.OPENED:
                self._open(operation)
            case What.WROTE | What.CUT | What.GREW:
                self._write(operation)
            case What.SYNCED | What.SYNC_FAILED:
                self._sync(operation)
            case What.FOLDER_MADE:
                folder, name = self._place(operation.path)
                made = Folder()
                self._folders.append(made)
                folder.change((name, made))
            case What.REMOVED | What.FOLDER_REMOVED:
                folder, name = self._place(operation.path)
                folder.change((name, None))
            case What.LINKED:
                folder, name = self._place(operation.other)
                folder.change((name, self._at(operation.path)))
            case What.RENAMED:
                self._rename(operation.path, operation.other)

    def least(self) -> Left:
        """Nothing but what is safe."""
        return _walk(self.root, lambda folder: folder.safe, lambda file: bytes(file.safe))

    def most(self) -> Left:
        """Everything, as if it had been synced just before."""
        return _walk(self.root, lambda folder: folder.now, lambda file: bytes(file.now))

    def some(self, dice: random.Random) -> Left:
        """Anything in between."""
        return _walk(self.root, lambda folder: folder.left(dice.randint(0, len(folder.pending))), lambda file: file.left(dice))

    def _open(self, operation: Operation) -> None:
        if operation.path in ("", "/"):
            self._nodes[operation.inode] = self.root
        elif operation.created:
            folder, name = self._place(operation.path)
            made = File()
            folder.change((name, made))
            self._nodes[operation.inode] = made
        else:
            self._nodes[operation.inode] = self._at(operation.path)

    def _write(self, operation: Operation) -> None:
        file = self._nodes.get(operation.inode)
        if not isinstance(file, File):
            return
        if operation.what is What.WROTE:
            file.write(Write(operation.at, operation.data))
        elif operation.what is What.CUT or operation.at > len(file.now):
            file.write(Write(operation.at, None))

    def _sync(self, operation: Operation) -> None:
        node = self._nodes.get(operation.inode)
        if node is None:
            return
        if operation.what is What.SYNC_FAILED:
            node.fail()
            return
        node.sync()
        if self._journaled:
            for each in self._folders:
                each.sync()

    def _rename(self, path: str, other: str) -> None:
        (source, name), (target, new) = self._place(path), self._place(other)
        node = source.now[name]
        if source is target:
            source.change((name, None), (new, node))
        else:
            target.change((new, node))
            source.change((name, None))

    def _place(self, path: str) -> tuple[Folder, str]:
        *folders, name = path.strip("/").split("/")
        found = self.root
        for each in folders:
            node = found.now[each]
            assert isinstance(node, Folder), path
            found = node
        return found, name

    def _at(self, path: str) -> File | Folder:
        folder, name = self._place(path)
        return folder.now[name]


def _walk(root: Folder, names: Callable[[Folder], dict[str, File | Folder]], content: Callable[[File], bytes]) -> Left:
    def below(folder: Folder, path: str) -> Iterator[tuple[str, bytes]]:
        for name, node in names(folder).items():
            if isinstance(node, Folder):
                yield f"{path}/{name}/", b""
                yield from below(node, f"{path}/{name}")
            else:
                yield f"{path}/{name}", content(node)

    return dict(below(root, ""))


def write_out(left: Left, folder: Path) -> None:
    """Make it a real folder."""
    for path, content in left.items():
        target = folder / path.strip("/")
        if path.endswith("/"):
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
