"""The natively batched training environment: all shops in one call, new random instances for every rollout."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from dispatchgym.agents.shop_runs import ShopRuns
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop import scenario as scenarios
from dispatchgym.envs.jobshop.batch import GraphName, ShopConfig
from dispatchgym.envs.jobshop.generate import random_instance
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.state import Capacity

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
class RolloutConfig:
    """Size of a rollout: every environment plays one episode from start to end.

    Args:
        instances: different instances.
        rollouts: environments on each instance.
        steps: length of a rollout; default as many as the largest instance can need: its operations in the classic
            shop, twice as many in blocking shops, where WAIT is a decision too. Steps that no environment needs
            cost next to nothing.
        lanes: threads that step the shops.
    """

    instances: int = 64
    rollouts: int = 32
    steps: int | None = None
    lanes: int = 1

    @property
    def num_envs(self) -> int:
        return self.instances * self.rollouts

    def length(self, capacity: Capacity, shop: ShopConfig) -> int:
        """Steps of a rollout."""
        return self.steps or (2 * capacity.ops + capacity.jobs if shop.is_blocking else capacity.ops)


@dataclass
class _Episode:
    """What an environment has earned since its instance was loaded."""

    reward: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    length: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class ShopVecEnv(VecEnv):
    """Stable-Baselines3's `VecEnv` over `ShopRuns`.

    A rollout is `length` steps. An environment that is over waits (it has no graph; `done` stays true); one that is
    not over at the last step is finished by the starting rule, so that every return is that of a complete schedule.
    Then all start anew, on instances that depend on `seed` and `rounds` alone: setting `rounds` and calling
    `reset` restores the state at the beginning of any rollout.

    Observation: see `GraphActorCriticPolicy`; `observation_space` documents one node's columns of each type.
    Action: position in the environment's list of candidates.
    Reward: minus the growth of the lower bound of the makespan, in initial bounds: a critic is quick to learn
    returns below 1 and, small as its errors are, does not drown the policy's gradient in the layers they share.
    `infos[i]["episode"]`, once at its end: r (return), l (decisions), t (seconds since the first reset), and
    "makespan" beside it.
    """

    def __init__(
        self,
        source: InstanceSource,
        shop: ShopConfig,
        rollout: RolloutConfig,
        *,
        graph: GraphName = "jobs",
        last_rule: str = "lrpt",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source = source
        self.shop = shop
        self.runs = ShopRuns(rollout.instances, rollout.rollouts, source.capacity, shop, graph, rollout.lanes, device)
        self.length = rollout.length(source.capacity, shop)
        self.last_rule = last_rule
        self.seed_number = seed
        self.rounds = 0
        self.render_mode: str | None = None
        self._instances = rollout.instances
        self._step = 0
        self._choices = np.zeros(rollout.num_envs, np.int64)
        self._episode = _Episode()
        self._unit = np.ones(rollout.num_envs)
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(rollout.num_envs)]
        self._began = time.monotonic()
        spec = self.runs.spec
        space = spaces.Dict({n.name: spaces.Box(-np.inf, np.inf, (len(n.features),)) for n in spec.nodes})
        super().__init__(rollout.num_envs, space, spaces.Discrete(source.capacity.jobs + 1))

    def reset(self) -> Any:
        instances, drawn = self.source.draw(self._instances, (self.seed_number, 0, self.rounds), self.shop, self.rounds)
        bound = self.runs.start(instances, drawn)
        self._unit = 1.0 / np.maximum(bound, 1)
        self._episode = _Episode(np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64))
        self._step = 0
        return self.runs.observe()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._choices = actions

    def step_wait(self) -> Any:  # observations are tensors, where VecEnvStepReturn wants arrays
        playing = ~self.runs.over
        reward = self.runs.step(self._choices)
        self._episode.length += playing
        self._step += 1
        is_last = self._step == self.length
        if is_last:
            reward = reward + self.runs.finish(self.last_rule)
        reward *= self._unit
        self._episode.reward += reward
        over = self.runs.over
        infos = self._infos(np.flatnonzero(playing & over))
        if is_last:
            self.rounds += 1
            return self.reset(), reward.astype(np.float32), over, infos
        return self.runs.observe(), reward.astype(np.float32), over, infos

    def _infos(self, finished: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        if len(finished) == 0:
            return self._no_infos
        infos = list(self._no_infos)
        makespan = self.runs.makespan
        seconds = round(time.monotonic() - self._began, 3)
        for i in finished:
            r, length = float(self._episode.reward[i]), int(self._episode.length[i])
            infos[i] = {"episode": {"r": r, "l": length, "t": seconds}, "makespan": int(makespan[i])}
        return infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise UsageError(f"attribute {attr_name!r}: the environments of a batch are not set one by one")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        raise UsageError(f"method {method_name!r}: the environments of a batch are not objects of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices
