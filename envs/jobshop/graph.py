"""Graph observations of the shops: what the nodes and columns are, and the kernel that writes them.

Times are measured from now and in mean durations of the instance. Started operations, finished
jobs and machines without work to come are dropped. Jobs that have not arrived do not appear.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dispatchgym.envs.api import Feature, GraphSpec, Link, NodeType
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.jobshop import pilot
from dispatchgym.envs.jobshop.kernel import is_down, known_end, step
from dispatchgym.envs.jobshop.state import F32, I32, NEVER, Mode, Problem, Shop

_MEAN = "mean durations"
_FLAG = "0 or 1"
LOOK_AHEAD = 3  # operations of the route that a job node describes

_OWN = (
    Feature("candidate", _FLAG, 0, 1, "dispatching this job is legal now"),
    Feature("in_shop", _FLAG, 0, 1, "the job has started"),
    Feature("until_ready", _MEAN, 0, 1e6, "until its current operation ends, or its release"),
    Feature("waited", _MEAN, 0, 1e6, "since it became ready"),
    Feature("work_left", _MEAN, 0, 1e6, "processing time of its operations not started yet"),
    Feature("work_after", _MEAN, 0, 1e6, "the same without its next operation"),
    Feature("ops_left", "operations per machine", 0, 1e6, "operations not started yet"),
    Feature("slack", _MEAN, 0, 1e6, "lower bound of the makespan minus the job's own earliest completion"),
    Feature("wanted", "jobs per machine", 0, 1e6, "jobs whose next operation needs the machine this job holds"),
)
_AHEAD = (
    Feature("duration", _MEAN, 0, 1e6, "processing time"),
    Feature("gap", _MEAN, -1e6, 1e6, "when the machine is known to be free minus when the job can be there"),
    Feature("load", _MEAN, 0, 1e6, "work of the machine not started yet"),
    Feature("machine_slack", _MEAN, 0, 1e6, "lower bound of the makespan minus the machine's own"),
    Feature("queue", "jobs per machine", 0, 1e6, "jobs whose next operation needs the machine"),
    Feature("busy", _FLAG, 0, 1, "another job is being processed there"),
    Feature("blocked", _FLAG, 0, 1, "another job, finished, sits there"),
    Feature("down", _FLAG, 0, 1, "the machine is shut down"),
)
_CHOICE = (
    Feature("delay", _MEAN, 0, 1e6, "start minus now if dispatched"),
    Feature("idle", _MEAN, 0, 1e6, "idle time of the machine before that start"),
    Feature("queue_work", _MEAN, 0, 1e6, "work of the jobs whose next operation needs the same machine"),
    Feature("swap", _FLAG, 0, 1, "the move is a cyclic exchange"),
)
_MACHINE = (
    Feature("until_free", _MEAN, 0, 1e6, "until the operation on it ends, as far as known"),
    Feature("load", _MEAN, 0, 1e6, "work not started yet"),
    Feature("slack", _MEAN, 0, 1e6, "lower bound of the makespan minus the machine's own"),
    Feature("ops_left", "operations per job", 0, 1e6, "operations not started yet"),
    Feature("queue", "jobs per machine", 0, 1e6, "jobs whose next operation is here"),
    Feature("queue_work", _MEAN, 0, 1e6, "their processing time here"),
    Feature("busy", _FLAG, 0, 1, "a job is being processed"),
    Feature("blocked", _FLAG, 0, 1, "a finished job sits here"),
    Feature("down", _FLAG, 0, 1, "shut down"),
    Feature("down_for", _MEAN, 0, 1e6, "since the shutdown"),
)
_SHOP = (
    Feature("wait", _FLAG, 0, 1, "WAIT is legal"),
    Feature("candidates", "jobs per machine", 0, 1e6, "jobs that may be dispatched"),
    Feature("in_shop", "jobs per machine", 0, 1e6, "jobs started and not finished"),
    Feature("processing", "jobs per machine", 0, 1, "jobs being processed"),
    Feature("blocked", "jobs per machine", 0, 1, "jobs done with their operation that hold a machine"),
    Feature("down", "machines per machine", 0, 1, "machines shut down"),
    Feature("next_event", _MEAN, 0, 1e6, "until the next known completion or release"),
    Feature("progress", "share", 0, 1, "now over the lower bound of the makespan"),
    Feature("log_jobs", "log(1 + jobs)", 0, 25, "jobs with operations to start"),
    Feature("log_machines", "log(1 + machines)", 0, 25, "machines of the shop"),
)
_OP = (
    Feature("duration", _MEAN, 0, 1e6, "processing time"),
    Feature("work_after", _MEAN, 0, 1e6, "work of the job after it"),
    Feature("ops_after", "operations per machine", 0, 1e6, "operations of the job after it"),
    Feature("head", _MEAN, 0, 1e6, "earliest time the job can be there"),
    Feature("gap", _MEAN, -1e6, 1e6, "when its machine is known to be free minus that"),
    Feature("load", _MEAN, 0, 1e6, "work of its machine not started yet"),
    Feature("machine_slack", _MEAN, 0, 1e6, "lower bound of the makespan minus the machine's own"),
    Feature("slack", _MEAN, 0, 1e6, "lower bound of the makespan minus the job's own earliest completion"),
    Feature("next", _FLAG, 0, 1, "it is its job's next operation"),
    Feature("candidate", _FLAG, 0, 1, "it may start now"),
)

JOBS = GraphSpec(
    family="jobshop",
    graph="jobs",
    version=0,
    nodes=(
        NodeType(
            "job",
            _OWN
            + tuple(
                Feature(f"{f.name}_{k}", f.unit, f.low, f.high, f"{f.meaning}; operation {k} ahead")
                for k in range(LOOK_AHEAD)
                for f in _AHEAD
            )
            + _CHOICE,
        ),
        NodeType("machine", _MACHINE),
        NodeType("shop", _SHOP),
    ),
    links=(
        Link("next", "job", "machine"),
        Link("second", "job", "machine"),
        Link("third", "job", "machine"),
        Link("holds", "job", "machine"),
    ),
    candidate="job",
    context="shop",
)
"""A node a job with look-ahead, machine hubs: small, and enough to decide well."""

OPS = GraphSpec(
    family="jobshop",
    graph="ops",
    version=0,
    nodes=(NodeType("op", _OP), NodeType("job", _OWN), NodeType("machine", _MACHINE), NodeType("shop", _SHOP)),
    links=(
        Link("needs", "op", "machine"),
        Link("of", "op", "job"),
        Link("then", "op", "op"),
        Link("first", "job", "op"),
        Link("holds", "job", "machine"),
    ),
    candidate="job",
    context="shop",
)
"""The complete graph: a node a remaining operation, with job and machine hubs instead of cliques."""

PILOT = GraphSpec(
    family="jobshop",
    graph="pilot",
    version=0,
    nodes=(
        NodeType("job", JOBS.node("job").features + pilot.JOB_COLUMNS),
        JOBS.node("machine"),
        NodeType("shop", JOBS.node("shop").features + pilot.SHOP_COLUMNS),
    ),
    links=JOBS.links,
    candidate="job",
    context="shop",
)
"""`jobs`, and what would become of the shop after each candidate; see `pilot`. Costs a few rollouts a candidate."""

SPECS = {"jobs": JOBS, "ops": OPS, "pilot": PILOT}


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


OP, JOB, MACHINE, CANDIDATE = range(4)  # rows of the offset arrays, shape (4, envs + 1)


@compiled
def count_all(problem: Problem, shop: Shop, ptr: I32) -> None:
    """Fill the offsets of every environment's rows."""
    for i in range(len(shop.slot)):
        count_rows(problem, shop, i, ptr)


