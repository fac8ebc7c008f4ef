"""Packing policies by the names people type: `fgd`, `kube-scheduler+repair50ms`, `cp-sat@10s+hint:best-fit`."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

import numba
import numpy as np

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.evaluation.family import AnyPolicy, Kind
from dispatchgym.agents.evaluation.packing.problem import PackingAnswer, PackingProblem, Run, Start, World
from dispatchgym.agents.evaluation.policies import number, parts
from dispatchgym.agents.evaluation.solver_policies import LEAST_S, MOST_WORKERS, Limit, ortools_version
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.validate import validate
from dispatchgym.envs.registry import Registry, unknown_name
from dispatchgym.solvers.packing import cp_sat, kube_scheduler, rules
from dispatchgym.solvers.packing.kube_scheduler import MOST_ALLOCATED, REQUESTED_TO_CAPACITY, Settings
from dispatchgym.solvers.packing.plan import Hosts
from dispatchgym.solvers.packing.repair import repair

EVERYWHERE: frozenset[World] = frozenset(("pods", "gpus", "lifetimes"))
PODS: frozenset[World] = frozenset(("pods",))

DEFAULT = "kube-scheduler"
SCHEDULERS: dict[str, Settings] = {
    DEFAULT: Settings(),
    "most-allocated": MOST_ALLOCATED,
    "requested-to-capacity": REQUESTED_TO_CAPACITY,
}
"""kube-scheduler under its configurations."""


@dataclass(frozen=True, slots=True)
class RulePolicy:
    """A packing rule, see `solvers.packing.rules`."""

    rule: str

    @property
    def name(self) -> str:
        return self.rule

    @property
    def kind(self) -> Kind:
        return "rule"

    @property
    def variants(self) -> frozenset[World]:
        return EVERYWHERE

    @property
    def is_random(self) -> bool:
        return self.rule == "random"

    def builder(self, variant: World) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"numba": numba.__version__, "numpy": np.__version__}

    def prepare(self, problem: PackingProblem) -> Run:
        def run(start: Start | None, seed: int) -> PackingAnswer:
            done = rules.rollout(problem.instance, self.rule, problem.config, seed=seed)
            return PackingAnswer(done.log.events(), decisions=done.decisions)

        return run


@dataclass(frozen=True, slots=True)
class SchedulerPolicy:
    """kube-scheduler in one of its configurations. By default, in the world "pods", it is the run to be improved.

    Args:
        strategy: a key of SCHEDULERS.
        by_change: NodeResourcesBalancedAllocation in its newer form.
    """

    strategy: str
    by_change: bool = False

    @property
    def name(self) -> str:
        return self.strategy + ("+change" if self.by_change else "")

    @property
    def kind(self) -> Kind:
        return "rule"

    @property
    def variants(self) -> frozenset[World]:
        return EVERYWHERE

    @property
    def is_random(self) -> bool:
        return True

    def builder(self, variant: World) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"numba": numba.__version__, "numpy": np.__version__}

    def prepare(self, problem: PackingProblem) -> Run:
        settings = SCHEDULERS[self.strategy]
        if self.by_change:
            settings = replace(settings, balanced="change")

        def run(start: Start | None, seed: int) -> PackingAnswer:
            if self.name == DEFAULT and start is not None:
                return PackingAnswer(start.events)
            done = kube_scheduler.rollout(problem.instance, settings, problem.config, seed=seed)
            return PackingAnswer(done.log.events(), decisions=done.decisions)

        return run


@dataclass(frozen=True, slots=True)
class CpSatPolicy:
    """One solve from where the default scheduler left the cluster.

    Args:
        limit: of the solve; a wall limit includes making the hint.
        method: of `cp_sat.solve`.
        workers: search threads.
        hint: policy whose last placement the search begins with, if it is better than the default's.
    """

    limit: Limit
    method: cp_sat.Method = "anytime"
    workers: int = 1
    hint: AnyPolicy | None = None

    @property
    def name(self) -> str:
        method = "" if self.method == "anytime" else f"+{self.method}"
        workers = f"+workers:{self.workers}" if self.workers > 1 else ""
        return f"cp-sat@{self.limit}{method}{workers}" + (f"+hint:{self.hint.name}" if self.hint else "")

    @property
    def kind(self) -> Kind:
        return "solver"

    @property
    def variants(self) -> frozenset[World]:
        return PODS

    @property
    def is_random(self) -> bool:
        return True

    def builder(self, variant: World) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        of_hint = self.hint.versions() if self.hint else {}
        return {**of_hint, "ortools": ortools_version(), "solver_workers": self.workers}

    def prepare(self, problem: PackingProblem) -> Run:
        make_hint = self.hint.prepare(problem) if self.hint else None

        def run(start: Start | None, seed: int) -> PackingAnswer:
            assert start is not None, "the world 'pods' has a default run"
            began = time.perf_counter()
            hint = last_hosts(problem, make_hint(start, seed)) if make_hint else None
            spent = time.perf_counter() - began
            solution = cp_sat.solve(
                problem.instance,
                start.hosts,
                method=self.method,
                time_limit=None if self.limit.wall is None else max(self.limit.wall - spent, LEAST_S),
                deterministic_limit=self.limit.deterministic,
                workers=self.workers,
                seed=seed,
                hint=hint,
            )
            proven = solution.status == "optimal"
            return PackingAnswer(
                start.events,
                solution.plan.then,
                "optimal" if proven else "feasible",  # what there was is a placement too
                proven,
                notes={"deterministic_s": solution.deterministic_s},
            )

        return run


@dataclass(frozen=True, slots=True)
class RepairedPolicy:
    """Any policy, and local search on the placement it ends with.

    Args:
        base: what is repaired.
        limit: of the repair alone.
    """

    base: AnyPolicy
    limit: Limit

    @property
    def name(self) -> str:
        return f"{self.base.name}+repair{written(self.limit)}"

    @property
    def kind(self) -> Kind:
        return "search"

    @property
    def variants(self) -> frozenset[World]:
        return PODS & self.base.variants

    @property
    def is_random(self) -> bool:
        return True

    def builder(self, variant: World) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return self.base.versions()

    def prepare(self, problem: PackingProblem) -> Run:
        play = self.base.prepare(problem)

        def run(start: Start | None, seed: int) -> PackingAnswer:
            answer: PackingAnswer = play(start, seed)
            hosts = last_hosts(problem, answer)
            found = repair(
                problem.instance,
                hosts,
                time_limit=self.limit.wall,
                deterministic_limit=self.limit.deterministic,
                seed=seed,
            )
            notes = {**answer.notes, "repair_s": found.wall_s, "repair_deterministic_s": found.deterministic_s}
            return replace(
                answer,
                then=found.plan.then,
                status="ok",
                is_proven=answer.is_proven and found.plan.then == hosts,
                notes=notes,
            )

        return run


POLICIES = Registry(
    "policy",
    {
        **dict.fromkeys(rules.RULES, "dispatchgym.agents.evaluation.packing.policies:parse_rule"),
        **dict.fromkeys(SCHEDULERS, "dispatchgym.agents.evaluation.packing.policies:parse_scheduler"),
        "cp-sat": "dispatchgym.agents.evaluation.packing.policies:parse_cp_sat",
        "bundle": "dispatchgym.agents.learned_packing:parse_bundle",
        "learned": "dispatchgym.agents.learned_packing:parse_learned",
    },
)
"""First word of a policy's name -> parser of the whole name."""

FORMS = (
    *rules.MEANING.items(),
    (
        DEFAULT,
        "Kubernetes' default scheduler; it evicts where pods have priorities (+change: newer BalancedAllocation)",
    ),
    ("most-allocated, requested-to-capacity", "the same with the scoring that packs"),
    ("POLICY+repair50ms", "local search on the policy's last placement: 50 ms, 1s, or 0.05d of the same work anywhere"),
    (
        "cp-sat@10s, cp-sat@5d",
        "OR-Tools CP-SAT from the default's placement, 10 s of wall time or 5 deterministic ones",
    ),
    ("cp-sat@10s+tiers", "tier by tier, as published, instead of anytime; +workers:4 for more search threads"),
    ("bundle:NAME, bundle:PATH", "a learned policy; @16: the best of 16 runs, all but one of them sampled"),
    ("learned", "in each world the shipped bundle that was trained for it; @16 as above"),
    ("cp-sat@10s+hint:POLICY", "begun with the policy's placement, such as +hint:kube-scheduler+repair50ms"),
)
"""How a policy may be written, and what it is: what `--list` prints."""


def parse_policy(spec: str, delta: float = 0.0) -> AnyPolicy:
    """The packing policy called `spec`; `delta` is for job shops.

    Raises:
        UnknownNameError: with the closest names.
        UsageError: a known policy with an option or a limit that it does not have.
    """
    text = spec.strip()
    head = re.split(r"[@+:]", text, maxsplit=1)[0].lower()
    if head not in POLICIES:
        raise unknown_name("packing policy", head, [*POLICIES, *bundles.typed("packing")])
    before, is_hinted, _ = text.partition("+hint:")
    base, is_repaired, limit = before.rpartition("+repair")
    if is_repaired and not is_hinted:
        return RepairedPolicy(parse_policy(base), limit_of(spec, limit))
    policy: AnyPolicy = POLICIES[head](text)
    return policy


