"""summary.json: what the rows say per policy and group, with intervals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.agents.evaluation.measures import MEASURES
from dispatchgym.agents.evaluation.results import Row, metrics_of
from dispatchgym.agents.evaluation.statistics import (
    Interval,
    Paired,
    interquartile_mean,
    mean,
    paired_difference,
    stratified_bootstrap,
)
from dispatchgym.agents.evaluation.work import FAILURES, SOLVED

Metric = str
"""A name in `measures.MEASURES`."""

Strata = dict[str, dict[str, list[float]]]
"""Group -> instance -> values."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy in one group of one shop, or over all its groups.

    Args:
        group: None over all groups of the shop.
        metric: of job shops 'gap_pct' in a group where at least half the problems have a reference, else 'makespan';
            over all groups 'gap_pct' only if it is that in each. Else the rows' own.
        reference_kinds: how many of the problems have a reference of which kind, or 'none'.
        runs: attempted; `solved` of them gave a valid schedule.
        averaged: solved runs that have the metric: what the means are over.
        instances: different ones among those averaged.
        proven: runs that proved their schedule optimal.
        mean_interval, interquartile_mean_interval: stratified bootstrap, 95 %.
        wall_s, cpu_s: mean over the runs.
        decisions: mean over the runs that count them.
        paired: difference to the base policy on the problems both solved, in points of gap_pct, or
            in percent of the base's makespan, or of its mean goodput in the group; None for the base itself.
        means: of the rows' other numbers, over those that have them.
        counts: of the rows' outcomes, where they have one.
        placed: where the rows say what was placed by priority: on how many problems that is more, as much and less
            than the base's of the same seed.
    """

    variant: str
    group: str | None
    policy: str
    builder: str | None
    metric: Metric
    reference_kinds: dict[str, int]
    runs: int
    solved: int
    failed: int
    averaged: int
    instances: int
    proven: int
    mean: float | None
    mean_interval: Interval | None
    interquartile_mean: float | None
    interquartile_mean_interval: Interval | None
    wall_s: float
    cpu_s: float
    decisions: float | None
    base: str | None
    paired: Paired | None
    means: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    placed: dict[str, int] = field(default_factory=dict)


def summarise(rows: Sequence[Row], base: str, resamples: int = 2000) -> list[Entry]:
    """One entry per shop, group and policy, in the rows' order; each shop's total (group None) comes first."""
    entries = []
    for variant in _distinct(row.variant for row in rows):
        in_shop = [row for row in rows if row.variant == variant]
        by_group = {
            group: [row for row in in_shop if row.group == group] for group in _distinct(r.group for r in in_shop)
        }
        metrics = {group: _metric(chosen) for group, chosen in by_group.items()}
        for group, chosen in {None: in_shop, **by_group}.items():
            metric = _over_all(list(metrics.values())) if group is None else metrics[group]
            entries += [
                _entry(chosen, policy, base, group, metric, resamples) for policy in _distinct(r.policy for r in chosen)
            ]
    return entries


def _entry(rows: Sequence[Row], policy: str, base: str, group: str | None, metric: Metric, resamples: int) -> Entry:
    mine = [row for row in rows if row.policy == policy]
    solved = [row for row in mine if row.status in SOLVED]
    averaged = [row for row in solved if _value(row, metric) is not None]
    strata = _strata(averaged, metric)
    flat = [value for clusters in strata.values() for values in clusters.values() for value in values]
    counted = [row.decisions for row in mine if row.decisions is not None]
    others = [row for row in rows if row.policy == base]
    return Entry(
        variant=mine[0].variant,
        group=group,
        policy=policy,
        builder=mine[0].builder,
        metric=metric,
        reference_kinds=dict(sorted(Counter(_problem_kinds(rows).values()).items())),
        runs=len(mine),
        solved=len(solved),
        failed=sum(row.status in FAILURES for row in mine),
        averaged=len(averaged),
        instances=len({row.instance for row in averaged}),
        proven=sum(row.status == "optimal" for row in mine),
        mean=float(mean(flat)) if flat else None,
        mean_interval=stratified_bootstrap(strata, mean, resamples=resamples) if flat else None,
        interquartile_mean=float(interquartile_mean(flat)) if flat else None,
        interquartile_mean_interval=stratified_bootstrap(strata, interquartile_mean, resamples=resamples)
        if flat
        else None,
        wall_s=float(mean([row.wall_s for row in mine])),
        cpu_s=float(mean([row.cpu_s for row in mine])),
        decisions=float(mean(counted)) if counted else None,
        base=base if others and policy != base else None,
        paired=_paired(averaged, others, metric, resamples) if policy != base else None,
        means=_means(solved),
        counts=dict(Counter(metrics_of(row)["outcome"] for row in solved if "outcome" in metrics_of(row))),
        placed=_placed(solved, others) if policy != base else {},
    )


def _means(rows: Iterable[Row]) -> dict[str, float]:
    """The mean of every number among the rows' metrics."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in metrics_of(row).items():
            if isinstance(value, int | float) and value == value:
                found.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _placed(mine: Iterable[Row], base: Iterable[Row]) -> dict[str, int]:
    """How often the pods placed are more, as many and fewer than the base's, compared by priority."""
    theirs = {(r.group, r.instance, r.seed): list(metrics_of(r).get("placed", ())) for r in base}
    counts = {"more": 0, "same": 0, "less": 0}
    for row in mine:
        own, other = list(metrics_of(row).get("placed", ())), theirs.get((row.group, row.instance, row.seed))
        if own and other:
            counts["more" if own > other else "same" if own == other else "less"] += 1
    return counts if any(counts.values()) else {}


