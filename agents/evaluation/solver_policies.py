"""CP-SAT as a policy: by itself, told the shutdowns beforehand, or solved anew whenever one happens."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from dispatchgym.agents.evaluation.family import Kind
from dispatchgym.agents.evaluation.policies import (
    ALL_VARIANTS,
    Answer,
    Policy,
    RulePolicy,
    Run,
    number,
    parse_policy,
    parse_rule,
    parts,
)
from dispatchgym.agents.evaluation.problem import Problem
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.scenario import Scenario, no_shutdowns
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.solvers.jobshop import cp_sat
from dispatchgym.solvers.jobshop.rolling import rolling

MOST_WORKERS = 128
LEARNED = ("bundle", "learned")
"""Policies, other than rules, that can give a hint: those that play once."""
LEAST_S = 0.001
"""What is left to the solver where the hint took the whole limit."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a solve may take: wall seconds, or deterministic seconds that mean the same work on every machine."""

    amount: float
    is_deterministic: bool

    def __str__(self) -> str:
        return f"{self.amount:g}{'d' if self.is_deterministic else 's'}"

    @property
    def wall(self) -> float | None:
        return None if self.is_deterministic else self.amount

    @property
    def deterministic(self) -> float | None:
        return self.amount if self.is_deterministic else None


@dataclass(frozen=True, slots=True)
class CpSatPolicy:
    """One solve of the whole problem.

    Args:
        limit: of the solve; a wall limit includes making the hint.
        workers: search threads; one, so that a pool of evaluations does not oversubscribe the machine.
        hint: rule or learned policy whose schedule the search starts from.
        is_clairvoyant: in the interrupting shop only, knowing every shutdown; otherwise in the other shops only.
    """

    limit: Limit
    workers: int = 1
    hint: Policy | None = None
    is_clairvoyant: bool = False

    @property
    def name(self) -> str:
        return f"{'clairvoyant' if self.is_clairvoyant else 'cp-sat'}@{self.limit}{_suffix(self.workers, self.hint)}"

    @property
    def kind(self) -> Kind:
        return "clairvoyant" if self.is_clairvoyant else "solver"

    @property
    def variants(self) -> frozenset[Variant]:
        own: frozenset[Variant] = frozenset(("isbjssp",)) if self.is_clairvoyant else ALL_VARIANTS - {"isbjssp"}
        return own & self.hint.variants if self.hint else own

    @property
    def is_random(self) -> bool:
        return True

    def builder(self, variant: Variant) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        of_hint = self.hint.versions() if self.hint else {}
        return {**of_hint, "ortools": ortools_version(), "solver_workers": self.workers}

    def prepare(self, problem: Problem) -> Run:
        make_hint = self.hint.prepare(problem) if self.hint else None

        def run(scenario: Scenario | None, seed: int) -> Answer:
            began = time.perf_counter()
            hint = make_hint(scenario, seed) if make_hint else None
            spent = time.perf_counter() - began if hint else 0.0
            solution = cp_sat.solve(
                problem.instance,
                variant=problem.variant,
                scenario=scenario,
                time_limit=None if self.limit.wall is None else max(self.limit.wall - spent, LEAST_S),
                deterministic_limit=self.limit.deterministic,
                workers=self.workers,
                seed=seed,
                hint=hint.schedule if hint else None,
            )
            history = tuple((spent + each.wall_s, each.objective, each.bound) for each in solution.history)
            notes = dict(hint.notes) if hint else {}
            if hint and hint.schedule:
                notes |= {"hint_s": round(spent, 6), "hint_makespan": hint.schedule.makespan}
            return Answer(solution.schedule, solution.status, None, solution.bound, history, notes)

        return run


@dataclass(frozen=True, slots=True)
class RollingPolicy:
    """CP-SAT planning anew at every shutdown, repair and arrival, knowing no more than a rule does.

    Args:
        limit: of each planning.
        workers: search threads of each planning.
        hint_rule: rule whose schedule the first plan starts from.
    """

    limit: Limit
    workers: int = 1
    hint_rule: str = "mwkr"

    @property
    def name(self) -> str:
        hint = None if self.hint_rule == "mwkr" else RulePolicy(self.hint_rule)
        return f"rolling@{self.limit}{_suffix(self.workers, hint)}"

    @property
    def kind(self) -> Kind:
        return "solver"

    @property
    def variants(self) -> frozenset[Variant]:
        return frozenset(("isbjssp",))

    @property
    def is_random(self) -> bool:
        return True

    def builder(self, variant: Variant) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"ortools": ortools_version(), "solver_workers": self.workers}

    def prepare(self, problem: Problem) -> Run:
        def run(scenario: Scenario | None, seed: int) -> Answer:
            result = rolling(
                problem.instance,
                scenario or no_shutdowns(problem.instance.num_machines),
                limit_s=self.limit.wall,
                deterministic_limit=self.limit.deterministic,
                workers=self.workers,
                seed=seed,
                hint_rule=self.hint_rule,
            )
            plannings = [each.wall_s for each in result.solves]
            return Answer(result.schedule, decisions=result.decisions, notes={"planning_s": plannings})

        return run


def parse_cp_sat(spec: str, delta: float) -> CpSatPolicy:
    """`cp-sat@10s`, `cp-sat@5d`, with `+hint:RULE`, `+hint:bundle:NAME` or `+hint:learned`, and `+workers:N`."""
    limit, workers, hint = _parse(spec, delta, "cp-sat")
    return CpSatPolicy(limit, workers, hint)


def parse_clairvoyant(spec: str, delta: float) -> CpSatPolicy:
    """`clairvoyant@10s`, with the same options as `cp-sat`."""
    limit, workers, hint = _parse(spec, delta, "clairvoyant")
    return CpSatPolicy(limit, workers, hint, is_clairvoyant=True)


def parse_rolling(spec: str, delta: float) -> RollingPolicy:
    """`rolling@1s` or `rolling@1d` for each planning, with `+hint:RULE` and `+workers:N`."""
    limit, workers, hint = _parse(spec, delta, "rolling")
    if hint is not None and not (isinstance(hint, RulePolicy) and hint.name == hint.rule):
        raise UsageError(f"policy {spec!r}: the first plan starts from a plain rule such as hint:mwkr")
    return RollingPolicy(limit, workers, hint.name if hint else "mwkr")


def _parse(spec: str, delta: float, family: str) -> tuple[Limit, int, Policy | None]:
    head, limit, options = parts(spec)
    if head.lower() != family:
        raise UsageError(f"policy {spec!r}: write {family}@10s, not {head}")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|d)", (limit or "").lower())
    if not match or float(match[1]) <= 0:
        raise UsageError(
            f"policy {spec!r} needs a limit above 0: {family}@10s in wall seconds or {family}@5d in deterministic ones"
        )
    workers, hint = 1, ""
    for option in options:
        key, _, value = option.partition(":")
        if key.lower() == "workers":
            workers = int(number(spec, option, value, 1, MOST_WORKERS))
        elif key.lower() == "hint" and value:
            hint = value
        elif hint:
            hint += f"+{option}"  # an option of the hint's rule, such as its cap
        else:
            raise UsageError(f"policy {spec!r}: {option!r} is not an option of {family}; known: hint:RULE, workers:2")
    return Limit(float(match[1]), match[2] == "d"), workers, _hint(hint, delta) if hint else None


def _hint(hint: str, delta: float) -> Policy:
    if hint.lower().partition(":")[0] not in LEARNED:
        return parse_rule(hint, delta)
    return parse_policy(hint, delta)


def _suffix(workers: int, hint: Policy | None) -> str:
    return (f"+hint:{hint.name}" if hint else "") + (f"+workers:{workers}" if workers > 1 else "")


@cache
def ortools_version() -> str:
    """Of the installed OR-Tools."""
    return metadata.version("ortools")
