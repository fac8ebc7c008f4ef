"""Times that a scheduler expects, from the latency profile."""

from __future__ import annotations

import math

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
