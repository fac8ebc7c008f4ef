"""Files that appear whole or not at all, and folders checked before the work instead of after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from dispatchgym.envs.api import UsageError

MARGIN_BYTES = 16 * 2**20
"""Left free beside what the run is expected to write."""


def make_writable(folder: Path, expected_bytes: int) -> None:
    """Create `folder` and prove that files can be written there.

    Raises:
        UsageError: it cannot be made or written, or the disk has no room for `expected_bytes`.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(bytes(65536))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UsageError(f"cannot write in {folder}: {error.strerror}; choose another folder") from error
    finally:
        probe.unlink(missing_ok=True) if folder.is_dir() else None
    needed = expected_bytes + MARGIN_BYTES
    if free < needed:
        raise UsageError(
            f"{folder} has {free / 1e6:.0f} MB free but this run may write {needed / 1e6:.0f} MB; "
            "make room or choose another folder"
        )


@contextmanager
def atomic_write(path: Path) -> Iterator[TextIO]:
    """A text file that replaces `path` when the block ends well; a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
