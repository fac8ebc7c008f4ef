"""most-allocated: kube-scheduler's NodeResourcesFit with the MostAllocated strategy, which packs."""

from __future__ import annotations

from dispatchgym.envs.compiled import inlined


@inlined
def resource_score(requested: int, capacity: int) -> int:
    """0 to 100 of one resource, `requested` with the pod: the share in use in per cent, cut."""
    if capacity == 0 or requested > capacity:
        return 0
    return requested * 100 // capacity
