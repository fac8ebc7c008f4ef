"""Repair by local search beside the same loop with CP-SAT: few nodes are emptied and filled again exactly.

Both start from what the default scheduler left, take a pending pod and a few nodes with much left over, more nodes the
more often the pod has failed, and try to place it together with all pods of these nodes. The peer asks CP-SAT, with a
model of just these nodes and pods, no presolve and the present placement as its hint. Limits are CPU seconds, so that
a busy machine does not count; local search gets as many deterministic seconds. One line a cell: pods pending before and
after, mean over the instances, and on how many instances nothing is left; rows hold CPU milliseconds per instance.
"""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
from harness.rows import Measured, Row, arguments, publish
from ortools.sat.python import cp_model

from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing import kube_scheduler
from dispatchgym.solvers.packing.hard_seeds import hard_instances
from dispatchgym.solvers.packing.local_search import FEWEST_NODES, NODE_NOISE, NODES_A_FAILURE
from dispatchgym.solvers.packing.model import build_model
from dispatchgym.solvers.packing.plan import Hosts, check_hosts
from dispatchgym.solvers.packing.repair import repair

CELLS = ((8, 4, 1, 0.95), (16, 8, 1, 0.95), (32, 4, 4, 0.95), (32, 8, 1, 0.95), (64, 8, 4, 0.95))
LIMITS = (0.05, 1.0)
FIRST_SEED = 2**32


def by_cp_sat(instance: PackingInstance, now: Hosts, cpu_s: float, seed: int) -> dict[int, int]:
    """The peer."""
    began, rng = time.process_time(), np.random.default_rng(seed)
    hosts, failures = dict(now), Counter[int]()
    request, capacity = instance.pods.request, instance.nodes.capacity
    size = (request / capacity.mean(axis=0)).sum(axis=1)
    while len(hosts) < instance.num_pods and time.process_time() - began < cpu_s:
        pending = [p for p in range(instance.num_pods) if p not in hosts]
        urgency = [10 * instance.pods.priority[p] - size[p] - 0.15 * failures[p] * rng.random() for p in pending]
        pod = pending[int(np.argmax(urgency))]
        free = capacity.copy()
        for p, n in hosts.items():
            free[n] -= request[p]
        useful = np.minimum(1.0, free / np.maximum(1, request[pod])).sum(axis=1)
        useful *= 1.0 - NODE_NOISE + NODE_NOISE * rng.random(len(useful))
        k = min(len(free), int(FEWEST_NODES * (1 + rng.random()) + NODES_A_FAILURE * failures[pod]))
        nodes = np.argsort(-useful)[:k].tolist()
        pods = sorted([*(p for p, n in hosts.items() if n in nodes), pod])
        part = PackingInstance("part", instance.nodes.take(nodes), instance.pods.take(pods), instance.workloads)
        model = build_model(part, range(len(pods)))
        for p in range(len(pods)):
            model.cp.add_exactly_one(model.on[p, n] for n in range(k) if (p, n) in model.on)
        model.hint({i: nodes.index(hosts[p]) for i, p in enumerate(pods) if p in hosts})
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.cp_model_presolve = False
        solver.parameters.max_time_in_seconds = max(0.001, cpu_s - (time.process_time() - began))
        if solver.solve(model.cp) in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            hosts |= {pods[i]: nodes[n] for (i, n), var in model.on.items() if solver.boolean_value(var)}
            failures.clear()
        else:
            failures[pod] += 1
    return hosts


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--instances", type=int, default=10, help="a cell; default 10")
    options = parser.parse_args()
    number = 2 if options.quick else options.instances
    cells = CELLS[:3] if options.quick else CELLS
    rows = []
    print(f"{'nodes ppn P usage':18} {'limit':>6} {'before':>7} {'local search':>16} {'with CP-SAT':>16}")
    for cell in cells:
        instances = hard_instances(*cell, number, FIRST_SEED)
        starts = [validate(kube_scheduler.rollout(i, seed=s).log.events(), i) for s, i in enumerate(instances)]
        repair(instances[0], starts[0])  # compiles
        for limit in LIMITS[: 1 if options.quick else None]:
            left: dict[str, list[int]] = {"local search": [], "with CP-SAT": []}
            spent: dict[str, list[float]] = {name: [] for name in left}
            for seed, (instance, now) in enumerate(zip(instances, starts, strict=True)):
                for name in left:
                    cpu = time.process_time()
                    if name == "local search":
                        found = repair(instance, now, time_limit=None, deterministic_limit=limit, seed=seed).plan.then
                    else:
                        found = by_cp_sat(instance, now, limit, seed)
                    spent[name].append(time.process_time() - cpu)
                    check_hosts(instance, found)
                    left[name].append(instance.num_pods - len(found))
            before = np.mean([i.num_pods - len(now) for i, now in zip(instances, starts, strict=True)])
            cell_name = f"{cell[0]:5} {cell[1]:3} {cell[2]:1} {cell[3]:5.2f}"
            shown = (f"{np.mean(pods):6.1f}, {pods.count(0):2}/{number}" for pods in left.values())
            print(f"{cell_name:18} {limit:6g} {before:7.1f} " + " ".join(f"{text:>16}" for text in shown), flush=True)
            ours, theirs = (Measured.of([1000 * each for each in seconds]) for seconds in spent.values())
            note = f"pending {np.mean(left['local search']):.1f} beside {np.mean(left['with CP-SAT']):.1f}"
            name = f"{cell[0]}x{cell[1]} p{cell[2]} u{cell[3]:.2f}, limit {limit:g}"
            rows.append(Row(name, ours.value, "CPU ms", ours.spread, "with CP-SAT", theirs.value, note))
    publish(rows, options.json, ("ortools", "numpy", "numba"))


if __name__ == "__main__":
    main()
