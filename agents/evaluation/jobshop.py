"""The job shop as a family of problems; see `family`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dispatchgym.agents.evaluation import plain, remarks, suites
from dispatchgym.agents.evaluation.evidence import write_evidence
from dispatchgym.agents.evaluation.family import Family, Finished, Kind, Remarks
from dispatchgym.agents.evaluation.policies import FORMS, Answer, Policy, parse_policy
from dispatchgym.agents.evaluation.problem import WORLDS, Problem
from dispatchgym.agents.evaluation.request import Options
from dispatchgym.agents.evaluation.summary import Entry
from dispatchgym.agents.evaluation.work import SOLVED, Result
from dispatchgym.envs.api import DispatchGymError, InvalidScheduleError, UsageError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import check_durations, validate

TINY = Instance.from_routes("warm-up", [[(0, 1), (1, 2)], [(1, 2), (0, 1)]])

KINDS: dict[Kind, str] = {
    "rule": "priority rule",
    "learned": "learned rule",
    "search": "best of many randomised runs",
    "solver": "exact solver, stopped at its limit",
    "clairvoyant": "solver told every shutdown beforehand",
}

NOTES = (
    (
        "Gap",
        "How far a makespan lies above the reference, in percent of the reference. Negative means better than a "
        "best-known value.",
    ),
    (
        "References",
        "<b>optimum</b>: proven, nothing is shorter. <b>best-known</b>: the best value published, not proven; the "
        "true gap may be larger. <b>bound</b>: a proven lower bound; the true gap is smaller or equal. "
        "<b>clairvoyant</b>: the best schedule CP-SAT found within its limit knowing every shutdown beforehand, which "
        "no policy can; not proven unless its own row says optimal.",
    ),
    (
        "IQM and intervals",
        "The interquartile mean is the mean of the middle half, so that single odd instances do not decide. Intervals "
        "are 95 % stratified bootstrap intervals: instances are drawn anew within their group, seeds within their "
        "instance. No interval is shown where nothing varies.",
    ),
    (
        "Difference to the base",
        "On the same instances and the same shutdowns, problem by problem: points of the gap, or percent of the base's "
        "makespan where there is no reference. Negative is better.",
    ),
    (
        "Builder",
        "How a rule's choices become a schedule. <b>non-delay</b> never leaves a machine idle that could start; "
        "<b>active</b> may wait for a better job; <b>hybrid</b> lies between. It matters more than the rule, so it is "
        "always named. <b>event</b>: the blocking shops go from event to event.",
    ),
    (
        "Time",
        "Wall and CPU time of one run, compilation and loading left out. Runs share the machine with the other workers "
        "of this evaluation. Limits written 5d are deterministic seconds of CP-SAT: the same work on every machine.",
    ),
)


def problems(suite: suites.Suite, options: Options) -> Sequence[Problem]:
    """The suite's problems in the shop and under the shutdowns that the options name."""
    plain.no_traffic(suite.name, options)
    found = suite.problems(options.variant, _probabilities(options), options.on_interrupt or "resume")
    shops = {problem.variant for problem in found}
    if "isbjssp" not in shops and (options.shutdown_probabilities or options.on_interrupt):
        raise UsageError("shutdowns happen in the interrupting shop only; add --variant isbjssp or take another suite")
    if "jssp" not in shops and options.builder != "non-delay":
        raise UsageError(
            f"--builder {options.builder} is for the classic shop; {suite.name} runs in {', '.join(sorted(shops))}"
        )
    if options.references:
        found = suites.with_references(found, suites.read_references(options.references), options.references)
    for problem in found:
        check_durations(problem.instance, problem.variant)
    return found


def judged(timed: Result, problem: Problem, answer: Answer, scenario: Scenario | None) -> Result:
    """`timed` with the answer filled in, or marked invalid."""
    schedule = answer.schedule
    if schedule is None:
        if answer.status in SOLVED:
            return replace(timed, status="invalid", message=f"status {answer.status!r} without a schedule")
        return replace(timed, bound=answer.bound, history=answer.history)
    try:
        validate(schedule, problem.instance, problem.variant, scenario)
        if answer.bound is not None and answer.bound > schedule.makespan:
            raise InvalidScheduleError(f"its makespan {schedule.makespan} is below the claimed bound {answer.bound}")
    except DispatchGymError as error:
        return replace(timed, status="invalid", message=str(error))
    return replace(
        timed,
        value=schedule.makespan,
        decisions=answer.decisions,
        bound=answer.bound,
        history=answer.history,
        operations=tuple(times.tolist() for times in (schedule.start, schedule.end, schedule.leave)),
    )


def delta_of(options: Options) -> float:
    """How far the classic shop's builder may wait, 0 to 1."""
    if options.builder != "hybrid":
        if options.delta is not None:
            raise UsageError(f"--delta belongs to --builder hybrid, not {options.builder}")
        return 1.0 if options.builder == "active" else 0.0
    if options.delta is None or not 0 <= options.delta <= 1:
        raise UsageError("--builder hybrid needs --delta between 0 (non-delay) and 1 (active)")
    return options.delta


def _probabilities(options: Options) -> tuple[float, ...] | None:
    if options.shutdown_probabilities is None:
        return None
    try:
        return tuple(dict.fromkeys(float(each) for each in options.shutdown_probabilities.split(",")))
    except ValueError:
        raise UsageError(
            f"--shutdown-probabilities {options.shutdown_probabilities!r} must be numbers such as 0,0.05,0.1"
        ) from None


def _policy(spec: str, delta: float) -> Policy:
    return parse_policy(spec, delta)


def _tiny(problem: Problem) -> Problem:
    return replace(problem, instance=TINY)


def _no_figures(variant: str, finished: Finished, entries: Sequence[Entry]) -> str:
    return ""


def _remarks(finished: Finished) -> Remarks:
    tuned, plannings, hints = remarks.tuned(finished), remarks.plannings(finished), remarks.hints(finished)
    lines = [*remarks.cap_lines(tuned), *map(remarks.planning_line, plannings), *map(remarks.hint_line, hints)]
    return Remarks(lines, {"tuned": tuned, "plannings": plannings, "hints": hints})


JOBSHOP = Family(
    name="jobshop",
    noun="schedule",
    titles={str(variant): title for variant, title in WORLDS.items()},
    kinds=KINDS,
    cards=(
        ("Best rule that decides as it goes", ("rule", "learned")),
        ("Best of many runs", ("search",)),
        ("Best solver", ("solver",)),
        ("With all shutdowns known beforehand", ("clairvoyant",)),
    ),
    shaded="Shaded: the best that is not told the shutdowns beforehand.",
    notes=NOTES,
    suites=suites.SUITES.values,
    made=(
        (
            "jobshop/random-SIZE",
            f"{suites.RANDOM_INSTANCES} random instances of any size, such as jobshop/random-10x5",
        ),
    ),
    forms=FORMS,
    suite=suites.suite,
    own=suites.own_instances,
    delta=delta_of,
    problems=problems,
    parse_policy=_policy,
    tiny=_tiny,
    judge=judged,
    columns={},
    figures=_no_figures,
    evidence=write_evidence,
    remarks=_remarks,
)
