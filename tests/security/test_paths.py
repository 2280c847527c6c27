"""S7 and S27: nothing outside of the allowed roots is read, whatever leads there; nothing that is not ours is deleted."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import File, Outbox, Refused, State, Worker, intake
from outbox.model import Reason, Selection
from tests.factories import column, event, states
from tests.story.conftest import Place

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are another story there")

CANARY = b"canary-0b5e11-outside-of-every-root"


class Yard:
    """An allowed root with a picture in a folder of it, a secret beside it, and an outbox that may read from the root alone."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.root, self.outside = place.folder / "root", place.folder / "outside"
        for folder in (self.root / "a" / "b", self.outside / "b"):
            folder.mkdir(parents=True)
        for path in (self.outside / "photo.jpg", self.outside / "b" / "photo.jpg"):
            path.write_bytes(CANARY)
        self.photo = self.root / "a" / "b" / "photo.jpg"
        self.photo.write_bytes(b"a picture")
        self.outbox: Outbox = place.outbox(roots=[self.root])

    def offer(self, source: Any) -> None:
        with self.place.engine.begin() as connection:
            self.outbox.enqueue(connection, "enos", event("turbine-7", "photo"), files={"photo": source})

    def leaked(self) -> list[str]:
        """Every file of ours, the database included, that has something of the secret in it."""
        ours = [*self.place.spool.rglob("*"), *self.place.folder.glob("outbox.db*")]
        return [path.name for path in ours if path.is_file() and CANARY in path.read_bytes()]


@pytest.fixture
def yard(place: Place) -> Yard:
    return Yard(place)


def linked(path: Path, target: Path | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def opened(yard: Yard) -> Iterator[Path]:
    with (yard.outside / "photo.jpg").open("rb") as secret:
        yield Path(f"/proc/self/fd/{secret.fileno()}")


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def unix_socket(path: Path) -> Path:
    before = Path.cwd()
    os.chdir(path.parent)  # its address may not be long
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)
    return path


def hard_link(path: Path, target: Path) -> Path:
    path.hardlink_to(target)
    return path


class Fickle(os.PathLike[str]):
    """A path that says something else each time it is asked."""

    def __init__(self, *said: Path) -> None:
        self.said = list(said)

    def __fspath__(self) -> str:
        return str(self.said.pop(0) if len(self.said) > 1 else self.said[0])


