"""The dynamics of all three shops: reset, step, and which actions are legal.

One compiled core serves the single environment, the batch and the rules' rollouts. Every function
works on environment `i` of a batch and mutates `shop`.
"""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.jobshop.state import NEVER, U8, Mode, Problem, Shop


@inlined
def reset(problem: Problem, shop: Shop, mode: Mode, i: int) -> None:
    """Start environment i anew on the instance of its slot."""
    k = shop.slot[i]
    for m in range(shop.free.shape[1]):
        shop.free[i, m] = 0
        shop.holder[i, m] = -1
        shop.load[i, m] = 0
        shop.pending[i, m] = 0
        shop.queued[i, m] = 0
        shop.queued_work[i, m] = 0
        shop.down_at[i, m] = shop.down_ptr[i, m]
    for j in range(shop.mask.shape[1]):
        shop.mask[i, j] = 0
    shop.now[i] = 0
    shop.bound[i] = 0
    shop.ops_left[i] = 0
    shop.in_shop[i] = 0
    shop.decisions[i] = 0
    shop.dead[i] = 0
    shop.jobs_left[i] = problem.num_jobs[k]
    shop.hidden[i] = problem.num_jobs[k]
    for j in range(problem.num_jobs[k]):
        shop.next_op[i, j] = problem.job_ptr[k, j]
        shop.ready[i, j] = problem.earliest[k, j]
        shop.seen[i, j] = 0
        shop.holds[i, j] = -1
    for o in range(shop.end.shape[1]):
        shop.end[i, o] = 0
    reveal(problem, shop, i)
    if mode.blocking:
        open_blocking(problem, shop, mode, i)
    else:
        open_classic(problem, shop, mode, i)


@inlined
def step(problem: Problem, shop: Shop, mode: Mode, i: int, action: int) -> float:
    """Carry out a legal action; returns the reward, minus the growth of the bound."""
    before = shop.bound[i]
    shop.decisions[i] += 1
    if mode.blocking:
        if action == shop.mask.shape[1] - 1:
            advance(problem, shop, mode, i)
        else:
            enter(problem, shop, i, action)
        open_blocking(problem, shop, mode, i)
    else:
        append(problem, shop, i, action)
        open_classic(problem, shop, mode, i)
    return float(before - shop.bound[i])


@inlined
def is_over(shop: Shop, i: int) -> bool:
    """All jobs are done, or nothing can ever move again."""
    return bool(shop.jobs_left[i] == 0 or shop.dead[i] == 1)


@inlined
def reveal(problem: Problem, shop: Shop, i: int) -> None:
    """Make the jobs that have arrived by now known: their work joins loads and queues."""
    if shop.hidden[i] == 0:
        return
    k = shop.slot[i]
    for j in range(problem.num_jobs[k]):
        if shop.seen[i, j] == 1 or problem.arrival[k, j] > shop.now[i]:
            continue
        shop.seen[i, j] = 1
        shop.hidden[i] -= 1
        first, last = problem.job_ptr[k, j], problem.job_ptr[k, j + 1]
        shop.ops_left[i] += last - first
        for o in range(first, last):
            m = problem.machine[k, o]
            shop.load[i, m] += problem.duration[k, o]
            shop.pending[i, m] += 1
        shop.queued[i, problem.machine[k, first]] += 1
        shop.queued_work[i, problem.machine[k, first]] += problem.duration[k, first]


@inlined
def begin(problem: Problem, shop: Shop, i: int, j: int, time: int) -> None:
    """Book the start of job j's next operation at `time`."""
    k = shop.slot[i]
    o = shop.next_op[i, j]
    m = problem.machine[k, o]
    p = problem.duration[k, o]
    end = time + p
    shop.start[i, o] = time
    shop.end[i, o] = end
    shop.ready[i, j] = end
    shop.free[i, m] = end
    shop.load[i, m] -= p
    shop.pending[i, m] -= 1
    shop.queued[i, m] -= 1
    shop.queued_work[i, m] -= p
    shop.ops_left[i] -= 1
    shop.next_op[i, j] = o + 1
    if o == problem.job_ptr[k, j]:
        shop.in_shop[i] += 1
    if o + 1 < problem.job_ptr[k, j + 1]:
        after = problem.machine[k, o + 1]
        shop.queued[i, after] += 1
        shop.queued_work[i, after] += problem.duration[k, o + 1]


