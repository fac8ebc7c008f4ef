"""worst-fit: the node with the most left over afterwards, on it the emptiest GPU."""

from __future__ import annotations

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.state import Cluster, Problem
from dispatchgym.solvers.packing.best_fit import leftover


@inlined
def score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """The leftover as best-fit measures it, not cut."""
    return leftover(problem, cluster, i, p, n)
