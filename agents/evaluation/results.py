"""The rows of results.json: one a run, with the reference its gap is measured against."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.family import AnyProblem, Finished
from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.agents.evaluation.problem import Reference, ReferenceKind
from dispatchgym.agents.evaluation.work import WorkItem


@dataclass(frozen=True, slots=True)
class Row:
    """One run; the fields of results.json, in its order. docs/formats.md says what each means."""

    suite: str
    group: str
    instance: str
    variant: str
    builder: str | None
    policy: str
    seed: int
    scenario: str | None
    metric: str
    value: float | None
    reference: int | None
    reference_kind: ReferenceKind | None
    gap_pct: float | None
    decisions: int | None
    wall_s: float
    cpu_s: float
    status: str
    bound: int | None
    versions: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class MeasuredRow(Row):
    """A run of which more than its value was measured; `metrics` is the last field in results.json."""

    metrics: Mapping[str, Any]


def metrics_of(row: Row) -> Mapping[str, Any]:
    """What was measured besides the value, by name."""
    return row.metrics if isinstance(row, MeasuredRow) else {}


def make_rows(finished: Finished) -> list[Row]:
    """The rows of an evaluation, gaps filled in once all results are there."""
    references = references_of(finished)
    rows: list[Row] = []
    for item, result in finished:
        problem, reference = item.problem, references.get(_shop(item))
        given = asdict(
            Row(
                suite=problem.suite,
                group=problem.group,
                instance=problem.instance.name,
                variant=problem.variant,
                builder=item.policy.builder(problem.variant),
                policy=item.policy.name,
                seed=item.seed,
                scenario=problem.scenario_name(item.seed),
                metric=problem.metric,
                value=result.value,
                reference=reference.value if reference else None,
                reference_kind=reference.kind if reference else None,
                gap_pct=gap_pct(result.value, reference),
                decisions=result.decisions,
                wall_s=round(result.wall_s, 6),
                cpu_s=round(result.cpu_s, 6),
                status=result.status,
                bound=result.bound,
                versions=result.versions,
            )
        )
        rows.append(MeasuredRow(**given, metrics=result.metrics) if result.metrics else Row(**given))
    return rows


def gap_pct(value: float | None, reference: Reference | None) -> float | None:
    """How far `value` lies above the reference, in percent of the reference; None where there is none."""
    if value is None or reference is None or reference.value <= 0:
        return None
    return 100.0 * (value - reference.value) / reference.value


def references_of(finished: Finished) -> dict[tuple[AnyProblem, str | None], Reference]:
    """Problem and shutdowns -> what gaps are measured against.

    In this order: the reference known beforehand; with shutdowns, the best schedule of a clairvoyant
    solver of this run; otherwise an optimum proven in this run, or its greatest proven lower bound.
    """
    # Gaps are of makespans alone.
    best: dict[tuple[AnyProblem, str | None], Reference] = {}
    for item, result in finished:
        shop = _shop(item)
        if item.problem.metric != "makespan":
            continue
        if item.problem.reference is not None:
            best[shop] = item.problem.reference
        elif item.policy.kind == "clairvoyant" and item.problem.varies:
            if result.value is not None and (shop not in best or result.value < best[shop].value):
                best[shop] = Reference(int(result.value), "clairvoyant")
        elif result.value is not None and result.status == "optimal":
            best[shop] = Reference(int(result.value), "optimum")
        elif result.bound is not None and result.bound > 0 and result.status != "invalid":
            known = best.get(shop)
            if known is None or (known.kind == "bound" and result.bound > known.value):
                best[shop] = Reference(result.bound, "bound")
    return best


def conflicts(finished: Finished) -> list[str]:
    """Facts that cannot both be true: a proven reference beaten, or a proven bound above a known schedule.

    Each means that a reference, the validator or a solver's model is wrong.
    """
    found = []
    references = references_of(finished)
    lowest: dict[tuple[AnyProblem, str | None], tuple[float, str]] = {}
    for item, result in finished:
        shop, reference = _shop(item), references.get(_shop(item))
        proven = reference is not None and reference.kind in ("optimum", "bound")
        if result.value is not None:
            lowest[shop] = min(lowest.get(shop, (result.value, item.policy.name)), (result.value, item.policy.name))
            if reference is not None and proven and result.value < reference.value:
                found.append(f"{item.key}: makespan {result.value} is below the {reference.kind} {reference.value}")
        if (
            result.bound is not None
            and reference is not None
            and reference.kind in ("optimum", "best-known")
            and result.bound > reference.value
        ):
            found.append(f"{item.key}: proven bound {result.bound} is above the {reference.kind} {reference.value}")
    for item, result in finished:
        value, policy = lowest.get(_shop(item), (None, ""))
        if value is not None and result.bound is not None and result.bound > value:
            found.append(f"{item.key}: proven bound {result.bound} is above the makespan {value} of {policy}")
    return found


def write_results(rows: Iterable[Row], path: Path) -> None:
    """Write results.json, one row a line."""
    with atomic_write(path) as file:
        file.write("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n")


def _shop(item: WorkItem) -> tuple[AnyProblem, str | None]:
    return item.problem, item.problem.scenario_name(item.seed)
