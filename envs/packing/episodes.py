"""What an environment plays: which instance next, and what room it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing import generate, twin
from dispatchgym.envs.packing.batch import ALLOCATED, PLACED, GraphName, PackingConfig
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.state import Capacity

Generator = Callable[[np.random.Generator], PackingInstance]
Source = PackingInstance | Sequence[PackingInstance] | Generator
"""An instance; several, of which each reset draws one; or a generator of instances."""


def small_cluster(rng: np.random.Generator) -> PackingInstance:
    """A 'Priority Matters' instance: 8 nodes, 4 pods a node, 4 priorities, usage 0.95."""
    return generate.priority_matters(8, 4, 4, 0.95, int(rng.integers(2**31)))


def small_twin(rng: np.random.Generator) -> PackingInstance:
    """A fiftieth of an openb twin: about 30 nodes and 220 pods."""
    return twin.load(int(rng.integers(2**31)), scale=0.02)


@dataclass(frozen=True, slots=True)
class World:
    """What an id stands for unless told otherwise."""

    source: Generator
    capacity: Capacity
    config: PackingConfig
    graph: GraphName


WORLDS = {
    "pods": World(
        small_cluster,
        Capacity(nodes=8, pods=32, workloads=32, typical=32),
        PackingConfig(evict=True, moves=8, reward=PLACED),
        "pods",
    ),
    "gpus": World(
        small_twin,
        Capacity(nodes=40, pods=400, gpus=8, typical=100),
        PackingConfig(reward=ALLOCATED, fragments=True),
        "gpus",
    ),
}


@dataclass(frozen=True, slots=True)
class Episodes:
    """Draws the instance of an episode from the environment's own random generator."""

    source: tuple[PackingInstance, ...] | Generator

    @classmethod
    def of(cls, given: Source) -> Episodes:
        """Raises UsageError for an empty list."""
        if isinstance(given, PackingInstance):
            return cls((given,))
        if callable(given):
            return cls(given)
        if not given:
            raise UsageError("instance is an empty list; give at least one")
        return cls(tuple(given))

    @property
    def capacity(self) -> Capacity:
        """The largest instance of a list; of a generator its first draw, which may not be its largest."""
        if isinstance(self.source, tuple):
            return Capacity.of(self.source)
        return Capacity.of([self.source(np.random.default_rng(0))])

    def draw(self, rng: np.random.Generator) -> PackingInstance:
        """The next instance."""
        if isinstance(self.source, tuple):
            return self.source[0] if len(self.source) == 1 else self.source[int(rng.integers(len(self.source)))]
        return self.source(rng)


def room_for(world: World, instance: Source | None, capacity: Capacity | None) -> tuple[Episodes, Capacity]:
    """The episodes and the room that an environment's arguments describe."""
    if instance is None:
        return Episodes(world.source), capacity or world.capacity
    episodes = Episodes.of(instance)
    return episodes, capacity or episodes.capacity
