"""Rows of the graphs: one function a node type; the specs in `graph` say what the columns are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dispatchgym.envs.compiled import inlined
from dispatchgym.envs.jobshop.kernel import is_down, known_end
from dispatchgym.envs.jobshop.state import F32, I32, NEVER, Mode, Problem, Shop


class GraphArrays(NamedTuple):
    """Where the kernel writes; rows of environment i begin at the offsets it is given."""

    op: F32
    job: F32
    machine: F32
    shop: F32
    link_0: I32  # jobs: next; ops: needs
    link_1: I32  # jobs: second; ops: of
    link_2: I32  # jobs: third; ops: then
    link_3: I32  # ops: first
    holds: I32
    candidate: I32
    action: I32
    free: F32  # (machines,): scratch, known to be free, from now
    load: F32  # scratch
    slack: F32  # scratch
    row: I32  # scratch, row of the machine's node or -1


@inlined
def write_machines(
    problem: Problem,
    shop: Shop,
    mode: Mode,
    i: int,
    at: int,
    free: F32,
    load: F32,
    slack: F32,
    row: I32,
    out: GraphArrays,
) -> None:
    k = shop.slot[i]
    now = shop.now[i]
    inv = np.float32(1.0 / problem.scale[k])
    per_machine = np.float32(1.0 / problem.num_machines[k])
    per_job = np.float32(1.0 / problem.num_jobs[k])
    for m in range(problem.num_machines[k]):
        until = shop.free[i, m] - now
        blocked = False
        down_for = np.float32(-1)
        if mode.blocking:
            j = shop.holder[i, m]
            if j >= 0:
                until = known_end(shop, i, j) - now
                blocked = until <= 0
            if is_down(shop, i, m):
                down_for = np.float32(now - shop.down_from[i, shop.down_at[i, m]]) * inv
        free[m] = np.float32(max(until, 0)) * inv
        load[m] = np.float32(shop.load[i, m]) * inv
        slack[m] = np.float32(shop.bound[i] - now - max(until, 0) - shop.load[i, m]) * inv
        row[m] = -1
        if shop.pending[i, m] > 0:
            row[m] = at
            x = out.machine[at]
            x[0] = free[m]
            x[1] = load[m]
            x[2] = slack[m]
            x[3] = np.float32(shop.pending[i, m]) * per_job
            x[4] = np.float32(shop.queued[i, m]) * per_machine
            x[5] = np.float32(shop.queued_work[i, m]) * inv
            x[6] = until > 0
            x[7] = blocked
            x[8] = down_for >= 0
            x[9] = max(down_for, np.float32(0))
            at += 1


@inlined
def write_own(problem: Problem, shop: Shop, i: int, job_at: int, candidate_at: int, row: I32, out: GraphArrays) -> None:
    """The columns of a job node that both graphs share, and the candidates."""
    k = shop.slot[i]
    now = shop.now[i]
    inv = np.float32(1.0 / problem.scale[k])
    per_machine = np.float32(1.0 / problem.num_machines[k])
    wait = shop.mask.shape[1] - 1
    for j in range(problem.num_jobs[k]):
        o = shop.next_op[i, j]
        if shop.seen[i, j] == 0 or o >= problem.job_ptr[k, j + 1]:
            continue
        until = known_end(shop, i, j) - now
        held = shop.holds[i, j]
        work = problem.duration[k, o] + problem.tail[k, o]
        x = out.job[job_at]
        x[0] = shop.mask[i, j]
        x[1] = o > problem.job_ptr[k, j]
        x[2] = np.float32(max(until, 0)) * inv
        x[3] = np.float32(max(-until, 0)) * inv
        x[4] = np.float32(work) * inv
        x[5] = problem.static_x[k, o, 1]
        x[6] = np.float32(problem.job_ptr[k, j + 1] - o) * per_machine
        x[7] = np.float32(shop.bound[i] - now - max(until, 0) - work) * inv
        x[8] = np.float32(shop.queued[i, held]) * per_machine if held >= 0 else np.float32(0)
        out.holds[job_at] = row[held] if held >= 0 else -1
        if shop.mask[i, j] == 1:
            out.candidate[candidate_at] = job_at
            out.action[candidate_at] = j
            candidate_at += 1
        job_at += 1
    if shop.mask[i, wait] == 1:
        out.candidate[candidate_at] = -1
        out.action[candidate_at] = wait


@inlined
def write_ahead(
    problem: Problem,
    shop: Shop,
    mode: Mode,
    i: int,
    at: int,
    free: F32,
    load: F32,
    slack: F32,
    row: I32,
    out: GraphArrays,
) -> None:
    """The look-ahead columns of the `jobs` graph."""
    k = shop.slot[i]
    now = shop.now[i]
    inv = np.float32(1.0 / problem.scale[k])
    per_machine = np.float32(1.0 / problem.num_machines[k])
    for j in range(problem.num_jobs[k]):
        first, last = shop.next_op[i, j], problem.job_ptr[k, j + 1]
        if shop.seen[i, j] == 0 or first >= last:
            continue
        x = out.job[at]
        there = np.float32(max(known_end(shop, i, j) - now, 0)) * inv
        for ahead in range(3):
            c = 9 + 8 * ahead
            o = first + ahead
            m = problem.machine[k, o] if o < last else -1
            if ahead == 0:
                out.link_0[at] = row[m]
            elif ahead == 1:
                out.link_1[at] = row[m] if m >= 0 else -1
            else:
                out.link_2[at] = row[m] if m >= 0 else -1
            if m < 0:
                for column in range(c, c + 8):
                    x[column] = 0
                continue
            other = shop.holder[i, m]
            taken = other >= 0 and other != j
            busy = free[m] > 0 and (taken or not mode.blocking)
            x[c] = problem.static_x[k, o, 0]
            x[c + 1] = (free[m] if taken or not mode.blocking else np.float32(0)) - there
            x[c + 2] = load[m]
            x[c + 3] = slack[m]
            x[c + 4] = np.float32(shop.queued[i, m]) * per_machine
            x[c + 5] = busy
            x[c + 6] = taken and not busy
            x[c + 7] = mode.blocking and is_down(shop, i, m)
            there += x[c]
        m = problem.machine[k, first]
        ready = max(known_end(shop, i, j) - now, 0)
        c = 9 + 8 * 3
        start = ready if mode.blocking else max(ready, shop.free[i, m] - now)
        x[c] = np.float32(start) * inv
        x[c + 1] = np.float32(0) if mode.blocking else np.float32(now + start - shop.free[i, m]) * inv
        x[c + 2] = np.float32(shop.queued_work[i, m]) * inv
        x[c + 3] = 0
        if shop.mask[i, j] == 1 and mode.blocking:
            other = shop.holder[i, m]
            x[c + 3] = other >= 0 and other != j
        at += 1


@inlined
def write_ops(
    problem: Problem,
    shop: Shop,
    i: int,
    at: int,
    job_at: int,
    free: F32,
    load: F32,
    slack: F32,
    row: I32,
    out: GraphArrays,
) -> None:
    """The operation nodes of the `ops` graph."""
    k = shop.slot[i]
    now = shop.now[i]
    inv = np.float32(1.0 / problem.scale[k])
    for j in range(problem.num_jobs[k]):
        first, last = shop.next_op[i, j], problem.job_ptr[k, j + 1]
        if shop.seen[i, j] == 0 or first >= last:
            continue
        until = max(known_end(shop, i, j) - now, 0)
        head = np.float32(until) * inv
        work = problem.duration[k, first] + problem.tail[k, first]
        job_slack = np.float32(shop.bound[i] - now - until - work) * inv
        out.link_3[job_at] = at
        for o in range(first, last):
            m = problem.machine[k, o]
            x = out.op[at]
            x[0] = problem.static_x[k, o, 0]
            x[1] = problem.static_x[k, o, 1]
            x[2] = problem.static_x[k, o, 2]
            x[3] = head
            x[4] = free[m] - head
            x[5] = load[m]
            x[6] = slack[m]
            x[7] = job_slack
            x[8] = 0
            x[9] = 0
            head += x[0]
            out.link_0[at] = row[m]
            out.link_1[at] = job_at
            out.link_2[at] = at + 1
            at += 1
        out.op[at - last + first, 8] = 1
        out.op[at - last + first, 9] = shop.mask[i, j]
        out.link_2[at - 1] = -1
        job_at += 1


@inlined
def write_shop(problem: Problem, shop: Shop, mode: Mode, i: int, candidates: int, out: GraphArrays) -> None:
    k = shop.slot[i]
    now = shop.now[i]
    per_machine = np.float32(1.0 / problem.num_machines[k])
    processing = down = 0
    jobs = 0
    upcoming = NEVER
    for j in range(problem.num_jobs[k]):
        if shop.seen[i, j] == 1:
            jobs += shop.next_op[i, j] < problem.job_ptr[k, j + 1]
            end = known_end(shop, i, j)
            if end > now:
                processing += shop.next_op[i, j] > problem.job_ptr[k, j]
                upcoming = min(upcoming, end)
    if mode.blocking:
        for m in range(problem.num_machines[k]):
            down += is_down(shop, i, m)
    wait = shop.mask[i, shop.mask.shape[1] - 1]
    x = out.shop[i]
    x[0] = wait
    x[1] = np.float32(candidates - wait) * per_machine
    x[2] = np.float32(shop.in_shop[i]) * per_machine
    x[3] = np.float32(processing) * per_machine
    x[4] = np.float32(shop.in_shop[i] - processing) * per_machine if mode.blocking else np.float32(0)
    x[5] = np.float32(down) * per_machine
    x[6] = np.float32(upcoming - now) / np.float32(problem.scale[k]) if upcoming != NEVER else np.float32(0)
    x[7] = np.float32(now) / np.float32(max(shop.bound[i], 1))
    x[8] = np.log1p(np.float32(jobs))
    x[9] = np.log1p(np.float32(problem.num_machines[k]))
