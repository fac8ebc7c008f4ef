"""What a timing was taken on and with: printed beside every number that depends on it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import dispatchgym
from dispatchgym.agents.evaluation.pool import available_cores

LIBRARIES = ("numpy", "numba", "ortools")

# Everything that a run can depend on; what is worked out anew from finished runs is left out.
_SOURCES = ("envs", "solvers", "agents")
_AFTERWARDS = frozenset(
    (
        "charts.py",
        "evidence.py",
        "page.py",
        "progress.py",
        "remarks.py",
        "report.py",
        "results.py",
        "run_report.py",
        "statistics.py",
        "summary.py",
        "table.py",
        "tracking.py",
    )
)


def machine() -> dict[str, str | int]:
    """Processor, usable cores and system; no host or user name."""
    return {"cpu": _cpu(), "cores": available_cores(), "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str]:
    """Of the package, Python and the libraries that results come from."""
    found = {"dispatchgym": dispatchgym.__version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in LIBRARIES}


def code_digest() -> str:
    """sha256 over the source files that results come from: a changed checkout must not go on with old results."""
    h = hashlib.sha256()
    root = files("dispatchgym")
    for folder in _SOURCES:
        for name, content in _sources(root.joinpath(*folder.split("/")), folder):
            h.update(f"{name} {len(content)}\n".encode() + content)
    return h.hexdigest()


def _sources(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    """Every Python file below `folder` that results can come from, in a fixed order."""
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        if entry.is_dir():
            yield from _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".py") and entry.name not in _AFTERWARDS:
            yield f"{name}/{entry.name}", entry.read_bytes()


def _cpu() -> str:
    """The processor's model name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
