"""The journal: what was finished is there after a kill, and results of other settings never mix in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dispatchgym.agents.evaluation.journal import Journal, start_over
from dispatchgym.agents.evaluation.work import Result
from dispatchgym.envs.api import UsageError

SETTINGS: dict[str, Any] = {
    "suite": "tests",
    "code": "abc",
    "policies": {"mwkr": {}, "bundle:b": {"bundle": "1"}},
    "seeds": 2,
}
SESSION = {"began": "2026-01-01T00:00:00+00:00", "cpu": "none", "cores": 1}


def open_journal(path: Path, **changes: Any) -> Journal:
    return Journal(path, SETTINGS | changes, SESSION)


def result(key: str, status: str = "ok") -> Result:
    return Result(key, status, 7, history=[[0.5, 9, 3]], operations=[[0, 3], [3, 7], [3, 7]], notes={"cap": 0.7})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_results_come_back_as_they_were(path: Path) -> None:
    with open_journal(path) as journal:
        journal.add(result("one"))
    with open_journal(path) as journal:
        assert journal.results == {"one": result("one")}
        assert len(journal.sessions) == 2


def test_a_line_cut_short_by_a_kill_is_dropped_and_the_file_goes_on(path: Path) -> None:
    with open_journal(path) as journal:
        journal.add(result("one"))
        journal.add(result("two"))
    path.write_bytes(path.read_bytes()[:-20])
    with open_journal(path) as journal:
        assert list(journal.results) == ["one"]
        journal.add(result("three"))
    with open_journal(path) as journal:
        assert list(journal.results) == ["one", "three"]


def test_a_crashed_run_is_tried_again(path: Path) -> None:
    with open_journal(path) as journal:
        journal.add(result("one", "crashed"))
        journal.add(result("two", "failed"))
    with open_journal(path) as journal:
        assert list(journal.results) == ["two"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"suite": "other"}, 'suite "tests", not "other"'),
        ({"code": "abd"}, "different code of dispatchgym"),
        ({"policies": {"mwkr": {}}}, "policies {"),
        ({"policies": {"mwkr": {}, "bundle:b": {"bundle": "2"}}}, '"bundle:b": {"bundle": "2"}'),
        ({"seeds": 1}, "seeds 2, not 1"),
        ({"builder": "active"}, 'builder null, not "active"'),
    ],
)
def test_other_settings_are_refused_and_change_nothing(path: Path, changes: dict[str, Any], said: str) -> None:
    with open_journal(path) as journal:
        journal.add(result("one"))
    before = path.read_bytes()
    with pytest.raises(UsageError) as error:
        open_journal(path, **changes)
    assert said in str(error.value)
    assert "--fresh" in str(error.value)
    assert path.read_bytes() == before


def test_policies_and_seeds_may_grow_but_not_shrink_again(path: Path) -> None:
    with open_journal(path) as journal:
        journal.add(result("one"))
    with open_journal(path, policies={"spt": {}} | SETTINGS["policies"], seeds=3) as journal:
        assert list(journal.results) == ["one"]
    with pytest.raises(UsageError, match="seeds 3, not 2"):
        open_journal(path, policies={"spt": {}} | SETTINGS["policies"])


def test_two_evaluations_cannot_write_one_journal(path: Path) -> None:
    with open_journal(path), pytest.raises(UsageError, match="another evaluation is writing"):
        open_journal(path)
    open_journal(path).__exit__()


@pytest.mark.parametrize("content", ["hello\n", "{}\n", '["settings"]\n', '{"format": "other", "schema": 1}\n'])
def test_a_file_that_is_no_journal_is_refused_and_kept(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(UsageError, match=r"journal\.jsonl, line 1"):
        open_journal(path)
    assert path.read_text() == content


def test_starting_over_sets_the_old_journal_aside(path: Path) -> None:
    start_over(path)  # nothing there yet
    with open_journal(path) as journal:
        journal.add(result("one"))
    start_over(path)
    with open_journal(path, suite="other") as journal:
        assert journal.results == {}
    assert "one" in path.with_name("journal.jsonl.old").read_text()


def test_a_disk_that_fills_up_says_that_nothing_is_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: memoryview) -> int:
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return len(data) - 5  # a full disk takes what still fits

    with open_journal(path) as journal:
        journal.add(result("one"))
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_file", Full())
            with pytest.raises(UsageError, match="No space left on device; what was finished is kept"):
                journal.add(result("two"))
    with open_journal(path) as journal:
        assert list(journal.results) == ["one"]
