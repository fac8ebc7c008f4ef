"""requested-to-capacity: kube-scheduler's NodeResourcesFit with the RequestedToCapacityRatio strategy."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import inlined

BIN_PACKING = ((0, 0), (100, 10))
"""Utilisation in per cent -> score from 0 to 10: the fuller the better."""


@inlined
def resource_score(requested: int, capacity: int, shape: np.ndarray) -> int:
    """0 to 100 of one resource, `requested` with the pod: the piecewise linear `shape` at its use in per cent.

    `shape`: int64 (points, 2), use in per cent and score 0 to 100, by rising use. Whole numbers throughout, cut.
    """
    use = 100
    if capacity > 0 and requested <= capacity:
        use = 100 - (capacity - requested) * 100 // capacity
    if use <= shape[0, 0]:
        return int(shape[0, 1])
    for point in range(1, len(shape)):
        if use <= shape[point, 0]:
            low, high = shape[point - 1, 1], shape[point, 1]
            step, width = use - shape[point - 1, 0], shape[point, 0] - shape[point - 1, 0]
            rise = (high - low) * step
            return int(low + (rise // width if rise >= 0 else -(-rise // width)))
    return int(shape[len(shape) - 1, 1])
