"""An order of the moves that happen at one moment, for the shop without swaps."""

from __future__ import annotations

from itertools import pairwise

from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.schedule import Schedule


def ranks(schedule: Schedule, instance: Instance) -> list[int]:
    """Least numbers r, one an operation, for which (start, r) orders every start after what it waits for.

    An operation that starts as the one before it in its job ends has no smaller rank than that one; one
    that takes a machine at the moment another job moves off it has a larger rank than that move.

    Args:
        schedule: valid without swaps; with a cycle of simultaneous moves this does not end.
    """
    start, end, leave = schedule.start.tolist(), schedule.end.tolist(), schedule.leave.tolist()
    machine, job = instance.machine.tolist(), instance.op_job().tolist()
    goes_on = [*(a == b for a, b in pairwise(job)), False]
    after: list[list[tuple[int, int]]] = [[] for _ in start]  # (operation, how much more than its rank)
    for op in range(1, instance.num_ops):
        if goes_on[op - 1] and start[op] == end[op - 1]:
            after[op].append((op - 1, 0))
    for a, b in pairwise(sorted(range(instance.num_ops), key=lambda op: (machine[op], start[op]))):
        if machine[a] == machine[b] and leave[a] == start[b] and job[a] != job[b]:
            after[b].append((a + 1, 1) if goes_on[a] else (a, 0))

    rank = [-1] * instance.num_ops
    for op in sorted(range(instance.num_ops), key=start.__getitem__):
        stack = [op]
        while stack:
            waiting = [other for other, _ in after[stack[-1]] if rank[other] < 0]
            if waiting:
                stack.extend(waiting)
            else:
                top = stack.pop()
                rank[top] = max((rank[other] + more for other, more in after[top]), default=0)
    return rank
