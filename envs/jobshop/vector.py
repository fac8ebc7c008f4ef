"""The native batch behind Gymnasium's vector interface: `gymnasium.make_vec(id, num_envs=64, ...)`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from dispatchgym.envs.api import GraphSpec
from dispatchgym.envs.jobshop import padding
from dispatchgym.envs.jobshop.batch import Builder, GraphName, ShopBatch
from dispatchgym.envs.jobshop.episodes import Episodes, Source, shop_of
from dispatchgym.envs.jobshop.scenario import OnInterrupt
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.envs.jobshop.state import Capacity


class ShopVectorEnv(gym.vector.VectorEnv[padding.Padded, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """`num_envs` shops stepped in one call; spaces, rewards and seeds as of as many ShopEnv in a row.

    An environment that is over is reset by the next step, whose action for it is ignored
    (`AutoresetMode.NEXT_STEP`). `infos` hold "now" and "bound", and "makespan" with its mask "_makespan" where
    an episode has just ended. Arguments as of the single environments.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (declared so by the base)

    def __init__(
        self,
        num_envs: int,
        instance: Source = "ft06",
        *,
        variant: Variant,
        swap: bool = True,
        graph: GraphName = "jobs",
        builder: Builder = "non-delay",
        delta: float | None = None,
        shutdown_probability: float | None = None,
        on_interrupt: OnInterrupt = "resume",
        capacity: Capacity | tuple[int, int, int] | None = None,
    ) -> None:
        config = shop_of(variant, swap, builder, delta, on_interrupt)
        self._episodes = Episodes.of(instance, config, shutdown_probability)
        room = Capacity(*capacity) if capacity is not None else self._episodes.capacity
        self._batch = ShopBatch(num_envs, room, config, graph)
        self.graph_spec: GraphSpec = self._batch.spec
        self.num_envs = num_envs
        self.single_observation_space = padding.observation_space(self.graph_spec, room)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = spaces.Discrete(room.jobs + 1)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs = [seeding.np_random(None)[0] for _ in range(num_envs)]

    @property
    def wait_action(self) -> int:
        """The action WAIT."""
        return self._batch.wait_action

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[padding.Padded, dict[str, Any]]:
        """Start all environments; environment i is seeded with seed + i, or with seed[i]. `options` are not used."""
        super().reset()
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
            for i, own in enumerate(seeds):
                if own is not None:
                    self._rngs[i] = seeding.np_random(own)[0]
        self._begin(np.ones(self.num_envs, np.bool_))
        return self._observation(), self._infos(np.zeros(self.num_envs, np.bool_))

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[padding.Padded, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        ended = self._batch.over
        reward, over = self._batch.step(actions)
        if ended.any():
            self._begin(ended)
        over = over & ~ended
        return self._observation(), reward, over, np.zeros(self.num_envs, np.bool_), self._infos(over)

    def _begin(self, which: npt.NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(which).tolist():
            instance, shutdowns = self._episodes.draw(self._rngs[i])
            self._batch.load([i], [instance])
            if shutdowns is not None:
                self._batch.load_scenarios([i], [shutdowns])
        self._batch.reset(which)

    def _observation(self) -> padding.Padded:
        return padding.pad(self._batch.observe(), self.graph_spec, self._batch.capacity, self._batch.mask)

    def _infos(self, over: npt.NDArray[np.bool_]) -> dict[str, Any]:
        shop = self._batch.shop
        infos: dict[str, Any] = {"now": shop.now.copy(), "bound": shop.bound.copy()}
        if over.any():
            infos["makespan"] = np.where(over, self._batch.makespan, 0)
            infos["_makespan"] = over
        return infos
