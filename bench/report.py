"""docs/performance.md: every figure of one run, with the machine it was run on, and a picture of them."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from bench.bounds import BOUNDS
from bench.figures import REGISTER
from bench.ground import ROOT, Ground
from bench.harness import Figure
from bench.peers import NotInstalled

PAGE, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"
_COLOURS = {"stretch": "#2f7d4f", "ok": "#7fb069", "MISSED": "#c8553d", "": "#8d99ae"}


def write(names: Iterable[str]) -> int:
    """Measure these, and write the page and its picture; the exit code tells whether every target was met."""
    began = time.monotonic()
    figures: list[Figure] = []
    missing: list[str] = []
    for name in names:
        try:
            for figure in REGISTER[name].run():
                print(figure.as_line(), flush=True)
                figures.append(figure)
        except NotInstalled as error:
            missing.append(f"{name}: {error}")
            print(f"{name}: not measured: {error}", file=sys.stderr, flush=True)
    took = time.monotonic() - began
    PICTURE.write_text(_picture(figures))
    PAGE.write_text(_page(figures, missing, took))
    missed = [each for each in figures if each.verdict == "MISSED"]
    asked = [each for each in figures if each.verdict]
    stretched = [each for each in asked if each.verdict == "stretch"]
    print(f"\n{len(asked)} with a target: {len(missed)} missed, {len(stretched)} at the stretch; {took / 60:.0f} min")
    return 1 if missed or missing else 0


def _page(figures: Sequence[Figure], missing: Sequence[str], took: float) -> str:
    asked = [each for each in figures if each.verdict]
    met = [each for each in asked if each.verdict != "MISSED"]
    stretched = [each for each in asked if each.verdict == "stretch"]
    lines = [
        "# Performance",
        "",
        "Written by `make bench`, which measures everything anew; `python -m bench` lists the figures, `python -m bench NAME`",
        "measures one. What is compared is measured in turns in the same run, in slices of half a second to a second,",
        "and the median of the ratios of the rounds counts: so the moods of a machine and its disk cancel out. Absolute values",
        "are those of this machine in these minutes.",
        "",
        f"- {datetime.now(UTC):%Y-%m-%d}, {took / 60:.0f} minutes, load {os.getloadavg()[0]:.1f} at the end",
        f"- {_machine()}",
        f"- {_software()}",
        f"- {len(asked)} figures with a target: {len(met)} meet it, {len(stretched)} reach the stretch",
        *(f"- not measured: {each}" for each in missing),
        "",
        "![every figure as a part of its target](performance.svg)",
        "",
        "| figure | database | ratio | min to max | target / stretch | | measured | compared with |",
        "|---|---|---:|---:|---:|---|---|---|",
        *map(_row, figures),
        "",
        "A ratio is better when it is higher, but where the target says `<=`. Without something it is compared with, it is the",
        "value itself.",
        "",
    ]
    missed = dict.fromkeys(each.name for each in figures if each.verdict == "MISSED")
    if missed:
        lines += ["## What is missed, and what bounds it", ""]
        lines += [f"- **{name}**: {BOUNDS.get(name, 'not looked into yet')}" for name in missed]
        lines.append("")
    return "\n".join(lines)


def _row(each: Figure) -> str:
    asked = "" if each.target is None else f"{'>=' if each.better == 'higher' else '<='} {each.target:g} / {each.stretch:g}"
    word = {"stretch": "stretch", "ok": "met", "MISSED": "**missed**", "": ""}[each.verdict]
    measured = f"{each.measure:,.4g} {each.unit}: {each.what}"
    compared = "" if each.baseline is None else f"{each.baseline:,.4g}: {each.against}"
    spread = f"{each.min:.3g} to {each.max:.3g}"
    return f"| {each.name} | {each.database or ''} | {each.ratio:.3g} | {spread} | {asked} | {word} | {measured} | {compared} |"


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = found[0] if found else model
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return f"{os.cpu_count()} processors ({model}){memory}, {platform.system()} {platform.release()}"


def _software() -> str:
    names = ("sqlalchemy", "psycopg", "requests", "urllib3")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    server = ""
    try:
        with Ground("postgresql") as ground:
            server = f", PostgreSQL {ground.scalar('SHOW server_version')}"
    except Exception as error:  # noqa: BLE001 (a machine without it still has its other figures)
        server = f", no PostgreSQL ({type(error).__name__})"
    return f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}{server}, {versions}"


#: The picture: pixels of a line, of the names, and of the part where bars are.
_LINE, _NAMES, _BARS = 20, 330, 420
#: It shows from a quarter of the target to four times as much.
_LEAST, _MOST = 0.25, 4.0


def _picture(figures: Sequence[Figure]) -> str:
    """Bars on a logarithmic scale: how many times the target each figure is, better to the right."""
    shown = [(each, target) for each in figures if (target := each.target) is not None and each.ratio > 0 and target > 0]
    height = _LINE * (len(shown) + 3)
    width = _NAMES + _BARS + 110
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for times in (0.25, 0.5, 1.0, 2.0, 4.0):
        x = _at(times)
        colour = "#333" if times == 1 else "#ddd"
        parts.append(f'<line x1="{x:.0f}" y1="{_LINE}" x2="{x:.0f}" y2="{height - _LINE}" stroke="{colour}"/>')
        word = "target" if times == 1 else f"{times:g}×"
        parts.append(f'<text x="{x:.0f}" y="{_LINE - 6}" text-anchor="middle" fill="#555">{word}</text>')
    for number, (each, target) in enumerate(shown):
        y = _LINE * (number + 1) + 4
        times = each.ratio / target if each.better == "higher" else target / each.ratio
        left, right = sorted((_at(1.0), _at(times)))
        name = f"{each.name} ({each.database})" if each.database else each.name
        parts.append(f'<text x="{_NAMES - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{left:.0f}" y="{y}" width="{max(1.0, right - left):.0f}" height="{_LINE - 8}" '
            f'fill="{_COLOURS[each.verdict]}"/>'
        )
        parts.append(f'<text x="{_NAMES + _BARS + 8}" y="{y + 11}" fill="#333">{each.ratio:.3g} {escape(each.verdict)}</text>')
    words = "green: the stretch; light green: the target; red: missed. Better is to the right."
    parts.append(f'<text x="{_NAMES}" y="{height - 6}" fill="#555">{words}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _at(times: float) -> float:
    part = math.log(min(max(times, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return _NAMES + part * _BARS
