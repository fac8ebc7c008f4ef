"""Rows and the references their gaps are measured against."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from dispatchgym.agents.evaluation.family import Finished, Kind
from dispatchgym.agents.evaluation.policies import Answer
from dispatchgym.agents.evaluation.problem import Problem, Reference
from dispatchgym.agents.evaluation.results import Row, conflicts, gap_pct, make_rows, write_results
from dispatchgym.agents.evaluation.work import Result, WorkItem
from tests.agents.evaluation.examples import FixedPolicy, problem, row

STORMY: dict[str, Any] = {"variant": "isbjssp", "shutdown_probability": 0.1}


Run = tuple[str, Kind, str, int | None, int | None]
"""Policy, kind, status, value and bound."""


def finished(of: Problem, *runs: Run) -> Finished:
    found = []
    for name, kind, status, value, bound in runs:
        item = WorkItem(of, FixedPolicy(lambda scenario, seed: Answer(None), name, kind), 0)
        found.append((item, Result(item.key, status, value, bound=bound)))
    return found


def references(of: Problem, *runs: Run) -> set[tuple[int | None, str | None]]:
    return {(each.reference, each.reference_kind) for each in make_rows(finished(of, *runs))}


RULE: Run = ("mwkr", "rule", "ok", 110, None)


def test_a_row_has_exactly_the_fields_of_the_contract() -> None:
    names = (
        "suite, group, instance, variant, builder, policy, seed, scenario, metric, value, reference, reference_kind, "
    )
    names += "gap_pct, decisions, wall_s, cpu_s, status, bound, versions"
    assert ", ".join(field.name for field in fields(Row)) == names


def test_results_json_is_a_flat_list_that_reads_back(tmp_path: Path) -> None:
    rows = [row("mwkr", "one", 110, Reference(100, "optimum")), row("mwkr", "two", None)]
    write_results(rows, tmp_path / "results.json")
    assert [Row(**each) for each in json.loads((tmp_path / "results.json").read_text())] == rows


def test_gaps_are_percent_of_the_reference() -> None:
    assert gap_pct(110, Reference(100, "optimum")) == 10.0
    assert gap_pct(95, Reference(100, "best-known")) == -5.0
    assert gap_pct(None, Reference(100, "optimum")) is None
    assert gap_pct(110, None) is None
    assert gap_pct(0, Reference(0, "optimum")) is None


def test_a_known_reference_comes_first() -> None:
    known = problem(reference=Reference(100, "best-known"))
    assert references(known, RULE, ("cp-sat@1s", "solver", "optimal", 99, 99)) == {(100, "best-known")}


def test_without_one_an_optimum_proven_in_this_run_serves() -> None:
    runs: tuple[Run, ...] = (
        ("a", "solver", "feasible", 101, 97),
        ("b", "solver", "optimal", 99, 99),
        ("c", "solver", "unknown", None, 98),
    )
    assert references(problem(), RULE, *runs) == {(99, "optimum")}
    assert references(problem(), *runs[::-1], RULE) == {(99, "optimum")}


def test_else_the_greatest_bound_proven_in_this_run_is_named_a_bound() -> None:
    runs: tuple[Run, ...] = (("a", "solver", "feasible", 101, 97), ("c", "solver", "unknown", None, 98))
    assert references(problem(), RULE, *runs) == {(98, "bound")}


def test_an_unproven_schedule_is_never_a_reference() -> None:
    assert references(problem(), RULE, ("a", "solver", "feasible", 101, None)) == {(None, None)}


def test_with_shutdowns_the_best_clairvoyant_schedule_is_the_reference_and_never_an_optimum() -> None:
    runs: tuple[Run, ...] = (("c@1s", "clairvoyant", "feasible", 104, 90), ("c@9s", "clairvoyant", "optimal", 100, 100))
    assert references(problem(**STORMY), RULE, *runs) == {(100, "clairvoyant")}
    assert references(problem(**STORMY), RULE, ("c@1s", "clairvoyant", "unknown", None, 90)) == {(None, None)}


def test_without_shutdowns_a_clairvoyant_proof_is_an_optimum() -> None:
    calm = problem(variant="isbjssp")
    assert references(calm, RULE, ("c@9s", "clairvoyant", "optimal", 100, 100)) == {(100, "optimum")}


def test_shutdowns_of_another_seed_are_another_problem() -> None:
    (rule, rule_result), (told, told_result) = finished(
        problem(**STORMY), RULE, ("c@1s", "clairvoyant", "optimal", 100, 100)
    )
    other = replace(rule, seed=1)
    rows = make_rows([(rule, rule_result), (told, told_result), (other, replace(rule_result, key=other.key))])
    assert [each.gap_pct for each in rows] == [10.0, 0.0, None]
    assert [each.scenario for each in rows] == [f"p=0.1,resume,seed={seed}" for seed in (0, 0, 1)]


@pytest.mark.parametrize(
    ("kind", "run", "said"),
    [
        ("optimum", ("spt", "rule", "ok", 99, None), ["makespan 99 is below the optimum 100"]),
        ("bound", ("spt", "rule", "ok", 99, None), ["makespan 99 is below the bound 100"]),
        ("best-known", ("spt", "rule", "ok", 99, None), []),
        ("best-known", ("cp-sat", "solver", "feasible", 105, 101), ["proven bound 101 is above the best-known 100"]),
        ("optimum", ("cp-sat", "solver", "optimal", 100, 100), []),
    ],
)
def test_facts_that_contradict_a_reference_are_found(kind: Any, run: Any, said: list[str]) -> None:
    found = conflicts(finished(problem(reference=Reference(100, kind)), run))
    assert [line.split(": ", 1)[1] for line in found] == said


def test_a_bound_above_another_policys_schedule_is_found() -> None:
    found = conflicts(finished(problem(), RULE, ("cp-sat", "solver", "unknown", None, 111)))
    assert any("proven bound 111 is above the makespan 110 of mwkr" in line for line in found)
    assert conflicts(finished(problem(), RULE, ("cp-sat", "solver", "unknown", None, 110))) == []
