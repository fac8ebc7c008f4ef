"""The native batch behind Gymnasium's vector interface: `gymnasium.make_vec(id, num_envs=64, ...)`."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from dispatchgym.envs import padding
from dispatchgym.envs.api import GraphSpec
from dispatchgym.envs.packing.batch import GraphName, PackingBatch, PackingConfig
from dispatchgym.envs.packing.episodes import WORLDS, Source, room_for
from dispatchgym.envs.packing.rows import rows_of
from dispatchgym.envs.packing.state import Capacity


class PackingVectorEnv(gym.vector.VectorEnv[padding.Padded, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """`num_envs` clusters stepped in one call; spaces, rewards and seeds as of as many PackingEnv in a row.

    An environment that is over is reset by the next step, whose action for it is ignored
    (`AutoresetMode.NEXT_STEP`). `infos` hold "now", and "gpu_allocation_pct" and "placed" (pods running or done) with
    their masks where an episode has just ended. Arguments as of the single environments.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (declared so by the base)

    def __init__(
        self,
        num_envs: int,
        instance: Source | None = None,
        *,
        world: Literal["pods", "gpus"],
        config: PackingConfig | None = None,
        graph: GraphName | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        of = WORLDS[world]
        self._episodes, room = room_for(of, instance, capacity)
        self._batch = PackingBatch(num_envs, room, config or of.config, graph or of.graph)
        self.graph_spec: GraphSpec = self._batch.spec
        self.num_envs = num_envs
        self._rows = rows_of(self.graph_spec, room)
        self.single_observation_space = padding.observation_space(self.graph_spec, self._rows, room.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = spaces.Discrete(room.actions)
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
            self._batch.load([i], [self._episodes.draw(self._rngs[i])])
        self._batch.reset(which)

    def _observation(self) -> padding.Padded:
        return padding.pad(self._batch.observe(), self.graph_spec, self._rows, self._batch.mask)

    def _infos(self, over: npt.NDArray[np.bool_]) -> dict[str, Any]:
        infos: dict[str, Any] = {"now": self._batch.cluster.env["now"].copy()}
        if over.any():
            placed, allocated = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs)
            for i in np.flatnonzero(over).tolist():
                metrics = self._batch.metrics(i)
                placed[i], allocated[i] = sum(metrics.placed), metrics.gpu_allocation_pct
            infos |= {"placed": placed, "_placed": over, "gpu_allocation_pct": allocated, "_gpu_allocation_pct": over}
        return infos
