"""Where pods run now and where they shall run: what solvers of a whole cluster take and give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.log import Event
from dispatchgym.envs.packing.state import Capacity, Problem, new_problem, put_instance
from dispatchgym.envs.packing.validate import validate

Hosts = Mapping[int, int]
"""Pod -> node of all that runs; `validate` makes one of a log."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement and its successor.

    A plan is carried out as the paper does it: evict who moves or goes, then bind. Whether single moves in some order
    would do, without evicting anybody in between, is left open: two pods may swap full nodes.
    """

    now: Hosts
    then: Hosts

    @property
    def moved(self) -> tuple[int, ...]:
        """Pods that change their node."""
        return tuple(p for p, node in self.now.items() if self.then.get(p, node) != node)

    @property
    def evicted(self) -> tuple[int, ...]:
        """Pods that run now and then no more."""
        return tuple(p for p in self.now if p not in self.then)

    @property
    def bound(self) -> tuple[int, ...]:
        """Pods that run only then."""
        return tuple(p for p in self.then if p not in self.now)


def placed_by_priority(instance: PackingInstance, hosts: Hosts) -> tuple[int, ...]:
    """Pods that run, one entry a priority, highest first: compare them as tuples."""
    priorities = [int(instance.pods.priority[p]) for p in hosts]
    return tuple(priorities.count(int(tier)) for tier in instance.tiers)


def check_hosts(instance: PackingInstance, hosts: Hosts) -> None:
    """Bind all of `hosts` to an empty cluster, judged by the validator.

    Raises:
        InvalidScheduleError: a node is over capacity or a filter is broken.
    """
    time = int(instance.pods.arrival[-1])
    validate([Event(time, "bind", pod, node, ()) for pod, node in hosts.items()], instance)


def check_modelled(instance: PackingInstance) -> None:
    """Refuse what plans do not cover: GPUs, and topology spread, which depends on the order of binding.

    Raises:
        UsageError: naming the instance.
    """
    if instance.pods.gpus.any():
        raise UsageError(
            f"instance {instance.name!r} has pods with GPUs, which plans do not cover; use a rule such as fgd"
        )
    if any(workload.spread for workload in instance.workloads):
        raise UsageError(
            f"instance {instance.name!r} has topology spread, which plans do not cover; use kube-scheduler"
        )


def filters(instance: PackingInstance) -> Problem:
    """The instance as arrays, in slot 0: what the filters allow."""
    size = Capacity.of([instance])
    problem = new_problem(1, size)
    put_instance(problem, size, 0, instance)
    return problem
