"""Moore's rule: as many jobs of one machine as possible by their due times."""

from __future__ import annotations

import heapq

import numpy as np

from dispatchgym.solvers.llm.peak import Numbers


def moore(now_s: float, due: Numbers, cost: Numbers) -> Numbers:
    """An order in which the most jobs of one machine end by their due times: those on time by due time, then the rest.

    Source: Moore, 1968: in order of due times, whenever one is late, put aside the longest so far.
    """
    chosen: list[tuple[float, int]] = []
    t, aside = now_s, []
    for j in np.argsort(due, kind="stable").tolist():
        heapq.heappush(chosen, (-float(cost[j]), j))
        t += float(cost[j])
        if t > due[j]:
            longest, k = heapq.heappop(chosen)
            t += longest
            aside.append(k)
    kept = sorted((j for _, j in chosen), key=lambda j: (float(due[j]), j))
    return np.array(kept + sorted(aside, key=lambda j: float(cost[j])), np.int64)
