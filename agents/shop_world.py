"""The job shop as a world to train in."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.agents.playing import makespans, play
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.agents.worlds import Losses
from dispatchgym.envs.api import GraphSpec, UsageError
from dispatchgym.envs.jobshop import scenario as scenarios
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.graph import SPECS
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule
from dispatchgym.envs.jobshop.state import Capacity
from dispatchgym.solvers.jobshop import rules

POLICY = "policy"
"""What `Pictured.schedules` calls the learned policy's own schedule."""

LAST_RULE = "lrpt"
"""Finishes episodes that are longer than a rollout."""

Sizes = tuple[tuple[int, int], ...]
"""(jobs, machines) of the instances to draw."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a curriculum.

    Args:
        until: the first rollout, counted from 0, that is no longer part of it.
        sizes: of its instances.
    """

    until: int
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class InstanceSource:
    """Where training instances come from: the generator, never a benchmark set.

    Args:
        sizes: (jobs, machines), one drawn uniformly for every instance.
        curriculum: stages that come before those sizes. What is drawn depends on the number of the rollout alone, so
            that a resumed training goes on exactly. Validation and input scale are those of `sizes`.
        durations: least and largest duration.
        shutdown_probabilities: one drawn for every instance of an interrupting shop.
    """

    sizes: Sizes = ((10, 10), (15, 10), (15, 15), (20, 10), (20, 15))
    curriculum: tuple[Stage, ...] = ()
    durations: tuple[int, int] = (1, 99)
    shutdown_probabilities: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)

    def __post_init__(self) -> None:
        for sizes in (self.sizes, *(stage.sizes for stage in self.curriculum)):
            if not sizes or min(min(size) for size in sizes) < 1:
                raise UsageError(f"sizes are {sizes}; give at least one (jobs, machines) pair of positive numbers")
        ends = [0, *(stage.until for stage in self.curriculum)]
        if any(later <= sooner for sooner, later in itertools.pairwise(ends)):
            raise UsageError(f"the stages of the curriculum end at {ends[1:]}; each must end after the one before")

    @property
    def capacity(self) -> Capacity:
        """Room for any of its instances."""
        every = [size for sizes in (self.sizes, *(stage.sizes for stage in self.curriculum)) for size in sizes]
        jobs, machines = (max(size[axis] for size in every) for axis in (0, 1))
        return Capacity(jobs, machines, max(n * m for n, m in every))

    def draw(
        self, count: int, seed: Sequence[int], shop: ShopConfig, rollout: int | None = None
    ) -> tuple[list[Instance], list[Scenario] | None]:
        """`count` instances (sizes in turn, so that a draw is balanced) and, in interrupting shops, a scenario each.

        `rollout` is the number that a curriculum goes by; None for after it.
        """
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        stages = () if rollout is None else (stage.sizes for stage in self.curriculum if rollout < stage.until)
        choice = next(iter(stages), self.sizes)
        first = int(rng.integers(len(choice)))
        sizes = [choice[(first + i) % len(choice)] for i in range(count)]
        instances = [random_instance(rng, jobs, machines, durations=self.durations) for jobs, machines in sizes]
        if shop.variant != "isbjssp":
            return instances, None
        probabilities = rng.choice(self.shutdown_probabilities, count)
        seeds = rng.integers(2**31, size=count)
        return instances, [
            scenarios.draw(instance, float(p), int(s), shop.on_interrupt)
            for instance, p, s in zip(instances, probabilities, seeds, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Pictured:
    """One instance of the set and who scheduled it how; `bound` is the lower bound that gaps are above."""

    name: str
    instance: Instance
    scenario: Scenario | None
    bound: float
    schedules: dict[str, Schedule] = field(default_factory=dict)


class ShopExam:
    """Losses are per cent above the lower bound at the start (longest job, fullest machine).

    They are not gaps to the optimum, which nobody knows here, but comparable with one another.

    Args:
        source: of the instances. count, seed: how many, and which.
        pictured: so many of them keep the schedules that rules and policy last made.
    """

    def __init__(
        self, source: InstanceSource, shop: ShopConfig, count: int, seed: int, lanes: int = 1, pictured: int = 0
    ) -> None:
        self.shop = shop
        self.lanes = lanes
        self.instances, self.scenarios = source.draw(count, (seed, 1), shop)
        self.batch = ShopBatch.of(self.instances, shop, scenarios=self.scenarios)
        self.bound = self.batch.shop.bound.astype(np.float64)
        self.groups = [f"{instance.num_jobs}x{instance.num_machines}" for instance in self.instances]
        self.pictured = [
            Pictured(f"{self.groups[k]}, number {k}", instance, self.scenarios[k] if self.scenarios else None, bound)
            for k, (instance, bound) in enumerate(zip(self.instances, self.bound.tolist(), strict=True))
        ][:pictured]

    @property
    def digest(self) -> str:
        h = hashlib.sha256()
        for instance in self.instances:
            h.update(instance.digest.encode())
        return h.hexdigest()

    def by_rule(self, rule: str) -> Losses:
        losses = self._losses(rules.play(self.batch, rule))
        for k, each in enumerate(self.pictured):
            each.schedules[rule] = self.batch.schedule(k)
        return losses

    def greedy(self, network: GraphNetwork) -> Losses:
        device = next(network.parameters()).device
        runs = ShopRuns.of(self.instances, self.shop, network.spec.graph, 1, self.scenarios, self.lanes, device)
        losses = self._losses(play(network, runs))
        for k, each in enumerate(self.pictured):
            each.schedules[POLICY] = runs.schedule(k)
        return losses

    def best_of(self, network: GraphNetwork, samples: int) -> Losses:
        found = makespans(
            network, self.instances, self.shop, scenarios=self.scenarios, samples=samples, lanes=self.lanes
        )
        return self._losses(found)

    def _losses(self, makespan: npt.NDArray[np.int64]) -> Losses:
        above: Losses = 100.0 * (makespan / self.bound - 1.0)
        return above


@dataclass(frozen=True, slots=True)
class ShopWorld:
    """Shops of one variant, shown by one graph.

    Reward: minus the growth of the lower bound of the makespan, in initial bounds: a critic is quick to learn
    returns below 1 and, small as its errors are, does not drown the policy's gradient in the layers they share.

    Args:
        judged_on: (jobs, machines) of the exam; default those of the source.
        pictured: instances of the exam whose schedules are kept.
    """

    shop: ShopConfig
    source: InstanceSource
    graph: GraphName = "jobs"
    judged_on: Sizes = ()
    pictured: int = 0

    @property
    def spec(self) -> GraphSpec:
        return SPECS[self.graph]

    @property
    def most_choices(self) -> int:
        return self.source.capacity.jobs + 1

    def steps(self, num_envs: int) -> int:
        """The operations of the largest instance; twice as many where WAIT is a decision too."""
        room = self.source.capacity
        return 2 * room.ops + room.jobs if self.shop.is_blocking else room.ops

    def runs(self, num_instances: int, rollouts: int, lanes: int, device: torch.device | str) -> ShopRuns:
        return ShopRuns(num_instances, rollouts, self.source.capacity, self.shop, self.graph, lanes, device)

    def start(self, runs: ShopRuns, seed: Sequence[int], rollout: int | None = None) -> npt.NDArray[np.float64]:
        instances, drawn = self.source.draw(runs.num_envs // runs.rollouts, seed, self.shop, rollout)
        unit: npt.NDArray[np.float64] = 1.0 / np.maximum(runs.start(instances, drawn), 1)
        return unit

    def finish(self, runs: ShopRuns) -> npt.NDArray[np.float64]:
        return runs.finish(LAST_RULE)

    def outcome(self, runs: ShopRuns) -> Mapping[str, npt.NDArray[np.number]]:
        return {"makespan": runs.makespan}

    def exam(self, count: int, seed: int, lanes: int) -> ShopExam:
        source = replace(self.source, sizes=self.judged_on or self.source.sizes)
        return ShopExam(source, self.shop, count, seed, lanes, self.pictured)
