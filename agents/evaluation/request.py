"""What `dispatchgym evaluate` is asked for, checked as a whole before anything runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dispatchgym.agents.evaluation import suites
from dispatchgym.agents.evaluation.machine import code_digest, versions
from dispatchgym.agents.evaluation.policies import Policy, parse_policies, parse_policy
from dispatchgym.agents.evaluation.pool import available_cores
from dispatchgym.agents.evaluation.problem import Problem
from dispatchgym.agents.evaluation.work import WorkItem, check_policies, plan
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.scenario import OnInterrupt
from dispatchgym.envs.jobshop.schedule import Variant, check_durations
from dispatchgym.envs.registry import unknown_name

MOST_SEEDS = 10_000


def _shown(metavar: str | None = None) -> Any:
    """How the help shows an option: with a plain word for its value, and without a default of None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True, slots=True)
class Options:
    """Run policies over a suite of job shops, side by side, and report how they compare.

    Every schedule is checked by an independent validator. An evaluation that was interrupted goes on
    where it stopped when the same command is given again; a finished one can be given more policies
    or more seeds. `dispatchgym evaluate --list` shows every suite and every kind of policy.

    Example: dispatchgym evaluate jobshop/taillard --policies lrpt,mwkr,cp-sat@10s --out out/taillard
    """

    suite: Annotated[tyro.conf.Positional[str | None], _shown("SUITE")] = None
    """Suite to run, such as jobshop/smoke; left out with --instances."""

    policies: Annotated[str | None, _shown("LIST")] = None
    """Policies with commas between them, such as lrpt,mwkr+cap0.7,cp-sat@10s; default: the suite's own."""

    seeds: Annotated[int | None, _shown("N")] = None
    """Seeds per problem for policies that draw and for shutdowns; default: the suite's own, mostly 5."""

    out: Annotated[Path | None, _shown("DIR")] = None
    """Where results.json, summary.json, report.html and the journal for resuming go; default: out/SUITE."""

    base: Annotated[str | None, _shown("POLICY")] = None
    """Policy that the others are compared with, problem by problem; default: the first one."""

    workers: Annotated[int | None, _shown("N")] = None
    """Processes that run side by side; default: one per core. 0 runs everything in this process."""

    evidence: Annotated[Path | None, _shown("DIR")] = None
    """Also write every schedule there as JSON lines, to be checked without dispatchgym."""

    instances: Annotated[str | None, _shown("DIR_OR_GLOB")] = None
    """Your own instances instead of a suite: a folder of .txt files, or a quoted pattern such as 'shop/*.jsp'."""

    variant: Annotated[Variant | None, _shown("{jssp,bws,bns,isbjssp}")] = None
    """Shop to run in: classic, blocking with swaps, blocking without, interrupting."""

    references: Annotated[Path | None, _shown("FILE.json")] = None
    """Best-known makespans: {"name": 666} or {"name": {"value": 666, "kind": "optimum"}}."""

    builder: Literal["non-delay", "active", "hybrid"] = "non-delay"
    """How the classic shop places operations under a rule; matters more than the rule."""

    delta: Annotated[float | None, _shown("0..1")] = None
    """With --builder hybrid: from 0 (non-delay) to 1 (active)."""

    shutdown_probabilities: Annotated[str | None, _shown("LIST")] = None
    """Interrupting shop: chances of a shutdown within one mean operation duration, such as 0,0.05,0.1,0.2."""

    on_interrupt: Annotated[OnInterrupt | None, _shown("{resume,restart}")] = None
    """Interrupting shop: whether a repaired machine goes on with its operation or begins it anew; default: resume."""

    fresh: Annotated[bool, _shown()] = False
    """Start over in --out; the old journal is set aside as journal.jsonl.old."""

    list: Annotated[bool, _shown()] = False
    """Show suites and policies, run nothing."""

    @property
    def processes(self) -> int:
        """Worker processes, 0 for none."""
        return available_cores() if self.workers is None else self.workers


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A request that can be carried out: everything checked, nothing run."""

    suite: str
    problems: tuple[Problem, ...]
    policies: tuple[Policy, ...]
    base: Policy
    seeds: int
    items: tuple[WorkItem, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]


def prepare(options: Options) -> Evaluation:
    """Check the whole request before anything runs.

    Raises:
        DispatchGymError: an unknown name, a policy that fits no shop of the suite, a value out of range.
    """
    if (options.suite is None) == (options.instances is None):
        raise UsageError("name a suite (see --list) or your own files with --instances, and not both")
    suite = suites.own_instances(options.instances) if options.instances else suites.suite(options.suite or "")
    seeds = suite.seeds if options.seeds is None else options.seeds
    if not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(f"--seeds is {seeds}; it must be 1 to {MOST_SEEDS}")
    if options.workers is not None and options.workers < 0:
        raise UsageError(f"--workers is {options.workers}; it must be 0 (this process) or more")
    delta = _delta(options)
    policies = parse_policies(suite.policies if options.policies is None else options.policies, delta)
    base = _base(options.base, policies, delta)
    problems = suite.problems(options.variant, _probabilities(options), options.on_interrupt or "resume")
    shops = {problem.variant for problem in problems}
    if "isbjssp" not in shops and (options.shutdown_probabilities or options.on_interrupt):
        raise UsageError("shutdowns happen in the interrupting shop only; add --variant isbjssp or take another suite")
    if "jssp" not in shops and options.builder != "non-delay":
        raise UsageError(
            f"--builder {options.builder} is for the classic shop; {suite.name} runs in {', '.join(sorted(shops))}"
        )
    if options.references:
        problems = suites.with_references(problems, suites.read_references(options.references), options.references)
    notes = check_policies(problems, policies) + _crowding(policies, options.processes)
    for problem in problems:
        check_durations(problem.instance, problem.variant)
    settings = {
        "suite": suite.name,
        "problems": _digest(problems),
        "builder": f"{options.builder} {delta:g}",
        "versions": versions(),
        "code": code_digest(),
        "policies": {policy.name: policy.versions() for policy in policies},
        "seeds": seeds,
    }
    items = plan(problems, policies, seeds)
    return Evaluation(suite.name, tuple(problems), tuple(policies), base, seeds, tuple(items), settings, tuple(notes))


def _delta(options: Options) -> float:
    if options.builder != "hybrid":
        if options.delta is not None:
            raise UsageError(f"--delta belongs to --builder hybrid, not {options.builder}")
        return 1.0 if options.builder == "active" else 0.0
    if options.delta is None or not 0 <= options.delta <= 1:
        raise UsageError("--builder hybrid needs --delta between 0 (non-delay) and 1 (active)")
    return options.delta


def _crowding(policies: Sequence[Policy], workers: int) -> list[str]:
    """A note for every solver whose threads outnumber the cores once the pool runs it side by side."""
    cores, notes = available_cores(), []
    for policy in policies:
        threads = int(policy.versions().get("solver_workers", 1))
        if threads > 1 and threads * max(1, workers) > cores:
            notes.append(
                f"{policy.name} searches with {threads} threads in each of {max(1, workers)} process(es) on {cores} "
                f"core(s), so its wall times are too long; --workers {max(1, cores // threads)} would fit"
            )
    return notes


def _base(name: str | None, policies: Sequence[Policy], delta: float) -> Policy:
    if name is None:
        return policies[0]
    known = {policy.name: policy for policy in policies}
    base = parse_policy(name, delta).name
    if base not in known:
        raise unknown_name("base policy", name, known)
    return known[base]


def _probabilities(options: Options) -> tuple[float, ...] | None:
    if options.shutdown_probabilities is None:
        return None
    try:
        return tuple(dict.fromkeys(float(each) for each in options.shutdown_probabilities.split(",")))
    except ValueError:
        raise UsageError(
            f"--shutdown-probabilities {options.shutdown_probabilities!r} must be numbers such as 0,0.05,0.1"
        ) from None


def _digest(problems: Sequence[Problem]) -> str:
    """sha256 over everything of the problems that a run depends on."""
    h = hashlib.sha256()
    for p in problems:
        shop = f"{p.variant} {p.shutdown_probability} {p.on_interrupt}"
        h.update(f"{p.instance.name} {p.instance.digest} {shop}\n".encode())
    return h.hexdigest()
