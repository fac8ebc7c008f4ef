"""One unit of work: one policy on one problem with one seed, run, timed and validated."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import dispatchgym
from dispatchgym.agents.evaluation.family import AnyPolicy, AnyProblem, family_of
from dispatchgym.agents.evaluation.problem import derived_seed
from dispatchgym.envs.api import DispatchGymError, UsageError
from dispatchgym.envs.jobshop.schedule import Schedule

FAILURES = frozenset(("invalid", "failed", "crashed"))
"""Statuses that make the command fail: a broken schedule, an episode or program that broke off, a dead process."""

SOLVED = frozenset(("ok", "optimal", "feasible"))
"""Statuses with a schedule."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """What one worker does at a time."""

    problem: AnyProblem
    policy: AnyPolicy
    seed: int

    @property
    def key(self) -> str:
        """Names the item in journals and messages; equal keys mean equal results."""
        p = self.problem
        shutdowns = p.scenario_name(self.seed) or "-"
        return f"{p.instance.name}#{p.instance.digest[:16]} {p.variant} {shutdowns} {self.policy.name} seed={self.seed}"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a work item. Plain values only, so that a journal line holds it whole.

    Args:
        key: of the work item.
        status: 'ok', a solver's status, or one of FAILURES.
        value: the problem's metric for a valid schedule, else None (and where it has no meaning).
        message: why it failed.
        wall_s, cpu_s: of the run alone; CPU time counts every thread of the worker.
        operations: job shop: start, end and leave of every operation, in the instance's flat order.
        metrics: packing: everything that was measured, by name.
        events: packing: what happened, as rows of time, kind, pod, node, slots, cause.
        hosts: packing: pod, node of all that runs in the end.
    """

    key: str
    status: str
    value: float | None = None
    message: str = ""
    decisions: int | None = None
    bound: int | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    versions: Mapping[str, str | int] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Sequence[float | int | None]] = ()
    operations: Sequence[Sequence[int]] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Sequence[int]] = field(default_factory=list)
    hosts: Sequence[Sequence[int]] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule | None:
        """The schedule, or None where there is no valid one."""
        return Schedule(*(np.array(times, np.int64) for times in self.operations)) if self.operations else None


def plan(problems: Iterable[AnyProblem], policies: Sequence[AnyPolicy], seeds: int) -> list[WorkItem]:
    """Every work item, in a fixed order.

    Where neither the policy nor the problem draws anything, all seeds would give the same
    schedule: one run stands for them, and no interval gets narrower by repetition.
    """
    return [
        WorkItem(problem, policy, seed)
        for problem in problems
        for policy in policies
        if problem.variant in policy.variants
        for seed in range(seeds if policy.is_random or problem.varies else 1)
    ]


def check_policies(problems: Sequence[AnyProblem], policies: Sequence[AnyPolicy]) -> list[str]:
    """Notes on policies that run in some of the shops only.

    Raises:
        UsageError: a policy runs in none of them.
    """
    shops: dict[str, int] = {}
    for problem in problems:
        shops[problem.variant] = shops.get(problem.variant, 0) + 1
    notes = []
    for policy in policies:
        shared = [shop for shop in shops if shop in policy.variants]
        if not shared:
            raise UsageError(
                f"policy {policy.name} cannot run in {', '.join(shops)}; it is for {', '.join(sorted(policy.variants))}"
                + (" (clairvoyant@10s is CP-SAT told the shutdowns)" if policy.kind == "solver" else "")
            )
        if len(shared) < len(shops):
            count = sum(shops[shop] for shop in shared)
            notes.append(f"{policy.name} runs in {', '.join(shared)} only: {count} of {len(problems)} problems")
    return notes


def execute(item: WorkItem) -> Result:
    """Run, time and validate one item; whatever goes wrong becomes a failed result, never an exception."""
    versions: dict[str, str | int] = {"dispatchgym": dispatchgym.__version__, "python": platform.python_version()}
    try:
        versions |= item.policy.versions()
        _warm_up(item.policy, item.problem)
        run = item.policy.prepare(item.problem)
        scenario = item.problem.scenario(item.seed)
        seed = derived_seed("policy", item.policy.name, item.problem.instance.digest, str(item.seed))
        wall, cpu = time.perf_counter(), time.process_time()
        answer = run(scenario, seed)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    except DispatchGymError as error:
        return Result(item.key, "failed", message=str(error), versions=versions)
    except Exception:
        # An evaluation of thousands of runs must outlive a bug in one policy; the traceback is kept and shown.
        return Result(item.key, "failed", message=traceback.format_exc(), versions=versions)
    timed = Result(item.key, answer.status, wall_s=wall, cpu_s=cpu, versions=versions, notes=answer.notes)
    return family_of(item.problem).judge(timed, item.problem, answer, scenario)


_warm: set[tuple[str, str]] = set()


def _warm_up(policy: AnyPolicy, problem: AnyProblem) -> None:
    """Run the policy once on a tiny problem, so that compiling and importing count in nobody's time."""
    if (policy.name, problem.variant) not in _warm:
        tiny = family_of(problem).tiny(problem)
        policy.prepare(tiny)(tiny.scenario(0), 0)
        _warm.add((policy.name, problem.variant))
