"""Packing as a family of problems; see `evaluation.family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from html import escape
from typing import Literal

from dispatchgym.agents.evaluation.charts import Line, line_chart, shares_chart
from dispatchgym.agents.evaluation.family import Column, Family, Finished, Kind, Remarks
from dispatchgym.agents.evaluation.packing import suites
from dispatchgym.agents.evaluation.packing.evidence import write_evidence
from dispatchgym.agents.evaluation.packing.judge import judged
from dispatchgym.agents.evaluation.packing.policies import FORMS, parse_policy
from dispatchgym.agents.evaluation.packing.problem import TITLES, PackingProblem
from dispatchgym.agents.evaluation.statistics import mean
from dispatchgym.agents.evaluation.summary import Entry
from dispatchgym.agents.evaluation.table import ranking
from dispatchgym.envs.packing import generate, openb, twin
from dispatchgym.envs.packing.instance import PackingInstance

OUTCOMES = {
    "B*": "better, proven optimal",
    "B": "better",
    "D": "default proven optimal",
    "F": "not better",
    "nc": "nothing was pending",
}

KINDS: Mapping[Kind, str] = {
    "rule": "decides pod by pod",
    "learned": "learned, decides pod by pod",
    "search": "local search",
    "solver": "exact solver, stopped at its limit",
}

NOTES = (
    (
        "Improved on default",
        "Share of runs that place more than Kubernetes' default scheduler did on the same instance with the same ties: "
        "the vector of placed pods, one entry a priority, is compared from the highest priority on. Runs where the "
        "default left nothing pending count in no mean. Instances are chosen as 'Priority Matters' (arXiv 2511.08373) "
        "does: those where a deterministic default scheduler leaves a pod pending, below usage 1.",
    ),
    (
        "Outcomes",
        "<b>B*</b>: better, and proven optimal (placing every pod is a proof). <b>B</b>: better. <b>D</b>: as good as "
        "the default, which is thereby proven optimal. <b>F</b>: neither better nor proven. <b>nc</b>: the default "
        "placed everything. What cp-sat+tiers calls optimal puts not moving a pod above placing one of lower priority.",
    ),
    (
        "Placed against the base",
        "On how many instances more, as much, or less is placed, compared by priority.",
    ),
    (
        "GPU allocation",
        "GPUs allocated at the end, per cent of the cluster's, when pods have asked for 130 %; nobody leaves, is moved "
        "or evicted. <b>Fragments</b>: free GPUs that the typical pods cannot use (FGD's measure), per cent of all.",
    ),
    (
        "When pods leave",
        "The mean over the time between the first and the last arrival. <b>Waiting</b>: from arrival to binding, per "
        "pod, up to the last arrival for who was not bound until then.",
    ),
    (
        "Moves and evictions",
        "Of the run and of the plan at its end: pods that change their node, and that run no more.",
    ),
    (
        "IQM and intervals",
        "The interquartile mean is the mean of the middle half. Intervals are 95 % stratified bootstrap intervals: "
        "instances are drawn anew within their group, seeds within their instance.",
    ),
    (
        "Time",
        "Wall and CPU time of one run, compilation and loading left out. Runs share the machine with the other workers "
        "of this evaluation. Limits written 5d are deterministic seconds: the same work on every machine.",
    ),
)


def _column(title: str, name: str, form: str = "{:.1f}", unit: str = "") -> Column:
    """The mean of one of the runs' numbers."""

    def cell(entry: Entry) -> str:
        return form.format(entry.means[name]) + unit if name in entry.means else "-"

    return title, cell


def _outcomes(entry: Entry) -> str:
    return " ".join(f"{kind} {entry.counts[kind]}" for kind in OUTCOMES if entry.counts.get(kind))


def _placed(entry: Entry) -> str:
    return f"{entry.placed['more']} / {entry.placed['same']} / {entry.placed['less']}" if entry.placed else ""


COLUMNS: Mapping[str, Sequence[Column]] = {
    "pods": (
        ("outcomes", _outcomes),
        ("placed more / same / less", _placed),
        _column("pending", "pending"),
        _column("moves", "moves"),
        _column("evictions", "evictions"),
        _column("CPU used", "cpu_pct", unit="%"),
    ),
    "gpus": (
        _column("fragments", "fragmentation_pct", "{:.2f}", "%"),
        _column("CPU used", "cpu_pct", unit="%"),
        _column("pending", "pending", "{:.0f}"),
    ),
    "lifetimes": (
        _column("waiting a pod", "mean_wait_s", "{:.0f}", " s"),
        _column("waiting in all", "pending_hours", "{:.0f}", " h"),
    ),
}


