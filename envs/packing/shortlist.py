"""The choices worth considering: a few legal actions with columns that tell them apart, for policies and training.

Where the complete graphs show every pod, node and GPU, a shortlist shows at most `most` actions and the cluster as one
context node. Actions that look alike are one choice. Which actions come into question, their columns, and their
`merit`, the linear rule that ranks them, are the business of `repack` (pods) and `bindings` (GPUs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import GraphBatch, GraphSpec, UsageError
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing import bindings, repack
from dispatchgym.envs.packing.batch import ALLOCATED, PLACED, PackingBatch, PackingConfig
from dispatchgym.envs.packing.choices import Choices, new_choices
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.kernel import step
from dispatchgym.envs.packing.state import F64, GONE, I64, RUNNING, Cluster, Mode, Problem

ShortName = Literal["repack", "bindings"]
SPECS: Mapping[str, GraphSpec] = {"repack": repack.SPEC, "bindings": bindings.SPEC}
WEIGHTS: dict[ShortName, npt.NDArray[np.float64]] = {"repack": repack.WEIGHTS, "bindings": bindings.WEIGHTS}


@dataclass(frozen=True, slots=True)
class ShortlistConfig:
    """What a policy may do, and how its choices are listed.

    Args:
        most: choices of a list.
        evict, moves: of "repack", see `PackingConfig`.
        merit: weights of the linear rule, a row a kind of choices and a column a feature; default the graph's own.
    """

    most: int = 32
    evict: bool = True
    moves: int = 1000
    merit: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.most < 2 or self.moves < 0:
            raise UsageError(f"choices.most {self.most}, moves {self.moves}: at least 2 choices and 0 moves")

    def packing(self, graph: ShortName) -> PackingConfig:
        """The environments that a policy of this graph plays in."""
        if graph == "bindings":
            return PackingConfig(reward=ALLOCATED, fragments=True)
        return PackingConfig(evict=self.evict, moves=self.moves, reward=PLACED)

    def weights(self, graph: ShortName) -> npt.NDArray[np.float64]:
        """Weights of the merit.

        Raises:
            UsageError: a table of another shape.
        """
        own = WEIGHTS[graph]
        if not self.merit:
            return own
        if {len(row) for row in self.merit} != {own.shape[1]} or len(self.merit) != len(own):
            raise UsageError(f"choices.merit must be a table of {own.shape[0]} x {own.shape[1]} numbers for {graph!r}")
        return np.array(self.merit)


class Shortlists:
    """A batch of clusters shown by shortlists; choices without an alternative make themselves.

    Args:
        batch: loaded and reset; stepped by this object alone from now on.
        graph: "repack" for pods that may be moved, "bindings" for GPUs.
        config: see there.
    """

    def __init__(self, batch: PackingBatch, graph: ShortName, config: ShortlistConfig) -> None:
        self.batch = batch
        self.graph = graph
        self.spec = SPECS[graph]
        self._choices = new_choices(batch.num_envs, batch.capacity, self.spec, config.most, config.weights(graph))
        self._is_gpus = graph == "bindings"
        self._margin = 2 * batch.capacity.pods + 8

    @classmethod
    def of(
        cls, instances: Sequence[PackingInstance], graph: ShortName, config: ShortlistConfig, envs_per_instance: int = 1
    ) -> Shortlists:
        """Exactly these instances, reset; `begin` is next."""
        kind: Literal["pods", "gpus"] = "gpus" if graph == "bindings" else "pods"
        return cls(PackingBatch.of(instances, config.packing(graph), kind, envs_per_instance), graph, config)

    def reweigh(self, weights: npt.NDArray[np.float64]) -> None:
        """Rank by other weights of the merit from the next choice on."""
        self._choices.weights[:] = weights

    @property
    def stake(self) -> npt.NDArray[np.float64]:
        """The reward if every pod of the instance ran, or every GPU were allocated, shape (N,)."""
        problem, mode = self.batch.problem, self.batch.mode
        slot = self.batch.cluster.env["slot"]
        if self._is_gpus:
            total: npt.NDArray[np.float64] = mode.gpu * problem.size["total_milli"][slot] / 1000.0
            return total
        exists = np.arange(problem.pod.shape[1]) < problem.size["num_pods"][:, None]
        whole: npt.NDArray[np.float64] = (mode.placed * mode.tier ** problem.pod["tier"] * exists).sum(axis=1)[slot]
        return whole

    @property
    def loss(self) -> npt.NDArray[np.float64]:
        """Per cent of the stake that is not won as things stand; moves and evictions do not count, shape (N,)."""
        cluster, mode = self.batch.cluster, self.batch.mode
        if self._is_gpus:
            won = mode.gpu * cluster.env["gpu_used"] / 1000.0
        else:
            well = (cluster.pod["status"] == RUNNING) | (cluster.pod["status"] == GONE)
            tier = self.batch.problem.pod["tier"][cluster.env["slot"]]
            won = (mode.placed * mode.tier**tier * well).sum(axis=1)
        lost: npt.NDArray[np.float64] = 100.0 * (1.0 - won / self.stake)
        return lost

    def begin(self, late: float = 0.0) -> npt.NDArray[np.float64]:
        """After a reset: go to the first real choice; returns the rewards on the way, shape (N,).

        Args:
            late: share of the pods that must have arrived; until then the merit chooses.
        """
        return self._play(np.full(self.batch.num_envs, -1, np.int64), late)

    def step(self, actions: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """Carry out an action in every environment that is not over (-1: none), then all that is without alternative.

        Returns:
            Rewards, shape (N,).
        """
        return self._play(actions.astype(np.int64), 0.0)

    def finish(self) -> npt.NDArray[np.float64]:
        """Let the merit play every environment to its end; returns the rewards on the way, shape (N,)."""
        return self._play(np.full(self.batch.num_envs, -1, np.int64), np.inf)

    def _play(self, left: I64, late: float) -> npt.NDArray[np.float64]:
        batch = self.batch
        reward = np.zeros(batch.num_envs)
        batch.make_log_room()
        while not step_to_choice(
            batch.problem, batch.cluster, batch.mode, self._is_gpus, self._choices, left, reward, self._margin, late
        ):
            batch.make_log_room()
        return reward

    def look(self) -> GraphBatch:
        """The choices as things stand, for callers that set up the state themselves; nothing is carried out.

        A choice without an alternative is listed too.
        """
        list_all(self.batch.problem, self.batch.cluster, self._is_gpus, self._choices)
        return self.observe()

    def observe(self) -> GraphBatch:
        """Graphs of all environments, as fresh arrays; those that are over have no choices."""
        choices, n = self._choices, self.batch.num_envs
        count = np.where(self.batch.over, 0, choices.length)
        listed = np.arange(choices.action.shape[1]) < count[:, None]
        ptr = np.zeros(n + 1, np.int32)
        np.cumsum(count, out=ptr[1:])
        rows = np.arange(ptr[-1], dtype=np.int32)
        choice, context = self.spec.candidate, self.spec.context
        return GraphBatch(
            x={choice: choices.row[listed], context: choices.context.copy()},
            ptr={choice: ptr, context: np.arange(n + 1, dtype=np.int32)},
            link={},
            candidate=rows,
            action=choices.action[listed].astype(np.int32),
            candidate_ptr=ptr,
        )


@compiled
def step_to_choice(
    problem: Problem,
    cluster: Cluster,
    mode: Mode,
    gpus: bool,
    choices: Choices,
    actions: I64,
    reward: F64,
    margin: int,
    late: float,
) -> bool:
    """Carry out `actions` (-1: none), then go on to a list with an alternative; by merit until `late` of the pods came.

    Rewards are added up. False if a log must grow first; what is done is then marked -1, and calling again goes on.
    """
    for i in range(len(actions)):
        while cluster.env[i].over == 0:
            action = actions[i]
            if action < 0:
                list_choices(problem, cluster, gpus, i, choices)
                arrived = cluster.env[i].next_pod / problem.size[cluster.env[i].slot].num_pods
                if choices.length[i] > 1 and arrived >= late:
                    write_context(problem, cluster, gpus, i, choices)
                    break
                action = best_choice(choices, i)
            if cluster.env[i].logged + margin > cluster.log.shape[1]:
                actions[i] = action
                return False
            reward[i] += step(problem, cluster, mode, i, action)
            actions[i] = -1
    return True


@compiled
def list_all(problem: Problem, cluster: Cluster, gpus: bool, choices: Choices) -> None:
    """List and describe the choices of every environment that is not over."""
    for i in range(len(cluster.env)):
        if cluster.env[i].over == 0:
            list_choices(problem, cluster, gpus, i, choices)
            write_context(problem, cluster, gpus, i, choices)


@inlined
def list_choices(problem: Problem, cluster: Cluster, gpus: bool, i: int, choices: Choices) -> None:
    if gpus:
        found = bindings.write_choices(problem, cluster, i, choices)
    else:
        found = repack.write_choices(problem, cluster, i, choices)
    keep_best(choices, i, found)


@inlined
def write_context(problem: Problem, cluster: Cluster, gpus: bool, i: int, choices: Choices) -> None:
    if gpus:
        bindings.write_context(problem, cluster, i, choices)
    else:
        repack.write_context(problem, cluster, i, choices)


@inlined
def best_choice(choices: Choices, i: int) -> int:
    """The listed action of the highest merit, the first among equals."""
    merit = choices.row.shape[2] - 1
    best = 0
    for c in range(1, choices.length[i]):
        if choices.row[i, c, merit] > choices.row[i, best, merit]:
            best = c
    return int(choices.action[i, best])


@compiled
def keep_best(choices: Choices, i: int, found: int) -> None:
    """List the best of the first `found` rows of scratch, in their order; of those that look alike only the first."""
    most, columns = choices.row.shape[1], choices.row.shape[2]
    merit = columns - 1
    for c in range(found):
        choices.state[c] = 0  # 1 listed, 2 left out
    listed = 0
    while listed < most:
        best = -1
        for c in range(found):
            if choices.state[c] == 0 and (best < 0 or choices.found[c, merit] > choices.found[best, merit]):
                best = c
        if best < 0:
            break
        choices.state[best] = 1
        listed += 1
        for c in range(best + 1, found):
            if choices.state[c] == 0 and choices.found[c, merit] == choices.found[best, merit]:
                same = True
                for x in range(columns):
                    if choices.found[c, x] != choices.found[best, x]:
                        same = False
                        break
                if same:
                    choices.state[c] = 2
    at = 0
    for c in range(found):
        if choices.state[c] == 1:
            choices.action[i, at] = choices.found_action[c]
            for x in range(columns):
                choices.row[i, at, x] = choices.found[c, x]
            at += 1
    choices.length[i] = listed
