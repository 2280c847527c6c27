"""docs/how-to/hooks.md is true: its settings are understood; its Python test_pages.py runs."""

from __future__ import annotations

import re
from pathlib import Path

from outbox import settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "hooks.md").read_text("utf-8")


def test_its_settings_are_understood(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "outbox.toml").write_text(f'database = "sqlite:///outbox.db"\n{block}')

    outbox = settings.build(*settings.load(tmp_path / "outbox.toml"))

    route = outbox.destinations["enos"].route
    assert route is not None
    assert str(tmp_path / "factory-ca.pem") == route.ca_file
