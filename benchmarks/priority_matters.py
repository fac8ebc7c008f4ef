"""What cp-sat and repair add to the default scheduler on the grid of 'Priority Matters' (arXiv 2511.08373), and when.

A column is METHOD@SECONDS: tiers and anytime are cp-sat's methods, repair is the local search. One line a cell and
column, in per cent of the cell's instances, as the paper sorts them by the vector of placed pods per priority: nc no
call (the default scheduler placed all), F failure (not better, without proof), D default proven optimal, B* better
and proven optimal, B better; then means: wall seconds, deterministic seconds (the same work anywhere), and, where
better, pods moved, evicted and gained. "proven optimal" is cp-sat's all stages proven; repair proves a placement
only by placing every pod.

Then, per column: the share of improved instances among the "realisable" ones, those with a pending pod in cells below
usage 1 that are not proven to have too little room; spreads are 95 % Wilson intervals. Published: 44 % in 1 s and 73 %
in 10 s, on another machine with more workers and with the start of a process in it. And per pair of columns on how many
instances the first places more, as much, or less, by priority.

Instances are those that the paper's selection takes (`hard_instances`); the run that must be improved draws ties at
random and evicts. The cells take turns, so `--minutes` cuts all of them short alike.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from harness.rows import Row, arguments, publish

from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import cp_sat, kube_scheduler
from dispatchgym.solvers.packing.hard_seeds import hard_instances
from dispatchgym.solvers.packing.plan import Hosts, Plan, placed_by_priority
from dispatchgym.solvers.packing.repair import repair

OUTCOMES = ("nc", "F", "D", "B*", "B")
PUBLISHED = {1.0: 44.0, 10.0: 73.0}
QUICK = ((8, 4, 1, 0.95), (8, 8, 4, 0.95), (32, 4, 4, 0.95))
LONGEST_WALL = 120.0
"""Seconds after which a search under a deterministic limit is stopped all the same."""

Cell = tuple[int, int, int, float]


@dataclass(frozen=True, slots=True)
class Column:
    """A method and its limit, seconds."""

    method: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Column:
        found = re.fullmatch(r"(tiers|anytime|repair)@(\d+(?:\.\d+)?)", text)
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r}: write METHOD@SECONDS, methods are tiers, anytime, repair")
        return cls(found[1], float(found[2]))

    def __str__(self) -> str:
        return f"{self.method}@{self.limit:g}"


@dataclass(frozen=True, slots=True)
class Case:
    """An instance and what the default scheduler leaves running."""

    cell: Cell
    instance: PackingInstance
    now: Hosts

    @property
    def is_call(self) -> bool:
        return len(self.now) < self.instance.num_pods


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a column made of a case."""

    kind: str
    placed: tuple[int, ...]
    wall_s: float
    deterministic_s: float
    plan: Plan
    proves_too_small: bool


def solve(case: Case, column: Column, is_deterministic: bool, workers: int) -> Outcome:
    before = placed_by_priority(case.instance, case.now)
    wall = LONGEST_WALL if is_deterministic else column.limit
    deterministic = column.limit if is_deterministic else None
    if column.method == "repair":
        found = repair(case.instance, case.now, time_limit=wall, deterministic_limit=deterministic)
        kind = "F" if found.placed <= before else "B*" if found.is_all_placed else "B"
        return Outcome(kind, found.placed, found.wall_s, found.deterministic_s, found.plan, False)
    solution = cp_sat.solve(
        case.instance,
        case.now,
        method="tiers" if column.method == "tiers" else "anytime",
        time_limit=wall,
        deterministic_limit=deterministic,
        workers=workers,
    )
    proven = solution.status == "optimal"
    kind = "F"
    if solution.placed > before:
        kind = "B*" if proven else "B"
    elif solution.placed == before and proven:
        kind = "D"
    # All pods at once would meet whatever "anytime" asks of a placement before it bounds the last tier.
    too_small = column.method == "anytime" and solution.bound[-1] < case.instance.num_pods
    return Outcome(kind, solution.placed, solution.wall_s, solution.deterministic_s, solution.plan, too_small)


def cases(cell: Cell, number: int, first_seed: int) -> list[Case]:
    instances = hard_instances(*cell, number, first_seed)
    runs = (kube_scheduler.rollout(instance, seed=seed) for seed, instance in enumerate(instances))
    return [Case(cell, i, validate(run.log.events(), i)) for i, run in zip(instances, runs, strict=True)]


