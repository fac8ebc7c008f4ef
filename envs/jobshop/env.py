"""The registered environments: one shop, padded observations, the Gymnasium interface."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dispatchgym.envs.api import GraphSpec, InvalidActionError, UsageError
from dispatchgym.envs.jobshop import gantt, padding
from dispatchgym.envs.jobshop import graph as graphs
from dispatchgym.envs.jobshop.batch import Builder, GraphName, ShopBatch
from dispatchgym.envs.jobshop.episodes import Episodes, Source, shop_of
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant
from dispatchgym.envs.jobshop.state import Capacity


class ShopEnv(gym.Env[padding.Padded, np.int64]):
    """A shop as a sequence of single choices: which ready job goes next, or WAIT.

    Action: `Discrete(jobs + 1)`; j dispatches job j, the last one is WAIT (run time to the next event; blocking
    shops only). Legal ones are in `action_mask`; another raises InvalidActionError.

    Observation (`Dict`, padded with zeros and -1 to the largest instance; what the columns mean is in `graph_spec`):
        <node>: float32 (most nodes, features) for every node type of the graph, real nodes first.
        num_nodes: int32 (node types,), how many are real, in the order of `graph_spec.nodes`.
        <link>: int32 (most source nodes,), row of the target node, -1 for none.
        candidate: int32 (jobs + 1,), row of the job's node for every action, -1 where there is none.
        action_mask: int8 (jobs + 1,), 1 where the action is legal.

    Reward: minus the growth of the lower bound of the makespan, so the undiscounted return is the initial bound
    minus the makespan. Start: an empty shop at time 0. End: `terminated` when every job is done (or, should the
    safety check of the no-swap shop ever fail, deadlocked: `info["deadlock"]`); never `truncated`.
    `info`: "now", "bound", and "makespan" once done. Version history: v0.

    Args:
        variant: fixed by the id: "jssp" (JobShop-v0), "bws" (BlockingJobShop-v0), "isbjssp"
            (InterruptingJobShop-v0, the interrupting swap-allowed blocking job shop of arXiv 2302.02506).
        instance: an instance or its name; several, of which each reset draws one; or a generator of
            instances. `reset(options={"instance": ...})` overrides it for one episode.
        swap: blocking shop only; False forbids cyclic exchanges, and the mask moves that lead into a deadlock.
        graph: "jobs", "ops" or "pilot".
        builder, delta: classic shop only; see ShopConfig.
        shutdown_probability, on_interrupt: interrupting shop only; see `envs.jobshop.scenario.draw`.
        capacity: room for (jobs, machines, operations); needed only for a generator whose first draw is not
            its largest.
        render_mode: "rgb_array" or "ansi".

    Raises:
        UsageError: an argument that this shop does not have.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (declared so by gymnasium.Env)
        "render_modes": ["rgb_array", "ansi"],
        "render_fps": 2,
    }

    def __init__(
        self,
        variant: Variant,
        instance: Source = "ft06",
        *,
        swap: bool = True,
        graph: GraphName = "jobs",
        builder: Builder = "non-delay",
        delta: float | None = None,
        shutdown_probability: float | None = None,
        on_interrupt: OnInterrupt = "resume",
        capacity: Capacity | tuple[int, int, int] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UsageError(f"render_mode is {render_mode!r}; it must be 'rgb_array' or 'ansi'")
        self.render_mode = render_mode
        config = shop_of(variant, swap, builder, delta, on_interrupt)
        self._episodes = Episodes.of(instance, config, shutdown_probability)
        room = Capacity(*capacity) if capacity is not None else self._episodes.capacity
        self._batch = ShopBatch(1, room, config, graph)
        self.graph_spec: GraphSpec = self._batch.spec
        self.instance: Instance | None = None
        self.scenario: Scenario | None = None
        self.observation_space = padding.observation_space(self.graph_spec, room)
        self.action_space = spaces.Discrete(room.jobs + 1)
        self._over = True
        self._is_ops = graph == "ops"
        rows = padding.rows_of(self.graph_spec, room)
        actions = room.jobs + 1
        self._ptr = np.zeros((4, 2), np.int32)
        x = {node.name: np.zeros((rows[node.name], len(node.features)), np.float32) for node in self.graph_spec.nodes}
        link = {edge.name: np.full(rows[edge.source], -1, np.int32) for edge in self.graph_spec.links}
        self._out = self._batch.arrays(x, link, np.empty(actions, np.int32), np.empty(actions, np.int32))
        self._padded: padding.Padded = {
            **x,
            **link,
            "candidate": np.full(actions, -1, np.int32),
            "num_nodes": np.zeros(len(rows), np.int32),
            "action_mask": self._batch.mask[0],
        }

    @property
    def wait_action(self) -> int:
        """The action WAIT."""
        return self._batch.wait_action

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[padding.Padded, dict[str, Any]]:
        """Start an episode.

        `options` may hold "instance" (an Instance or a name) and, in the interrupting shop, "scenario" (a
        recorded one to replay); anything else is refused.
        """
        super().reset(seed=seed)
        chosen = dict(options or {})
        given, replay = chosen.pop("instance", None), chosen.pop("scenario", None)
        if chosen:
            raise UsageError(f"reset option {next(iter(chosen))!r} is not known; known are 'instance' and 'scenario'")
        instance, shutdowns = self._episodes.draw(self.np_random, given, replay)
        self._batch.load([0], [instance])
        if shutdowns is not None:
            self._batch.load_scenarios([0], [shutdowns])
        self.instance, self.scenario = instance, shutdowns
        self._batch.reset()
        _, info, self._over = self._act(graphs.NO_STEP)
        return self._observation(), info

    def step(self, action: np.int64 | int) -> tuple[padding.Padded, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise InvalidActionError(f"action {action}: no episode is running; call reset() first")
        reward, info, self._over = self._act(int(action))
        return self._observation(), reward, self._over, False, info

    def schedule(self) -> Schedule:
        """The finished schedule.

        Raises:
            UsageError: the episode is not over.
        """
        return self._batch.schedule(0)

    def render(self) -> Any:
        """The Gantt chart of what has been started so far: an array (height, width, 3) or text."""
        if self.instance is None or self.render_mode is None:
            return None
        schedule = self._batch.partial_schedule(0)
        if self.render_mode == "ansi":
            return gantt.text(self.instance, schedule, scenario=self.scenario)
        return gantt.draw(self.instance, schedule, self.scenario)

    def _act(self, action: int) -> tuple[float, dict[str, Any], bool]:
        """Step and bring the padded arrays up to date; returns (reward, info, is over)."""
        batch = self._batch
        reward, now, bound, state = graphs.step_padded(
            batch.problem,
            batch.shop,
            batch.mode,
            self._is_ops,
            action,
            self._ptr,
            self._out,
            self._padded["candidate"],
            self._padded["num_nodes"],
        )
        if state == graphs.ILLEGAL:
            raise InvalidActionError(batch.illegal(0, action))
        batch.write_pilots(self._ptr, self._out)
        info: dict[str, Any] = {"now": now, "bound": bound}
        if state == graphs.DONE:
            info["makespan"] = int(batch.shop.end[0].max())
        elif state == graphs.DEADLOCK:
            info["deadlock"] = True
        return reward, info, state != graphs.RUNNING

    def _observation(self) -> padding.Padded:
        """A copy of the padded arrays: a stored observation never changes."""
        return {name: array.copy() for name, array in self._padded.items()}
