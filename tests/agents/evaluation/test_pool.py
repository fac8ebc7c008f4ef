"""Worker processes: same results as without them, and a dead one is named and replaced."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import pytest

from dispatchgym.agents.evaluation.policies import RulePolicy, parse_policies
from dispatchgym.agents.evaluation.pool import run_items
from dispatchgym.agents.evaluation.work import Result, WorkItem, plan
from dispatchgym.envs.jobshop import library
from tests.agents.evaluation.examples import problem


@dataclass(frozen=True)
class KillsItsWorker(RulePolicy):
    """Ends the process that receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)


def without_times(results: list[tuple[WorkItem, Result]]) -> dict[str, Result]:
    return {item.key: replace(result, wall_s=0.0, cpu_s=0.0) for item, result in results}


@pytest.fixture(scope="module")
def items() -> list[WorkItem]:
    shops = [
        problem(library.load("ft06")),
        problem(library.load("la01"), variant="isbjssp", shutdown_probability=0.1),
    ]
    return plan(shops, parse_policies("mwkr,random,mwkr+cap=tuned"), 2)


def test_results_do_not_depend_on_the_workers(items: list[WorkItem]) -> None:
    here = without_times(list(run_items(items, 0)))
    assert len(here) == len(items)
    assert without_times(list(run_items(items, 2))) == here
    assert without_times(list(run_items(items[::-1], 0))) == here


def test_a_worker_that_dies_is_reported_by_item_and_the_rest_goes_on(items: list[WorkItem]) -> None:
    deadly = WorkItem(problem(library.load("ft06")), KillsItsWorker("spt"), 0)
    results = {item.key: result for item, result in run_items([items[0], deadly, *items[1:3]], 1)}
    assert [result.status for result in results.values()] == ["ok", "crashed", "ok", "ok"]
    assert "ft06" in results[deadly.key].key
    assert "ended with exit code 7" in results[deadly.key].message


def test_leaving_early_stops_the_workers(items: list[WorkItem]) -> None:
    running = run_items(items, 1)
    next(running)
    running.close()
    assert list(running) == []


def test_nothing_to_do_starts_nothing() -> None:
    assert list(run_items([], 4)) == []