def _strata(rows: Iterable[Row], metric: Metric) -> Strata:
    strata: Strata = {}
    for row in rows:
        if (value := _value(row, metric)) is not None:
            strata.setdefault(row.group, {}).setdefault(row.instance, []).append(value)
    return strata


def _paired(mine: Iterable[Row], base: Iterable[Row], metric: Metric, resamples: int) -> Paired | None:
    """Differences per problem and shutdowns, each policy's seeds averaged first."""
    a, b = _by_problem(mine, metric), _by_problem(base, metric)
    ours: Strata = {}
    theirs: Strata = {}
    shared = sorted(a.keys() & b.keys())
    for key in shared:
        group, instance, _ = key
        x, y = a[key], b[key]
        if not MEASURES[metric].is_share:
            # What is gained may be nothing on one problem, so it is put beside the base's mean of the group.
            whole = mean([b[k] for k in shared if k[0] == group]) if MEASURES[metric].more_is_better else y
            if not whole:
                continue
            x, y = 100 * x / float(whole), 100 * y / float(whole)
        ours.setdefault(group, {}).setdefault(instance, []).append(x)
        theirs.setdefault(group, {}).setdefault(instance, []).append(y)
    found = paired_difference(ours, theirs, resamples=resamples)
    if found is None or not MEASURES[metric].more_is_better:
        return found
    return found._replace(better=found.worse, worse=found.better)


def _by_problem(rows: Iterable[Row], metric: Metric) -> dict[tuple[str, str, str], float]:
    """(group, instance, shutdowns) -> mean over the seeds."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        if (value := _value(row, metric)) is not None:
            found.setdefault((row.group, row.instance, row.scenario or ""), []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _value(row: Row, metric: Metric) -> float | None:
    return row.gap_pct if metric == "gap_pct" else None if row.value is None else float(row.value)


def _problem_kinds(rows: Iterable[Row]) -> dict[tuple[str, str, str], str]:
    """Problem (group, instance, shutdowns) -> kind of its reference or 'none', each once whatever ran on it."""
    return {(row.group, row.instance, row.scenario or ""): row.reference_kind or "none" for row in rows}


def _metric(rows: Sequence[Row]) -> Metric:
    """Of one group: gaps instead of makespans where at least half the problems have a reference."""
    kinds = list(_problem_kinds(rows).values())
    has_gaps = rows[0].metric == "makespan" and 2 * kinds.count("none") <= len(kinds)
    return "gap_pct" if has_gaps else rows[0].metric


def _over_all(metrics: Sequence[Metric]) -> Metric:
    """Of all groups together: theirs if it is the same in all, else makespans."""
    return metrics[0] if len(set(metrics)) == 1 else "makespan"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def write_summary(
    entries: Iterable[Entry], path: Path, head: dict[str, Any], failures: list[dict[str, Any]], notes: dict[str, Any]
) -> None:
    """Write summary.json; docs/formats.md describes it."""
    content = {**head, "entries": [_plain(entry) for entry in entries], "failures": failures, **notes}
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def _plain(entry: Entry) -> dict[str, Any]:
    plain = asdict(entry)
    if entry.paired is not None:
        plain["paired"] = entry.paired._asdict()
    return plain
