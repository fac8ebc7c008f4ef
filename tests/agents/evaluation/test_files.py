"""Files appear whole or not at all, and a folder that cannot take them is found out first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dispatchgym.agents.evaluation.files import MARGIN_BYTES, atomic_write, make_writable
from dispatchgym.envs.api import UsageError


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    make_writable(tmp_path / "a" / "b", 1000)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write in .*file/out"):
        make_writable(tmp_path / "file" / "out", 0)


def test_a_folder_without_write_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may write anywhere, so the refusal is played
    with pytest.raises(UsageError, match="Permission denied; choose another folder"):
        make_writable(tmp_path, 0)


def test_a_full_disk_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 50_000_000))
    make_writable(tmp_path, 50_000_000 - MARGIN_BYTES)
    with pytest.raises(UsageError, match=r"has 50 MB free but this run may write 517 MB"):
        make_writable(tmp_path, 500_000_000)


def test_a_file_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with atomic_write(path) as file:
        file.write("old")

    def fail_halfway() -> None:
        with atomic_write(path) as file:
            file.write("new")
            file.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]
