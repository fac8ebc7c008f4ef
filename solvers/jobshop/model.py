"""The exact model of all four shops for CP-SAT: built here, solved in cp_sat.py.

One disjunctive model. Its unit is the *visit*: an operation in the classic shop; in the blocking shops a
job's operations in a row on one machine, which it holds until its next visit starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from ortools.sat.python import cp_model

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant
from dispatchgym.solvers.jobshop.downtime import Piece, Window, pieces
from dispatchgym.solvers.jobshop.outlook import Outlook, Progress, Times
from dispatchgym.solvers.jobshop.ranks import ranks

MOST_CLASSIC_PAIRS = 2_500
"""Beyond this the classic shop does without pairwise Booleans; see `build_model`."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A job's stay on a machine, operations `first` .. `last`; `start` and `leave` are scaled, the rest is not."""

    job: int
    first: int
    last: int
    work: int
    latest_start: int
    earliest_leave: int
    start: cp_model.IntVar
    leave: cp_model.LinearExprT


@dataclass(frozen=True, slots=True)
class Interruption:
    """An operation whose end depends on which piece of the downtime its start lies in."""

    op: int
    end: cp_model.IntVar
    pieces: tuple[Piece, ...]
    chosen: tuple[cp_model.IntVar, ...]


@dataclass(frozen=True, slots=True)
class JobShopModel:
    """The model and the variables a caller needs.

    Args:
        cp: minimises `makespan`.
        start: one variable an operation, in the instance's order. Its value is `scale` x the start time
            plus, without swaps, a rank below `scale` that orders the moves of one moment.
        before: (a, b) -> true if the visit that begins with operation a goes before the one with b.
        interruptions: of operations that a shutdown can reach.
        bound: of the makespan, from job lengths and machine loads alone.
        horizon: no schedule with a larger makespan is looked for.
    """

    cp: cp_model.CpModel
    makespan: cp_model.IntVar
    start: tuple[cp_model.IntVar, ...]
    before: dict[tuple[int, int], cp_model.IntVar]
    interruptions: tuple[Interruption, ...]
    scale: int
    bound: int
    horizon: int

    def add_hint(self, schedule: Schedule, instance: Instance) -> None:
        """Suggest a value for every variable: a complete hint is a first solution, a partial one needs a search."""
        cp, start, end = self.cp, schedule.start.tolist(), schedule.end.tolist()
        cp.add_hint(self.makespan, schedule.makespan)
        rank = ranks(schedule, instance) if self.scale > 1 else [0] * instance.num_ops
        for op, var in enumerate(self.start):
            cp.add_hint(var, self.scale * start[op] + rank[op])
        for (a, b), first in self.before.items():
            cp.add_hint(first, (start[a], end[a]) <= (start[b], end[b]))
        for interruption in self.interruptions:
            cp.add_hint(interruption.end, end[interruption.op])
            for piece, chosen in zip(interruption.pieces, interruption.chosen, strict=True):
                cp.add_hint(chosen, piece.first <= start[interruption.op] <= piece.last)

    def starts(self, value: Callable[[cp_model.IntVar], int]) -> Times:
        """The start times of a solution, given the value of each variable in it; shape (ops,)."""
        return np.array([value(var) // self.scale for var in self.start], np.int64)


def build_model(
    instance: Instance,
    variant: Variant,
    scenario: Scenario | None = None,
    *,
    horizon: int | None = None,
    progress: Progress | None = None,
) -> JobShopModel:
    """Least makespan of a shop whose jobs, and in `isbjssp` whose shutdowns too, are all known beforehand.

    Per machine: NoOverlap of the processing times, and for each pair of visits a Boolean that says which
    goes first. In the blocking shops these Booleans alone carry the holding of machines.

    Args:
        scenario: the shutdowns, for `isbjssp` only.
        horizon: makespan of a known schedule; default that of one operation at a time.
        progress: a run to be finished rather than planned from its start; not in the shop without swaps.

    Raises:
        UnknownNameError: no such variant.
        InvalidInstanceError: a zero duration in a blocking shop.
        UsageError: a scenario or progress that does not belong here, or a horizon that no schedule can meet.
    """
    shop = Outlook.of(instance, variant, scenario, progress)
    if variant == "bns" and progress:
        raise UsageError("a run without swaps cannot be taken up midway; solve 'bns' from its start")
    bound = shop.bound()
    if horizon is None:
        horizon = shop.serial_makespan()
    elif horizon < bound:
        raise UsageError(f"horizon is {horizon}, but no schedule of {instance.name!r} is shorter than {bound}")

    # Without swaps, "leaves before" must also order the moves of one moment, so that no cycle of them is possible.
    # A start is time x scale + rank: then it is one plain difference, and a cycle contradicts itself.
    # A chain of moves passes each operation at most once, so ranks stay below this scale.
    scale = instance.num_ops + 1 if variant == "bns" else 1
    cp = cp_model.CpModel()
    makespan = cp.new_int_var(bound, horizon, "makespan")
    start: list[cp_model.IntVar] = []
    end: list[cp_model.LinearExprT] = []
    interruptions: list[Interruption] = []
    for op, p in enumerate(shop.duration):
        if shop.began[op] >= 0:
            start.append(cp.new_int_var(shop.began[op], shop.began[op], f"began{instance.op_name(op)}"))
            end.append(shop.end(op, shop.began[op]))
            continue
        latest = horizon - shop.tail[op] - p
        windows = shop.windows[shop.machine[op]]
        # No job enters a machine that is down, and none leaves one.
        closed = windows if shop.is_first[op] else windows + shop.windows[shop.machine[op - 1]]
        start.append(
            cp.new_int_var_from_domain(
                _open_times(shop.head[op], latest, closed, scale), f"start{instance.op_name(op)}"
            )
        )
        reached = tuple(pieces(p, windows, shop.on_interrupt, shop.head[op], latest)) if windows else ()
        if all(piece.end - piece.first == p for piece in reached):
            end.append(start[op] + scale * p)
        else:
            interruptions.append(_interruption(cp, op, start[op], reached))
            end.append(interruptions[-1].end)

    for op in range(instance.num_ops):
        if shop.is_last[op]:
            cp.add(end[op] <= scale * makespan + (scale - 1))
        elif shop.began[op + 1] < 0:
            cp.add(end[op] <= start[op + 1])

    before: dict[tuple[int, int], cp_model.IntVar] = {}
    visits = _visits(shop, instance, variant, start, end, horizon)
    num_pairs = sum(len(on_machine) * (len(on_machine) - 1) // 2 for on_machine in visits)
    for on_machine in visits:
        # Processing times rather than holding times: without size variables la20 (swaps) is proven in 6 CPU s, not 17.
        # Over the large numbers of the shop without swaps NoOverlap only slows the proof of la20 (12 CPU s, not 5).
        if variant != "bns":
            cp.add_no_overlap(cp.new_fixed_size_interval_var(v.start, v.work, f"run{v.first}") for v in on_machine)
        # Classic: the Booleans prove ft10 in 6 CPU s instead of 48, but from 2,500 pairs on they cost more than they
        # give (20x15 as good; 30x15 after 20 s 12 % worse; 100x20 no schedule in 35 s). Without NoOverlap of
        # holding times the blocking shops need them at any size; la31 (4,350 pairs) has no good schedule otherwise.
        if variant != "jssp" or num_pairs <= MOST_CLASSIC_PAIRS:
            for a, b in combinations(on_machine, 2):
                if a.job != b.job:
                    _add_precedence(cp, before, a, b)

    cp.minimize(makespan)
    return JobShopModel(cp, makespan, tuple(start), before, tuple(interruptions), scale, bound, horizon)


def _open_times(first: int, last: int, closed: Iterable[Window], scale: int) -> cp_model.Domain:
    """The scaled times of `first` .. `last` that lie in none of the windows."""
    whole = cp_model.Domain(scale * first, scale * last + scale - 1)
    shut = cp_model.Domain.from_intervals([[scale * down, scale * up - 1] for down, up in closed])
    return whole.intersection_with(shut.complement())


def _interruption(cp: cp_model.CpModel, op: int, start: cp_model.IntVar, reached: tuple[Piece, ...]) -> Interruption:
    """The end of an operation as a function of its start, one literal a piece."""
    latest = max(piece.end + (piece.last - piece.first if piece.moves else 0) for piece in reached)
    end = cp.new_int_var(min(piece.end for piece in reached), latest, f"end{op}")
    chosen = tuple(cp.new_bool_var(f"piece{op}_{k}") for k in range(len(reached)))
    cp.add_exactly_one(chosen)
    for piece, here in zip(reached, chosen, strict=True):
        cp.add_linear_constraint(start, piece.first, piece.last).only_enforce_if(here)
        if piece.moves:
            cp.add(end == start + (piece.end - piece.first)).only_enforce_if(here)
        else:
            cp.add(end == piece.end).only_enforce_if(here)
    return Interruption(op, end, reached, chosen)


def _visits(
    shop: Outlook,
    instance: Instance,
    variant: Variant,
    start: list[cp_model.IntVar],
    end: list[cp_model.LinearExprT],
    horizon: int,
) -> list[list[Visit]]:
    """The visits of each machine that are not over."""
    visits: list[list[Visit]] = [[] for _ in shop.windows]
    job = instance.op_job().tolist()
    making_way = 1 if variant == "bns" else 0  # whoever takes the machine moves after the one that leaves it
    for first, last in _stays(shop, variant != "jssp"):
        frees_at_end = variant == "jssp" or shop.is_last[last]
        if shop.began[last] >= 0:
            if frees_at_end and shop.end(last, shop.began[last]) <= shop.now:
                continue
            if not frees_at_end and shop.began[last + 1] >= 0:
                continue
        visits[shop.machine[first]].append(
            Visit(
                job[first],
                first,
                last,
                work=sum(shop.duration[first : last + 1]),
                latest_start=shop.began[first]
                if shop.began[first] >= 0
                else horizon - shop.tail[first] - shop.duration[first],
                earliest_leave=shop.end(last, shop.head[last]) if frees_at_end else shop.head[last + 1],
                start=start[first],
                leave=end[last] if frees_at_end else start[last + 1] + making_way,
            )
        )
    return visits


def _stays(shop: Outlook, blocking: bool) -> Iterator[tuple[int, int]]:
    """First and last operation of every visit."""
    first = 0
    for op, machine in enumerate(shop.machine):
        if not blocking or shop.is_last[op] or shop.machine[op + 1] != machine:
            yield first, op
            first = op + 1


def _add_precedence(cp: cp_model.CpModel, before: dict[tuple[int, int], cp_model.IntVar], a: Visit, b: Visit) -> None:
    """One of two visits has left the machine when the other starts."""
    a_first, b_first = a.leave <= b.start, b.leave <= a.start
    if a.earliest_leave > b.latest_start:
        cp.add(b_first)
    elif b.earliest_leave > a.latest_start:
        cp.add(a_first)
    else:
        literal = before[a.first, b.first] = cp.new_bool_var(f"before{a.first}_{b.first}")
        cp.add(a_first).only_enforce_if(literal)
        cp.add(b_first).only_enforce_if(~literal)
