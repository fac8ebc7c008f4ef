"""The exact model of a cluster: which pod runs on which node.

Source: Christensen, Giallorenzo, Mauro, Priority Matters, arXiv 2511.08373. Departures: it need not place a pending
pod, so that the present placement is always a solution; the number of pods, static filters and anti-affinity are
constraints too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.solvers.packing.plan import Hosts, filters


@dataclass(frozen=True, slots=True)
class PackingModel:
    """The constraints without an objective.

    Args:
        cp: the CP-SAT model.
        on: (pod, node) -> it runs there; only pairs that the filters allow.
    """

    cp: cp_model.CpModel
    on: dict[tuple[int, int], cp_model.IntVar]

    def running(self, pods: Iterable[int]) -> cp_model.LinearExprT:
        """How many of these pods run."""
        chosen = set(pods)
        return cp_model.LinearExpr.sum([var for (p, _), var in self.on.items() if p in chosen])

    def disruption(self, pods: Iterable[int], now: Hosts) -> cp_model.LinearExprT:
        """Of those of these pods that run now: -1 for each that stays, 0 for each evicted, 1 for each moved."""
        chosen = {p for p in pods if p in now}
        terms = [(var, -1 if now[p] == n else 1) for (p, n), var in self.on.items() if p in chosen]
        return cp_model.LinearExpr.weighted_sum([var for var, _ in terms], [sign for _, sign in terms])

    def hint(self, hosts: Hosts) -> None:
        """Start the next search from this placement, alone."""
        self.cp.clear_hints()  # type: ignore[no-untyped-call]
        for (p, n), var in self.on.items():
            self.cp.add_hint(var, int(hosts.get(p) == n))


def build_model(instance: PackingInstance, pods: Sequence[int]) -> PackingModel:
    """Every one of `pods` on at most one node it may run on; no node over its resources or its number of pods."""
    cp = cp_model.CpModel()
    problem = filters(instance)
    workload = instance.pods.workload
    nodes = range(instance.num_nodes)
    on = {
        (p, n): cp.new_bool_var(f"on_{p}_{n}")
        for p in pods
        for n in nodes
        if problem.allowed[0, workload[p], n]
        and (instance.pods.request[p] <= instance.nodes.capacity[n]).all()
        and instance.nodes.max_pods[n] > 0
    }
    for p in pods:
        cp.add_at_most_one(on[p, n] for n in nodes if (p, n) in on)
    for n in nodes:
        here = [p for p in pods if (p, n) in on]
        for r in range(len(instance.resources)):
            asked, has = instance.pods.request[here, r], int(instance.nodes.capacity[n, r])
            if asked.sum() > has:
                cp.add(cp_model.LinearExpr.weighted_sum([on[p, n] for p in here], asked.tolist()) <= has)
        if len(here) > instance.nodes.max_pods[n]:
            cp.add(cp_model.LinearExpr.sum([on[p, n] for p in here]) <= int(instance.nodes.max_pods[n]))
    for t in range(int(problem.size[0]["num_anti"])):
        domain = problem.anti_domain[0, t, : instance.num_nodes]
        owners = [p for p in pods if problem.anti_owner[0, t, workload[p]]]
        kept_away = [p for p in pods if problem.anti_match[0, t, workload[p]]]
        pairs = {(min(p, q), max(p, q)) for p in owners for q in kept_away if p != q}
        for d in np.unique(domain[domain >= 0]).tolist():
            inside = np.flatnonzero(domain == d).tolist()
            for pair in pairs:
                cp.add_at_most_one(on[p, n] for p in pair for n in inside if (p, n) in on)
    return PackingModel(cp, on)
