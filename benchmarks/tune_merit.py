"""Weights of the merit, the linear rule that ranks a shortlist, by the cross-entropy method on generated clusters.

Every generation draws tables of weights around the best so far, plays a fixed set of training instances under each
(`packing` of the recipe, never a published list), and moves to the mean of the best fifth. It prints, every other
generation, the mean return by group on instances that are not in the set, less that of the starting rule, and at the
end the table as a recipe has it under `packing.choices.merit`. Returns are per cent of what is at stake.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.training.config import load
from dispatchgym.envs.packing.shortlist import SPECS, Shortlists, ShortName

Table = npt.NDArray[np.float64]


def cross_entropy(
    score: Callable[[Table], float],
    mean: Table,
    spread: float,
    generations: int,
    population: int,
    seed: int,
    report: Callable[[int, Table, float], None],
) -> Table:
    """The mean of the last generation's best fifth; the highest score wins."""
    rng = np.random.default_rng(seed)
    width = np.full(mean.shape, spread)
    for generation in range(generations):
        drawn = mean + width * rng.standard_normal((population, *mean.shape))
        drawn[0] = mean
        scores = np.array([score(table) for table in drawn])
        best = drawn[np.argsort(-scores)[: max(4, population // 5)]]
        mean = 0.3 * mean + 0.7 * best.mean(axis=0)
        width = np.maximum(0.3 * width + 0.7 * best.std(axis=0), spread / 8)
        report(generation, mean, float(scores.max()))
    return mean


class Judge:
    """Returns of tables of weights on a fixed set of instances."""

    def __init__(self, recipe: Path, overrides: list[str], count: int, seed: int) -> None:
        config = load(recipe, overrides)
        self.graph = cast(ShortName, config.graph)
        self.start = config.packing.choices.weights(self.graph)
        self.groups, instances = config.packing.draw(self.graph, count, (seed, 4))
        self.lists = Shortlists.of(instances, self.graph, replace(config.packing.choices, merit=()))

    def __call__(self, table: Table) -> Table:
        """Per cent of the stake, shape (instances,)."""
        self.lists.reweigh(table)
        self.lists.batch.reset()
        won = self.lists.begin() + self.lists.finish()
        returns: Table = 100.0 * won / self.lists.stake
        return returns

    def by_group(self, table: Table, base: Table) -> str:
        gain = self(table) - base
        names = sorted(set(self.groups))
        return ", ".join(
            f"{name} {gain[[k for k, other in enumerate(self.groups) if other == name]].mean():+.2f}" for name in names
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "recipe", type=Path, help="a configuration of `dispatchgym train` with graph repack or bindings"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--instances", type=int, default=30)
    parser.add_argument("--generations", type=int, default=24)
    parser.add_argument("--population", type=int, default=40)
    parser.add_argument("--spread", type=float, default=0.15, help="standard deviation of the first weights")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    judge = Judge(options.recipe, options.overrides, options.instances, options.seed)
    other = Judge(options.recipe, options.overrides, options.instances, options.seed + 1)
    base = other(other.start)
    began = time.perf_counter()
    print(f"start: {base.mean():.3f} on other instances", flush=True)

    def report(generation: int, table: Table, best: float) -> None:
        if generation % 2:
            said = other.by_group(table, base)
            print(f"{generation}: {time.perf_counter() - began:.0f} s, best {best:.3f}; {said}", flush=True)

    table = cross_entropy(
        lambda weights: float(judge(weights).mean()), judge.start, options.spread, options.generations,
        options.population, options.seed, report,
    )  # fmt: skip
    columns = [feature.name for feature in SPECS[judge.graph].node("choice").features]
    print("# " + " ".join(columns[:-1]))
    for row in table.round(3).tolist():
        print(f"  - {row}")


if __name__ == "__main__":
    main()
