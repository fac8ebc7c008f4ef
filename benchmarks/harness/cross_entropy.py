"""The cross-entropy method on tables of weights, as a command: what the scripts that tune a merit share.

Every generation draws tables around the mean so far, plays a set of training problems under each, the same each time or
with --fresh another, and moves to the mean of the best fifth. Now and then that mean plays problems that are in no such
set; the table that is best there is printed at the end as a recipe has it, and kept in --out all along.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """Problems k, k + parts, k + 2 parts ... of a set of `count`."""

    recipe: Path
    overrides: tuple[str, ...]
    count: int
    seed: int
    k: int
    parts: int


Scores = Callable[[Part, Table], Table]
"""Scores of every table on every problem of a part, shape (tables, problems), per cent; a function of a module."""


def arguments(
    description: str | None, recipe: str, *, instances: int, generations: int, population: int, spread: float
) -> argparse.ArgumentParser:
    """The options of such a command, with these defaults; `recipe`: what file it takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help=recipe)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--instances", type=int, default=instances, help=f"problems of a set; default {instances}")
    parser.add_argument("--generations", type=int, default=generations)
    parser.add_argument("--population", type=int, default=population)
    parser.add_argument("--spread", type=float, default=spread, help="standard deviation of the first weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; default 1")
    parser.add_argument("--fresh", action="store_true", help="another set of problems for every generation")
    parser.add_argument("--every", type=int, default=1, help="generations between two looks at other problems")
    parser.add_argument("--out", type=Path, help="the best table so far, as JSON")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after the generation that passes them"
    )
    return parser


def parts_of(options: argparse.Namespace, seed: int) -> list[Part]:
    """The set of this seed, in as many parts as there are workers."""
    count, parts = options.instances, min(options.workers, options.instances)
    return [Part(options.recipe, tuple(options.overrides), count, seed, k, parts) for k in range(parts)]


def tune(
    options: argparse.Namespace,
    start: Table,
    spread: float | Table,
    scores: Scores,
    groups_of: Callable[[Part], Sequence[str]],
) -> Table:
    """The best table on problems that are not in the set; says how it goes.

    Args:
        spread: standard deviations of the first draws, 0 for weights that stay.
        groups_of: what the problems of a part are called.
    """
    seeds = itertools.count(options.seed + 2) if options.fresh else itertools.repeat(options.seed)
    others = parts_of(options, options.seed + 1)
    groups = np.array([group for part in others for group in groups_of(part)])
    began = time.perf_counter()
    with ProcessPoolExecutor(options.workers) as pool:

        def play(parts: list[Part], tables: Table) -> Table:
            """Shape (tables, problems)."""
            return np.concatenate(list(pool.map(scores, parts, [tables] * len(parts))), axis=1)

        base = play(others, start[None])[0]
        best, best_table = float(base.mean()), start
        print(f"start: {best:.3f} on other problems", flush=True)

        def keep() -> None:
            if options.out is not None:
                options.out.write_text(json.dumps(best_table.round(3).tolist()) + "\n", encoding="utf-8")

        def report(generation: int, table: Table, highest: float) -> bool:
            nonlocal best, best_table
            took = time.perf_counter() - began
            print(f"{generation}: {took:.0f} s, best {highest:.3f}", flush=True)
            if (generation + 1) % options.every == 0:
                found = play(others, table[None])[0]
                gain = {name: (found - base)[groups == name].mean() for name in sorted(set(groups.tolist()))}
                said = ", ".join(f"{name} {value:+.2f}" for name, value in gain.items())
                print(f"  others {found.mean():.3f}, {(found - base).mean():+.3f}: {said}", flush=True)
                if found.mean() > best:
                    best, best_table = float(found.mean()), table
                    keep()
            return bool(took > options.seconds)

        keep()
        cross_entropy(
            lambda tables: play(parts_of(options, next(seeds)), tables).mean(axis=1), start, spread,
            options.generations, options.population, options.seed, report,
        )  # fmt: skip
    for row in best_table.round(3).tolist():
        print(f"  - {row}")
    return best_table


def cross_entropy(
    score: Callable[[Table], Table], mean: Table, spread: float | Table, generations: int, population: int, seed: int,
    report: Callable[[int, Table, float], bool],
) -> Table:  # fmt: skip
    """The mean of the last generation's best fifth, the highest scores first; ends early when `report` says so."""
    rng = np.random.default_rng(seed)
    width = np.full(mean.shape, spread)
    for generation in range(generations):
        drawn = mean + width * rng.standard_normal((population, *mean.shape))
        drawn[0] = mean
        scores = score(drawn)
        best = drawn[np.argsort(-scores)[: max(4, population // 5)]]
        mean = 0.3 * mean + 0.7 * best.mean(axis=0)
        width = np.maximum(0.3 * width + 0.7 * best.std(axis=0), spread / 8)
        if report(generation, mean, float(scores.max())):
            break
    return mean
