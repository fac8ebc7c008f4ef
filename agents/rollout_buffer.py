"""A rollout buffer for graphs of any size: nothing is padded, finished environments are not stored."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from dispatchgym.agents.advantages import clock_relative, discounted
from dispatchgym.agents.graph_tensors import GraphTensors, concatenate, cuts, select
from dispatchgym.envs.api import GraphSpec, UsageError

Advantage = Literal["group", "clock", "gae"]


class Minibatch(NamedTuple):
    """Decisions for one gradient step; the field names are those that `PPO.train` reads."""

    observations: GraphTensors
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor


class RaggedRolloutBuffer(RolloutBuffer):
    """Decisions of whole episodes, as graphs on the training device.

    A graph is stored as it was seen: finished operations and jobs are dropped from it and its times count from
    now, so no part of it is the same in the next step. `steps x environments` cells exist for the scalars, but
    only cells of environments that were not over hold a decision, and only those are ever returned.

    Args:
        spec: the graphs that will come.
        advantage: "group": the return of the episode, standardised over the consecutive `group` environments that
            play the same instance, the same for all its decisions; "clock": what an episode earns from a decision
            on, less what the others of its group earn from the same time on; "gae": generalised advantage estimation.
            The last two are standardised over all decisions of the rollout when they are used, and discount by the time
            that passes between two decisions where observations tell it.
        group: environments that share an instance.
        leader: with "group", what the best episode of its group gets on top: training for the best of many.
        least_spread: with "group", what a group's spread at least counts as.
        minibatch: most decisions of a minibatch.
        node_budget: most nodes of a minibatch, so that memory does not grow with the size of the shops.
        share: of the decisions, how many an epoch uses: a new draw without replacement each time.
        Other arguments: as in Stable-Baselines3.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        *,
        spec: GraphSpec,
        advantage: Advantage = "group",
        group: int = 1,
        leader: float = 0.0,
        least_spread: float = 0.0,
        minibatch: int = 32_768,
        node_budget: int = 1_000_000,
        share: float = 1.0,
    ) -> None:
        if n_envs % group or (advantage != "gae" and group < 2):
            raise UsageError(
                f"{n_envs} environments in groups of {group}: relative advantages need groups of 2 or more"
            )
        if not 0.0 < share <= 1.0:
            raise UsageError(f"share is {share}; an epoch uses more than 0 and at most 1 of the decisions")
        self.spec = spec
        self.advantage = advantage
        self.group = group
        self.leader = leader
        self.least_spread = least_spread
        self.minibatch = minibatch
        self.node_budget = node_budget
        self.share = share
        # The base class wants an array per observation; ours are graphs, so it gets the smallest array there is.
        super().__init__(buffer_size, spaces.Box(0, 1, (1,)), action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        super().reset()
        self._graphs: list[GraphTensors] = []
        self._env: list[Tensor] = []  # environments of each step's graphs
        self._on_device: list[tuple[Tensor, Tensor]] = []  # values and log-probabilities, (environments,) each
        self._decisions: Minibatch | None = None
        self.clock = np.zeros((self.buffer_size, self.n_envs))  # of every decision
        self.discount = np.ones((self.buffer_size, self.n_envs))  # of the time since the decision before

    def add(
        self,
        obs: Any,
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        episode_start: npt.NDArray[Any],
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Store one step of all environments; `obs` as `GraphVecEnv` gives it."""
        tensors = {key: torch.as_tensor(array, device=self.device) for key, array in obs.items()}
        if tensors["active"].shape[0]:
            self._graphs.append(GraphTensors.from_dict(tensors))
            self._env.append(self.pos * self.n_envs + tensors["active"])
        self._on_device.append((value.flatten(), log_prob.flatten()))
        self.actions[self.pos] = action.reshape(self.n_envs, 1)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        for name, kept in (("now", self.clock), ("discount", self.discount)):
            if name in tensors:
                kept[self.pos] = tensors[name].cpu().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: npt.NDArray[Any]) -> None:
        """Fill `returns` and `advantages`.

        Raises:
            UsageError: relative advantages of a rollout that ends in the middle of episodes.
        """
        self.values[:] = torch.stack([value for value, _ in self._on_device]).cpu().numpy()
        self.log_probs[:] = torch.stack([log_prob for _, log_prob in self._on_device]).cpu().numpy()
        if self.advantage != "gae" and not np.all(dones):
            raise UsageError("relative advantages need whole episodes: let a rollout be as long as the longest one")
        following = self.gamma * np.vstack([self.discount[1:], np.ones(self.n_envs)])
        goes_on = 1.0 - np.vstack([self.episode_starts[1:], np.asarray(dones, np.float32)])
        after = np.vstack([self.values[1:], last_values.cpu().numpy().reshape(1, -1)])
        error = self.rewards + following * goes_on * after - self.values
        self.advantages[:] = discounted(error, self.gae_lambda * following * goes_on)
        self.returns[:] = self.advantages + self.values
        if self.advantage == "clock":
            self.advantages[:] = clock_relative(self.rewards, following, self.clock, self.group)
        if self.advantage == "group":
            self.advantages[:] = group_relative(self.rewards.sum(axis=0), self.group, self.leader, self.least_spread)

    @property
    def num_decisions(self) -> int:
        """Decisions stored."""
        return sum(len(env) for env in self._env)

    def get(self, batch_size: int | None = None) -> Generator[Minibatch, None, None]:  # type: ignore[override]
        """One epoch: the decisions, or `share` of them, once each in random order, in minibatches of equal nodes.

        Args:
            batch_size: most decisions of a minibatch, where that is less than the buffer's own `minibatch`.
        """
        assert self.full
        everything = self._everything()
        nodes = everything.observations.nodes_per_graph()
        order = torch.randperm(len(nodes), device=nodes.device)[: max(round(self.share * len(nodes)), 1)]
        most = min(batch_size or self.minibatch, self.minibatch)
        sizes = minibatch_sizes(nodes[order], most, self.node_budget)
        parts = cuts(self.spec, everything.observations, order, sizes)
        for index, cut in zip(torch.split(order, sizes), parts, strict=True):
            graphs = select(self.spec, everything.observations, index, cut)
            yield Minibatch(graphs, *(column.index_select(0, index) for column in everything[1:]))

    def _everything(self) -> Minibatch:
        """All decisions as one batch, joined when first asked for.

        From then on `values` and `returns` hold decisions only, shape (D,): PPO computes the explained variance
        from them after its epochs, and cells after an episode's end, all 0, would pass for well explained.
        """
        if self._decisions is None:
            cell = torch.cat(self._env).cpu().numpy()
            columns = (self.actions, self.values, self.log_probs, self.advantages, self.returns)
            actions, values, log_probs, advantages, returns = (column.reshape(-1)[cell] for column in columns)
            if self.advantage != "group":
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            numbers = (actions, values, log_probs, advantages, returns)
            self._decisions = Minibatch(
                concatenate(self.spec, self._graphs),
                *(torch.as_tensor(column, device=self.device) for column in numbers),
            )
            self._graphs = []
            self.values, self.returns = values, returns
        return self._decisions


def group_relative(
    returns: npt.NDArray[np.float32], group: int, leader: float = 0.0, least_spread: float = 0.0
) -> npt.NDArray[np.float32]:
    """(return - mean) / spread within each group of consecutive episodes, the best ones plus `leader`; shape (N,).

    A spread below `least_spread` counts as that: groups in which little is at stake count for less.
    """
    by_group = returns.reshape(-1, group)
    spread = by_group.std(axis=1, keepdims=True)
    scale = np.maximum(np.where(spread > 1e-6, spread, np.inf), least_spread)
    relative = (by_group - by_group.mean(axis=1, keepdims=True)) / scale
    if leader:
        is_best = (by_group == by_group.max(axis=1, keepdims=True)) & (spread > 1e-6)
        relative = relative + leader * (is_best / np.maximum(is_best.sum(axis=1, keepdims=True), 1))
    flat: npt.NDArray[np.float32] = relative.reshape(-1).astype(np.float32)
    return flat


def minibatch_sizes(nodes: Tensor, decisions: int, budget: int) -> list[int]:
    """How many of the next decisions go into each minibatch.

    Args:
        nodes: nodes of each decision, in the order they will be used, shape (D,).
        decisions: most decisions of a minibatch.
        budget: most nodes of a minibatch; a single larger graph still makes one.

    Returns:
        Sizes that add up to D, all at least 1, as even in nodes as they can be: no small last one.
    """
    if len(nodes) == 0:
        return []
    ends = nodes.cumsum(0)
    total, largest = int(ends[-1]), int(nodes.max())
    count = max(-(-len(nodes) // decisions), -(-total // max(budget - largest, 1)), 1)
    while True:
        goals = torch.arange(1, count + 1, device=nodes.device) * (total / count)
        cuts = torch.searchsorted(ends.double(), goals.double() - 1e-6) + 1
        cuts[-1] = len(nodes)
        sizes = torch.unique(cuts).diff(prepend=cuts.new_zeros(1))
        if int(sizes.max()) <= decisions:
            return [int(size) for size in sizes]
        count += 1
