"""Who knows where a pod must go, without asking the server under test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.learned_packing import play
from dispatchgym.envs.packing.instance import Nodes, PackingInstance, Pods, Workload
from tests.e2e.kubernetes.load import Wish

NODE_CPU, NODE_GI = 8, 8


class Judge(Protocol):
    """Follows one sequence of pods, one by one."""

    says: str

    def best(self, wish: Wish) -> set[str]:
        """The nodes that are right for the next pod; more than one only if they are alike."""
        ...

    def put(self, wish: Wish, node: str) -> None:
        """That is where it went."""
        ...


class Free:
    """What is free on every node: milli-CPU and MiB."""

    def __init__(self, nodes: int) -> None:
        self.free = {f"node-{n:03d}": (NODE_CPU * 1000, NODE_GI * 1024) for n in range(nodes)}

    def put(self, wish: Wish, node: str) -> None:
        cpu, memory = self.free[node]
        self.free[node] = cpu - wish.cpu, memory - wish.memory


class BestFit(Free):
    """best-fit by its definition: the nodes where least CPU and memory, in whole per cent, is left."""

    says = "best-fit"

    def best(self, wish: Wish) -> set[str]:
        score = {}
        for node, (cpu, memory) in self.free.items():
            if cpu >= wish.cpu and memory >= wish.memory:
                left = 0.5 * (cpu - wish.cpu) / (NODE_CPU * 1000) + 0.5 * (memory - wish.memory) / (NODE_GI * 1024)
                score[node] = int((1.0 - left) * 100.0)
        return {node for node, value in score.items() if value == max(score.values())}


class InTheGym(Free):
    """A bundle in the environment that it was trained in, on the same pods: any node that is as free as its choice.

    Nodes differ in nothing else, so if every pod goes to such a node both clusters are the same but for names.
    """

    def __init__(self, nodes: int, name: str, sequence: Sequence[Wish]) -> None:
        super().__init__(nodes)
        self.says = f"{name} in the gym"
        count = len(sequence)
        pods = Pods(
            np.array([(wish.cpu, wish.memory) for wish in sequence]),
            workload=np.arange(count),
            arrival=np.arange(count),
            names=tuple(wish.name for wish in sequence),
        )
        capacity = np.tile([NODE_CPU * 1000, NODE_GI * 1024], (nodes, 1))
        instance = PackingInstance("e2e", Nodes(capacity), pods, tuple(Workload(wish.name) for wish in sequence))
        played = play(bundles.load(bundles.find(name), "numpy"), instance)
        self.free_there: dict[str, tuple[int, int]] = {}
        there = Free(nodes)
        names = list(there.free)
        for event in played.batch.log(0).events():
            wish = sequence[event.pod]
            assert event.kind == "bind", "the gym had to move pods: ask for fewer"
            self.free_there[wish.name] = there.free[names[event.node]]
            there.put(wish, names[event.node])

    def best(self, wish: Wish) -> set[str]:
        return {node for node, free in self.free.items() if free == self.free_there[wish.name]}