@compiled
def write_all(problem: Problem, shop: Shop, mode: Mode, ops: bool, ptr: I32, out: GraphArrays) -> None:
    """Write the graph of every environment; `ops` chooses the complete graph."""
    for i in range(len(shop.slot)):
        write_rows(problem, shop, mode, ops, i, ptr, out)


NO_STEP = -1
RUNNING, DONE, DEADLOCK, ILLEGAL = range(4)


@compiled
def step_padded(
    problem: Problem,
    shop: Shop,
    mode: Mode,
    ops: bool,
    action: int,
    ptr: I32,
    out: GraphArrays,
    node_of_action: I32,
    num_nodes: I32,
) -> tuple[float, int, int, int]:
    """Step environment 0 (NO_STEP: do not) and write its graph into arrays that hold the one before.

    Rows that were real and no longer are become padding: 0 in features, -1 in links. One call instead of
    four, because for a single environment most of the time goes into handing the arrays over.

    Returns:
        (reward, now, bound, state); with state ILLEGAL nothing has happened.
    """
    reward = 0.0
    if action != NO_STEP:
        if action < 0 or action >= shop.mask.shape[1] or shop.mask[0, action] == 0:
            return 0.0, 0, 0, ILLEGAL
        reward = step(problem, shop, mode, 0, action)
    op_rows, job_rows, machine_rows = ptr[OP, 1], ptr[JOB, 1], ptr[MACHINE, 1]
    count_rows(problem, shop, 0, ptr)
    write_rows(problem, shop, mode, ops, 0, ptr, out)
    for row in range(ptr[OP, 1], op_rows if ops else 0):
        for c in range(out.op.shape[1]):
            out.op[row, c] = 0
        out.link_0[row] = out.link_1[row] = out.link_2[row] = -1
    for row in range(ptr[JOB, 1], job_rows):
        for c in range(out.job.shape[1]):
            out.job[row, c] = 0
        out.holds[row] = -1
        if ops:
            out.link_3[row] = -1
        else:
            out.link_0[row] = out.link_1[row] = out.link_2[row] = -1
    for row in range(ptr[MACHINE, 1], machine_rows):
        for c in range(out.machine.shape[1]):
            out.machine[row, c] = 0
    for a in range(len(node_of_action)):
        node_of_action[a] = -1
    for c in range(ptr[CANDIDATE, 1]):
        node_of_action[out.action[c]] = out.candidate[c]
    if ops:
        num_nodes[0] = ptr[OP, 1]
    num_nodes[len(num_nodes) - 3] = ptr[JOB, 1]
    num_nodes[len(num_nodes) - 2] = ptr[MACHINE, 1]
    num_nodes[len(num_nodes) - 1] = 1
    state = DONE if shop.jobs_left[0] == 0 else DEADLOCK if shop.dead[0] == 1 else RUNNING
    return reward, shop.now[0], shop.bound[0], state