WAYS: dict[str, Callable[[Yard], Any]] = {
    "straight": lambda yard: yard.outside / "photo.jpg",
    "as a File": lambda yard: File(str(yard.outside / "photo.jpg"), filename="photo.jpg"),
    "by dots": lambda yard: f"{yard.root}/../outside/photo.jpg",
    "by many dots": lambda yard: f"{yard.root}/a/b/../../../outside/./photo.jpg",
    "by dots through a file": lambda yard: f"{yard.photo}/../../../../outside/photo.jpg",
    "by dots through what is not there": lambda yard: f"{yard.root}/none/../../outside/photo.jpg",
    "by too many dots": lambda yard: f"{yard.root}{'/..' * 60}{yard.outside}/photo.jpg",
    "by slashes": lambda yard: f"//{yard.outside}//photo.jpg",
    "by dots that are escaped": lambda yard: f"{yard.root}/%2e%2e/outside/photo.jpg",
    "by backslashes": lambda yard: f"{yard.root}\\..\\outside\\photo.jpg",
    "by NUL": lambda yard: f"{yard.outside}/photo.jpg\x00{yard.root}",
    "from here": lambda yard: os.path.relpath(yard.outside / "photo.jpg"),
    "a name that begins like the root's": lambda yard: linked(
        yard.place.folder / "root-too" / "x.jpg", yard.outside / "photo.jpg"
    ),
    "in capitals": lambda yard: f"{yard.place.folder}/ROOT/../OUTSIDE/photo.jpg",
    "a link": lambda yard: linked(yard.root / "link.jpg", yard.outside / "photo.jpg"),
    "a relative link": lambda yard: linked(yard.root / "near.jpg", "../outside/photo.jpg"),
    "a link to a link": lambda yard: linked(
        yard.root / "twice.jpg", linked(yard.root / "once.jpg", yard.outside / "photo.jpg")
    ),
    "a folder that is a link": lambda yard: linked(yard.root / "x", yard.outside) / "photo.jpg",
    "a folder in it that is a link": lambda yard: linked(yard.root / "a" / "x", yard.outside) / "b" / "photo.jpg",
    "a folder in a folder in it that is a link": lambda yard: (
        linked(yard.root / "a" / "b" / "x", yard.outside / "b") / "photo.jpg"
    ),
    "a link to the root of all": lambda yard: Path(f"{linked(yard.root / 'all', '/')}{yard.outside}/photo.jpg"),
    "a hard link": lambda yard: hard_link(yard.root / "hard.jpg", yard.outside / "photo.jpg"),
    "procfs, our root": lambda yard: f"/proc/self/root{yard.outside}/photo.jpg",
    "procfs, our folder": lambda yard: f"/proc/self/cwd/{os.path.relpath(yard.outside / 'photo.jpg')}",
    "procfs, a descriptor": lambda yard: next(opened(yard)),
    "procfs, our environment": lambda yard: "/proc/self/environ",
    "procfs by a link": lambda yard: linked(yard.root / "proc.jpg", "/proc/self/environ"),
    "procfs, a link to what we have open": lambda yard: linked(yard.root / "fd.jpg", next(opened(yard))),
    "a device": lambda yard: "/dev/zero",
    "a device by a link": lambda yard: linked(yard.root / "zero.jpg", "/dev/zero"),
    "a terminal": lambda yard: "/dev/stdin",
    "a pipe": lambda yard: pipe(yard.root / "pipe"),
    "a socket": lambda yard: unix_socket(yard.root / "socket"),
    "the root itself": lambda yard: yard.root,
    "a folder in it": lambda yard: yard.root / "a",
    "a file with a slash behind it": lambda yard: linked(yard.root / "slash.jpg", f"{yard.outside}/photo.jpg/"),
    "one that is inside when it is looked at": lambda yard: Fickle(yard.outside / "photo.jpg", yard.photo),
}


def test_nothing_outside_of_the_roots_is_read_whatever_leads_there(yard: Yard, subtests: pytest.Subtests) -> None:
    for way, make in WAYS.items():
        with subtests.test(way):
            with pytest.raises(Refused):
                yard.offer(make(yard))

            assert [] == yard.leaked()
    assert {} == states(yard.place.database)
    assert [] == yard.place.spooled()


def test_what_is_inside_is_read_by_any_path_that_leads_there(yard: Yard) -> None:
    ways = [
        yard.photo,
        str(yard.photo),
        f"{yard.root}/a/../a/./b//photo.jpg",
        linked(yard.root / "link.jpg", yard.photo),
        linked(yard.outside / "back.jpg", yard.photo),
        linked(yard.root / "x", yard.root / "a") / "b" / "photo.jpg",
        Fickle(yard.photo, yard.outside / "photo.jpg"),
    ]
    for way in ways:
        yard.offer(way)

    assert len(ways) == len(yard.place.spooled())
    assert {b"a picture"} == {(yard.place.spool / each).read_bytes() for each in yard.place.spooled()}


def test_without_roots_a_path_is_its_callers_choice(place: Place) -> None:
    """Also one with links in it, or to a file of several names: only what is no file is refused."""
    (place.folder / "photo.jpg").write_bytes(b"a picture")
    hard_link(place.folder / "again.jpg", place.folder / "photo.jpg")
    linked(place.folder / "link.jpg", "again.jpg")
    outbox = place.outbox()

    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event("a", "photo"), files={"photo": place.folder / "link.jpg"})

    assert [b"a picture"] == [(place.spool / each).read_bytes() for each in place.spooled()]


# Between the look and the read.


