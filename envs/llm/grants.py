"""A step is filled grant by grant: whom it runs, whom it preempts, who leaves.

A scheduler, compiled or not, calls the same few functions between `arrivals.begin` and `steps.finish_step`: `preempt`,
`end`, `grant`, `admit`. They are the whole mechanism, and the same for every scheduler.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.arrivals import dequeue, enqueue
from dispatchgym.envs.llm.ledger import (
    blocks_for,
    cached_blocks,
    grow,
    is_relied_on,
    publish,
    share,
    shrink,
    unpublish,
)
from dispatchgym.envs.llm.state import (
    ENDED,
    I32,
    NONE,
    RECOMPUTE,
    RUNNING,
    SWAP,
    WAITING,
    State,
    float64,
    int64,
)

NOTHING_LEFT, NO_BUDGET, NO_ROOM, NO_SLOT, NOT_HERE = -1, -2, -3, -4, -5
"""Why a grant came to nothing: no tokens to run, no token budget, no blocks, no place, not in the system."""

NO_ORDER = np.zeros(0, np.int32)
"""A plan's list of victims where there is none."""

LAST, LEAST_COMPUTED, LOWEST_PRIORITY, FEWEST_OUTPUTS, LISTED, NOBODY = range(6)
"""Who is preempted when a running request needs blocks: the last admitted; the one with the fewest tokens computed;
the largest (priority, arrival), of equals the first admitted; the fewest output tokens (longest prompt first); by the
plan's own list; nobody."""


@inlined
def known(s: State, r: int) -> int:
    """Tokens of r whose text is known: prompt and output so far."""
    return int64(s.req[r].prompt) + s.req[r].generated


@inlined
def is_decoding(s: State, r: int) -> bool:
    """All but the newest output token of running request r has its KV."""
    return s.req[r].generated > 0 and known(s, r) - s.req[r].computed == 1


