"""The registered environment: one engine, padded observations, the Gymnasium interface."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dispatchgym.envs import padding
from dispatchgym.envs.api import GraphSpec, InvalidActionError, UsageError
from dispatchgym.envs.llm.backends import AUTO, SIMULATED, TINY, RunsOn
from dispatchgym.envs.llm.batch import ChoicesConfig, EngineBatch, Reward, Room
from dispatchgym.envs.llm.draws import DrawConfig, Serving
from dispatchgym.envs.llm.episodes import Episodes, Source
from dispatchgym.envs.llm.graph import KINDS
from dispatchgym.envs.llm.metrics import measure
from dispatchgym.envs.llm.simulate import record_of


class LLMEngineEnv(gym.Env[padding.Padded, np.int64]):
    """A serving engine as a sequence of single choices: what else the next step runs, until RUN makes it.

    Whoever decodes goes on in every step. A choice lets a waiting request in with a piece of its prompt, goes on with
    the prompt of a running one, takes the blocks of one away, makes the step (RUN), or, where nothing runs, lets a
    little time pass (WAIT). Pieces are as long as keeps every decoding request in time, and, where that is not the
    whole rest, offered a second time as long as the step allows. Steps without an alternative make themselves.

    Action: `Discrete(choices.most)`, a row of the list of choices. Legal ones are in `action_mask`; another raises
    InvalidActionError.

    Observation (`Dict`, padded with zeros and -1; what the columns mean is in `graph_spec`):
        <node>: float32 (most nodes, features) for `request` (a choice each), `prefix` and `engine`.
        num_nodes: int32 (node types,), how many are real, in the order of `graph_spec.nodes`.
        shares: int32 (most choices,), row of the prefix node that its request belongs to, -1 for none.
        candidate: int32 (actions,), row of the `request` node of every action, -1 where there is none.
        action_mask: int8 (actions,), 1 where the action is legal.

    Reward: `Reward`. Start: the first arrival that leaves a choice. End: `terminated` when every request has ended;
    never `truncated`. `info`: "now_s"; "elapsed_s" since the last decision, and "discount", what a reward after that
    time counts (the process is semi-Markov); "metrics" (the fields of `Metrics`) once done. Version history: v0.

    Args:
        problem: a problem; several, of which each reset draws one; a generator; or `DrawConfig`, random problems.
            Default small random ones. `reset(options={"problem": ...})` overrides it once.
        executor, model, device: what runs the steps: "simulated", or "torch" for a model; see `RunsOn`. Pools of blocks
            are cut to what the device holds.
        choices: how choices are listed. reward: what is paid. room: for the largest problem of a generator.

    Raises:
        UsageError: an argument that cannot be.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 2}  # noqa: RUF012 (declared so by gymnasium.Env)

    def __init__(
        self,
        problem: Source | DrawConfig | None = None,
        *,
        executor: str = SIMULATED,
        model: str = TINY,
        device: str = AUTO,
        choices: ChoicesConfig | None = None,
        reward: Reward | None = None,
        room: Room | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UsageError(f"render_mode is {render_mode!r}; it must be 'ansi'")
        self.render_mode = render_mode
        self._episodes = Episodes.of(problem, room)
        self._batch = EngineBatch(1, self._episodes.room, choices, reward)
        runs_on = RunsOn(executor, model, device)
        if runs_on.is_simulated and (model, device) != (TINY, AUTO):
            raise UsageError(f"model {model!r} and device {device!r} go with executor='torch'")
        self._backend = None if runs_on.is_simulated else runs_on.backend()
        self.graph_spec: GraphSpec = self._batch.spec
        self.problem: Serving | None = None
        most = self._batch.config.most
        self._rows = rows_of(most)
        self.observation_space = padding.observation_space(self.graph_spec, self._rows, most)
        self.action_space = spaces.Discrete(most)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[padding.Padded, dict[str, Any]]:
        """Start an episode. `options` may hold "problem"; anything else is refused."""
        super().reset(seed=seed)
        chosen = dict(options or {})
        given = chosen.pop("problem", None)
        if chosen:
            raise UsageError(f"reset option {next(iter(chosen))!r} is not known; known is 'problem'")
        episodes = self._episodes if given is None else Episodes.of(given, self._episodes.room)
        self.problem = episodes.draw(self.np_random)
        if self._backend is None:
            self._batch.load(0, self.problem)
        else:
            workload = self.problem.workload
            self.problem = replace(self.problem, engine=self._backend.fit(self.problem.engine, workload))
            self._batch.load(0, self.problem)
            self._batch.run_elsewhere(0, partial(self._backend.executor, workload=workload))
        self._batch.begin()
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[padding.Padded, float, bool, bool, dict[str, Any]]:
        count = int(self._batch.count[0])
        if not 0 <= int(action) < count:
            raise InvalidActionError(
                f"action {action}: no episode is running; call reset() first"
                if self._batch.over[0]
                else f"action {action} is none of the {count} choices listed; legal are 0 to {count - 1}"
            )
        reward = float(self._batch.step(np.array([action]))[0])
        return self._observation(), reward, bool(self._batch.over[0]), False, self._info()

    def meaning(self, action: int) -> str:
        """What a listed action does, in words."""
        choices, sight = self._batch.turns.choices, self._batch.turns.sight
        kind, who = KINDS[choices.kind[0, action]], int(choices.who[0, action])
        if who < 0:
            return kind
        piece = f" with {choices.tokens[0, action]} tokens" if kind in ("admit", "read") else ""
        return f"{kind} request {sight.id[0, who]}{piece}"

    def render(self) -> Any:
        """The engine as text: where it stands, and the choices."""
        if self.problem is None or self.render_mode is None:
            return None
        e = self._batch.turns.state.eng[0, 0]
        head = f"{e['now']:.3f} s  running {e['running']}  waiting {e['waiting']}  blocks free {e['free']}"
        return "\n".join([head, *(self.meaning(a) for a in range(int(self._batch.count[0])))])

    def _info(self) -> dict[str, Any]:
        batch, over = self._batch, bool(self._batch.over[0])
        info: dict[str, Any] = {
            "now_s": float(batch.now_s[0]),
            "elapsed_s": float(batch.turns.episode["elapsed_s"][0]),
            "discount": float(batch.discount[0]),
        }
        if over and self.problem is not None:
            record = record_of(
                batch.state(0), self.problem.workload, "env", batch.repairs(0),
                decisions=int(batch.turns.episode["decisions"][0]), policy_s=0.0,
            )  # fmt: skip
            info["metrics"] = measure(record).plain()
        return info

    def _observation(self) -> padding.Padded:
        return padded(self._batch, self._rows)


def rows_of(most: int) -> dict[str, int]:
    """Most nodes of every type."""
    return {"request": most, "prefix": most, "engine": 1}


def padded(batch: EngineBatch, rows: dict[str, int]) -> padding.Padded:
    """Observations of all engines with a leading dimension, of one engine without."""
    mask = (np.arange(batch.config.most) < batch.count[:, None]).astype(np.int8)
    found = padding.pad(batch.observe(), batch.spec, rows, mask)
    return {name: array[0] for name, array in found.items()} if batch.num_envs == 1 else found
