"""Arrays of a batch of shops: what the problems are, and where each run stands.

Times are int64 in instance time units, `i` counts environments, `j` jobs, `o` operations within
an instance, `m` machines. Everything is padded to the largest instance of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.scenario import Scenario

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

NEVER = np.iinfo(np.int64).max


class Mode(NamedTuple):
    """Which shop it is; plain numbers because kernels read it."""

    blocking: bool
    swap: bool
    restart: bool
    delta: float  # classic only: 0 non-delay .. 1 active
    bound: bool  # keep the lower bound of the makespan as tight as it can be; else it is only right at the end


class Problem(NamedTuple):
    """Read-only side, one row an instance slot; several environments may share a slot."""

    num_jobs: I32  # (slots,)
    num_machines: I32  # (slots,)
    job_ptr: I32  # (slots, jobs + 1)
    machine: I32  # (slots, ops)
    duration: I64  # (slots, ops)
    head: I64  # (slots, ops): work of the job before the operation
    tail: I64  # (slots, ops): work of the job after the operation
    earliest: I64  # (slots, jobs): later of release and arrival
    arrival: I64  # (slots, jobs)
    scale: F64  # (slots,): mean duration
    static_x: F32  # (slots, ops, 3): duration, tail in mean durations; operations after / machines
    route_mask: U64  # (slots, ops, words): machines of this and all later operations of the job


class Shop(NamedTuple):
    """Mutable side, one row an environment."""

    slot: I32  # (envs,): instance slot
    next_op: I32  # (envs, jobs): next operation to start; job_ptr[j + 1] when all have started
    ready: I64  # (envs, jobs): end of the operation started last, or earliest start
    seen: U8  # (envs, jobs): has arrived
    holds: I32  # (envs, jobs): machine the job sits on (blocking), -1 none
    free: I64  # (envs, machines): end of the operation started last
    holder: I32  # (envs, machines): job on the machine (blocking), -1 none
    load: I64  # (envs, machines): work of seen jobs not started yet
    pending: I32  # (envs, machines): operations of seen jobs not started yet
    queued: I32  # (envs, machines): seen jobs whose next operation is here
    queued_work: I64  # (envs, machines): its processing time
    mask: I8  # (envs, jobs + 1): legal actions; the last one is WAIT
    start: I64  # (envs, ops)
    end: I64  # (envs, ops)
    now: I64  # (envs,)
    bound: I64  # (envs,): lower bound of the makespan
    ops_left: I32  # (envs,): operations of seen jobs not started yet
    jobs_left: I32  # (envs,): jobs not finished (classic: not completely dispatched), seen or not
    in_shop: I32  # (envs,): jobs started and not finished
    hidden: I32  # (envs,): jobs that have not arrived
    decisions: I64  # (envs,)
    dead: U8  # (envs,): deadlocked; only possible without swaps if the safety check were wrong
    down_ptr: I32  # (envs, machines + 1): windows of machine m are down_ptr[m] : down_ptr[m + 1]
    down_at: I32  # (envs, machines): the window that is open or comes next
    down_from: I64  # (envs, windows)
    down_to: I64  # (envs, windows)
    occupied: U64  # (words,): scratch of the safety check, machines taken
    staying: I32  # (machines + 1,): scratch of the safety check, jobs in the shop


class Capacity(NamedTuple):
    """Largest instance that fits a batch."""

    jobs: int
    machines: int
    ops: int

    @classmethod
    def of(cls, instances: Sequence[Instance]) -> Capacity:
        return cls(
            max(i.num_jobs for i in instances),
            max(i.num_machines for i in instances),
            max(i.num_ops for i in instances),
        )


def new_problem(slots: int, size: Capacity) -> Problem:
    words = (size.machines + 63) // 64
    return Problem(
        num_jobs=np.zeros(slots, np.int32),
        num_machines=np.zeros(slots, np.int32),
        job_ptr=np.zeros((slots, size.jobs + 1), np.int32),
        machine=np.zeros((slots, size.ops), np.int32),
        duration=np.zeros((slots, size.ops), np.int64),
        head=np.zeros((slots, size.ops), np.int64),
        tail=np.zeros((slots, size.ops), np.int64),
        earliest=np.zeros((slots, size.jobs), np.int64),
        arrival=np.zeros((slots, size.jobs), np.int64),
        scale=np.ones(slots, np.float64),
        static_x=np.zeros((slots, size.ops, 3), np.float32),
        route_mask=np.zeros((slots, size.ops, words), np.uint64),
    )


def put_instance(problem: Problem, slot: int, instance: Instance, blocking: bool) -> None:
    """Fill a slot.

    Raises:
        InvalidInstanceError: it does not fit, or a blocking shop meets an operation of zero duration.
    """
    n, ops = instance.num_jobs, instance.num_ops
    room = Capacity(problem.earliest.shape[1], problem.route_mask.shape[2] * 64, problem.machine.shape[1])
    if n > room.jobs or ops > room.ops or instance.num_machines > room.machines:
        raise InvalidInstanceError(
            f"instance {instance.name!r} ({n} jobs, {instance.num_machines} machines, {ops} operations) does not fit "
            f"the room for {room.jobs} jobs, {room.machines} machines, {room.ops} operations; raise the capacity"
        )
    if blocking and (instance.duration < 1).any():
        op = int(np.argmax(instance.duration < 1))
        raise InvalidInstanceError(
            f"instance {instance.name!r}: operation {instance.op_name(op)} has duration 0; "
            "blocking shops need at least 1"
        )
    ptr = instance.job_ptr
    cumulated = np.cumsum(instance.duration)
    before_job = np.concatenate(([0], cumulated))[ptr[:-1]]
    lengths = np.diff(ptr)
    head = cumulated - instance.duration - np.repeat(before_job, lengths)
    tail = np.repeat(cumulated[ptr[1:] - 1], lengths) - cumulated
    problem.num_jobs[slot] = n
    problem.num_machines[slot] = instance.num_machines
    problem.job_ptr[slot, : n + 1] = ptr
    problem.machine[slot, :ops] = instance.machine
    problem.duration[slot, :ops] = instance.duration
    problem.head[slot, :ops] = head
    problem.tail[slot, :ops] = tail
    problem.earliest[slot, :n] = instance.earliest
    problem.arrival[slot, :n] = instance.arrival
    problem.scale[slot] = instance.mean_duration
    after = np.repeat(ptr[1:], lengths) - np.arange(ops) - 1
    problem.static_x[slot, :ops, 0] = instance.duration / instance.mean_duration
    problem.static_x[slot, :ops, 1] = tail / instance.mean_duration
    problem.static_x[slot, :ops, 2] = after / instance.num_machines
    if blocking:
        problem.route_mask[slot, :ops] = _route_mask(instance, problem.route_mask.shape[2])


def _route_mask(instance: Instance, words: int) -> U64:
    """Bit sets of the machines that each operation and its successors need, shape (ops, words)."""
    bits = np.zeros((instance.num_ops, words), np.uint64)
    bits[np.arange(instance.num_ops), instance.machine // 64] = np.uint64(1) << (instance.machine % 64).astype(
        np.uint64
    )
    for j in range(instance.num_jobs):
        job = slice(instance.job_ptr[j], instance.job_ptr[j + 1])
        bits[job] = np.bitwise_or.accumulate(bits[job][::-1], axis=0)[::-1]
    return bits


def new_shop(envs: int, size: Capacity) -> Shop:
    return Shop(
        slot=np.zeros(envs, np.int32),
        next_op=np.zeros((envs, size.jobs), np.int32),
        ready=np.zeros((envs, size.jobs), np.int64),
        seen=np.zeros((envs, size.jobs), np.uint8),
        holds=np.full((envs, size.jobs), -1, np.int32),
        free=np.zeros((envs, size.machines), np.int64),
        holder=np.full((envs, size.machines), -1, np.int32),
        load=np.zeros((envs, size.machines), np.int64),
        pending=np.zeros((envs, size.machines), np.int32),
        queued=np.zeros((envs, size.machines), np.int32),
        queued_work=np.zeros((envs, size.machines), np.int64),
        mask=np.zeros((envs, size.jobs + 1), np.int8),
        start=np.zeros((envs, size.ops), np.int64),
        end=np.zeros((envs, size.ops), np.int64),
        now=np.zeros(envs, np.int64),
        bound=np.zeros(envs, np.int64),
        ops_left=np.zeros(envs, np.int32),
        jobs_left=np.zeros(envs, np.int32),
        in_shop=np.zeros(envs, np.int32),
        hidden=np.zeros(envs, np.int32),
        decisions=np.zeros(envs, np.int64),
        dead=np.zeros(envs, np.uint8),
        down_ptr=np.zeros((envs, size.machines + 1), np.int32),
        down_at=np.zeros((envs, size.machines), np.int32),
        down_from=np.zeros((envs, 0), np.int64),
        down_to=np.zeros((envs, 0), np.int64),
        occupied=np.zeros((size.machines + 63) // 64, np.uint64),
        staying=np.zeros(size.machines + 1, np.int32),
    )


def put_scenario(shop: Shop, i: int, scenario: Scenario) -> Shop:
    """Store the shutdown windows of environment i; returns `shop`, with wider arrays if they were too narrow."""
    count = len(scenario.down_from)
    if count > shop.down_from.shape[1]:
        wider = np.zeros((len(shop.slot), count + count // 4), np.int64)
        wider[:, : shop.down_from.shape[1]] = shop.down_from
        ends = np.zeros_like(wider)
        ends[:, : shop.down_to.shape[1]] = shop.down_to
        shop = shop._replace(down_from=wider, down_to=ends)
    shop.down_ptr[i, : len(scenario.ptr)] = scenario.ptr
    shop.down_ptr[i, len(scenario.ptr) :] = scenario.ptr[-1]
    shop.down_from[i, :count] = scenario.down_from
    shop.down_to[i, :count] = scenario.down_to
    return shop
