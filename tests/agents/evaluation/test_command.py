"""`dispatchgym evaluate` from end to end: files, exit codes, resuming, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dispatchgym.agents.evaluation import policies, pool, work
from dispatchgym.agents.evaluation.command import main
from dispatchgym.agents.evaluation.policies import Answer
from dispatchgym.agents.evaluation.work import Result, WorkItem
from dispatchgym.envs.api import DispatchGymError, InvalidInstanceError, UnknownNameError, UsageError
from dispatchgym.envs.jobshop import text
from dispatchgym.envs.registry import Registry
from tests.agents.evaluation.examples import TWO_JOBS, FixedPolicy, best_schedule


def evaluate(*arguments: str | Path) -> int:
    """Run the command in this process, without worker processes."""
    return main([*map(str, arguments), "--workers", "0"])


def rows(out: Path) -> list[dict[str, Any]]:
    """results.json without what no two runs share."""
    found = json.loads((out / "results.json").read_text())
    return [{key: value for key, value in row.items() if key not in ("wall_s", "cpu_s")} for row in found]


def summary(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return content


def parse_wrong(spec: str, delta: float) -> FixedPolicy:
    """A policy whose schedule fits no instance but TWO_JOBS, and that not well."""
    return FixedPolicy(lambda scenario, seed: Answer(best_schedule(), "optimal", bound=7), spec)


def test_smoke_gives_results_summary_report_and_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, evidence = tmp_path / "out", tmp_path / "evidence"
    given = ("jobshop/smoke", "--policies", "mwkr,random", "--seeds", "2", "--out", out, "--evidence", evidence)
    assert evaluate(*given) == 0
    found = rows(out)
    assert [(row["instance"], row["policy"], row["seed"]) for row in found] == [
        (instance, policy, seed)
        for instance in ("ft06", "la01", "la06")
        for policy, seed in (("mwkr", 0), ("random", 0), ("random", 1))
    ]
    assert found[0]["reference"] == 55
    assert found[0]["gap_pct"] == pytest.approx(100 * (found[0]["value"] - 55) / 55)
    assert {row["reference_kind"] for row in found} == {"optimum"}
    assert summary(out)["base"] == "mwkr"
    assert len((evidence / "schedules.jsonl").read_text().splitlines()) == 9
    printed = capsys.readouterr().out
    assert "Classic job shop (non-delay): gap to optimum" in printed
    assert f"report: {out / 'report.html'}" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "journal.jsonl",
        "report.html",
        "results.json",
        "summary.json",
    ]


def test_lists_need_no_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("jobshop/taillard", "interrupting/lawrence", "sampled:RULE@128", "fdd/mwkr"):
        assert name in printed


def test_workers_do_not_change_the_results(tmp_path: Path) -> None:
    given = ["interrupting/lawrence", "--policies", "mwkr+cap0.7", "--seeds", "1", "--shutdown-probabilities", "0.2"]
    assert main([*given, "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert main([*given, "--out", str(tmp_path / "none"), "--workers", "0"]) == 0
    assert rows(tmp_path / "two") == rows(tmp_path / "none")


KILLED_AT_THE_FIFTH = """
import os, signal, sys
from dispatchgym.agents.evaluation import command
from dispatchgym.agents.evaluation.journal import Journal

add = Journal.add
def add_and_die(self, result):
    add(self, result)
    if len(self.results) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.add = add_and_die