# --- classic shop: buffers are infinite, so an operation is appended at its earliest start ---


@inlined
def append(problem: Problem, shop: Shop, i: int, j: int) -> None:
    """Give job j's next operation its earliest start behind what its machine already has."""
    k = shop.slot[i]
    o = shop.next_op[i, j]
    m = problem.machine[k, o]
    begin(problem, shop, i, j, max(shop.ready[i, j], shop.free[i, m]))
    if o + 1 == problem.job_ptr[k, j + 1]:
        shop.jobs_left[i] -= 1
        shop.in_shop[i] -= 1
    shop.bound[i] = max(shop.bound[i], shop.end[i, o])


@inlined
def open_classic(problem: Problem, shop: Shop, mode: Mode, i: int) -> None:
    """Set the mask: jobs that can start by t* + delta (c* - t*), t* the earliest start, c* the earliest completion.

    Nothing starts before t*, so it also raises the bound: every job's remaining work, every machine's load.

    delta 0 gives non-delay schedules, 1 active ones (Giffler and Thompson 1960 over all machines;
    the interval in between after Bierwirth and Mattfeld 1999).
    """
    k = shop.slot[i]
    earliest = NEVER
    for j in range(problem.num_jobs[k]):
        shop.mask[i, j] = 0
        o = shop.next_op[i, j]
        if o < problem.job_ptr[k, j + 1]:
            earliest = min(earliest, max(shop.ready[i, j], shop.free[i, problem.machine[k, o]]))
    if shop.jobs_left[i] == 0:
        return
    shop.now[i] = earliest
    reveal(problem, shop, i)
    limit = float(earliest)
    if mode.delta > 0:
        complete = NEVER
        for j in range(problem.num_jobs[k]):
            o = shop.next_op[i, j]
            if o < problem.job_ptr[k, j + 1] and shop.seen[i, j] == 1:
                start = max(shop.ready[i, j], shop.free[i, problem.machine[k, o]])
                complete = min(complete, start + problem.duration[k, o])
        limit += mode.delta * (complete - earliest)
    for j in range(problem.num_jobs[k]):
        o = shop.next_op[i, j]
        if o < problem.job_ptr[k, j + 1] and shop.seen[i, j] == 1:
            start = max(shop.ready[i, j], shop.free[i, problem.machine[k, o]])
            shop.mask[i, j] = start == earliest or start < limit
            if mode.bound:
                shop.bound[i] = max(shop.bound[i], start + problem.duration[k, o] + problem.tail[k, o])
    for m in range(problem.num_machines[k] if mode.bound else 0):
        if shop.pending[i, m] > 0:
            shop.bound[i] = max(shop.bound[i], max(shop.free[i, m], earliest) + shop.load[i, m])


# --- blocking shops: a job keeps its machine until the next one takes it ---


@inlined
def is_down(shop: Shop, i: int, m: int) -> bool:
    """Machine m is shut down now."""
    w = shop.down_at[i, m]
    return bool(w < shop.down_ptr[i, m + 1] and shop.down_from[i, w] <= shop.now[i])


@inlined
def known_end(shop: Shop, i: int, j: int) -> int:
    """Earliest end of job j's current operation for all that is known now: a repair may come at any moment."""
    m = shop.holds[i, j]
    if m >= 0 and is_down(shop, i, m) and shop.ready[i, j] > shop.now[i]:
        return int(shop.now[i] + shop.ready[i, j] - shop.down_to[i, shop.down_at[i, m]])
    return int(shop.ready[i, j])


@inlined
def place(problem: Problem, shop: Shop, i: int, j: int) -> None:
    """Move job j from where it is onto its next machine, now."""
    m = problem.machine[shop.slot[i], shop.next_op[i, j]]
    old = shop.holds[i, j]
    if old >= 0 and shop.holder[i, old] == j:
        shop.holder[i, old] = -1
    shop.holder[i, m] = j
    shop.holds[i, j] = m
    begin(problem, shop, i, j, shop.now[i])


