"""Weights of the merit, the linear rule that ranks a shortlist, by the cross-entropy method on generated clusters.

Instances are `packing` of the recipe, never a published list; see harness/cross_entropy.py. Returns are per cent of
what is at stake; the table is printed as a recipe has it under `packing.choices.merit`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import cast

import numpy as np
from harness.cross_entropy import Part, Table, arguments, tune

from dispatchgym.agents.training.config import load
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import SPECS, Shortlists, ShortName


@cache
def drawn(part: Part) -> tuple[list[str], list[PackingInstance]]:
    """Groups and instances of a part."""
    config = load(part.recipe, part.overrides)
    groups, instances = config.packing.draw(cast(ShortName, config.graph), part.count, (part.seed, 4))
    return groups[part.k :: part.parts], instances[part.k :: part.parts]


def groups_of(part: Part) -> list[str]:
    return drawn(part)[0]


@cache
def shortlists(part: Part) -> list[Shortlists]:
    """Made once a process."""
    config = load(part.recipe, part.overrides)
    choices = replace(config.packing.choices, merit=())
    return [Shortlists.of([instance], cast(ShortName, config.graph), choices) for instance in drawn(part)[1]]


def returns(part: Part, tables: Table) -> Table:
    """Per cent of the stake under each table, shape (tables, instances of the part)."""
    return np.array([[_return(lists, table) for lists in shortlists(part)] for table in tables])


def _return(lists: Shortlists, table: Table) -> float:
    lists.reweigh(table)
    lists.batch.reset()
    return float((100.0 * (lists.begin() + lists.finish()) / lists.stake)[0])


def main() -> None:
    recipe = "a configuration of `dispatchgym train`, graph repack or bindings"
    parser = arguments(__doc__, recipe, instances=30, generations=24, population=40, spread=0.15)
    parser.set_defaults(every=3)
    options = parser.parse_args()
    config = load(options.recipe, options.overrides)
    graph = cast(ShortName, config.graph)
    print("# " + " ".join(feature.name for feature in SPECS[graph].node("choice").features[:-1]))
    tune(options, config.packing.choices.weights(graph), options.spread, returns, groups_of)


if __name__ == "__main__":
    main()
