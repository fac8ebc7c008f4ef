"""What a packing policy is asked to solve, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dispatchgym.agents.evaluation.problem import derived_seed
from dispatchgym.envs.packing.batch import ALLOCATED, PLACED, PackingConfig
from dispatchgym.envs.packing.instance import FOREVER, PackingInstance
from dispatchgym.envs.packing.log import Event
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import kube_scheduler
from dispatchgym.solvers.packing.plan import Hosts, placed_by_priority

World = Literal["pods", "gpus", "lifetimes"]

TITLES: dict[World, str] = {
    "pods": "Pod packing by priority",
    "gpus": "GPU packing",
    "lifetimes": "GPU packing, pods leave",
}
"""World -> what a reader calls it."""

METRICS: dict[World, str] = {
    "pods": "improved_pct",
    "gpus": "gpu_allocation_pct",
    "lifetimes": "mean_gpu_allocation_pct",
}
"""World -> the value of a run."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the default scheduler made of an instance: where solvers start, and what must be improved.

    Args:
        events: its run. hosts: pod -> node at its end. placed: pods by priority, highest first.
    """

    events: Sequence[Event]
    hosts: Hosts
    placed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackingProblem:
    """One instance of a suite in one world.

    Args:
        suite: the suite it belongs to.
        group: problems that are averaged together, such as '32x4' nodes x pods a node.
        instance: nodes and pods.
        variant: "pods": pods by priority, against the default scheduler, which may evict. "gpus": GPUs allocated, no
            evictions. "lifetimes": the same over time, pods leave.
    """

    suite: str
    group: str
    instance: PackingInstance
    variant: World
    reference: None = None

    @property
    def family(self) -> str:
        return "packing"

    @property
    def metric(self) -> str:
        return METRICS[self.variant]

    @property
    def varies(self) -> bool:
        """The default scheduler's ties differ from seed to seed."""
        return self.variant == "pods"

    @property
    def setting(self) -> str:
        return self.variant

    @property
    def records(self) -> int:
        return 10 * self.instance.num_pods

    @property
    def config(self) -> PackingConfig:
        """What a policy that plays the environment may do."""
        if self.variant == "pods":
            return PackingConfig(evict=True, reward=PLACED)
        return PackingConfig(reward=ALLOCATED)

    def scenario_name(self, seed: int) -> str | None:
        """How results name the default scheduler's run, or None where there is none."""
        return f"default,seed={seed}" if self.varies else None

    def scenario(self, seed: int) -> Start | None:
        """The default scheduler's run of `seed`: the same for every policy."""
        if not self.varies:
            return None
        draws = derived_seed("default", self.instance.digest, str(seed))
        events = kube_scheduler.rollout(self.instance, config=self.config, seed=draws).log.events()
        hosts = validate(events, self.instance)
        return Start(events, hosts, placed_by_priority(self.instance, hosts))


@dataclass(frozen=True, slots=True)
class PackingAnswer:
    """What a policy made of one problem.

    Args:
        events: a whole run, from the first arrival on.
        then: pod -> node after a plan carried out at its end, None for no plan.
        status: 'ok' for a policy that just runs to its end; 'optimal' or 'feasible' of a solver.
        is_proven: no placement places more, by priority.
        decisions: choices made, None where the word has no meaning.
        notes: what a reader should know about this run.
    """

    events: Sequence[Event]
    then: Hosts | None = None
    status: str = "ok"
    is_proven: bool = False
    decisions: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


Run = Callable[[Start | None, int], PackingAnswer]
"""The default scheduler's run and a seed -> answer: the part that is timed."""


def world_of(instance: PackingInstance) -> World:
    """The world that people's own instance belongs to."""
    if (instance.pods.lifetime < FOREVER).any():
        return "lifetimes"
    return "gpus" if instance.pods.gpus.any() else "pods"