@inlined
def _count(s: State, start: int, tokens: int, decode: bool, sign: int) -> None:
    """Add a row of the batch to the sums that the step time depends on, or take it out."""
    e = s.eng[0]
    e.budget -= sign * tokens
    if decode:
        e.decodes += sign
        e.decode_tokens += sign * tokens
        e.context += sign * (start + tokens)
    else:
        e.prefills += sign
        e.prefill_tokens += sign * tokens
        e.pairs += sign * (tokens * start + tokens * (tokens + 1) // 2)
        e.context += sign * start


@compiled
def _schedule(s: State, r: int, tokens: int, decode: bool) -> None:
    e, q = s.eng[0], s.req[r]
    i = e.batch
    e.batch += 1
    row = s.batch[i]
    row.request, row.start, row.tokens, row.decode = r, q.computed, tokens, 1 if decode else 0
    q.granted, q.row = tokens, i
    _count(s, int64(q.computed), tokens, decode, 1)
    if np.isnan(q.first_scheduled_s):
        q.first_scheduled_s = e.now
    q.new_keys = 0
    if e.caching == 1 and e.late_keys == 0:
        q.new_keys = publish(s, r, int64(q.computed), min(int64(q.computed) + tokens, known(s, r)))


@compiled
def unschedule(s: State, r: int) -> None:
    """Take request r out of the step again."""
    e, q = s.eng[0], s.req[r]
    i = int64(q.row)
    row = s.batch[i]
    _count(s, int64(row.start), int64(row.tokens), row.decode == 1, -1)
    e.batch -= 1
    for k in range(i, e.batch):  # rows keep their order
        below = s.batch[k + 1]
        here = s.batch[k]
        here.request, here.start, here.tokens, here.decode = below.request, below.start, below.tokens, below.decode
        s.req[here.request].row = k
    q.granted = 0


@inlined
def _leave_running(s: State, r: int) -> None:
    e = s.eng[0]
    at = 0
    while s.run[at] != r:
        at += 1
    for k in range(at, e.running - 1):
        s.run[k] = s.run[k + 1]
    e.running -= 1
    s.slot[e.slots] = s.req[r].slot
    e.slots += 1


@compiled
def leave_group(s: State, r: int) -> None:
    """An interrupted step that r belongs to is given up: its members start it anew."""
    e = s.eng[0]
    g = s.req[r].group
    if g == NONE:
        return
    s.group[g].members = 0
    for k in range(e.running):
        if s.req[s.run[k]].group == g:
            s.req[s.run[k]].group = NONE


@compiled
def preempt(s: State, r: int, how: int) -> None:
    """Running request r gives up its blocks and goes to the head of the queue.

    By SWAP its KV goes to the host and comes back later, if the host has room; else it is computed anew.
    """
    e, q = s.eng[0], s.req[r]
    if q.granted > 0:
        if q.new_keys > 0:  # of text that will not be computed now
            unpublish(s, r, int64(s.batch[q.row].start))
        unschedule(s, r)
    leave_group(s, r)
    e.preempted += 1
    q.preemptions += 1
    q.ousted = e.steps + 1
    used = blocks_for(s, q.computed)
    if how == SWAP and used > 0 and used <= e.host_free:
        q.host_blocks = used
        e.host_free -= used
        for j in range(used):
            s.swap_out[e.swap_outs, 0] = r
            s.swap_out[e.swap_outs, 1] = s.table[q.slot, j]
            e.swap_outs += 1
        moved = used * e.kv_bytes
        e.swap_bytes += moved
        q.swap_bytes += moved
    else:
        q.computed = 0
    shrink(s, r, 0)
    _leave_running(s, r)
    enqueue(s, r, True)


@compiled
def end(s: State, r: int, status: int) -> None:
    """Request r leaves the system, whatever it holds goes back."""
    e, q = s.eng[0], s.req[r]
    if q.state == RUNNING:
        if q.granted > 0:
            unschedule(s, r)
        leave_group(s, r)
        shrink(s, r, 0)
        _leave_running(s, r)
    elif q.state == WAITING:
        e.host_free += q.host_blocks
        q.host_blocks = 0
        dequeue(s, r)
    q.state, q.status, q.finish_s = ENDED, status, e.now
    e.ended += 1


@inlined
def _is_needed(s: State, r: int) -> bool:
    q = s.req[r]
    return q.granted > 0 and q.new_keys > 0 and is_relied_on(s, r, int64(s.batch[q.row].start))


@compiled
def victim(s: State, r: int, rule: int, order: I32) -> int:
    """Who gives up its blocks so that running request r can go on; r itself, or -1 for nobody.

    A request preempted `max_preemptions` times is spared while there is another, and among such the earliest to arrive
    is never chosen: so that somebody always gets to its end. Members of the step at hand are spared where others
    already hold blocks that they are about to fill.
    """
    e = s.eng[0]
    if rule == NOBODY:
        return int64(NONE)
    if rule == LISTED:
        for v in order:
            q = s.req[v]
            if q.state == RUNNING and q.preemptions < e.max_preemptions and not _is_needed(s, int64(v)):
                return int64(v)
    best, best_a, best_b, best_spared = int64(NONE), 0.0, 0.0, False
    for k in range(e.running - 1, -1, -1):
        v = int64(s.run[k])
        q = s.req[v]
        spared = q.preemptions >= e.max_preemptions
        if q.granted > 0 and (spared or rule in (LAST, LISTED) or _is_needed(s, v)):
            continue
        if spared:
            a, b = float64(v), 0.0
        elif rule == LEAST_COMPUTED:
            a, b = -float64(q.computed), 0.0
        elif rule == LOWEST_PRIORITY:
            a, b = float64(q.priority), q.arrival_s
        elif rule == FEWEST_OUTPUTS:
            a, b = -float64(q.generated), float64(q.prompt)
        else:
            a, b = float64(k), 0.0
        better = best == NONE or (best_spared and not spared)
        if not better and best_spared == spared:
            better = a > best_a or (a == best_a and b > best_b)
            better = better or (rule == LOWEST_PRIORITY and a == best_a and b == best_b)
        if better:
            best, best_a, best_b, best_spared = v, a, b, spared
    if best == r and best_spared:
        return int64(NONE)  # it keeps what it has, and goes on when others are done
    return best


@compiled
def grant(s: State, r: int, tokens: int, rule: int, order: I32) -> int:
    """Let running request r run up to so many tokens in this step; returns how many, or why none."""
    e, q = s.eng[0], s.req[r]
    if e.group != NONE:
        return NO_BUDGET
    if q.group != NONE:
        return _resume(s, r)
    left = known(s, r) - q.computed
    decode = is_decoding(s, r)
    if decode:  # more than one: verify a draft of tokens - 1
        n = min(tokens, 1 + e.max_spec, int64(q.max_new) - q.generated)
    else:
        n = min(tokens, left)
    if n <= 0 or q.granted > 0:
        return NOTHING_LEFT
    n = min(n, e.budget)
    if n <= 0:
        return NO_BUDGET
    total = blocks_for(s, q.computed + n)
    while total - q.blocks > e.free:
        v = victim(s, r, rule, order)
        if v == NONE:
            return NO_ROOM
        preempt(s, v, RECOMPUTE)
        if v == r:
            return NO_ROOM
    grow(s, r, total)
    _schedule(s, r, n, decode)
    return n


@compiled
def _resume(s: State, r: int) -> int:
    """Go on with the interrupted step that request r belongs to, if nothing else is in this one."""
    e, g = s.eng[0], s.req[r].group
    if e.batch > 0:
        return NO_BUDGET
    for k in range(e.running):
        v = int64(s.run[k])
        if s.req[v].group == g:
            _schedule(s, v, int64(s.req[v].group_tokens), False)
    e.group = g
    e.late_keys = 1
    return int64(s.req[r].granted)


@compiled
def admit(s: State, r: int, tokens: int, whole: int, spare: int) -> int:
    """Let waiting request r in with up to so many tokens; returns how many it runs, or why none.

    `whole` 1: only if all its tokens fit, not just those it runs now; 2: and take their blocks at once.
    `spare`: blocks that must stay free.
    """
    e, q = s.eng[0], s.req[r]
    if e.group != NONE:
        return NO_BUDGET
    if e.slots == 0:
        return NO_SLOT
    if e.budget <= 0:
        return NO_BUDGET
    found, idle = int64(0), int64(0)
    held = int64(q.computed)
    if q.host_blocks == 0:
        found, idle = cached_blocks(s, r)
        held = found * e.block_tokens
    n = min(tokens, known(s, r) - held, e.budget)
    if n <= 0:
        return NOTHING_LEFT
    total = blocks_for(s, held + n)
    wanted = max(blocks_for(s, known(s, r)), total) if whole > 0 else total
    if whole == 2:
        total = wanted
    if wanted - found + idle + spare > e.free:
        return NO_ROOM
    dequeue(s, r)
    e.slots -= 1
    q.slot = s.slot[e.slots]
    q.state = RUNNING
    q.stamp = e.stamp
    e.stamp += 1
    s.run[e.running] = r
    e.running += 1
    share(s, r, found)
    if q.host_blocks > 0:
        moved = q.host_blocks * e.kv_bytes
        e.host_free += q.host_blocks
        s.swap_in[e.swap_ins, 0] = r
        s.swap_in[e.swap_ins, 1] = q.host_blocks
        e.swap_ins += 1
        q.host_blocks = 0
        e.swap_bytes += moved
        q.swap_bytes += moved
    q.computed = held
    q.cached += held if found > 0 else 0
    grow(s, r, total)
    _schedule(s, r, n, is_decoding(s, r))
    return n