def _figures(variant: str, finished: Finished, entries: Sequence[Entry]) -> str:
    """Outcomes of every group; allocation over time."""
    if variant == "lifetimes":
        return _over_time(finished)
    if variant != "pods":
        return ""
    plots = []
    total = [e.policy for e in sorted((e for e in entries if e.group is None), key=ranking)]
    for group in dict.fromkeys(e.group for e in entries if e.group is not None):
        rows = {e.policy: e.counts for e in entries if e.group == group}
        chart = shares_chart([(policy, rows[policy]) for policy in total if policy in rows], list(OUTCOMES))
        plots.append(f'<figure class="panel"><h4>{escape(group)}</h4>{chart}</figure>')
    key = " &middot; ".join(f"<b>{kind}</b> {meaning}" for kind, meaning in OUTCOMES.items())
    return f'<h3>Outcomes in each group</h3><div class="plots">{"".join(plots)}</div><p class="soft">{key}</p>'


def _over_time(finished: Finished) -> str:
    """Allocation over the first seed of each group."""
    charts: dict[str, list[Line]] = {}
    first: dict[str, str] = {}
    for item, result in finished:
        if item.problem.variant == "lifetimes" and item.seed == 0 and result.metrics:
            group, name = item.problem.group, item.problem.instance.name
            if first.setdefault(group, name) == name:
                points = [(t, pct) for t, pct in result.metrics["curve"]]
                charts.setdefault(group, []).append(Line(item.policy.name, item.policy.kind, points))
    panels = [
        f'<figure class="panel"><h4>{escape(first[group])}</h4>{line_chart(lines, "%", zero=True)}'
        "<figcaption>GPUs allocated over seconds since the first arrival.</figcaption></figure>"
        for group, lines in charts.items()
    ]
    return f'<h3>Allocation over time</h3><div class="plots">{"".join(panels)}</div>' if panels else ""


def _remarks(finished: Finished) -> Remarks:
    """How long repairs took, and how much work they and solvers did."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for item, result in finished:
        for key in ("deterministic_s", "repair_s"):
            if key in result.notes:
                found.setdefault((item.problem.variant, item.policy.name, key), []).append(float(result.notes[key]))
    says = {"deterministic_s": "deterministic s of work a run", "repair_s": "s of wall time a repair"}
    lines = [
        (variant, f"{policy}: {mean(values):.3g} {says[key]}, {max(values):.3g} at most")
        for (variant, policy, key), values in found.items()
    ]
    plain = [
        {"variant": variant, "policy": policy, "what": key, "mean": float(mean(values)), "most": max(values)}
        for (variant, policy, key), values in found.items()
    ]
    return Remarks(lines, {"work": plain})


@lru_cache(maxsize=1)
def _tiny_cluster() -> PackingInstance:
    return generate.priority_matters(2, 4, 2, 1.2, 0)


@lru_cache(maxsize=2)
def _tiny_twin(world: Literal["gpus", "lifetimes"]) -> PackingInstance:
    nodes, (pods, workloads) = twin.nodes(0.01), twin.pods(0, 0.01)
    if world == "gpus":
        return openb.arrivals(nodes, pods, workloads, 0)
    return openb.over_time(nodes, pods, workloads, twin.creation_times(0, len(pods)), 0, load=0.5)


def _tiny(problem: PackingProblem) -> PackingProblem:
    tiny = _tiny_cluster() if problem.variant == "pods" else _tiny_twin(problem.variant)
    return replace(problem, instance=tiny)


PACKING = Family(
    name="packing",
    noun="placement",
    titles={str(world): title for world, title in TITLES.items()},
    kinds=KINDS,
    cards=(
        ("Best that decides as it goes", ("rule", "learned")),
        ("Best local search", ("search",)),
        ("Best solver", ("solver",)),
    ),
    shaded="Shaded: the best.",
    notes=NOTES,
    suites=suites.SUITES.values,
    made=suites.MADE,
    forms=FORMS,
    suite=suites.suite,
    own=suites.own_clusters,
    parse_policy=parse_policy,
    tiny=_tiny,
    judge=judged,
    columns=COLUMNS,
    figures=_figures,
    evidence=write_evidence,
    remarks=_remarks,
)