def exchanged(path: Path, make: Callable[[Path], Any]) -> None:
    """In the place of what was there, something else."""
    path.rename(path.with_name("moved-away"))
    make(path)


EXCHANGES: dict[str, Callable[[Yard], None]] = {
    "the file for a link": lambda yard: exchanged(yard.photo, lambda path: linked(path, yard.outside / "photo.jpg")),
    "the file for a hard link": lambda yard: exchanged(yard.photo, lambda path: hard_link(path, yard.outside / "photo.jpg")),
    "the file for a pipe": lambda yard: exchanged(yard.photo, pipe),
    "the file for a socket": lambda yard: exchanged(yard.photo, unix_socket),
    "the file for a folder": lambda yard: exchanged(yard.photo, Path.mkdir),
    "the file for a device": lambda yard: exchanged(yard.photo, lambda path: linked(path, "/dev/zero")),
    "the file for nothing": lambda yard: yard.photo.unlink(),
    "its folder for a link": lambda yard: exchanged(yard.photo.parent, lambda path: linked(path, yard.outside / "b")),
    "the folder above for a link": lambda yard: exchanged(yard.photo.parents[1], lambda path: linked(path, yard.outside)),
    "the root for a link": lambda yard: exchanged(yard.root, lambda path: linked(path, rebuilt(yard))),
    "its folder for a pipe": lambda yard: exchanged(yard.photo.parent, pipe),
}


def rebuilt(yard: Yard) -> Path:
    """The same folders, with the secret in the place of the picture."""
    copy = yard.outside / "root" / "a" / "b"
    copy.mkdir(parents=True)
    (copy / "photo.jpg").write_bytes(CANARY)
    return yard.outside / "root"


