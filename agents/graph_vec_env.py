"""The natively batched training environment: all runs in one call, new random instances for every rollout."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
from torch import Tensor

from dispatchgym.agents.worlds import World
from dispatchgym.envs.api import UsageError


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """Size of a rollout: every environment plays one episode from start to end.

    Args:
        instances: different instances.
        rollouts: environments on each instance.
        steps: length of a rollout; default as many as the largest instance can need. Steps that no environment needs
            cost next to nothing.
        lanes: threads that step the environments.
    """

    instances: int = 64
    rollouts: int = 32
    steps: int | None = None
    lanes: int = 1

    @property
    def num_envs(self) -> int:
        return self.instances * self.rollouts


@dataclass
class _Episode:
    """What an environment has earned since its instance was loaded."""

    reward: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    length: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class GraphVecEnv(VecEnv):
    """Stable-Baselines3's `VecEnv` over the runs of a world.

    A rollout is `length` steps. An environment that is over waits (it has no graph; `done` stays true); one that is
    not over at the last step is finished by a rule, so that every return is that of a whole episode.
    Then all start anew, on instances that depend on `seed` and `rounds` alone: setting `rounds` and calling
    `reset` restores the state at the beginning of any rollout.

    Observation: see `GraphActorCriticPolicy`; `observation_space` documents one node's columns of each type.
    Action: position in the environment's list of candidates.
    Reward: the world's own, in its own unit (`World.start`).
    `infos[i]["episode"]`, once at its end: r (return), l (decisions), t (seconds since the first reset), and
    what the world says of its outcome beside it.
    """

    def __init__(
        self, world: World[Any], rollout: RolloutConfig, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.world = world
        self.runs = world.runs(rollout.instances, rollout.rollouts, rollout.lanes, device)
        self.length = rollout.steps or world.steps(rollout.num_envs)
        self.seed_number = seed
        self.rounds = 0
        self.render_mode: str | None = None
        self._step = 0
        self._choices = np.zeros(rollout.num_envs, np.int64)
        self._asked = np.zeros(0, np.int64)  # environments that the last observation shows
        self._episode = _Episode()
        self._unit = np.ones(rollout.num_envs)
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(rollout.num_envs)]
        self._began = time.monotonic()
        nodes = world.spec.nodes
        space = spaces.Dict({n.name: spaces.Box(-np.inf, np.inf, (len(n.features),)) for n in nodes})
        super().__init__(rollout.num_envs, space, spaces.Discrete(world.most_choices))

    def reset(self) -> Any:
        self._unit = self.world.start(self.runs, (self.seed_number, 0, self.rounds), self.rounds)
        self._episode = _Episode(np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64))
        self._step = 0
        return self._observe()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._choices = actions

    def step_wait(self) -> Any:  # observations are tensors, where VecEnvStepReturn wants arrays
        playing = ~self.runs.over
        reward = self.runs.step(self._choices)
        self._episode.length[self._asked] += 1
        self._step += 1
        is_last = self._step == self.length
        if is_last:
            reward = reward + self.world.finish(self.runs)
        reward *= self._unit
        self._episode.reward += reward
        over = self.runs.over
        infos = self._infos(np.flatnonzero(playing & over))
        if is_last:
            self.rounds += 1
            return self.reset(), reward.astype(np.float32), over, infos
        return self._observe(), reward.astype(np.float32), over, infos

    def _observe(self) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = self.runs.observe()
        self._asked = seen["active"].cpu().numpy()
        return seen

    def _infos(self, finished: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        if len(finished) == 0:
            return self._no_infos
        infos = list(self._no_infos)
        outcome = self.world.outcome(self.runs)
        seconds = round(time.monotonic() - self._began, 3)
        for i in finished:
            r, length = float(self._episode.reward[i]), int(self._episode.length[i])
            said = {name: values[i].item() for name, values in outcome.items()}
            infos[i] = {"episode": {"r": r, "l": length, "t": seconds}, **said}
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
