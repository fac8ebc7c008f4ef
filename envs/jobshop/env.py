"""The three registered environments: one shop, padded observations, the Gymnasium interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dispatchgym.envs.api import GraphSpec, InvalidActionError, UsageError
from dispatchgym.envs.jobshop import gantt, library, scenario
from dispatchgym.envs.jobshop import graph as graphs
from dispatchgym.envs.jobshop.batch import Builder, GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import OnInterrupt, Scenario
from dispatchgym.envs.jobshop.schedule import Schedule, Variant
from dispatchgym.envs.jobshop.state import Capacity

Obs = dict[str, Any]
"""Name -> array; see ShopEnv."""
Source = str | Instance | Sequence[str | Instance] | Callable[[np.random.Generator], Instance]
"""An instance, or its name; several, of which each reset draws one; or a generator of instances."""


class ShopEnv(gym.Env[Obs, np.int64]):
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
        instance: see `Source`; `reset(options={"instance": ...})` overrides it for one episode.
        capacity: room for (jobs, machines, operations); needed only for a generator whose first draw is not
            its largest.
        graph: "jobs" or "ops".
        render_mode: "rgb_array" or "ansi".
        Other arguments: see `ShopConfig` and `envs.jobshop.scenario.draw`.
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
        graph: GraphName = "jobs",
        builder: Builder = "non-delay",
        delta: float | None = None,
        shutdown_probability: float = 0.1,
        on_interrupt: OnInterrupt = "resume",
        capacity: Capacity | tuple[int, int, int] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UsageError(f"render_mode is {render_mode!r}; it must be 'rgb_array' or 'ansi'")
        self.render_mode = render_mode
        self.shutdown_probability = shutdown_probability
        self._source = _source(instance)
        room = Capacity(*capacity) if capacity is not None else self._room()
        self._batch = ShopBatch(1, room, ShopConfig(variant, builder, delta, on_interrupt), graph)
        self.graph_spec: GraphSpec = self._batch.spec
        self.instance: Instance | None = None
        self.scenario: Scenario | None = None
        most = {"op": room.ops, "job": room.jobs, "machine": room.machines, "shop": 1}
        self._rows = {n.name: most[n.name] for n in self.graph_spec.nodes}
        actions = room.jobs + 1
        entries: dict[str, spaces.Space[npt.NDArray[Any]]] = {}
        for node in self.graph_spec.nodes:
            rows = self._rows[node.name]
            low, high = (np.array([getattr(f, end) for f in node.features], np.float32) for end in ("low", "high"))
            entries[node.name] = spaces.Box(np.tile(low, (rows, 1)), np.tile(high, (rows, 1)), dtype=np.float32)
        for link in self.graph_spec.links:
            entries[link.name] = spaces.Box(-1, self._rows[link.target] - 1, (self._rows[link.source],), np.int32)
        entries["num_nodes"] = spaces.Box(0, max(self._rows.values()), (len(self.graph_spec.nodes),), np.int32)
        entries["candidate"] = spaces.Box(-1, room.jobs - 1, (actions,), np.int32)
        entries["action_mask"] = spaces.Box(0, 1, (actions,), np.int8)
        self.observation_space = spaces.Dict(entries)
        self._ptr = np.zeros((4, 2), np.int32)
        self._counted = [
            {"op": graphs.OP, "job": graphs.JOB, "machine": graphs.MACHINE}[n] for n in self._rows if n != "shop"
        ]
        self._padded: dict[str, npt.NDArray[Any]] = {"candidate": np.full(actions, -1, np.int32)}
        for node in self.graph_spec.nodes:
            self._padded[node.name] = np.zeros((self._rows[node.name], len(node.features)), np.float32)
        links = {link.name: np.full(self._rows[link.source], -1, np.int32) for link in self.graph_spec.links}
        self._out = self._batch.arrays(
            {n.name: self._padded[n.name] for n in self.graph_spec.nodes},
            links,
            np.empty(actions, np.int32),
            np.empty(actions, np.int32),
        )
        self._padded |= links
        self._padded["action_mask"] = self._batch.mask[0]
        self._is_ops = graph == "ops"
        self._over = True
        self.action_space = spaces.Discrete(actions)

    def _room(self) -> Capacity:
        if isinstance(self._source, tuple):
            return Capacity.of(self._source)
        return Capacity.of([self._source(np.random.default_rng(0))])

    @property
    def wait_action(self) -> int:
        """The action WAIT."""
        return self._batch.wait_action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start an episode.

        `options` may hold "instance" (an Instance or a name) and, in the interrupting shop, "scenario" (a
        recorded one to replay); anything else is refused.
        """
        super().reset(seed=seed)
        chosen = dict(options or {})
        source = _source(chosen.pop("instance")) if "instance" in chosen else self._source
        replay = chosen.pop("scenario", None)
        if chosen:
            raise UsageError(f"reset option {next(iter(chosen))!r} is not known; known are 'instance' and 'scenario'")
        if isinstance(source, tuple):
            instance = source[0] if len(source) == 1 else source[int(self.np_random.integers(len(source)))]
        else:
            instance = source(self.np_random)
        self._batch.load([0], [instance])
        self.instance = instance
        config = self._batch.config
        if config.variant == "isbjssp":
            if replay is None:
                draw_seed = int(self.np_random.integers(2**31))
                replay = scenario.draw(instance, self.shutdown_probability, draw_seed, config.on_interrupt)
            self._batch.load_scenarios([0], [replay])
        elif replay is not None:
            raise UsageError(f"variant {config.variant!r} has no shutdowns; a scenario needs InterruptingJobShop-v0")
        self.scenario = replay
        self._batch.reset()
        _, info, self._over = self._act(graphs.NO_STEP)
        return self._observation(), info

    def step(self, action: np.int64 | int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
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
            batch.problem, batch.shop, batch.mode, self._is_ops, action, self._ptr, self._out, self._padded["candidate"]
        )
        if state == graphs.ILLEGAL:
            raise InvalidActionError(batch.illegal(0, action))
        info: dict[str, Any] = {"now": now, "bound": bound}
        if state == graphs.DONE:
            info["makespan"] = int(batch.shop.end[0].max())
        elif state == graphs.DEADLOCK:
            info["deadlock"] = True
        return reward, info, state != graphs.RUNNING

    def _observation(self) -> Obs:
        """A copy of the padded arrays: a stored observation never changes."""
        obs: Obs = {name: array.copy() for name, array in self._padded.items()}
        obs["num_nodes"] = np.array([*self._ptr[self._counted, 1], 1], np.int32)
        return obs


