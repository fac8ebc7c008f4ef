"""The most KV that a batch will ever hold, given how much longer each request goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]


def peak_tokens(held: Numbers, left: Numbers) -> float:
    """Largest total of tokens over the future of requests that hold `held` and put out `left` more, one a step each.

    When the request with the k-th most left ends, the k longest are alive and have each grown by its `left`.
    O(n log n); shape (n,), or (sets, n) for the largest over several sets of `left`.

    Source: Gong et al., ASPLOS 2025; the same sum is Jaillet et al.'s (MC-SF) feasibility check.
    """
    if left.shape[-1] == 0:
        return 0.0
    order = np.argsort(-left, axis=-1, kind="stable")
    left = np.take_along_axis(left, order, -1)
    held = np.cumsum(np.take_along_axis(np.broadcast_to(held, left.shape), order, -1), axis=-1)
    return float((held + left * np.arange(1, left.shape[-1] + 1)).max())
