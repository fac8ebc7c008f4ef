"""Times that a scheduler expects, from the latency profile."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.profile import Captured, Profile


def prefill_s(profile: Profile, tokens: int, chunk: int, start: int = 0) -> float:
    """Seconds to read `tokens` tokens of a prompt after `start` of it, alone, in pieces of `chunk`."""
    total = 0.0
    while tokens > 0:
        n = min(tokens, chunk)
        p, run = profile.of_pass(n)
        work = p.base_s + max(p.weights_s, p.token_s * run) + p.row_s
        work = work + p.pair_s * (n * start + n * (n + 1) / 2) + p.context_s * start + p.chunk_s
        total += (max(work, profile.host_s) if p is profile else work) + profile.rebuild_s
        start, tokens = start + n, tokens - n
    return total


def prefills_s(profile: Profile, tokens: npt.NDArray[np.int64], chunk: int) -> npt.NDArray[np.float64]:
    """`prefill_s` of each, to the last bit, shape (requests,)."""
    left, start = tokens, 0
    total = np.zeros(len(tokens))
    while (reading := left > 0).any():
        n = np.minimum(left, chunk)
        work = np.maximum(_work(profile, n, n, start), profile.host_s)
        if profile.captured is not None:
            sizes = np.array(profile.captured.sizes)
            place = np.minimum(np.searchsorted(sizes, n), len(sizes) - 1)
            work = np.where(n <= sizes[-1], _work(profile.captured, n, sizes[place], start), work)
        total[reading] += (work + profile.rebuild_s)[reading]
        start, left = start + chunk, left - n
    return total


def _work(
    p: Profile | Captured, n: npt.NDArray[np.int64], run: npt.NDArray[np.int64], start: int
) -> npt.NDArray[np.float64]:
    """Seconds of steps with a piece of n tokens behind `start` alone, that run so many tokens."""
    work = p.base_s + np.maximum(p.weights_s, p.token_s * run) + p.row_s
    return np.asarray(work + p.pair_s * (n * start + n * (n + 1) / 2) + p.context_s * start + p.chunk_s)


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
