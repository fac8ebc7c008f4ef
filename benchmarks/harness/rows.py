"""Measured rows: how they are timed, printed and written.

A row is {name, value, unit, spread, peer, peer_value, ratio, command, machine, versions}; `value` is the
median of the repeats, `spread` their minimum and maximum, `ratio` is value over peer_value.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import dispatchgym


@dataclass(frozen=True, slots=True)
class Measured:
    """A median with the spread of its repeats."""

    value: float
    spread: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured:
        return cls(statistics.median(values), (min(values), max(values)))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    value: float
    unit: str
    spread: tuple[float, float]
    peer: str | None = None
    peer_value: float | None = None
    bar: str = ""
    ratio: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", self.value / self.peer_value if self.peer_value else None)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under 30 s, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    return parser


def rate(run: Callable[[], int], repeats: int) -> Measured:
    """Steps per second of CPU time of `run`, which returns how many it made; one warm-up first."""
    run()
    rates = []
    for _ in range(repeats):
        before = time.process_time()
        steps = run()
        rates.append(steps / (time.process_time() - before))
    return Measured.of(rates)


def machine() -> str:
    """CPU model, cores, system and load: what a reader needs to judge a figure."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{model}, {os.cpu_count()} cores, {platform.system()}{load}"


def versions(*packages: str) -> dict[str, str]:
    named = {"python": platform.python_version(), "dispatchgym": dispatchgym.__version__}
    return named | {p: metadata.version(p) for p in packages}


def publish(rows: Sequence[Row], file: Path | None, packages: Sequence[str]) -> None:
    """Print the table and, if asked, write the rows."""
    width = max(len(r.name) for r in rows)
    print(f"\n{machine()}; {versions(*packages)}")
    print(f"{'':{width}}  {'median':>12} {'min':>12} {'max':>12}  unit           ratio to peer")
    for r in rows:
        peer = f"{r.ratio:8.1f} x {r.peer} ({r.peer_value:,.0f})" if r.ratio is not None else ""
        low, high = r.spread
        print(f"{r.name:{width}}  {r.value:12,.1f} {low:12,.1f} {high:12,.1f}  {r.unit:14} {peer:40} {r.bar}")
    if file is not None:
        write_rows(rows, file, packages)
        print(f"rows: {file}")


def write_rows(rows: Sequence[Row], file: Path, packages: Sequence[str]) -> None:
    """Write the rows, each with the command, the machine and the versions."""
    shared = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "versions": versions(*packages)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([{**asdict(r), **shared} for r in rows], indent=1) + "\n")
