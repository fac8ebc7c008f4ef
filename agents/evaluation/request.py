"""What `dispatchgym evaluate` is asked for, checked as a whole before anything runs."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dispatchgym.agents.evaluation.family import FAMILIES, AnyPolicy, AnyProblem, AnySuite, Family, find_suite
from dispatchgym.agents.evaluation.machine import code_digest, versions
from dispatchgym.agents.evaluation.policies import in_list
from dispatchgym.agents.evaluation.pool import available_cores
from dispatchgym.agents.evaluation.work import WorkItem, check_policies, plan
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.scenario import OnInterrupt
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.envs.llm.backends import SIMULATED
from dispatchgym.envs.llm.workloads.files import is_trace
from dispatchgym.envs.registry import unknown_name

MOST_SEEDS = 10_000


def _shown(metavar: str | None = None) -> Any:
    """How the help shows an option: with a plain word for its value, and without a default of None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True, slots=True)
class Options:
    """Run policies over a suite of job shops, clusters or LLM traffic, side by side, and report how they compare.

    Every schedule and placement is checked by an independent validator. An evaluation that was interrupted goes on
    where it stopped when the same command is given again; a finished one can be given more policies
    or more seeds. `dispatchgym evaluate --list` shows every suite and every kind of policy.

    Example: dispatchgym evaluate jobshop/taillard --policies lrpt,mwkr,cp-sat@10s --out out/taillard

    Example: dispatchgym evaluate packing/priority-matters --policies kube-scheduler,kube-scheduler+repair50ms

    Example: dispatchgym evaluate llm/flow-prefill --policies vllm,flow-prefill,edf
    """

    suite: Annotated[tyro.conf.Positional[str | None], _shown("SUITE")] = None
    """Suite to run, such as jobshop/smoke, packing/openb or llm/past-future; left out with --instances."""

    policies: Annotated[str | None, _shown("LIST")] = None
    """Policies with commas between them, such as lrpt,mwkr+cap0.7,cp-sat@10s; default: the suite's own."""

    seeds: Annotated[int | None, _shown("N")] = None
    """Seeds per problem, where policies or problems draw; default: the suite's own."""

    out: Annotated[Path | None, _shown("DIR")] = None
    """Where results.json, summary.json, report.html and the journal for resuming go; default: out/SUITE."""

    base: Annotated[str | None, _shown("POLICY")] = None
    """Policy that the others are compared with, problem by problem; default: the first one."""

    workers: Annotated[int | None, _shown("N")] = None
    """Processes that run side by side; default: one per core. 0 runs everything in this process."""

    evidence: Annotated[Path | None, _shown("DIR")] = None
    """Also write every schedule or placement there as JSON lines, to be checked without dispatchgym."""

    instances: Annotated[str | None, _shown("DIR_OR_GLOB")] = None
    """Your own instances instead of a suite: a folder of .txt files (job shops), of .json or .csv files
    (clusters) or of traces of requests (.csv, .json, .jsonl, .gz), or a quoted pattern such as 'shop/*.jsp'."""

    variant: Annotated[Variant | None, _shown("{jssp,bws,bns,isbjssp}")] = None
    """Job shops: shop to run in: classic, blocking with swaps, blocking without, interrupting."""

    references: Annotated[Path | None, _shown("FILE.json")] = None
    """Job shops: best-known makespans: {"name": 666} or {"name": {"value": 666, "kind": "optimum"}}."""

    builder: Literal["non-delay", "active", "hybrid"] = "non-delay"
    """Job shops: how the classic shop places operations under a rule; matters more than the rule."""

    delta: Annotated[float | None, _shown("0..1")] = None
    """With --builder hybrid: from 0 (non-delay) to 1 (active)."""

    shutdown_probabilities: Annotated[str | None, _shown("LIST")] = None
    """Interrupting shop: chances of a shutdown within one mean operation duration, such as 0,0.05,0.1,0.2."""

    on_interrupt: Annotated[OnInterrupt | None, _shown("{resume,restart}")] = None
    """Interrupting shop: whether a repaired machine goes on with its operation or begins it anew; default: resume."""

    executor: Annotated[str, _shown("NAME")] = SIMULATED
    """LLM traffic: what runs the steps: simulated, torch for a real model, or module:attr."""

    model: Annotated[str | None, _shown("DIR_OR_RANDOM")] = None
    """With --executor torch: a Hugging Face directory, or random:tiny, random:1b, random:8b; default: random:tiny."""

    device: Annotated[str | None, _shown("{auto,cuda,cpu}")] = None
    """With --executor torch: where it runs; default: auto, a GPU where there is one."""

    profile: Annotated[str | None, _shown("NAME_OR_FILE")] = None
    """LLM traffic: step times, also those that schedulers reckon with on a real model; default: the suite's."""

    requests: Annotated[int | None, _shown("N")] = None
    """LLM traffic: the first so many requests of each contest."""

    fresh: Annotated[bool, _shown()] = False
    """Start over in --out; the old journal is set aside as journal.jsonl.old."""

    list: Annotated[bool, _shown()] = False
    """Show suites and policies, run nothing."""

    @property
    def processes(self) -> int:
        """Worker processes, 0 for none: several would share a model's device."""
        if self.executor != SIMULATED:
            return 0
        return available_cores() if self.workers is None else self.workers


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A request that can be carried out: everything checked, nothing run."""

    family: Family
    suite: str
    problems: tuple[AnyProblem, ...]
    policies: tuple[AnyPolicy, ...]
    base: AnyPolicy
    seeds: int
    items: tuple[WorkItem, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]


def prepare(options: Options) -> Evaluation:
    """Check the whole request before anything runs.

    Raises:
        DispatchGymError: an unknown name, a policy that fits no problem of the suite, a value out of range.
    """
    if (options.suite is None) == (options.instances is None):
        raise UsageError("name a suite (see --list) or your own files with --instances, and not both")
    family, suite = own_suite(options.instances) if options.instances else find_suite(options.suite or "")
    seeds = suite.seeds if options.seeds is None else options.seeds
    if not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(f"--seeds is {seeds}; it must be 1 to {MOST_SEEDS}")
    if options.workers is not None and options.workers < 0:
        raise UsageError(f"--workers is {options.workers}; it must be 0 (this process) or more")
    delta = family.delta(options)
    listed = suite.policies if options.policies is None else options.policies
    policies = in_list(listed, lambda spec: family.parse_policy(spec, delta))
    base = _base(options.base, policies, lambda spec: family.parse_policy(spec, delta))
    problems = family.problems(suite, options)
    notes = check_policies(problems, policies) + family.asides(problems) + _crowding(policies, options.processes)
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
    return Evaluation(
        family, suite.name, tuple(problems), tuple(policies), base, seeds, tuple(items), settings, tuple(notes)
    )


def own_suite(pattern: str) -> tuple[Family, AnySuite]:
    """People's own files as a suite, and the family that they are of.

    Traces of requests are known by their columns, clusters are .json and .csv, job shops the rest.

    Raises:
        UsageError, InvalidInstanceError: as the family says.
    """
    folder = Path(pattern)
    found = list(folder.iterdir()) if folder.is_dir() else [Path(each) for each in glob.glob(pattern)] or [folder]
    names = [path.name for path in found]
    is_packing = any(name.endswith((".json", ".csv")) for name in names) and not any(
        name.endswith(".txt") for name in names
    )
    family: Family = FAMILIES["llm" if any(map(is_trace, found)) else "packing" if is_packing else "jobshop"]
    return family, family.own(pattern)


def _crowding(policies: Sequence[AnyPolicy], workers: int) -> list[str]:
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


def _base(name: str | None, policies: Sequence[AnyPolicy], parse: Callable[[str], AnyPolicy]) -> AnyPolicy:
    if name is None:
        return policies[0]
    known = {policy.name: policy for policy in policies}
    base = parse(name).name
    if base not in known:
        raise unknown_name("base policy", name, known)
    return known[base]


def _digest(problems: Sequence[AnyProblem]) -> str:
    """sha256 over everything of the problems that a run depends on."""
    h = hashlib.sha256()
    for p in problems:
        h.update(f"{p.instance.name} {p.instance.digest} {p.setting}\n".encode())
    return h.hexdigest()
