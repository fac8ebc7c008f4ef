"""`dispatchgym evaluate`: run policies over a suite, write results.json, summary.json and report.html."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from dispatchgym.agents.evaluation import report, suites, tuning
from dispatchgym.agents.evaluation.evidence import BYTES_PER_OPERATION, write_evidence
from dispatchgym.agents.evaluation.files import make_writable
from dispatchgym.agents.evaluation.journal import Journal, start_over
from dispatchgym.agents.evaluation.machine import code_digest, machine, versions
from dispatchgym.agents.evaluation.policies import FORMS, Policy, parse_policies, parse_policy
from dispatchgym.agents.evaluation.pool import available_cores, run_items
from dispatchgym.agents.evaluation.problem import Problem
from dispatchgym.agents.evaluation.progress import progress
from dispatchgym.agents.evaluation.results import Finished, conflicts, make_rows, write_results
from dispatchgym.agents.evaluation.statistics import mean
from dispatchgym.agents.evaluation.summary import summarise, write_summary
from dispatchgym.agents.evaluation.table import print_summary, seconds
from dispatchgym.agents.evaluation.work import FAILURES, WorkItem, check_policies, plan
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.scenario import OnInterrupt
from dispatchgym.envs.jobshop.schedule import Variant, check_durations
from dispatchgym.envs.registry import unknown_name

FAILED = 1
INTERRUPTED = 130  # what a shell reports for a program that ends by Ctrl-C
MOST_SEEDS = 10_000
BYTES_PER_JOURNAL_OPERATION = 24


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


def main(argv: list[str]) -> int:
    """Run `dispatchgym evaluate` with the given arguments.

    Returns:
        0; 1 when a run failed, gave an invalid schedule, or contradicts a proven reference; 130 when interrupted.

    Raises:
        DispatchGymError: the request cannot be carried out.
    """
    options = tyro.cli(Options, args=argv, prog="dispatchgym evaluate", config=(tyro.conf.FlagCreatePairsOff,))
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    if not out.is_terminal:
        out.width = 240  # nothing is cut off in a file
    if options.list:
        _print_lists(out)
        return 0
    evaluation = prepare(options)
    folder = options.out or Path("out") / evaluation.suite.replace("/", "-")
    _make_folders(folder, options.evidence, evaluation)
    for note in evaluation.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    path = folder / "journal.jsonl"
    if options.fresh:
        start_over(path)
    session = {"began": datetime.now(UTC).isoformat(timespec="seconds"), **machine()}
    with Journal(path, evaluation.settings, session) as journal:
        if not _run(evaluation, journal, _workers(options), err):
            return INTERRUPTED
        finished = [(item, journal.results[item.key]) for item in evaluation.items]
        if options.evidence:
            write_evidence(finished, options.evidence)
        return _finish(evaluation, finished, journal.sessions, folder, out, err)


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
    notes = check_policies(problems, policies) + _crowding(policies, _workers(options))
    for problem in problems:
        check_durations(problem.instance, problem.variant)
    settings = {
        "suite": suite.name,
        "problems": _digest(problems),
        "builder": f"{options.builder} {delta:g}",
        "versions": versions(),
        "code": code_digest(),
        "policies": [policy.name for policy in policies],
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


def _workers(options: Options) -> int:
    return available_cores() if options.workers is None else options.workers


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


def _make_folders(out: Path, evidence: Path | None, evaluation: Evaluation) -> None:
    operations = sum(item.problem.instance.num_ops for item in evaluation.items)
    # Report and results come on top of the journal, and are small beside it.
    make_writable(out, 2 * operations * BYTES_PER_JOURNAL_OPERATION)
    if evidence:
        make_writable(evidence, operations * BYTES_PER_OPERATION)


def _run(evaluation: Evaluation, journal: Journal, workers: int, console: Console) -> bool:
    """Run what the journal lacks; whether all of it was finished."""
    items = [item for item in evaluation.items if item.key not in journal.results]
    if done := len(evaluation.items) - len(items):
        console.print(f"{done} of {len(evaluation.items)} runs were done before (--fresh starts over)")
    if not items:
        return True
    crew = f"{min(workers, len(items))} worker(s)" if workers else "this process"
    console.print(f"{len(items)} runs on {crew}, results in {journal.path.parent}", soft_wrap=True)
    try:
        with progress(len(items), console) as advance, closing(run_items(items, workers)) as running:
            for item, result in running:
                journal.add(result)
                if result.status in FAILURES:
                    console.print(_failure_line(item.key, result.status, result.message), markup=False, soft_wrap=True)
                advance(f"{item.problem.instance.name} {item.policy.name}")
    except KeyboardInterrupt:
        done = sum(item.key in journal.results for item in evaluation.items)
        console.print(
            f"interrupted: {done} of {len(evaluation.items)} runs are kept in {journal.path}; "
            "the same command goes on from there",
            soft_wrap=True,
        )
        return False
    return True


def _finish(
    evaluation: Evaluation,
    finished: Finished,
    sessions: Sequence[Mapping[str, Any]],
    folder: Path,
    out: Console,
    err: Console,
) -> int:
    """Write every file, print the table; the exit code."""
    rows = make_rows(finished)
    entries = summarise(rows, evaluation.base.name)
    failures = [
        {"item": item.key, "status": result.status, "message": result.message}
        for item, result in finished
        if result.status in FAILURES
    ]
    contradictions = conflicts(finished)
    head = {
        "format": "dispatchgym/evaluation-summary",
        "schema": 1,
        "suite": evaluation.suite,
        "base": evaluation.base.name,
        "seeds": evaluation.seeds,
        "policies": [{"policy": policy.name, "kind": policy.kind} for policy in evaluation.policies],
        "runs": len(rows),
        "sessions": list(sessions),
        "versions": evaluation.settings["versions"],
        "notes": list(evaluation.notes),
    }
    tuned, plannings = _tuned(finished), _plannings(finished)
    remarks = [*tuning.caps_by_policy(tuned), *(_planning_line(each) for each in plannings)]
    write_results(rows, folder / "results.json")
    write_summary(
        entries,
        folder / "summary.json",
        head,
        failures,
        {"tuned": tuned, "plannings": plannings, "conflicts": contradictions},
    )
    report.write_report(folder / "report.html", head, finished, rows, entries, failures, remarks, contradictions)
    print_summary(entries, out)
    for _, line in remarks:
        out.print(line, markup=False, soft_wrap=True)
    for line in contradictions:
        err.print(f"contradiction: {line}", markup=False, soft_wrap=True)
    if failures:
        err.print(f"{len(failures)} of {len(rows)} runs failed; see {folder / 'summary.json'}", soft_wrap=True)
    out.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    return FAILED if failures or contradictions else 0


def _tuned(finished: Finished) -> list[dict[str, Any]]:
    """The constants that were tuned, one entry a policy and group."""
    found = {
        (item.problem.variant, item.problem.group, item.policy.name, result.notes["cap"]): None
        for item, result in finished
        if "cap" in result.notes
    }
    return [dict(zip(("variant", "group", "policy", "cap"), key, strict=True)) for key in found]


def _plannings(finished: Finished) -> list[dict[str, Any]]:
    """What planning anew cost, one entry a policy and group."""
    found: dict[tuple[Variant, str, str], list[list[float]]] = {}
    for item, result in finished:
        if "planning_s" in result.notes:
            key = (item.problem.variant, item.problem.group, item.policy.name)
            found.setdefault(key, []).append(result.notes["planning_s"])
    return [
        {
            "variant": variant,
            "group": group,
            "policy": policy,
            "plannings": mean([len(times) for times in runs]).item(),
            "mean_s": mean([s for times in runs for s in times]).item(),
            "longest_s": max(s for times in runs for s in times),
        }
        for (variant, group, policy), runs in found.items()
    ]


def _planning_line(each: Mapping[str, Any]) -> tuple[Variant, str]:
    """The shop, and how often and how long a policy planned in one of its groups."""
    said = (
        f"{each['plannings']:.0f} plannings a run, {seconds(each['mean_s'])} each, {seconds(each['longest_s'])} at most"
    )
    return each["variant"], f"{each['policy']} in {each['variant']} {each['group']}: {said}"


def _failure_line(key: str, status: str, message: str) -> str:
    lines = message.strip().splitlines() or [""]
    return f"{status}: {key}: {lines[-1]}"


def _print_lists(console: Console) -> None:
    console.print("suites:")
    for each in suites.SUITES.values():
        console.print(f"  {each.name:22} {each.summary}", markup=False)
    made = f"{suites.RANDOM_INSTANCES} random instances of any size, such as jobshop/random-10x5"
    console.print(f"  {'jobshop/random-SIZE':22} {made}")
    console.print("\npolicies:")
    width = max(len(form) for form, _ in FORMS)
    for form, meaning in FORMS:
        console.print(f"  {form:{width}}  {meaning}", markup=False)
