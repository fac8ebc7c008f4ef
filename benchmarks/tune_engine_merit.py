"""Weights of the merit of an LLM engine's choices, by the cross-entropy method on random problems.

As `tune_merit.py`, for graph "engine": every generation plays a fixed set of problems of the recipe (`llm.draw`) under
tables drawn around the best so far. A problem's score is its goodput as a share of that of meeting all bounds in the
time of first come, first served. Tables are judged on problems that are not in the set; the best of them is printed at
the end, and written with --out, as a recipe has it under `llm.choices.merit`.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tune_merit import Table, cross_entropy

from dispatchgym.agents.training.config import load
from dispatchgym.envs.llm.batch import EngineBatch, Room
from dispatchgym.envs.llm.draws import Serving
from dispatchgym.envs.llm.graph import ADMIT, COLUMNS, FIRST_ENGINE, KINDS, MERIT, PREEMPT, READ, RUN, WAIT

MOST_SHARE = 1.25
"""A problem counts no more than this, however much sooner than first come, first served it is done."""

OF_PREEMPTION = ("hopeless", "blocks", "output", "known", "preemptions", "late", "queue", "hopeful")
OF_PIECES = ("kv", "peak", "late", "tight")


def spread_of(size: float) -> Table:
    """Standard deviations of the weights that are tuned, 0 for the others; shape (kinds, columns but the merit)."""
    spread = np.zeros((len(KINDS), MERIT))
    asked = slice(len(KINDS), FIRST_ENGINE)
    for kind in (ADMIT, READ):
        spread[kind, kind] = 1.0
        spread[kind, asked] = 1.0
        spread[kind, [COLUMNS[name] for name in OF_PIECES]] = 1.0
    spread[PREEMPT, [COLUMNS[name] for name in OF_PREEMPTION]] = 1.0
    spread[RUN, FIRST_ENGINE:] = spread[WAIT, FIRST_ENGINE:] = 1.0
    for name in ("slack", "left", "work", "waited", "adds", "output", "known", "most"):
        spread[:, COLUMNS[name]] *= 0.5  # their columns are larger than 1
    spread[:, COLUMNS["overflow"]] *= 4.0
    spread[READ, [COLUMNS["peak_with"], COLUMNS["overflow"]]] = 0.0  # always 0
    spread[PREEMPT, PREEMPT] = spread[WAIT, WAIT] = 4.0
    return size * spread


@dataclass(frozen=True, slots=True)
class Part:
    """Problems k, k + parts, k + 2 parts ... of a set of `count`."""

    recipe: Path
    overrides: tuple[str, ...]
    count: int
    seed: int
    k: int
    parts: int


@cache
def drawn(part: Part) -> tuple[list[Serving], EngineBatch]:
    """Made once a process."""
    source = load(part.recipe, part.overrides).llm
    problems = source.problems(part.count, (part.seed, 4))[part.k :: part.parts]
    return problems, EngineBatch(len(problems), Room.of(problems), source.choices)


def scores(part: Part, tables: Table) -> Table:
    """Of every table on every problem of the part, shape (tables, problems)."""
    problems, batch = drawn(part)
    reference_s = np.array([problem.reference_s for problem in problems])
    found = []
    for table in tables:
        for i, problem in enumerate(problems):
            batch.load(i, problem)
        batch.reweigh(table)
        batch.begin()
        batch.finish()
        found.append(batch.met / batch.requests * np.minimum(reference_s / batch.now_s, MOST_SHARE))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a configuration of `dispatchgym train`, graph engine")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--instances", type=int, default=64)
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--spread", type=float, default=0.4, help="standard deviation of the first weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; default 1")
    parser.add_argument("--out", type=Path, help="the best table so far, as JSON")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after the generation that passes them"
    )
    options = parser.parse_args()
    start = load(options.recipe, options.overrides).llm.choices.weights
    mine, others = (
        [
            Part(options.recipe, tuple(options.overrides), options.instances, seed, k, options.workers)
            for k in range(options.workers)
        ]
        for seed in (options.seed, options.seed + 1)
    )
    began = time.perf_counter()
    with ProcessPoolExecutor(options.workers) as pool:

        def play(parts: list[Part], tables: Table) -> Table:
            """Shape (tables,)."""
            return np.concatenate(list(pool.map(scores, parts, [tables] * len(parts))), axis=1).mean(axis=1)

        best, best_table = float(play(others, start[None])[0]), start
        print(f"start: {100 * best:.2f} % on other problems", flush=True)

        def keep(table: Table) -> None:
            if options.out is not None:
                options.out.write_text(json.dumps(table.round(3).tolist()) + "\n", encoding="utf-8")

        def report(generation: int, table: Table, highest: float) -> bool:
            nonlocal best, best_table
            found = float(play(others, table[None])[0])
            took = time.perf_counter() - began
            print(f"{generation}: {took:.0f} s, best {100 * highest:.2f} %, others {100 * found:.2f} %", flush=True)
            if found > best:
                best, best_table = found, table
                keep(table)
            return took > options.seconds

        keep(start)
        cross_entropy(
            lambda tables: play(mine, tables), start, spread_of(options.spread), options.generations,
            options.population, options.seed, report,
        )  # fmt: skip
    for row in best_table.round(3).tolist():
        print(f"  - {row}")


if __name__ == "__main__":
    main()