@pytest.mark.skipif(not intake._WALKS, reason="this system cannot walk a path folder by folder")
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_what_is_exchanged_after_it_was_looked_at_is_refused(
    yard: Yard, exchange: Callable[[Yard], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = intake._look

    def look_then_exchange(*given: Any) -> Any:
        found = looked(*given)
        exchange(yard)
        return found

    monkeypatch.setattr(intake, "_look", look_then_exchange)

    with pytest.raises(Refused, match=r"cannot be read|was exchanged|has more than one name"):
        yard.offer(yard.photo)

    assert [] == yard.leaked()
    assert [] == yard.place.spooled()


@pytest.mark.parametrize("follows", [False, True], ids=["which is not followed", "which is followed"])
def test_where_no_folder_can_be_walked_a_link_in_the_place_of_the_file_is_found_out(
    yard: Yard, follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, and on Windows, where nothing keeps an open from following a link."""
    monkeypatch.setattr(intake, "_WALKS", False)
    if follows:
        monkeypatch.delattr(os, "O_NOFOLLOW")
    yard.offer(yard.photo)
    looked = intake._look

    def look_then_exchange(*given: Any) -> Any:
        found = looked(*given)
        EXCHANGES["the file for a link"](yard)
        return found

    monkeypatch.setattr(intake, "_look", look_then_exchange)

    with pytest.raises(Refused, match="was exchanged while it was being read" if follows else "cannot be read"):
        yard.offer(yard.photo)

    assert [b"a picture"] == [(yard.place.spool / each).read_bytes() for each in yard.place.spooled()]


def test_a_file_that_a_program_replaces_by_a_newer_one_is_read_as_it_is_then(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera renames its next picture over the last one: that is no attack."""
    looked = intake._look

    def look_then_replace(*given: Any) -> Any:
        found = looked(*given)
        (yard.root / "next.jpg").write_bytes(b"the next picture")
        (yard.root / "next.jpg").rename(yard.photo)
        return found

    monkeypatch.setattr(intake, "_look", look_then_replace)

    yard.offer(yard.photo)

    assert [b"the next picture"] == [(yard.place.spool / each).read_bytes() for each in yard.place.spooled()]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list our descriptors")
def test_no_descriptor_is_left_whatever_was_refused(yard: Yard) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    yard.offer(yard.photo)
    before = descriptors()
    for make in (WAYS["a pipe"], WAYS["a hard link"], WAYS["a link"], WAYS["the root itself"], lambda yard: yard.photo):
        try:
            yard.offer(make(yard))
        except Refused:
            continue

    assert descriptors() <= before


# Rows that somebody edited.


@pytest.mark.parametrize(
    "name", ["../../outside/photo.jpg", "/etc/passwd", "..", "", "0" * 31 + "/", "0" * 33, "../" + "0" * 29]
)
def test_a_row_that_names_another_path_gets_nothing_out(place: Place, name: str) -> None:
    (place.folder / "outside").mkdir()
    (place.folder / "outside" / "photo.jpg").write_bytes(CANARY)
    outbox = place.outbox()
    place.enqueue(outbox, "edited", {"photo": CANARY})
    place.enqueue(outbox, "fine", {"photo": b"bytes"})
    with place.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        mine = "(SELECT file FROM outbox_attachment WHERE message_id = 1)"
        connection.exec_driver_sql(f"UPDATE outbox_file SET name = ? WHERE name = {mine}", (name,))
        connection.exec_driver_sql("UPDATE outbox_attachment SET file = ? WHERE message_id = 1", (name,))
        connection.commit()

    hand = place.hand(outbox)
    for _ in range(12):
        hand.turn()
        place.clock.move(hours=1)

    (told,) = place.receiver.accepted
    assert [place.acknowledged["fine"]["photo"]] == [each.sha256 for each in told.files.values()]
    assert {"edited": State.DEAD, "fine": State.DELIVERED} == states(place.database)
    assert Reason.FILE_MISSING == column(place.database, "edited", "reason")
    assert "is not the name of a spooled file" in column(place.database, "edited", "reason_text")


# S27: what is deleted.


def test_only_what_is_ours_is_deleted_and_no_link_is_followed(place: Place) -> None:
    outbox = place.outbox()
    victims = place.folder / "victims"
    victims.mkdir()
    for number in range(4):
        (victims / f"{number:032x}").write_bytes(b"somebody's")
    for key in ("a", "b", "c"):
        place.enqueue(outbox, key, {"photo": key.encode()})
    Worker(outbox, poll=0.05).run(until_idle=True)
    first = place.spool / place.spooled()[0]
    first.unlink()
    first.symlink_to(victims / f"{0:032x}")  # in the place of a spooled file
    untaken = next(folder for each in range(16) if not (folder := place.spool / f"c{each:x}").exists())
    planted = [
        linked(place.spool / "ab" / ("0" * 30 + "ab"), victims / f"{1:032x}"),
        linked(place.spool / ".swept" / ("1" * 32), victims / f"{1:032x}"),
        linked(place.spool / ".unfinished" / ("2" * 32), victims / f"{1:032x}"),
        linked(untaken, victims),
        written(place.spool / "ab" / "notes.txt"),
        written(place.spool / "ab" / ("A" * 30 + "ab")),
        written(place.spool / ".swept" / ".keep"),
        written(place.spool / ".unfinished" / "half"),
        written(place.spool / "deeper" / ("3" * 32)),
        written(place.spool / "README"),
        written(place.spool / "ab" / ("4" * 30 + "ab") / "inside-a-folder"),
        written(place.spool / ".swept" / ("5" * 32) / "inside-a-folder"),
    ]

    with outbox.database.begin() as connection:
        connection.execute(sa.text("UPDATE outbox_file SET free_at = created_at"))
    freed = outbox.free_files()
    swept = outbox.sweep(timedelta(0))
    purged = outbox.purge(Selection(states=(State.DELIVERED,)), "ann")
    outbox.sweep(timedelta(0))

    assert (3, 0, 3) == (freed, swept, purged)
    assert all(path.is_symlink() or path.exists() for path in planted)
    assert not first.is_symlink()
    assert {b"somebody's"} == {path.read_bytes() for path in victims.iterdir()}
    assert 4 == len(list(victims.iterdir()))


def written(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not ours")
    return path
