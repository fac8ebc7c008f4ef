"""Whom the choices of a step are about, where more requests are there than can be listed.

The queue's head, the most urgent, the shortest, those with most in the prefix cache and the most important stand for
the others.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.outlook import is_doomed, slack_s, work_s
from dispatchgym.envs.llm.sight import CACHED, FREE, GENERATED, PICKED, PREEMPTIONS, PRIORITY, Sight, decoding, known
from dispatchgym.envs.llm.state import float64, int64


@inlined
def _list(sight: Sight, k: int) -> None:
    h = sight.head[0]
    sight.listed[h.listed] = k
    h.listed += 1
    sight.mark[k] = PICKED  # for now: listed


@compiled
def shortlist(sight: Sight) -> None:
    """Choose whom the choices of this step are about; see the top of the file."""
    h = sight.head[0]
    most = int64(len(sight.listed)) - 2
    h.listed = 0
    hopeful, waiting = int64(0), int64(0)
    reads = most // 4
    for k in range(h.running):
        if not decoding(sight, k) and reads > 0:
            _list(sight, k)
            reads -= 1
    spare = int64(4)  # those who may lose their place
    if h.waiting <= most - h.listed - spare:
        for k in range(h.running, h.running + h.waiting):
            _list(sight, k)
    else:
        share = (most - h.listed - spare) // 8
        for key in range(5):
            count = share if key > 0 else most - h.listed - spare - 7 * share
            if key == 1:
                count = 3 * share
            elif key == 2:
                count = 2 * share
            _list_least(sight, int64(key), int64(count))
    for i in range(h.listed):
        k = sight.listed[i]
        sight.mark[k] = FREE
        if k >= h.running:
            waiting += 1
            if slack_s(sight, k) >= 0.0 or (sight.n[GENERATED, k] > 0 and not is_doomed(sight, k)):
                hopeful += 1
    h.hopeful = hopeful / float64(waiting) if waiting > 0 else 0.0
    # who has the least to lose: those that are late, then the last admitted
    for turn in range(2):
        for k in range(h.running - 1, -1, -1):
            may = decoding(sight, k) and sight.n[PREEMPTIONS, k] < h.max_preemptions and h.running > 1
            if spare > 0 and may and (turn == 0) == is_doomed(sight, k):
                sight.listed[h.listed] = k
                h.listed += 1
                spare -= 1


@inlined
def _list_least(sight: Sight, key: int, count: int) -> None:
    """List the `count` of who waits and is not listed whose key is least, the first of equals first."""
    h = sight.head[0]
    found, at, keys = int64(0), int64(h.listed), int64(h.ranked)  # behind the ranked, `held` is free
    for k in range(h.running, h.running + h.waiting):
        if sight.mark[k] != FREE:
            continue
        x = _key(sight, k, key)
        if found < count:
            i = found
            found += 1
        elif count > 0 and x < sight.held[keys + count - 1]:
            i = count - 1
        else:
            continue
        while i > 0 and x < sight.held[keys + i - 1]:
            sight.held[keys + i], sight.listed[at + i] = sight.held[keys + i - 1], sight.listed[at + i - 1]
            i -= 1
        sight.held[keys + i], sight.listed[at + i] = x, k
    for i in range(found):
        sight.mark[sight.listed[at + i]] = PICKED  # for now: listed
    h.listed += found


@inlined
def _key(sight: Sight, k: int, key: int) -> float:
    """The smaller, the more worth listing: place in the queue, slack, work (the hopeless last in both), cache, rank."""
    if key == 0:
        return float64(k)
    if key == 3:
        return -float64(sight.n[CACHED, k]) / known(sight, k)
    if key == 4:
        return float64(sight.n[PRIORITY, k])
    slack = slack_s(sight, k)
    x = slack if key == 1 else work_s(sight, k)
    if slack < 0.0:
        x += 1e9
    return min(x, 1e12) + 1e-6 * (k - sight.head[0].running)