@inlined
def count_rows(problem: Problem, shop: Shop, i: int, ptr: I32) -> None:
    k = shop.slot[i]
    jobs = machines = candidates = 0
    for j in range(problem.num_jobs[k]):
        jobs += shop.seen[i, j] == 1 and shop.next_op[i, j] < problem.job_ptr[k, j + 1]
        candidates += shop.mask[i, j]
    for m in range(problem.num_machines[k]):
        machines += shop.pending[i, m] > 0
    ptr[OP, i + 1] = ptr[OP, i] + shop.ops_left[i]
    ptr[JOB, i + 1] = ptr[JOB, i] + jobs
    ptr[MACHINE, i + 1] = ptr[MACHINE, i] + machines
    ptr[CANDIDATE, i + 1] = ptr[CANDIDATE, i] + candidates + shop.mask[i, shop.mask.shape[1] - 1]


@inlined
def write_rows(problem: Problem, shop: Shop, mode: Mode, ops: bool, i: int, ptr: I32, out: GraphArrays) -> None:
    free, load, slack, row = out.free, out.load, out.slack, out.row
    write_machines(problem, shop, mode, i, ptr[MACHINE, i], free, load, slack, row, out)
    if ops:
        write_ops(problem, shop, i, ptr[OP, i], ptr[JOB, i], free, load, slack, row, out)
    else:
        write_ahead(problem, shop, mode, i, ptr[JOB, i], free, load, slack, row, out)
    write_own(problem, shop, i, ptr[JOB, i], ptr[CANDIDATE, i], row, out)
    write_shop(problem, shop, mode, i, ptr[CANDIDATE, i + 1] - ptr[CANDIDATE, i], out)


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
