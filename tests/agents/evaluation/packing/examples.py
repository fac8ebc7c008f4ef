"""Small clusters and policies that the tests of packing's evaluation share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dispatchgym.agents.evaluation.family import Kind
from dispatchgym.agents.evaluation.packing.problem import PackingAnswer, PackingProblem, Run, Start, World
from dispatchgym.envs.packing.instance import Nodes, PackingInstance, Pods

TWO_NODES = PackingInstance(
    "two-nodes",
    Nodes(np.array([[10, 10], [10, 10]])),
    Pods(np.array([[5, 5], [5, 5], [6, 6], [4, 4]]), priority=np.array([1, 1, 0, 0]), arrival=np.arange(4)),
)
"""The default scheduler spreads the first two, so that the third fits nowhere."""


def problem(instance: PackingInstance = TWO_NODES, variant: World = "pods") -> PackingProblem:
    return PackingProblem("tests", instance.size, instance, variant)


@dataclass(frozen=True)
class FixedPolicy:
    """A policy that does what `behave` says."""

    behave: Callable[[Start | None, int], PackingAnswer]
    name: str = "fixed"
    kind: Kind = "rule"
    variants: frozenset[World] = frozenset(("pods", "gpus", "lifetimes"))
    is_random: bool = False

    def builder(self, variant: World) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        return {"fixed": 1}

    def prepare(self, problem: PackingProblem) -> Run:
        return self.behave
