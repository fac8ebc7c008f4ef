"""`dispatchgym evaluate llm/...`: suites, policies, judge, evidence and what is said of them."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispatchgym.agents.evaluation import command
from dispatchgym.agents.evaluation.llm import evidence_check, published, suites, tuned
from dispatchgym.agents.evaluation.llm.judge import check
from dispatchgym.agents.evaluation.llm.policies import POLICIES, PORTFOLIO, parse_policy
from dispatchgym.agents.evaluation.llm.problem import METRICS, WORLDS, LlmProblem, Traffic
from dispatchgym.agents.evaluation.measures import MEASURES
from dispatchgym.agents.evaluation.request import own_suite
from dispatchgym.agents.evaluation.work import WorkItem, execute
from dispatchgym.envs.api import InvalidScheduleError, UnknownNameError, UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.simulate import simulate

ENGINE = EngineConfig(kv_blocks=300, host_blocks=300, max_seqs=16, token_budget=512)
PROBLEM = LlmProblem("tests", "busy", Traffic("busy", "chat", ENGINE, 20, (("rate_per_s", 50.0),)), "own")


def run(policy: str, problem: LlmProblem = PROBLEM, seed: int = 0) -> Any:
    return execute(WorkItem(problem, parse_policy(policy), seed))


def test_smoke_runs_and_its_evidence_holds(tmp_path: Path) -> None:
    arguments = ["llm/smoke", "--policies", "vllm,flow-prefill", "--seeds", "1", "--workers", "0"]
    assert command.main([*arguments, "--out", str(tmp_path / "out"), "--evidence", str(tmp_path / "seen")]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["metric"] for row in rows} == {"goodput_rps", "goodput_tps"}
    assert len(rows) == 6
    assert all(row["status"] == "ok" and row["value"] > 0 for row in rows)
    assert "Over time" in (tmp_path / "out" / "report.html").read_text()
    assert list(evidence_check.problems_of(tmp_path / "seen")) == []
    lines = (tmp_path / "seen" / "steps.jsonl").read_text().splitlines()
    step = json.loads(lines[3])
    step["grants"][0][1] += 10**6
    (tmp_path / "seen" / "steps.jsonl").write_text("\n".join([*lines[:3], json.dumps(step), *lines[5:]]) + "\n")
    said = "\n".join(evidence_check.problems_of(tmp_path / "seen"))
    assert "tokens, more than 8192" in said
    assert "out of order" in said


def test_every_world_has_a_measure_and_every_suite_its_policies() -> None:
    assert set(METRICS) == set(WORLDS)
    assert set(METRICS.values()) <= set(MEASURES)
    for suite in suites.SUITES.values():
        problems = list(suite.build())
        assert len({(p.variant, p.group) for p in problems}) == len(problems)
        for spec in suite.policies.split(","):
            policy = pickle.loads(pickle.dumps(parse_policy(spec)))  # our own object
            assert any(p.variant in policy.variants for p in problems)
    assert all(parse_policy(name) for name in PORTFOLIO)


def test_seeds_draw_other_requests_and_loads_share_them() -> None:
    slow, fast = (p for p in suites.SUITES["llm/laps"].build() if p.group in ("70/s", "100/s"))
    a, b, other = slow.scenario(0).workload, fast.scenario(0).workload, slow.scenario(1).workload
    assert np.array_equal(a.prompt_tokens, b.prompt_tokens)
    assert np.allclose(a.arrival_s * 70, b.arrival_s * 100)
    assert not np.array_equal(a.prompt_tokens, other.prompt_tokens)


def test_the_same_run_twice_and_its_figures() -> None:
    first, second = run("vllm"), run("vllm")
    assert first.status == "ok"
    assert first.value == second.value == first.metrics["goodput_rps"]
    assert first.metrics["requests"] == 20
    assert len(first.metrics["timeline"]["kv"]) == 60


def test_the_judge_refuses_what_cannot_be() -> None:
    workload = PROBLEM.scenario(0).workload
    record = simulate(workload, None, ENGINE)
    check(record, ENGINE)
    late = record.requests.first_token_s.copy()
    late[3] = -1.0
    for broken, said in (
        (replace(record, requests=replace(record.requests, first_token_s=late)), "first token before the arrival"),
        (replace(record, kv_blocks=1), "more KV blocks in use than there are"),
        (
            replace(record, requests=replace(record.requests, computed_tokens=record.requests.computed_tokens - 1)),
            "tokens that nobody computed",
        ),
    ):
        with pytest.raises(InvalidScheduleError, match=said):
            check(broken, ENGINE)
    with pytest.raises(InvalidScheduleError, match="beyond the token budget"):
        check(record, replace(ENGINE, token_budget=1))


def test_the_best_in_hindsight_is_the_best_of_its_portfolio() -> None:
    few = replace(PROBLEM, instance=replace(PROBLEM.instance, requests=8))
    best = run("best-in-hindsight", few)
    values = {name: run(name, few).value for name in (*PORTFOLIO, *tuned.table()["own"].values())}
    assert best.value == max(values.values())
    assert values[best.notes["best"]] == best.value


def test_small_problems_have_a_proven_optimum_that_the_engine_reaches() -> None:
    problem = suites.SUITES["llm/small"].build()[0]  # type: ignore[index]
    problem = replace(problem, instance=replace(problem.instance, requests=5))
    found = run("hindsight", problem)
    assert (found.status, found.value) == ("optimal", pytest.approx(0.0))
    assert run("mc-sf", problem).value >= 0.0


def test_names_with_constants_tuned_and_wrong_ones() -> None:
    assert parse_policy("sarathi+chunk=256").name == "sarathi+chunk=256"
    assert parse_policy("mc-sf").kind == "clairvoyant"
    assert parse_policy("mc-sf+lengths=max").kind == "rule"
    name, spec = next(iter(tuned.table()["flow-prefill"].items()))
    problem = next(iter(suites.SUITES["llm/flow-prefill"].build()))
    few = replace(problem, instance=replace(problem.instance, requests=30))
    assert run(f"{name}+tuned", few).value == run(spec, few).value
    for wrong in ("sarathy", "vllm+chunk=3", "andes+tuned"):
        with pytest.raises(UnknownNameError):
            parse_policy(wrong)
    with pytest.raises(UsageError, match="has no options"):
        parse_policy("best-in-hindsight+x")
    assert set(POLICIES) >= {"bundle", "merit", "hindsight"}


def test_own_traces_are_known_by_their_columns(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n0.5,200,7\n")
    family, suite = own_suite(str(tmp_path))
    assert family.name == "llm"
    (problem,) = suite.build()  # type: ignore[attr-defined]
    assert problem.instance.ttft_slo_s == 2.0
    assert not problem.varies
    assert run("vllm", problem).metrics["finished"] == 2
    trace.rename(tmp_path / "mine.txt")
    with pytest.raises(UsageError):
        suites.own_traces(str(tmp_path))


def test_means_over_contests_by_hand() -> None:
    def group(base: float, other: float) -> dict[str, dict[int, float]]:
        return {"base": {0: base, 1: base}, "other": {0: other, 1: other}, "here": {0: 1.0}}

    values = {"laps": {"a": group(2.0, 4.0), "b": group(1.0, 4.0)}, "exspec": {"c": group(3.0, 4.0)}}
    del values["exspec"]["c"]["here"]
    (row,) = published.means_over_contests(values)
    assert (row["policy"], row["base"], row["worlds"]) == ("other", "base", 2)
    assert row["mean_pct"] == pytest.approx(100 * ((3.0 * 4.0 / 3.0) ** 0.5 - 1))
    assert row["interval"] == pytest.approx([row["mean_pct"]] * 2)
    once = {world: {g: {p: {0: 2.0} for p in of} for g, of in groups.items()} for world, groups in values.items()}
    (row,) = published.means_over_contests(once)
    assert row["interval"] is None
    assert "an interval" in published.mean_lines([row])[0]


def test_claims_stand_beside_what_was_measured() -> None:
    one = {"batch-llm": {0: 3.0}, "vllm": {0: 2.0}}
    lines, plain = published.claim_lines({"batch-llm": {"ample KV": one}})
    assert plain[0]["ratios"] == {"ample KV": 1.5}
    assert "batch-llm / vllm: 1.50 here, published 1.3 to 10.8" in lines[0][1]
