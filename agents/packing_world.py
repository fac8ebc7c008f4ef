"""Clusters of pods and of GPUs as worlds to train in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from dispatchgym.agents.packing_runs import PackingRuns
from dispatchgym.agents.playing import play_out
from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.agents.worlds import Losses
from dispatchgym.envs.api import GraphSpec, UsageError
from dispatchgym.envs.packing import twin
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import SPECS, ShortlistConfig, Shortlists, ShortName
from dispatchgym.solvers.packing import kube_scheduler, rules

FIRST_SEED = 1_000_000
"""Seeds below are for tests and evaluations; training and its validation draw from here on."""

POD_RULES = {"kube-scheduler": kube_scheduler.Settings(), "most-allocated": kube_scheduler.MOST_ALLOCATED}
MERIT = "merit"
"""As a rule's name: the linear rule that ranks the shortlist, by itself."""


@dataclass(frozen=True, slots=True)
class PodSource:
    """Clusters of 'Priority Matters', one cell after the other; each draws one of every list.

    Args:
        nodes: machines. pods_per_node, priorities, usage: see `priority_matters`.
    """

    nodes: tuple[int, ...] = (8, 16, 32)
    pods_per_node: tuple[int, ...] = (4, 8)
    priorities: tuple[int, ...] = (1, 2, 4)
    usage: tuple[float, ...] = (0.95, 1.0, 1.05)

    def __post_init__(self) -> None:
        for name in ("nodes", "pods_per_node", "priorities", "usage"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise UsageError(f"packing.pods.{name} is {getattr(self, name)}; give at least one positive number")

    @property
    def steps(self) -> int:
        """A binding a pod, and as many moves."""
        return 2 * max(self.nodes) * max(self.pods_per_node)

    def draw(self, rng: np.random.Generator, k: int) -> tuple[str, PackingInstance]:
        """Number k and its group, nodes x pods."""
        nodes = self.nodes[k % len(self.nodes)]
        per_node, priorities = int(rng.choice(self.pods_per_node)), int(rng.choice(self.priorities))
        usage, seed = float(rng.choice(self.usage)), int(rng.integers(FIRST_SEED, 2**31))
        return f"{nodes}x{nodes * per_node}", priority_matters(nodes, per_node, priorities, usage, seed)


@dataclass(frozen=True, slots=True)
class TwinSource:
    """Twins of openb: the published mix of pods, and others drawn from ranges (see `twin.Mix`).

    Args:
        scales: of cluster and list; 0.1 is about 120 nodes.
        published: share of instances with the published mix; the others vary one thing, in turn.
        cpu_only, shared, several, bound: ranges to draw from.
    """

    scales: tuple[float, ...] = (0.06,)
    published: float = 0.4
    cpu_only: tuple[float, float] = (1.2, 2.4)
    shared: tuple[float, float] = (0.6, 0.97)
    several: tuple[float, float] = (3.0, 20.0)
    bound: tuple[float, float] = (0.05, 0.4)

    def __post_init__(self) -> None:
        if not self.scales or not 0.0 < min(self.scales) <= max(self.scales) <= 1.0:
            raise UsageError(f"packing.twins.scales is {self.scales}; give shares above 0 and up to 1")
        if not 0.0 <= self.published <= 1.0:
            raise UsageError(f"packing.twins.published is {self.published}; it is a share from 0 to 1")

    @property
    def steps(self) -> int:
        """Pods that arrive at the largest cluster, with room to spare."""
        return int(20 * len(twin.nodes(max(self.scales))))

    def draw(self, rng: np.random.Generator, k: int) -> tuple[str, PackingInstance]:
        """Number k and its group, what is varied."""
        scale, seed = self.scales[k % len(self.scales)], int(rng.integers(FIRST_SEED, 2**31))
        kind, mix = "published", twin.AS_PUBLISHED
        if rng.random() >= self.published:
            kind = ("cpu_only", "shared", "several", "bound")[int(rng.integers(4))]
            mix = replace(mix, **{kind: float(rng.uniform(*getattr(self, kind)))})
        return kind, twin.load(seed, scale=scale, mix=mix)


@dataclass(frozen=True, slots=True)
class PackingSource:
    """Where training clusters come from, generators alone, and what a policy may do there.

    Args:
        choices: what a policy may do and how its choices are listed.
        late: share of the pods that the merit places before training begins, drawn anew for every rollout between these
            two: what is decided while there is room everywhere shows little in the end, and drowns what does.
        pods: of graph "repack". twins: of graph "bindings".
    """

    choices: ShortlistConfig = field(default_factory=ShortlistConfig)
    late: tuple[float, float] = (0.0, 0.0)
    pods: PodSource = field(default_factory=PodSource)
    twins: TwinSource = field(default_factory=TwinSource)

    def __post_init__(self) -> None:
        if not 0.0 <= self.late[0] <= self.late[1] < 1.0:
            raise UsageError(f"packing.late is {self.late}; give two shares from 0 up to 1, the smaller one first")

    def draw(self, graph: ShortName, count: int, seed: Sequence[int]) -> tuple[list[str], list[PackingInstance]]:
        """`count` instances and their groups."""
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        source = self.twins if graph == "bindings" else self.pods
        first = int(rng.integers(2**16))
        drawn = [source.draw(rng, first + k) for k in range(count)]
        return [group for group, _ in drawn], [instance for _, instance in drawn]


class PackingExam:
    """Losses are per cent: of the pods' weight by priority what does not run, or of the GPUs what is not allocated.

    Args:
        source, graph: of the instances. count, seed: how many, and which.
    """

    def __init__(self, source: PackingSource, graph: ShortName, count: int, seed: int, lanes: int = 1) -> None:
        self.source = source
        self.graph: ShortName = graph
        self.lanes = lanes
        self.groups, self.instances = source.draw(graph, count, (seed, 1))

    @property
    def digest(self) -> str:
        h = hashlib.sha256()
        for instance in self.instances:
            h.update(instance.digest.encode())
        return h.hexdigest()

    def by_rule(self, rule: str) -> Losses:
        lists = Shortlists.of(self.instances, self.graph, self.source.choices)
        if rule == MERIT:
            lists.finish()
        elif rule in POD_RULES:
            kube_scheduler.play(lists.batch, POD_RULES[rule])
        else:
            rules.play(lists.batch, rule)
        return lists.loss

    def greedy(self, network: GraphNetwork) -> Losses:
        return self._played(network, 1, 0.0)

    def best_of(self, network: GraphNetwork, samples: int) -> Losses:
        best: Losses = self._played(network, samples, 1.0).reshape(-1, samples).min(axis=1)
        return best

    def _played(self, network: GraphNetwork, rollouts: int, temperature: float) -> Losses:
        device = next(network.parameters()).device
        runs = PackingRuns(len(self.instances), rollouts, self.source.choices, self.graph, self.lanes, device)
        runs.start(self.instances)
        play_out(network, runs, temperature)
        return runs.loss


@dataclass(frozen=True, slots=True)
class PackingWorld:
    """Clusters shown by one of the shortlists.

    Reward: what `Shortlists` pays, in per cent of what is at stake.
    """

    graph: ShortName
    source: PackingSource

    @property
    def spec(self) -> GraphSpec:
        return SPECS[self.graph]

    @property
    def most_choices(self) -> int:
        return self.source.choices.most

    def steps(self, num_envs: int) -> int:
        return self.source.twins.steps if self.graph == "bindings" else self.source.pods.steps

    def runs(self, num_instances: int, rollouts: int, lanes: int, device: torch.device | str) -> PackingRuns:
        return PackingRuns(num_instances, rollouts, self.source.choices, self.graph, lanes, device)

    def start(self, runs: PackingRuns, seed: Sequence[int], rollout: int | None = None) -> npt.NDArray[np.float64]:
        late = float(np.random.default_rng([*seed, 5]).uniform(*self.source.late))
        runs.start(self.source.draw(self.graph, runs.num_envs // runs.rollouts, seed)[1], late)
        unit: npt.NDArray[np.float64] = 100.0 / runs.stake
        return unit

    def finish(self, runs: PackingRuns) -> npt.NDArray[np.float64]:
        return runs.finish()

    def outcome(self, runs: PackingRuns) -> Mapping[str, npt.NDArray[np.number]]:
        return {"loss": runs.loss}

    def exam(self, count: int, seed: int, lanes: int) -> PackingExam:
        return PackingExam(self.source, self.graph, count, seed, lanes)