class JobShopEnv(ShopEnv):
    __doc__ = (ShopEnv.__doc__ or "").replace(
        "A shop as", "The classic job shop, infinite buffers between machines, as", 1
    )

    def __init__(
        self,
        instance: Source = "ft06",
        *,
        graph: GraphName = "jobs",
        builder: Builder = "non-delay",
        delta: float | None = None,
        capacity: Capacity | tuple[int, int, int] | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            "jssp", instance, graph=graph, builder=builder, delta=delta, capacity=capacity, render_mode=render_mode
        )


class BlockingJobShopEnv(ShopEnv):
    __doc__ = (ShopEnv.__doc__ or "").replace(
        "A shop as", "The blocking job shop, no buffers, with or without swaps, as", 1
    )

    def __init__(
        self,
        instance: Source = "ft06",
        *,
        swap: bool = True,
        graph: GraphName = "jobs",
        capacity: Capacity | tuple[int, int, int] | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__("bws" if swap else "bns", instance, graph=graph, capacity=capacity, render_mode=render_mode)


class InterruptingJobShopEnv(ShopEnv):
    __doc__ = (ShopEnv.__doc__ or "").replace(
        "A shop as", "The interrupting swap-allowed blocking job shop (ISBJSSP, arXiv 2302.02506) as", 1
    )

    def __init__(
        self,
        instance: Source = "ft06",
        *,
        shutdown_probability: float = 0.1,
        on_interrupt: OnInterrupt = "resume",
        graph: GraphName = "jobs",
        capacity: Capacity | tuple[int, int, int] | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            "isbjssp",
            instance,
            graph=graph,
            shutdown_probability=shutdown_probability,
            on_interrupt=on_interrupt,
            capacity=capacity,
            render_mode=render_mode,
        )


def _source(given: Source) -> tuple[Instance, ...] | Callable[[np.random.Generator], Instance]:
    """Names loaded, sequences fixed; a generator as it is."""
    if isinstance(given, str):
        return (library.load(given),)
    if isinstance(given, Instance):
        return (given,)
    if callable(given):
        return given
    if not given:
        raise UsageError("instance is an empty list; name at least one")
    return tuple(library.load(one) if isinstance(one, str) else one for one in given)
