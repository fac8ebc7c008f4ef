"""Requests arrive, wait in a queue, and a plan begins."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.llm.ledger import (
    blocks_for,
    expire_pins,
)
from dispatchgym.envs.llm.record import REJECTED
from dispatchgym.envs.llm.state import (
    DECIDE,
    DONE,
    ENDED,
    NONE,
    WAITING,
    State,
    int64,
)


@compiled
def enqueue(s: State, r: int, first: bool) -> None:
    """Put request r at the end of the queue, or at its head."""
    e, q = s.eng[0], s.req[r]
    q.state = WAITING
    q.queued_s = e.now
    q.slot = NONE
    if first:
        q.before, q.after = NONE, e.head
        if e.head != NONE:
            s.req[e.head].before = r
        else:
            e.tail = r
        e.head = r
    else:
        q.before, q.after = e.tail, NONE
        if e.tail != NONE:
            s.req[e.tail].after = r
        else:
            e.head = r
        e.tail = r
    e.waiting += 1


@compiled
def dequeue(s: State, r: int) -> None:
    e, q = s.eng[0], s.req[r]
    if q.before != NONE:
        s.req[q.before].after = q.after
    else:
        e.head = q.after
    if q.after != NONE:
        s.req[q.after].before = q.before
    else:
        e.tail = q.before
    e.waiting -= 1


@compiled
def enter(s: State, r: int) -> None:
    """Queue request r, or refuse it if it could never be held."""
    e, q = s.eng[0], s.req[r]
    longest = int64(q.prompt) + q.max_new
    if longest > e.max_len or blocks_for(s, longest) > e.kv_blocks:
        q.state, q.status, q.finish_s = ENDED, REJECTED, q.arrival_s
        e.ended += 1
    else:
        enqueue(s, r, False)


@compiled
def arrive(s: State) -> int:
    """Queue every request whose time has come, refuse those that could never be held; returns how many came."""
    e = s.eng[0]
    came = 0
    while e.next < e.num and s.req[e.next].arrival_s <= e.now:
        r = e.next
        q = s.req[r]
        e.next += 1
        if q.state == ENDED:  # the client gave up before
            continue
        came += 1
        enter(s, r)
    return came


@compiled
def next_epoch(s: State) -> int:
    """Let time pass until there is something to decide; DONE when no request is left."""
    e = s.eng[0]
    arrive(s)
    expire_pins(s)
    while e.running == 0 and e.waiting == 0:
        if e.next == e.num:
            return DONE
        e.now = s.req[e.next].arrival_s
        e.plain_s = 0.0
        arrive(s)
    return DECIDE


@compiled
def begin(s: State) -> None:
    """Start an empty step."""
    e = s.eng[0]
    for i in range(e.batch):
        s.req[s.batch[i].request].granted = 0
    e.batch = 0
    e.budget = e.token_budget
    e.prefill_tokens = 0
    e.decode_tokens = 0
    e.prefills = 0
    e.decodes = 0
    e.pairs = 0
    e.context = 0
    e.preempted = 0
    e.swap_bytes = 0.0
    e.swap_outs = 0
    e.swap_ins = 0
    e.held = 0
    e.group = NONE
    e.late_keys = 0
