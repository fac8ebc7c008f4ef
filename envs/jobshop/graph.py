"""Graph observations of the shops: nodes and columns, where rows begin, and the padded form of a single environment.

Times are measured from now and in mean durations of the instance. Started operations, finished
jobs and machines without work to come are dropped. Jobs that have not arrived do not appear.
"""

from __future__ import annotations

from dispatchgym.envs.api import Feature, GraphSpec, Link, NodeType
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.jobshop import pilot
from dispatchgym.envs.jobshop.graph_rows import (
    GraphArrays,
    write_ahead,
    write_machines,
    write_ops,
    write_own,
    write_shop,
)
from dispatchgym.envs.jobshop.kernel import step
from dispatchgym.envs.jobshop.state import I32, Mode, Problem, Shop

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
