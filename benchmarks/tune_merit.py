"""Weights of the merit, the linear rule that ranks a shortlist, by the cross-entropy method on generated clusters.

Every generation draws tables of weights around the best so far, plays a fixed set of training instances under each
(`packing` of the recipe, never a published list), and moves to the mean of the best fifth. It prints, every third
generation, the table and its mean return by group on instances that are not in the set, less that of the starting rule;
at the end the table as a recipe has it under `packing.choices.merit`. Returns are per cent of what is at stake.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.training.config import TrainConfig, load
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import SPECS, Shortlists, ShortName

Table = npt.NDArray[np.float64]


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


@dataclass(frozen=True, slots=True)
class Part:
    """Instance `k` of a set of `count`."""

    recipe: Path
    overrides: tuple[str, ...]
    count: int
    seed: int
    k: int


@cache
def drawn(config: TrainConfig, count: int, seed: int) -> tuple[list[str], list[PackingInstance]]:
    """Groups and instances, made once a process."""
    return config.packing.draw(cast(ShortName, config.graph), count, (seed, 4))


@cache
def shortlists(part: Part) -> Shortlists:
    """Made once a process."""
    config = load(part.recipe, part.overrides)
    instance = drawn(config, part.count, part.seed)[1][part.k]
    return Shortlists.of([instance], cast(ShortName, config.graph), replace(config.packing.choices, merit=()))


def returns(part: Part, tables: Table) -> Table:
    """Per cent of the stake under each table, shape (tables,)."""
    lists = shortlists(part)
    found = []
    for table in tables:
        lists.reweigh(table)
        lists.batch.reset()
        found.append(float((100.0 * (lists.begin() + lists.finish()) / lists.stake)[0]))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a configuration of `dispatchgym train`, graph repack or bindings")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--instances", type=int, default=30)
    parser.add_argument("--generations", type=int, default=24)
    parser.add_argument("--population", type=int, default=40)
    parser.add_argument("--spread", type=float, default=0.15, help="standard deviation of the first weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; default 1")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after the generation that passes them"
    )
    options = parser.parse_args()
    config = load(options.recipe, options.overrides)
    graph = cast(ShortName, config.graph)
    count = options.instances
    groups = drawn(config, count, options.seed + 1)[0]
    mine, others = (
        [Part(options.recipe, tuple(options.overrides), count, seed, k) for k in range(count)]
        for seed in (options.seed, options.seed + 1)
    )
    start = config.packing.choices.weights(graph)
    began = time.perf_counter()
    columns = [feature.name for feature in SPECS[graph].node("choice").features]
    print("# " + " ".join(columns[:-1]))
    with ProcessPoolExecutor(options.workers) as pool:

        def play(parts: list[Part], tables: Table) -> Table:
            """Shape (tables, instances)."""
            return np.stack(list(pool.map(returns, parts, [tables] * len(parts))), axis=1)

        base = play(others, start[None])[0]
        print(f"start: {base.mean():.3f} on other instances", flush=True)

        def report(generation: int, table: Table, best: float) -> bool:
            print(f"{generation}: {time.perf_counter() - began:.0f} s, best {best:.3f}", flush=True)
            if generation % 3 == 2:
                gain = play(others, table[None])[0] - base
                by_group = {
                    name: gain[[k for k, other in enumerate(groups) if other == name]].mean() for name in set(groups)
                }
                said = ", ".join(f"{name} {value:+.2f}" for name, value in sorted(by_group.items()))
                print(f"  others {gain.mean():+.3f}: {said}\n  {table.round(3).tolist()}", flush=True)
            return time.perf_counter() - began > options.seconds

        table = cross_entropy(
            lambda tables: play(mine, tables).mean(axis=1), start, options.spread, options.generations,
            options.population, options.seed, report,
        )  # fmt: skip
    for row in table.round(3).tolist():
        print(f"  - {row}")


if __name__ == "__main__":
    main()
