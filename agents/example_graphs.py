"""Decisions of generated problems, some way into their runs: what bundles are proven on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from dispatchgym.agents.forced_moves import step_to_choice
from dispatchgym.agents.runtime import OneGraph, one_of
from dispatchgym.agents.settings import Setting
from dispatchgym.envs.api import GraphSpec
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.llm.batch import ChoicesConfig, EngineBatch, Room
from dispatchgym.envs.llm.draws import DrawConfig, draw
from dispatchgym.envs.packing import twin
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.shortlist import ShortlistConfig, Shortlists, ShortName

Size = tuple[int, int]
"""Jobs and machines; nodes and pods a node; requests, as their product."""

CROWDED = 1.0
"""Usage of the clusters of pods: some decisions move pods."""


def examples(spec: GraphSpec, setting: Setting, sizes: Sequence[Size], seed: int) -> Iterator[tuple[Size, OneGraph]]:
    """A decision some way into the run of a generated problem of each size."""
    if isinstance(setting, ShopConfig):
        return _of_shops(spec, setting, sizes, seed)
    if isinstance(setting, ChoicesConfig):
        return _of_engines(spec, setting, sizes, seed)
    return _of_clusters(spec, setting, sizes, seed)


def _of_shops(spec: GraphSpec, shop: ShopConfig, sizes: Sequence[Size], seed: int) -> Iterator[tuple[Size, OneGraph]]:
    """About a third into the run."""
    rng = np.random.default_rng(seed)
    for jobs, machines in sizes:
        batch = ShopBatch.of([random_instance(rng, jobs, machines)], shop, cast(GraphName, spec.graph))
        reward, action = np.empty(1), np.full(1, -1, np.int64)
        step_to_choice(batch.problem, batch.shop, batch.mode, action, reward)
        seen = batch.observe()
        for _ in range(jobs * machines // 3):
            action[0] = seen.action[rng.integers(len(seen.action))]
            step_to_choice(batch.problem, batch.shop, batch.mode, action, reward)
            if batch.over[0]:
                break
            seen = batch.observe()
        yield (jobs, machines), one_of(spec, seen, 0)


def _of_clusters(
    spec: GraphSpec, config: ShortlistConfig, sizes: Sequence[Size], seed: int
) -> Iterator[tuple[Size, OneGraph]]:
    """A random part of the way, by random choices."""
    rng = np.random.default_rng(seed)
    graph = cast(ShortName, spec.graph)
    for nodes, per_node in sizes:
        number = int(rng.integers(2**31))
        if graph == "bindings":
            instance = twin.load(number, scale=max(0.002, nodes / len(twin.nodes())))
        else:
            instance = priority_matters(nodes, per_node, 2, CROWDED, number)
        lists = Shortlists.of([instance], graph, config)
        lists.begin()
        seen = lists.observe()
        for _ in range(int(rng.integers(1, instance.num_pods))):
            action = seen.action[rng.integers(len(seen.action))]
            lists.step(np.array([action]))
            if lists.batch.over[0]:
                break
            seen = lists.observe()
        yield (nodes, per_node), one_of(spec, seen, 0)


def _of_engines(
    spec: GraphSpec, config: ChoicesConfig, sizes: Sequence[Size], seed: int
) -> Iterator[tuple[Size, OneGraph]]:
    """A random part of the way, by random choices."""
    rng = np.random.default_rng(seed)
    for first, second in sizes:
        number = first * second
        serving = draw(
            rng,
            DrawConfig(requests=(number, number), longest=256, mixes=("prefixes",), load=(2.0, 2.0), prefill_only=0.0),
        )
        batch = EngineBatch(1, Room.of([serving]), config)
        batch.load(0, serving)
        batch.begin()
        seen = batch.observe()
        for _ in range(int(rng.integers(1, number + 1))):
            batch.step(rng.integers(batch.count))
            if batch.over[0]:
                break
            seen = batch.observe()
        yield (first, second), one_of(spec, seen, 0)