@inlined
def enter(problem: Problem, shop: Shop, i: int, j: int) -> None:
    """Start job j's next operation; if its machine is held, everyone on the cycle moves with it."""
    k = shop.slot[i]
    mover = j
    while True:
        other = shop.holder[i, problem.machine[k, shop.next_op[i, mover]]]
        place(problem, shop, i, mover)
        if other in (-1, j, mover):
            return
        mover = other


@inlined
def on_cycle(problem: Problem, shop: Shop, i: int, j: int) -> bool:
    """Following 'waits for the holder of' from job j leads back to j, all of them finished, no machine down."""
    k = shop.slot[i]
    mover = j
    for _ in range(problem.num_machines[k]):
        m = problem.machine[k, shop.next_op[i, mover]]
        other = shop.holder[i, m]
        if other == j:
            return True
        if other == -1 or other == mover or shop.ready[i, other] > shop.now[i] or is_down(shop, i, m):
            return False
        mover = other
    return False


@inlined
def is_safe(problem: Problem, shop: Shop, i: int, j: int) -> bool:
    """After job j's move the jobs in the shop can still leave one after another (banker's algorithm).

    Sufficient, not necessary: a state that needs two jobs to move in turns to dissolve is refused.
    """
    k = shop.slot[i]
    words = problem.route_mask.shape[2]
    occupied = shop.occupied
    for w in range(words):
        occupied[w] = np.uint64(0)
    left = shop.staying
    one = np.uint64(1)
    target = problem.machine[k, shop.next_op[i, j]]
    waiting = 0
    for other in range(problem.num_jobs[k]):
        at = target if other == j else shop.holds[i, other]
        if at >= 0:
            occupied[at // 64] |= one << np.uint64(at % 64)
            left[waiting] = other
            waiting += 1
    while waiting > 0:
        before = waiting
        position = 0
        while position < waiting:
            other = left[position]
            at = target if other == j else shop.holds[i, other]
            o = shop.next_op[i, other] + (1 if other == j else 0)
            can_leave = True
            if o < problem.job_ptr[k, other + 1]:
                for w in range(words):
                    own = one << np.uint64(at % 64) if w == at // 64 else np.uint64(0)
                    if problem.route_mask[k, o, w] & occupied[w] & ~own:
                        can_leave = False
            if can_leave:
                occupied[at // 64] &= ~(one << np.uint64(at % 64))
                waiting -= 1
                left[position] = left[waiting]
            else:
                position += 1
        if waiting == before:
            return False
    return True


@inlined
def may_enter(problem: Problem, shop: Shop, mode: Mode, i: int, j: int) -> bool:
    """Job j could start its next operation now."""
    k = shop.slot[i]
    o = shop.next_op[i, j]
    if o >= problem.job_ptr[k, j + 1] or shop.seen[i, j] == 0 or shop.ready[i, j] > shop.now[i]:
        return False
    m = problem.machine[k, o]
    old = shop.holds[i, j]
    if is_down(shop, i, m) or (old >= 0 and is_down(shop, i, old)):
        return False
    other = shop.holder[i, m]
    if other == -1 or other == j:
        return mode.swap or is_safe(problem, shop, i, j)
    return mode.swap and on_cycle(problem, shop, i, j)


@inlined
def next_event(problem: Problem, shop: Shop, i: int) -> tuple[int, int]:
    """(next instant at which anything happens, next one that can let a job move); NEVER if none.

    A shutdown happens but lets nobody move: it is no reason to wait.
    """
    k = shop.slot[i]
    now = shop.now[i]
    useful = NEVER
    for j in range(problem.num_jobs[k]):
        if shop.seen[i, j] == 0 and problem.arrival[k, j] > now:
            useful = min(useful, problem.arrival[k, j])
        elif shop.ready[i, j] > now:
            useful = min(useful, shop.ready[i, j])
    anything = useful
    for m in range(problem.num_machines[k]):
        w = shop.down_at[i, m]
        if w < shop.down_ptr[i, m + 1]:
            if shop.down_from[i, w] > now:
                anything = min(anything, shop.down_from[i, w])
            else:
                useful = min(useful, shop.down_to[i, w])
    return min(anything, useful), useful


@inlined
def advance(problem: Problem, shop: Shop, mode: Mode, i: int) -> bool:
    """Run time to the next event: completions first, then shutdowns and repairs, then arrivals. False if none."""
    k = shop.slot[i]
    time, _ = next_event(problem, shop, i)
    if time == NEVER:
        return False
    shop.now[i] = time
    for j in range(problem.num_jobs[k]):
        m = shop.holds[i, j]
        if m >= 0 and shop.ready[i, j] == time and shop.next_op[i, j] == problem.job_ptr[k, j + 1]:
            shop.holder[i, m] = -1
            shop.holds[i, j] = -1
            shop.in_shop[i] -= 1
            shop.jobs_left[i] -= 1
    for m in range(problem.num_machines[k]):
        w = shop.down_at[i, m]
        if w == shop.down_ptr[i, m + 1]:
            continue
        if shop.down_to[i, w] == time:
            shop.down_at[i, m] = w + 1
        elif shop.down_from[i, w] == time:
            j = shop.holder[i, m]
            if j >= 0 and shop.ready[i, j] > time:
                o = shop.next_op[i, j] - 1
                if mode.restart:
                    shop.ready[i, j] = shop.down_to[i, w] + problem.duration[k, o]
                else:
                    shop.ready[i, j] += shop.down_to[i, w] - time
                shop.end[i, o] = shop.ready[i, j]
                shop.free[i, m] = shop.ready[i, j]
    reveal(problem, shop, i)
    return True


@inlined
def raise_bound(problem: Problem, shop: Shop, i: int) -> None:
    """Raise the bound by what is known now: every job's remaining work, every machine's remaining load."""
    k = shop.slot[i]
    now = shop.now[i]
    bound = max(shop.bound[i], now)
    for j in range(problem.num_jobs[k]):
        if shop.seen[i, j] == 1:
            o = shop.next_op[i, j]
            work = problem.duration[k, o] + problem.tail[k, o] if o < problem.job_ptr[k, j + 1] else 0
            if work > 0 or shop.holds[i, j] >= 0:
                bound = max(bound, max(known_end(shop, i, j), now) + work)
    for m in range(problem.num_machines[k]):
        if shop.pending[i, m] > 0:
            j = shop.holder[i, m]
            free = max(known_end(shop, i, j), now) if j >= 0 else now
            bound = max(bound, free + shop.load[i, m])
    shop.bound[i] = bound


@inlined
def open_blocking(problem: Problem, shop: Shop, mode: Mode, i: int) -> None:
    """Set the mask; as long as no job can move, run time to the next event."""
    k = shop.slot[i]
    wait = shop.mask.shape[1] - 1
    shop.mask[i, wait] = 0
    while True:
        found = False
        for j in range(problem.num_jobs[k]):
            legal = may_enter(problem, shop, mode, i, j)
            shop.mask[i, j] = legal
            found = found or legal
        if found:
            shop.mask[i, wait] = next_event(problem, shop, i)[1] != NEVER
        elif shop.jobs_left[i] > 0:
            if advance(problem, shop, mode, i):
                continue
            shop.dead[i] = 1
        if mode.bound:
            raise_bound(problem, shop, i)
        else:
            shop.bound[i] = max(shop.bound[i], shop.now[i])
        return


# --- many environments in one call ---


@compiled
def reset_all(problem: Problem, shop: Shop, mode: Mode, which: U8) -> None:
    """Reset every environment whose flag is set."""
    for i in range(len(which)):
        if which[i]:
            reset(problem, shop, mode, i)


@compiled
def step_all(
    problem: Problem, shop: Shop, mode: Mode, actions: np.ndarray, reward: np.ndarray, over: np.ndarray
) -> int:
    """Step every environment; finished ones are left alone (reward 0).

    Returns:
        -1, or the first environment whose action is illegal: then none has moved.
    """
    for i in range(len(actions)):
        if not is_over(shop, i) and (
            actions[i] < 0 or actions[i] >= shop.mask.shape[1] or shop.mask[i, actions[i]] == 0
        ):
            return i
    for i in range(len(actions)):
        reward[i] = 0.0 if is_over(shop, i) else step(problem, shop, mode, i, actions[i])
        over[i] = is_over(shop, i)
    return -1
