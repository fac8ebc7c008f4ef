"""The native batch behind Gymnasium's vector interface: `gymnasium.make_vec("dispatchgym/LLMEngine-v0", ...)`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from dispatchgym.envs import padding
from dispatchgym.envs.api import GraphSpec, InvalidActionError
from dispatchgym.envs.llm.batch import ChoicesConfig, EngineBatch, Reward, Room
from dispatchgym.envs.llm.draws import DrawConfig
from dispatchgym.envs.llm.env import padded, rows_of
from dispatchgym.envs.llm.episodes import Episodes, Source


class LLMEngineVectorEnv(gym.vector.VectorEnv[padding.Padded, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """`num_envs` simulated engines stepped in one call; spaces, rewards and seeds as of as many LLMEngineEnv in a row.

    An environment that is over is reset by the next step, whose action for it is ignored (`AutoresetMode.NEXT_STEP`).
    `infos` hold "now_s", "elapsed_s" and "discount", and "met" (requests that met all their bounds) with its mask where
    an episode has just ended. Arguments as of the single environment.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (declared so by the base)

    def __init__(
        self,
        num_envs: int,
        problem: Source | DrawConfig | None = None,
        *,
        choices: ChoicesConfig | None = None,
        reward: Reward | None = None,
        room: Room | None = None,
    ) -> None:
        self._episodes = Episodes.of(problem, room)
        self._batch = EngineBatch(num_envs, self._episodes.room, choices, reward)
        self.graph_spec: GraphSpec = self._batch.spec
        self.num_envs = num_envs
        most = self._batch.config.most
        self._rows = rows_of(most)
        self.single_observation_space = padding.observation_space(self.graph_spec, self._rows, most)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = spaces.Discrete(most)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs = [seeding.np_random(None)[0] for _ in range(num_envs)]

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
        for i, rng in enumerate(self._rngs):
            self._batch.load(i, self._episodes.draw(rng))
        self._batch.begin()
        return self._observation(), self._infos(np.zeros(self.num_envs, np.bool_))

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[padding.Padded, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        ended, count = self._batch.over, self._batch.count
        wrong = ~ended & ((actions < 0) | (actions >= count))
        if wrong.any():
            i = int(np.argmax(wrong))
            raise InvalidActionError(f"environment {i}: action {actions[i]}; legal are 0 to {count[i] - 1}")
        for i in np.flatnonzero(ended).tolist():
            self._batch.load(i, self._episodes.draw(self._rngs[i]))
        reward = self._batch.step(np.where(ended, -1, actions))
        reward[ended] = 0.0
        over = self._batch.over & ~ended
        return self._observation(), reward, over, np.zeros(self.num_envs, np.bool_), self._infos(over)

    def _observation(self) -> padding.Padded:
        found = padded(self._batch, self._rows)
        return found if self.num_envs > 1 else {name: array[None] for name, array in found.items()}

    def _infos(self, over: npt.NDArray[np.bool_]) -> dict[str, Any]:
        batch = self._batch
        infos: dict[str, Any] = {
            "now_s": batch.now_s,
            "elapsed_s": batch.turns.episode["elapsed_s"].copy(),
            "discount": batch.discount,
        }
        if over.any():
            infos |= {"met": batch.met, "_met": over}
        return infos
