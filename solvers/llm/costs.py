"""Times that a scheduler expects, from the latency profile."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.profile import Profile


def prefill_s(profile: Profile, tokens: int, chunk: int, start: int = 0) -> float:
    """Seconds to read `tokens` tokens of a prompt after `start` of it, alone, in pieces of `chunk`."""
    total = 0.0
    while tokens > 0:
        n = min(tokens, chunk)
        work = (
            profile.base_s
            + max(profile.weights_s, profile.token_s * n)
            + profile.row_s
            + profile.pair_s * (n * start + n * (n + 1) / 2)
            + profile.context_s * start
            + profile.chunk_s
        )
        total += max(work, profile.host_s) + profile.rebuild_s
        start, tokens = start + n, tokens - n
    return total


def prefills_s(profile: Profile, tokens: npt.NDArray[np.int64], chunk: int) -> npt.NDArray[np.float64]:
    """`prefill_s` of each, to the last bit, shape (requests,)."""
    p, left, start = profile, tokens, 0
    total = np.zeros(len(tokens))
    while (reading := left > 0).any():
        n = np.minimum(left, chunk)
        work = p.base_s + np.maximum(p.weights_s, p.token_s * n) + p.row_s
        work = work + p.pair_s * (n * start + n * (n + 1) / 2) + p.context_s * start + p.chunk_s
        total[reading] += (np.maximum(work, p.host_s) + p.rebuild_s)[reading]
        start, left = start + chunk, left - n
    return total


def decode_s(profile: Profile, requests: int, context: int) -> float:
    """Seconds of a decode step of so many requests that hold `context` tokens together."""
    d = profile.plain_decoding
    return (
        d.base_s
        + max(d.weights_s, d.token_s * requests)
        + d.row_s * requests
        + d.context_s * context
        + d.spread_s * math.sqrt(context)
        + profile.rebuild_s
    )
