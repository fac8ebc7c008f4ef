"""first-fit: the first node that fits, on it the fullest GPU that fits."""

from __future__ import annotations

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.packing.state import Cluster, Problem


@inlined
def score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, g: int, key: int) -> float:
    """The same for every node: ties go to the first."""
    return 0.0
