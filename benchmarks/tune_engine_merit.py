"""Weights of the merit of an LLM engine's choices, by the cross-entropy method on random problems.

Problems are `llm.draw` of the recipe; see harness/cross_entropy.py. A problem's score is its goodput in per cent of
that of meeting all bounds in the time of first come, first served; the table is printed as a recipe has it under
`llm.choices.merit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from harness.cross_entropy import Part, Table, arguments, tune

from dispatchgym.agents.training.config import load
from dispatchgym.envs.llm.batch import EngineBatch, Room
from dispatchgym.envs.llm.draws import Serving
from dispatchgym.envs.llm.graph import ADMIT, COLUMNS, FIRST_ENGINE, KINDS, MERIT, PREEMPT, READ, RUN, WAIT

MOST_SHARE = 1.25
"""A problem counts no more than this, however much sooner than first come, first served it is done."""

OF_PREEMPTION = ("hopeless", "blocks", "output", "known", "preemptions", "late", "queue", "hopeful")
OF_PIECES = ("kv", "peak", "late", "tight")


def spread_of(size: float, only: Sequence[str] = ()) -> Table:
    """Standard deviations of the weights that are tuned, 0 for the others; shape (kinds, columns but the merit).

    Args:
        only: columns that are tuned; default all.
    """
    spread = np.zeros((len(KINDS), MERIT))
    asked = slice(len(KINDS), FIRST_ENGINE)
    for kind in (ADMIT, READ):
        spread[kind, kind] = 1.0
        spread[kind, asked] = 1.0
        spread[kind, [COLUMNS[name] for name in OF_PIECES]] = 1.0
    spread[PREEMPT, [COLUMNS[name] for name in OF_PREEMPTION]] = 1.0
    spread[RUN, FIRST_ENGINE:] = spread[WAIT, FIRST_ENGINE:] = 1.0
    for name in ("slack", "left", "work", "waited", "adds", "output", "known", "most", "due", "ahead"):
        spread[:, COLUMNS[name]] *= 0.5  # their columns are larger than 1
    for name in ("overflow", "spoils", "delays", "dropped", "spare", "reads"):
        spread[:, COLUMNS[name]] *= 4.0
    spread[READ, [COLUMNS["peak_with"], COLUMNS["overflow"]]] = 0.0  # always 0
    spread[PREEMPT, PREEMPT] = spread[WAIT, WAIT] = 4.0
    if only:
        spread[:, [c for name, c in COLUMNS.items() if name not in only and c < MERIT]] = 0.0
    return size * spread


@lru_cache(maxsize=2)
def drawn(part: Part) -> tuple[list[Serving], EngineBatch]:
    """Kept in the process: its own set, and the others that are looked at now and then."""
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
    return 100.0 * np.array(found)


def groups_of(part: Part) -> list[str]:
    """Kinds of traffic."""
    return [problem.group for problem in drawn(part)[0]]


def main() -> None:
    recipe = "a configuration of `dispatchgym train`, graph engine"
    parser = arguments(__doc__, recipe, instances=64, generations=30, population=32, spread=0.4)
    parser.add_argument("--columns", default="", help="tune the weights of these alone; default: all")
    options = parser.parse_args()
    only = options.columns.split(",") if options.columns else []
    if unknown := set(only) - set(COLUMNS):
        parser.error(f"--columns: {', '.join(sorted(unknown))} is not one of {', '.join(COLUMNS)}")
    start = load(options.recipe, options.overrides).llm.choices.weights
    tune(options, start, spread_of(options.spread, only), scores, groups_of)


if __name__ == "__main__":
    main()