command.main(sys.argv[1:])
"""


def test_a_killed_evaluation_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["jobshop/smoke", "--policies", "mwkr,random", "--seeds", "2", "--workers", "0", "--out"]
    command = [sys.executable, "-c", KILLED_AT_THE_FIFTH, *given, str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    killed = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    assert main([*given, str(tmp_path / "killed")]) == 0
    assert "5 of 9 runs were done before" in capsys.readouterr().err
    assert main([*given, str(tmp_path / "whole")]) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_ctrl_c_keeps_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("jobshop/smoke", "--policies", "mwkr,spt", "--out", tmp_path)
    done = 0

    def interrupted(item: WorkItem) -> Result:
        nonlocal done
        done += 1
        if done == 4:
            raise KeyboardInterrupt
        return work.execute(item)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "execute", interrupted)
        assert evaluate(*given) == 130
    assert "3 of 6 runs are kept" in capsys.readouterr().err
    assert evaluate(*given) == 0
    assert "3 of 6 runs were done before" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 6


def test_a_finished_evaluation_can_grow_but_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("jobshop/smoke", "--policies", "mwkr", "--out", tmp_path) == 0
    assert evaluate("jobshop/smoke", "--policies", "mwkr,spt", "--out", tmp_path) == 0
    assert "3 of 6 runs were done before" in capsys.readouterr().err
    for other in (("jobshop/lawrence",), ("jobshop/smoke", "--builder", "active")):
        with pytest.raises(UsageError, match="start over with --fresh"):
            evaluate(*other, "--policies", "mwkr,spt", "--out", tmp_path)
    assert evaluate("jobshop/smoke", "--builder", "active", "--policies", "spt", "--out", tmp_path, "--fresh") == 0
    assert {row["builder"] for row in rows(tmp_path)} == {"active"}
    assert (tmp_path / "journal.jsonl.old").exists()


def test_an_invalid_schedule_fails_its_row_and_the_command_but_not_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "FAMILIES", Registry("policy", {"wrong": f"{__name__}:parse_wrong"}))
    assert evaluate("jobshop/smoke", "--policies", "mwkr,wrong", "--out", tmp_path) == 1
    assert [(row["policy"], row["status"], row["value"] is None) for row in rows(tmp_path)] == [
        ("mwkr", "ok", False),
        ("wrong", "invalid", True),
    ] * 3
    failures = summary(tmp_path)["failures"]
    assert len(failures) == 3
    assert "ft06" in failures[0]["item"]
    assert failures[0]["message"]
    assert "3 of 6 runs failed" in capsys.readouterr().err


def test_a_beaten_optimum_fails_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text.write(TWO_JOBS, tmp_path / "two.txt")
    (tmp_path / "references.json").write_text('{"two": {"value": 100, "kind": "optimum"}}')
    given = ("--instances", tmp_path, "--references", tmp_path / "references.json", "--policies", "mwkr")
    assert evaluate(*given, "--out", tmp_path / "out") == 1
    assert "is below the optimum 100" in capsys.readouterr().err
    assert len(summary(tmp_path / "out")["conflicts"]) == 1


def test_own_instances_are_evaluated_like_a_suite(tmp_path: Path) -> None:
    text.write(TWO_JOBS, tmp_path / "two.txt")
    (tmp_path / "references.json").write_text('{"two": 7}')
    given = ("--instances", tmp_path, "--variant", "bws", "--policies", "mwkr,spt", "--base", "spt")
    assert evaluate(*given, "--references", tmp_path / "references.json", "--out", tmp_path / "out") == 0
    found = rows(tmp_path / "out")
    assert [(row["suite"], row["group"], row["instance"], row["variant"]) for row in found] == [
        ("instances", "2x2", "two", "bws")
    ] * 2
    assert found[0]["reference_kind"] == "best-known"
    assert summary(tmp_path / "out")["base"] == "spt"


def test_tuned_caps_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text.write(TWO_JOBS, tmp_path / "two.txt")
    given = ("--instances", tmp_path, "--variant", "bws", "--policies", "mwkr+cap=tuned", "--out", tmp_path / "out")
    assert evaluate(*given) == 0
    (tuned,) = summary(tmp_path / "out")["tuned"]
    assert (tuned["variant"], tuned["group"], tuned["policy"]) == ("bws", "2x2", "mwkr+cap=tuned")
    cap = "no cap" if tuned["cap"] is None else tuned["cap"]
    assert f"mwkr+cap=tuned in bws, chosen on generated instances: 2x2 {cap}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ([], UsageError, "name a suite"),
        (["jobshop/smoke", "--instances", "x"], UsageError, "and not both"),
        (["jobshop/smok"], UnknownNameError, "did you mean 'jobshop/smoke'"),
        (["jobshop/smoke", "--policies", "mwrk"], UnknownNameError, "did you mean 'mwkr'"),
        (["jobshop/smoke", "--policies", "mwkr", "--base", "sptt"], UnknownNameError, "did you mean 'spt'"),
        (["jobshop/smoke", "--policies", "mwkr", "--base", "spt"], UnknownNameError, "base policy 'spt' is not known"),
        (["jobshop/smoke", "--policies", "mwkr", "--seeds", "0"], UsageError, "--seeds is 0"),
        (["jobshop/smoke", "--policies", "mwkr", "--delta", "0.5"], UsageError, "--delta belongs to --builder hybrid"),
        (["jobshop/smoke", "--policies", "mwkr", "--builder", "hybrid"], UsageError, "needs --delta between"),
        (["blocking/lawrence", "--policies", "mwkr", "--builder", "active"], UsageError, "is for the classic shop"),
        (["blocking/lawrence", "--policies", "mwkr+active"], UsageError, "cannot run in bws"),
        (["interrupting/lawrence", "--policies", "sampled:mwkr@4"], UsageError, "cannot run in isbjssp"),
        (["jobshop/smoke", "--policies", "mwkr", "--on-interrupt", "restart"], UsageError, "interrupting shop only"),
        (
            ["interrupting/lawrence", "--policies", "mwkr", "--shutdown-probabilities", "0,x"],
            UsageError,
            "numbers such as",
        ),
        (["--instances", "no/such/folder", "--policies", "mwkr"], UsageError, "no instance file at no/such/folder"),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, arguments: list[str], error: type[DispatchGymError], said: str
) -> None:
    with pytest.raises(error, match=said):
        evaluate(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_malformed_file_is_refused_by_name_and_line_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("2 2\n0 3 1 2\n1 2 7 4\n")
    with pytest.raises(InvalidInstanceError, match=r"bad\.txt.*3"):
        evaluate("--instances", tmp_path, "--policies", "mwkr", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_operations_of_no_length_are_refused_where_jobs_block(tmp_path: Path) -> None:
    (tmp_path / "zero.txt").write_text("2 2\n0 3 1 0\n1 2 0 4\n")
    given = ("--instances", tmp_path, "--policies", "mwkr", "--out", tmp_path / "out")
    with pytest.raises(InvalidInstanceError, match=r"'zero': operation \(0, 1\)"):
        evaluate(*given, "--variant", "bws")
    assert not (tmp_path / "out").exists()
    assert evaluate(*given) == 0


@pytest.mark.parametrize("option", ["--out", "--evidence"])
def test_a_folder_that_cannot_be_written_fails_before_the_work(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    given = ("jobshop/smoke", "--policies", "mwkr", "--out", tmp_path / "out", option, tmp_path / "file" / "x")
    with pytest.raises(UsageError, match="cannot write in"):
        evaluate(*given)
    assert not (tmp_path / "out" / "journal.jsonl").exists()


def test_unknown_options_end_with_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate("jobshop/smoke", "--polices", "mwkr")
    assert end.value.code == 2
    assert "--policies" in capsys.readouterr().err


def test_help_says_what_the_command_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for word in ("jobshop/smoke", "--evidence", "--references", "side by side"):
        assert word in printed
