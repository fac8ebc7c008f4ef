"""The registered environments: one cluster, padded observations, the Gymnasium interface."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dispatchgym.envs import padding
from dispatchgym.envs.api import GraphSpec, InvalidActionError, UsageError
from dispatchgym.envs.packing import drawing
from dispatchgym.envs.packing import graph as graphs
from dispatchgym.envs.packing.batch import GraphName, Metrics, PackingBatch, PackingConfig
from dispatchgym.envs.packing.episodes import WORLDS, Episodes, Source, room_for
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.log import Log
from dispatchgym.envs.packing.rows import rows_of
from dispatchgym.envs.packing.state import Capacity


class PackingEnv(gym.Env[padding.Padded, np.int64]):
    """A cluster as a sequence of single choices: where the pod at hand goes, whom it displaces, or WAIT.

    The pod at hand is the first of the queue: highest priority, then the longest queued. A pod that fits nowhere (or
    is told to wait) is set aside until somebody leaves, is evicted or is moved. Pods that have no choice at all are
    set aside without asking.

    Action: `Discrete(nodes * gpus + nodes + pods + 1)`, for the most nodes, GPUs of a node and pods there is room for:
    first (node, slot) pairs, which bind the pod at hand (slot 0 without GPUs; whole GPUs are taken from the slot on;
    equally free GPUs of a node are offered once); then nodes, from which pods of lower priority are evicted for it, as
    few and as unimportant as kube-scheduler would; then pods, which are picked up, to be put down by the next action;
    the last one is WAIT. Legal ones are in `action_mask`; another raises InvalidActionError.

    Observation (`Dict`, padded with zeros and -1; what the columns mean is in `graph_spec`):
        <node>: float32 (most nodes, features) for every node type of the graph, real nodes first.
        num_nodes: int32 (node types,), how many are real, in the order of `graph_spec.nodes`.
        <link>: int32 (most source nodes,), row of the target node, -1 for none.
        candidate: int32 (actions,), row of the `choice` node of every action, -1 where there is none.
        action_mask: int8 (actions,), 1 where the action is legal.

    Reward: `config.reward`. Start: an empty cluster at the first arrival. End: `terminated` when all pods have
    arrived and nobody who waits can hope for a departure; never `truncated`.
    `info`: "now" (s), and "metrics" (the fields of `Metrics`) once done. Version history: v0.

    Args:
        world: fixed by the id: "pods" (PodPacking-v0) or "gpus" (GpuPacking-v0).
        instance: an instance; several, of which each reset draws one; or a generator of instances. Default small
            'Priority Matters' clusters, or small openb twins. `reset(options={"instance": ...})` overrides it once.
        config: what is allowed and rewarded. Default: PodPacking evicts, moves up to 8 pods and is rewarded for pods
            placed by tier; GpuPacking does neither and is rewarded for GPUs allocated.
        graph: "pods" or "gpus".
        capacity: room for the largest instance; needed only for a generator whose first draw is not its largest.
        render_mode: "ansi".

    Raises:
        UsageError: an argument that cannot be.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 2}  # noqa: RUF012 (declared so by gymnasium.Env)

    def __init__(
        self,
        world: Literal["pods", "gpus"],
        instance: Source | None = None,
        *,
        config: PackingConfig | None = None,
        graph: GraphName | None = None,
        capacity: Capacity | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UsageError(f"render_mode is {render_mode!r}; it must be 'ansi'")
        self.render_mode = render_mode
        of = WORLDS[world]
        self._episodes, room = room_for(of, instance, capacity)
        self._batch = PackingBatch(1, room, config or of.config, graph or of.graph)
        self.graph_spec: GraphSpec = self._batch.spec
        self.instance: PackingInstance | None = None
        rows = rows_of(self.graph_spec, room)
        self.observation_space = padding.observation_space(self.graph_spec, rows, room.actions)
        self.action_space = spaces.Discrete(room.actions)
        self._over = True
        self._ptr = np.zeros((5, 2), np.int32)
        x = {node.name: np.zeros((rows[node.name], len(node.features)), np.float32) for node in self.graph_spec.nodes}
        link = {edge.name: np.full(rows[edge.source], -1, np.int32) for edge in self.graph_spec.links}
        self._out = self._batch.arrays(x, link, np.empty(room.actions, np.int32), np.empty(room.actions, np.int32))
        self._padded: padding.Padded = {
            **x,
            **link,
            "candidate": np.full(room.actions, -1, np.int32),
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
        """Start an episode. `options` may hold "instance"; anything else is refused."""
        super().reset(seed=seed)
        chosen = dict(options or {})
        given = chosen.pop("instance", None)
        if chosen:
            raise UsageError(f"reset option {next(iter(chosen))!r} is not known; known is 'instance'")
        episodes = self._episodes if given is None else Episodes.of(given)
        self.instance = episodes.draw(self.np_random)
        self._batch.load([0], [self.instance])
        self._batch.reset()
        self._act(graphs.NO_STEP)
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[padding.Padded, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise InvalidActionError(f"action {action}: no episode is running; call reset() first")
        reward = self._act(int(action))
        return self._observation(), reward, self._over, False, self._info()

    @property
    def metrics(self) -> Metrics:
        """Where the cluster stands."""
        return self._batch.metrics(0)

    def log(self) -> Log:
        """What has happened since the reset, for `validate` and for tables."""
        return self._batch.log(0)

    def meaning(self, action: int) -> str:
        """What an action does, in words."""
        return self._batch.meaning(action)

    def render(self) -> Any:
        """The cluster as text: a line a node."""
        if self.instance is None or self.render_mode is None:
            return None
        return drawing.text(self.instance, self.log())

    def _act(self, action: int) -> float:
        """Step and bring the padded arrays up to date; returns the reward."""
        batch = self._batch
        batch.make_log_room()
        reward, state = graphs.step_padded(
            batch.problem,
            batch.cluster,
            batch.mode,
            batch.is_gpus,
            0,
            action,
            self._ptr,
            self._out,
            self._padded["candidate"],
            self._padded["num_nodes"],
        )
        if state == graphs.ILLEGAL:
            raise InvalidActionError(batch.illegal(0, action))
        self._over = state == graphs.DONE
        return reward

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"now": int(self._batch.cluster.env["now"][0])}
        if self._over:
            info["metrics"] = asdict(self.metrics)
        return info

    def _observation(self) -> padding.Padded:
        """A copy of the padded arrays: a stored observation never changes."""
        return {name: array.copy() for name, array in self._padded.items()}