def interval(hits: int, number: int) -> tuple[float, float]:
    """95 % Wilson interval of a share, per cent."""
    z, share = 1.96, hits / number
    middle, root = share + z * z / (2 * number), z * math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
    below = 1 + z * z / number
    return 100 * max(0.0, middle - root) / below, 100 * (middle + root) / below


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--nodes", nargs="*", type=int, default=[4, 8, 16, 32, 64])
    parser.add_argument("--pods-per-node", nargs="*", type=int, default=[4, 8])
    parser.add_argument("--priorities", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--usage", nargs="*", type=float, default=[0.90, 0.95, 1.00, 1.05])
    parser.add_argument("--instances", type=int, default=100, help="a cell; default 100")
    parser.add_argument("--first-seed", type=int, default=0, help="of the generator; default 0")
    columns = "tiers@1 anytime@1 tiers@10 anytime@10 repair@0.05 repair@1"
    parser.add_argument("--columns", nargs="*", type=Column.parse, help=f"default {columns}; --quick: none of 10 s")
    parser.add_argument("--deterministic", action="store_true", help="limits are deterministic seconds of work")
    parser.add_argument("--workers", type=int, default=1, help="search threads of cp-sat; default 1")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further case after these")
    options = parser.parse_args()
    grid = itertools.product(options.nodes, options.pods_per_node, options.priorities, options.usage)
    cells: list[Cell] = list(QUICK if options.quick else grid)
    number = min(options.instances, 2) if options.quick else options.instances
    chosen = options.columns or [Column.parse(c) for c in columns.split() if not (options.quick and c.endswith("@10"))]

    begin, told = time.monotonic(), time.monotonic()
    turns = [*zip(*(cases(cell, number, options.first_seed) for cell in cells), strict=True)]
    found: dict[Cell, list[dict[Column, Outcome] | None]] = defaultdict(list)
    for done, case in enumerate(itertools.chain(*turns)):
        now = time.monotonic()
        if now - begin > 60 * options.minutes:
            print(f"time is up: {done} of {number * len(cells)} cases", file=sys.stderr)
            break
        if now - told > 30:
            told = now
            print(f"{done} of {number * len(cells)} cases, {now - begin:.0f} s", file=sys.stderr, flush=True)
        solved = {c: solve(case, c, options.deterministic, options.workers) for c in chosen} if case.is_call else None
        found[case.cell].append(solved)
    unit = "det. s" if options.deterministic else "s"
    rows = [row for cell, results in found.items() for row in print_cell(cell, results, chosen, unit)]
    rows += print_pooled(found, chosen, options.deterministic, unit)
    print_pairs([each for results in found.values() for each in results if each], chosen)
    publish(rows, options.json, ("ortools", "numpy", "numba"))


def print_cell(
    cell: Cell, results: Sequence[dict[Column, Outcome] | None], columns: Sequence[Column], unit: str
) -> list[Row]:
    rows = []
    print(f"\n{'nodes ppn P usage':18} {'column':12}" + "".join(f"{o:>5}" for o in OUTCOMES)
          + f"  {'s':>6} {'det. s':>7}  moves  evicted  gained")  # fmt: skip
    for column in columns:
        mine = [each[column] for each in results if each]
        better = [each for each in mine if each.kind in ("B*", "B")]
        counts = Counter(each.kind for each in mine) + Counter(nc=results.count(None))
        means = [
            statistics.fmean(values) if values else math.nan
            for values in (
                [each.wall_s for each in mine],
                [each.deterministic_s for each in mine],
                [len(each.plan.moved) for each in better],
                [len(each.plan.evicted) for each in better],
                [len(each.plan.then) - len(each.plan.now) for each in better],
            )
        ]
        print(f"{cell[0]:5} {cell[1]:3} {cell[2]:1} {cell[3]:5.2f}   {column!s:12}"
              + "".join(f"{100 * counts[o] / len(results):5.0f}" for o in OUTCOMES)
              + "  {:6.3f} {:7.4f} {:6.1f} {:8.1f} {:7.1f}".format(*means), flush=True)  # fmt: skip
        name = f"{cell[0]}x{cell[1]} p{cell[2]} u{cell[3]:.2f} {column} {unit}"
        note = ", ".join(f"{o} {counts[o]}" for o in OUTCOMES)
        share = 100.0 * len(better) / len(results)
        rows.append(Row(name, share, "% improved", interval(len(better), len(results)), bar=note))
    return rows


def print_pooled(
    found: dict[Cell, list[dict[Column, Outcome] | None]], columns: Sequence[Column], is_deterministic: bool, unit: str
) -> list[Row]:
    """Improved shares of realisable instances, all together and by number of nodes."""
    rows = []
    print("\nimproved, per cent of the realisable instances")
    by_size: dict[str, list[dict[Column, Outcome]]] = defaultdict(list)
    for cell, results in found.items():
        for each in results:
            if each and cell[3] < 1.0 and not any(o.proves_too_small for o in each.values()):
                by_size["all"].append(each)
                by_size[f"{cell[0]} nodes"].append(each)
    for size, pooled in by_size.items():
        for column in columns:
            hits = sum(each[column].kind in ("B*", "B") for each in pooled)
            proven = sum(each[column].kind in ("B*", "D") for each in pooled)
            ends, share = interval(hits, len(pooled)), 100.0 * hits / len(pooled)
            known = None
            if size == "all" and not is_deterministic and column.method != "repair":
                known = PUBLISHED.get(column.limit)
            note = f"{len(pooled)} instances, {proven} proven optimal" + (f"; bar {known:g}" if known else "")
            print(f"{size:9} {column!s:12} {share:5.1f} [{ends[0]:.1f}, {ends[1]:.1f}]  {note}")
            name = f"{size}, {column} {unit}, improved"
            rows.append(Row(name, share, "% realisable", ends, "published" if known else None, known, note))
    return rows


def print_pairs(results: Sequence[dict[Column, Outcome]], columns: Sequence[Column]) -> None:
    """For every two columns, how often the first places more, as much or less; and what it keeps of improvements."""
    print(f"\n{'placed by priority':27} {'more':>5} {'same':>5} {'less':>5}  improves, of what the other improves")
    for first, second in itertools.permutations(columns, 2):
        pairs = [(each[first], each[second]) for each in results]
        signs = Counter((a.placed > b.placed) - (a.placed < b.placed) for a, b in pairs)
        also = [a.kind in ("B*", "B") for a, b in pairs if b.kind in ("B*", "B")]
        share = f"{sum(also)} of {len(also)}" + (f" ({100 * sum(also) / len(also):.1f} %)" if also else "")
        print(f"{first!s:12} to {second!s:12}{signs[1]:5} {signs[0]:5} {signs[-1]:5}  {share}")


if __name__ == "__main__":
    main()
