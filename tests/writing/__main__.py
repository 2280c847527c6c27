"""`make docs`: write the pages of docs/ that are written from the code, and say which of them changed."""

from __future__ import annotations

from tests.writing import PAGES, ROOT

for name, written in PAGES.items():
    path, text = ROOT / "docs" / name, written()
    if path.is_file() and path.read_text("utf-8") == text:
        continue
    path.write_text(text, "utf-8")
    print(f"docs/{name}")
