"""Which of the first tokens that are owed can all be in time, and in what order.

By due time, and whenever one would be late the longest prompt so far is left out: of all choices that leaves out the
fewest, if nobody else comes and prompts take what the device needs for their tokens. Source: Moore, 1968.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.outlook import work_s
from dispatchgym.envs.llm.sight import ARRIVAL, GENERATED, TTFT, Sight, decoding, known, start_of
from dispatchgym.envs.llm.state import PAIR_S, TOKEN_S, float64, int64


@compiled
def order_backlog(sight: Sight) -> None:
    """Write for the listed requests `ahead` and `dropped`, and the share that is dropped."""
    h = sight.head[0]
    n = int64(0)
    for i in range(h.listed):
        k = sight.listed[i]
        sight.dropped[k], sight.ahead[k] = 0, 0.0
        if not _owed(sight, k):
            continue
        due = _due_s(sight, k)
        j = n
        while j > 0 and _due_s(sight, int64(sight.by_due[j - 1])) > due:
            sight.by_due[j] = sight.by_due[j - 1]
            j -= 1
        sight.by_due[j] = k
        n += 1
    total, drops = 0.0, 0
    for i in range(n):
        k = sight.by_due[i]
        total += device_s(sight, int64(k))
        if max(total, work_s(sight, int64(k))) <= _due_s(sight, int64(k)):
            continue
        longest, most_s = int64(k), -1.0
        for j in range(i + 1):
            other = int64(sight.by_due[j])
            if sight.dropped[other] == 0 and device_s(sight, other) > most_s:
                longest, most_s = other, device_s(sight, other)
        sight.dropped[longest] = 1
        drops += 1
        total -= most_s
    before = 0.0
    for i in range(n):
        k = sight.by_due[i]
        if sight.dropped[k] == 0:
            sight.ahead[k] = before
            before += device_s(sight, int64(k))
    for i in range(h.listed):  # the others come behind these
        k = sight.listed[i]
        if sight.dropped[k] == 1 or not _owed(sight, k):
            sight.ahead[k] = before
    h.dropping = drops / float64(n) if n > 0 else 0.0


@inlined
def _owed(sight: Sight, k: int) -> bool:
    """The first token of request k is not out, has a bound, and can still be in time."""
    if sight.n[GENERATED, k] > 0 or decoding(sight, k) or sight.f[TTFT, k] == np.inf:
        return False
    return work_s(sight, k) <= _due_s(sight, k)


@inlined
def _due_s(sight: Sight, k: int) -> float:
    """Seconds until the first token of request k is due."""
    return sight.f[ARRIVAL, k] + sight.f[TTFT, k] - sight.head[0].now


@inlined
def device_s(sight: Sight, k: int) -> float:
    """Time that the device needs for the tokens of the rest of request k's prompt, among others."""
    start = start_of(sight, k)
    left = float64(known(sight, k) - start)
    return sight.cost[TOKEN_S] * left + sight.cost[PAIR_S] * left * (start + 0.5 * (left + 1.0))
