"""CP-SAT as a policy: it proves what is known, is told shutdowns only where its name says so, and goes by its limit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dispatchgym.agents import bundle
from dispatchgym.agents.evaluation import request, solver_policies
from dispatchgym.agents.evaluation.command import main
from dispatchgym.agents.evaluation.policies import parse_policies, parse_policy
from dispatchgym.agents.evaluation.request import Options, prepare
from dispatchgym.agents.evaluation.results import make_rows
from dispatchgym.agents.evaluation.work import WorkItem, execute, plan
from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.jobshop import library, text
from tests.agents.evaluation.examples import problem

FT06 = library.load("ft06")
STORMY = problem(FT06, variant="isbjssp", shutdown_probability=0.1)


@pytest.mark.parametrize(("variant", "optimum"), [("jssp", 55), ("bws", 63), ("bns", 69)])
def test_cp_sat_proves_ft06_in_every_shop(variant: str, optimum: int) -> None:
    result = execute(WorkItem(problem(FT06, variant=variant), parse_policy("cp-sat@10d"), 0))
    assert (result.status, result.value, result.bound) == ("optimal", optimum, optimum)
    objectives = [objective for _, objective, _ in result.history if objective is not None]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[-1] == optimum
    assert result.versions["solver_workers"] == 1
    assert result.versions["ortools"]


def test_a_hint_is_kept_when_there_is_no_time_to_beat_it() -> None:
    la01 = problem(library.load("la01"), variant="bws")
    rule = execute(WorkItem(la01, parse_policy("mwkr+cap0.7"), 0))
    hinted = execute(WorkItem(la01, parse_policy("cp-sat@0.0001d+hint:mwkr+cap0.7"), 0))
    assert (hinted.status, hinted.value) == ("feasible", rule.value)


def test_a_deterministic_limit_gives_the_same_result_for_the_same_seed() -> None:
    shop = problem(library.load("la06"), variant="bws")
    first, again = (execute(WorkItem(shop, parse_policy("cp-sat@0.3d"), 3)) for _ in range(2))
    assert first.value is not None
    assert (first.value, first.bound, first.operations) == (again.value, again.bound, again.operations)


def test_the_clairvoyant_schedule_is_the_reference_that_no_rule_beats() -> None:
    policies = parse_policies("mwkr,random,clairvoyant@10d")
    rows = make_rows([(item, execute(item)) for item in plan([STORMY], policies, 2)])
    assert len(rows) == 6
    told = [row for row in rows if row.policy == "clairvoyant@10d"]
    assert [row.status for row in told] == ["optimal", "optimal"]
    assert {row.reference_kind for row in rows} == {"clairvoyant"}
    assert all(row.gap_pct is not None and row.gap_pct >= 0 for row in rows)
    assert all(row.gap_pct == 0 for row in told)
    assert any(row.gap_pct for row in rows)


def test_rolling_meets_the_same_shutdowns_without_knowing_them(tmp_path: Path) -> None:
    given = [
        "--policies",
        "clairvoyant@10d,rolling@0.5d,mwkr",
        "--seeds",
        "2",
        "--workers",
        "0",
        "--out",
        str(tmp_path),
    ]
    text.write(FT06, tmp_path / "ft06.txt")
    shop = ["--instances", str(tmp_path), "--variant", "isbjssp", "--shutdown-probabilities", "0,0.1"]
    assert main([*shop, *given]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    rolled = {(row["scenario"], row["seed"]): row for row in rows if row["policy"] == "rolling@0.5d"}
    assert len(rolled) == 4
    assert all(row["gap_pct"] >= 0 and row["status"] == "ok" for row in rolled.values())
    assert rolled["p=0,resume", 0]["gap_pct"] == 0  # nothing happens, so the first plan is the optimum
    calm, stormy = json.loads((tmp_path / "summary.json").read_text())["plannings"]
    assert (calm["group"], calm["plannings"]) == ("6x6 p=0", 1.0)
    assert stormy["plannings"] > 1
    assert 0 < stormy["mean_s"] <= stormy["longest_s"]


def test_rolling_takes_a_plain_rule_as_hint() -> None:
    assert parse_policy("rolling@1d+hint:spt+workers:2").name == "rolling@1d+hint:spt+workers:2"
    assert parse_policy("rolling@1d+hint:mwkr").name == "rolling@1d"
    with pytest.raises(UsageError, match="starts from a plain rule"):
        parse_policy("rolling@1d+hint:mwkr+cap0.7")


def test_threads_that_outnumber_the_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def notes(policies: str, workers: int) -> tuple[str, ...]:
        return prepare(Options(suite="jobshop/smoke", policies=policies, workers=workers)).notes

    monkeypatch.setattr(request, "available_cores", lambda: 4)
    assert notes("cp-sat@1s", 4) == ()
    assert notes("cp-sat@1s+workers:2", 2) == ()
    (note,) = notes("cp-sat@1s+workers:2", 4)
    assert "2 threads in each of 4 process(es) on 4 core(s)" in note
    assert "--workers 2 would fit" in note


@pytest.mark.parametrize("hint", ["bundle:jobshop-classic", "learned", "lrpt"])
def test_a_hint_is_where_the_search_starts_and_its_time_is_told(hint: str) -> None:
    shop = problem(library.load("la06"))
    alone = execute(WorkItem(shop, parse_policy(hint), 0))
    hinted = execute(WorkItem(shop, parse_policy(f"cp-sat@0.0001d+hint:{hint}"), 0))
    assert hinted.message == ""
    assert hinted.value is not None
    assert alone.value is not None
    assert hinted.value <= alone.value
    assert hinted.notes["hint_makespan"] == alone.value
    assert 0 < hinted.notes["hint_s"] <= hinted.wall_s
    assert hinted.history[0][0] >= hinted.notes["hint_s"]


def test_the_time_of_a_hint_comes_out_of_a_wall_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []
    solve = solver_policies.cp_sat.solve

    def watched(*arguments: Any, **options: Any) -> Any:
        asked.append(options["time_limit"])
        return solve(*arguments, **options)

    monkeypatch.setattr(solver_policies.cp_sat, "solve", watched)
    result = execute(WorkItem(problem(FT06), parse_policy("cp-sat@5s+hint:learned"), 0))
    assert asked[-1] == pytest.approx(5 - result.notes["hint_s"], abs=1e-3)
    execute(WorkItem(problem(FT06), parse_policy("cp-sat@0.5d+hint:learned"), 0))
    assert asked[-1] is None


def test_hints_go_where_their_policy_goes_and_keep_the_case_of_a_path(tmp_path: Path) -> None:
    assert parse_policy("cp-sat@1s+hint:bundle:jobshop-classic").variants == {"jssp"}
    assert parse_policy("cp-sat@1s+hint:learned").variants == {"jssp", "bws", "bns"}
    assert parse_policy("clairvoyant@1s+hint:learned").variants == {"isbjssp"}
    path = tmp_path / "My-Bundle"
    shutil.copytree(bundle.find("jobshop-classic"), path)
    name = parse_policy(f"CP-SAT@1s+hint:bundle:{path}+workers:2").name
    assert name == f"cp-sat@1s+hint:bundle:{path}+workers:2"
    with pytest.raises(UnknownNameError, match="did you mean 'jobshop-classic'"):
        parse_policy("cp-sat@1s+hint:bundle:jobshop-clasic")
    with pytest.raises(UsageError, match="plain rule"):
        parse_policy("rolling@1s+hint:learned")


def test_what_hints_cost_stands_in_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = "learned,cp-sat@0.01d+hint:learned"
    assert main(["jobshop/random-4x3", "--policies", policies, "--workers", "0", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    (told,) = summary["hints"]
    learned = next(e for e in summary["entries"] if e["policy"] == "learned" and e["group"] == "4x3")
    rows = [row["value"] for row in json.loads((tmp_path / "results.json").read_text()) if row["policy"] == "learned"]
    assert told["policy"] == "cp-sat@0.01d+hint:learned"
    assert told["mean_makespan"] == pytest.approx(sum(rows) / len(rows))
    assert 0 < told["mean_s"] <= told["longest_s"]
    assert learned["failed"] == 0
    assert "hint of makespan" in capsys.readouterr().out
