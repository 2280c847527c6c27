"""A page may have parts that a command writes, each between two marks; nothing else of the page changes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """What a command writes."""

    name: str
    command: str

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}: what follows is written by `{self.command}` -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}: end -->"

    def in_place(self, page: str, text: str) -> str:
        """The page with this text between the marks. Raises LookupError when it has no place for it."""
        if not (self.begin in page and self.end in page):
            raise LookupError(f"there is no place for it: a line {self.begin!r}, and one {self.end!r}")
        before, _, rest = page.partition(self.begin)
        _, _, after = rest.partition(self.end)
        return f"{before}{self.begin}\n\n{text}\n\n{self.end}{after}"

    def write(self, path: Path, text: str) -> None:
        """Put this text in its place on a page. Raises LookupError when there is none."""
        path.write_text(self.in_place(path.read_text("utf-8"), text), "utf-8")