def parse_rule(spec: str) -> RulePolicy:
    """A rule, which has no options."""
    if spec.lower() not in rules.RULES:
        raise UsageError(f"policy {spec!r}: a packing rule has no options but +repair50ms")
    return RulePolicy(spec.lower())


def parse_scheduler(spec: str) -> SchedulerPolicy:
    """`kube-scheduler`, `most-allocated` or `requested-to-capacity`, with `+change`."""
    head, *options = spec.lower().split("+")
    if head not in SCHEDULERS or options not in ([], ["change"]):
        raise UsageError(f"policy {spec!r}: write {head}, {head}+change, and +repair50ms behind either")
    return SchedulerPolicy(head, bool(options))


def parse_cp_sat(spec: str) -> CpSatPolicy:
    """`cp-sat@10s` or `cp-sat@5d`, with `+tiers`, `+workers:N`, and at the end `+hint:POLICY`."""
    own, _, hint = spec.partition("+hint:")
    head, limit, options = parts(own.lower())
    if head != "cp-sat":
        raise UsageError(f"policy {spec!r}: write cp-sat@10s, not {head}")
    method: cp_sat.Method = "anytime"
    workers = 1
    for option in options:
        if option in ("tiers", "anytime"):
            method = "tiers" if option == "tiers" else "anytime"
        elif option.startswith("workers:"):
            workers = int(number(spec, option, option.removeprefix("workers:"), 1, MOST_WORKERS))
        else:
            known = "tiers, workers:2, hint:POLICY"
            raise UsageError(f"policy {spec!r}: {option!r} is not an option of cp-sat; known: {known}")
    hinted = parse_policy(hint) if hint else None
    if hinted is not None and "pods" not in hinted.variants:
        raise UsageError(f"policy {spec!r}: {hinted.name} does not place pods by priority, so it gives no hint")
    return CpSatPolicy(limit_of(spec, limit or ""), method, workers, hinted)


def limit_of(spec: str, text: str) -> Limit:
    """`50ms` and `1s` of wall time, `0.5d` deterministic seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|d)", text.lower())
    if not found or float(found[1]) <= 0:
        raise UsageError(
            f"policy {spec!r} needs a limit above 0, such as 50ms or 10s of wall time or 5d, deterministic seconds"
        )
    return Limit(float(found[1]) / (1000 if found[2] == "ms" else 1), found[2] == "d")


def written(limit: Limit) -> str:
    """A limit as people write it, below a second in ms."""
    return f"{1000 * limit.amount:g}ms" if not limit.is_deterministic and limit.amount < 1 else str(limit)


def last_hosts(problem: PackingProblem, answer: PackingAnswer) -> Hosts:
    """Pod -> node where an answer ends."""
    return validate(answer.events, problem.instance) if answer.then is None else answer.then
