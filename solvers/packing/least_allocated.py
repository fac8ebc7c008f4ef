"""least-allocated: kube-scheduler's NodeResourcesFit with the LeastAllocated strategy, its default, which spreads."""

from __future__ import annotations

from dispatchgym.envs.compiled import inlined


@inlined
def resource_score(requested: int, capacity: int) -> int:
    """0 to 100 of one resource, `requested` with the pod: the share left in per cent, cut."""
    if capacity == 0 or requested > capacity:
        return 0
    return (capacity - requested) * 100 // capacity
