"""What stands beside the timings, and what makes old results stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispatchgym.agents.evaluation import machine


def test_the_machine_is_named_without_its_owner() -> None:
    found = machine.machine()
    assert set(found) == {"cpu", "cores", "system"}
    assert found["cpu"]
    assert int(found["cores"]) >= 1


def test_versions_name_what_results_come_from() -> None:
    assert set(machine.versions()) == {"dispatchgym", "python", "numpy", "numba", "ortools"}


def test_the_code_digest_follows_what_runs_depend_on_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("envs/jobshop", "solvers", "agents/evaluation"):
        (tmp_path / name).mkdir(parents=True)
    rule, report = tmp_path / "solvers" / "rules.py", tmp_path / "agents" / "evaluation" / "report.py"
    for path in (rule, report, tmp_path / "envs" / "jobshop" / "kernel.py"):
        path.write_text("x = 1\n")
    monkeypatch.setattr(machine, "files", lambda _: tmp_path)
    first = machine.code_digest()
    report.write_text("x = 2\n")
    (tmp_path / "envs" / "notes.txt").write_text("y")
    assert machine.code_digest() == first
    rule.write_text("x = 2\n")
    assert machine.code_digest() != first
    rule.write_text("x = 1\n")
    assert machine.code_digest() == first
