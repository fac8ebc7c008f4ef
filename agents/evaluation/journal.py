"""What an evaluation has finished so far: one appended line a result, so that a kill loses none."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.work import Result
from dispatchgym.envs.api import UsageError

if sys.platform != "win32":
    import fcntl

FORMAT = "dispatchgym/evaluation-journal"
SCHEMA = 1

JSON = Any
"""A value that JSON can hold."""


class Journal:
    """The file `journal.jsonl` of an evaluation's folder, open for appending and locked.

    The first line holds the settings that every result depends on; each session appends a line on
    when and on what machine it ran; every other line is a `Result`. A last line cut short by a kill
    is dropped.

    Args:
        path: of the file, which is created when it does not exist.
        settings: what results depend on. A journal with other settings is refused, except that
            `policies` and `seeds` may grow.
        session: when and where this process runs.

    Raises:
        UsageError: other settings, a file that is no journal, or another process writing it.
    """

    def __init__(self, path: Path, settings: Mapping[str, JSON], session: Mapping[str, JSON]) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self.sessions: list[Mapping[str, JSON]] = []
        self._file = path.open("ab", buffering=0)  # unbuffered: what was added is the kernel's, not ours, to keep
        try:
            self._lock()
            kept = self._read(settings)
            os.truncate(path, kept)
            if kept == 0:
                self._append({"format": FORMAT, "schema": SCHEMA, "settings": dict(settings)})
            else:
                self._append({"settings": dict(settings)})
            self._append({"session": dict(session)})
            self.sessions.append(session)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, result: Result) -> None:
        """Append a result; it outlives the process from here on."""
        self._append({"result": asdict(result)})
        self.results[result.key] = result

    def _append(self, line: Mapping[str, JSON]) -> None:
        data = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path}: {error.strerror}; what was finished is kept, "
                "make room and run the same command again"
            ) from error

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another evaluation is writing {self.path}; wait for it or choose another --out"
            ) from error

    def _read(self, settings: Mapping[str, JSON]) -> int:
        """Take in what the file holds; returns the length of its whole lines in bytes."""
        content = self.path.read_bytes()
        kept = content.rfind(b"\n") + 1
        lines = content[:kept].splitlines()
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1 and (entry.get("format"), entry.get("schema")) != (FORMAT, SCHEMA):
                    raise ValueError
                if "settings" in entry:
                    latest = entry["settings"]
                elif "session" in entry:
                    self.sessions.append(entry["session"])
                else:
                    result = Result(**entry["result"])
                    self.results[result.key] = result
                    if result.status == "crashed":  # perhaps for want of memory: worth another try
                        del self.results[result.key]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UsageError(
                    f"{self.path}, line {number}: not a line of an evaluation's journal; "
                    "choose another --out or start over with --fresh"
                ) from error
        if lines:
            _check_same(self.path.parent, latest, settings)
        return kept


def _check_same(folder: Path, old: Mapping[str, JSON], new: Mapping[str, JSON]) -> None:
    """Refuse to mix results made under different settings."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        grown = (key == "seeds" and _at_most(before, after)) or (key == "policies" and _subset(before, after))
        if before != after and not grown:
            what = "different code of dispatchgym" if key == "code" else f"{key} {_short(before)}, not {_short(after)}"
            raise UsageError(
                f"{folder} holds an evaluation with {what}; choose another --out, or start over with --fresh "
                "(a finished evaluation can only be given more policies or more seeds)"
            )


def _at_most(before: JSON, after: JSON) -> bool:
    return isinstance(before, int) and isinstance(after, int) and before <= after


def _subset(before: JSON, after: JSON) -> bool:
    """Whether every policy of `before` is in `after`, made of the same versions (a bundle's digest among them)."""
    return isinstance(before, dict) and isinstance(after, dict) and before.items() <= after.items()


def _short(value: JSON) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:100]}..."


def start_over(path: Path) -> None:
    """Set an old journal aside as journal.jsonl.old: started over, but not lost."""
    if path.exists():
        os.replace(path, path.with_name(f"{path.name}.old"))
