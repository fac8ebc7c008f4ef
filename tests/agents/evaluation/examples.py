"""Small problems, policies and rows that the tests of evaluation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dispatchgym.agents.evaluation.family import Kind
from dispatchgym.agents.evaluation.policies import ALL_VARIANTS, Answer, Run
from dispatchgym.agents.evaluation.problem import Problem, Reference
from dispatchgym.agents.evaluation.results import Row
from dispatchgym.agents.evaluation.work import WorkItem
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant

TWO_JOBS = Instance.from_routes("two-jobs", [[(0, 3), (1, 2)], [(1, 2), (0, 4)]])
"""Optimum 7: machine 0 works 3 + 4 without a pause."""


def best_schedule() -> Schedule:
    """Of TWO_JOBS: job 0 at 0-3 and 3-5, job 1 at 0-2 and 3-7."""
    start, end = np.array([0, 3, 0, 3]), np.array([3, 5, 2, 7])
    return Schedule(start, end, end)


def problem(instance: Instance = TWO_JOBS, **changes: Any) -> Problem:
    """A classic problem of the suite 'tests'."""
    given: dict[str, Any] = {"suite": "tests", "group": instance.size, "instance": instance, "variant": "jssp"}
    return Problem(**(given | changes))


@dataclass(frozen=True)
class FixedPolicy:
    """A policy that does what `behave` says."""

    behave: Callable[[Scenario | None, int], Answer]
    name: str = "fixed"
    kind: Kind = "rule"
    variants: frozenset[Variant] = ALL_VARIANTS
    is_random: bool = False

    def builder(self, variant: Variant) -> str | None:
        return "by-hand"

    def versions(self) -> dict[str, str | int]:
        return {"fixed": 1}

    def prepare(self, problem: Problem) -> Run:
        return self.behave


def item(behave: Callable[[Scenario | None, int], Answer], seed: int = 0, of: Problem | None = None) -> WorkItem:
    """One run of a FixedPolicy."""
    return WorkItem(of or problem(), FixedPolicy(behave), seed)


def row(policy: str, instance: str, value: int | None, reference: Reference | None = None, **changes: Any) -> Row:
    """A row of results.json; the gap follows from value and reference."""
    has_gap = value is not None and reference is not None
    given: dict[str, Any] = {
        "suite": "tests",
        "group": "2x2",
        "instance": instance,
        "variant": "jssp",
        "builder": "non-delay",
        "policy": policy,
        "seed": 0,
        "scenario": None,
        "metric": "makespan",
        "value": value,
        "reference": reference.value if reference else None,
        "reference_kind": reference.kind if reference else None,
        "gap_pct": 100.0 * (value - reference.value) / reference.value if has_gap and value and reference else None,
        "decisions": 4,
        "wall_s": 0.5,
        "cpu_s": 0.25,
        "status": "ok" if value is not None else "failed",
        "bound": None,
        "versions": {"dispatchgym": "0"},
    }
    return Row(**(given | changes))
