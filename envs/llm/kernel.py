"""What an engine does: requests arrive, a step is filled grant by grant, it runs, its results are booked.

A scheduler, compiled or not, calls the same few functions between `begin` and `finish_step`: `preempt`, `drop`,
`grant`. They are the whole mechanism, and the same for every scheduler.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.ledger import (
    blocks_for,
    cached_blocks,
    expire_pins,
    grow,
    is_relied_on,
    mix,
    publish,
    share,
    shrink,
    unpublish,
)
from dispatchgym.envs.llm.record import FINISHED, REJECTED
from dispatchgym.envs.llm.state import (
    BASE_S,
    CHUNK_S,
    CONTEXT_S,
    DECIDE,
    DECODE_BASE_S,
    DECODE_CONTEXT_S,
    DECODE_ROW_S,
    DECODE_SPREAD_S,
    DECODE_TOKEN_S,
    DECODE_WEIGHTS_S,
    DONE,
    ENDED,
    FUTURE,
    GAP_BINS,
    GAP_LOW_S,
    GAP_PER_DOUBLING,
    HOST_MIXED_S,
    HOST_S,
    I32,
    MIXED_S,
    NONE,
    PAIR_S,
    RAGGED_S,
    REBUILD_S,
    RECOMPUTE,
    ROW_S,
    RUNNING,
    SWAP,
    SWAP_S,
    TOKEN_S,
    WAITING,
    WEIGHTS_S,
    State,
    float64,
    int64,
    uint64,
)

_FUTURE, _WAITING, _RUNNING, _ENDED, _NONE = FUTURE, WAITING, RUNNING, ENDED, NONE
_FINISHED, _REJECTED = FINISHED, REJECTED
_RECOMPUTE, _SWAP = RECOMPUTE, SWAP
_DECIDE, _DONE = DECIDE, DONE

NOTHING_LEFT, NO_BUDGET, NO_ROOM, NO_SLOT, NOT_HERE = -1, -2, -3, -4, -5
"""Why a grant came to nothing: no tokens to run, no token budget, no blocks, no place, not in the system."""

NO_ORDER = np.zeros(0, np.int32)
"""A plan's list of victims where there is none."""

LAST, LEAST_COMPUTED, LOWEST_PRIORITY, FEWEST_OUTPUTS, LISTED, NOBODY = range(6)
"""Who is preempted when a running request needs blocks: the last admitted; the one with the fewest tokens computed;
the largest (priority, arrival), of equals the first admitted; the fewest output tokens (longest prompt first); by the
plan's own list; nobody."""


# --- the queue ---


@compiled
def enqueue(s: State, r: int, first: bool) -> None:
    """Put request r at the end of the queue, or at its head."""
    e, q = s.eng[0], s.req[r]
    q.state = _WAITING
    q.queued_s = e.now
    q.slot = _NONE
    if first:
        q.before, q.after = _NONE, e.head
        if e.head != _NONE:
            s.req[e.head].before = r
        else:
            e.tail = r
        e.head = r
    else:
        q.before, q.after = e.tail, _NONE
        if e.tail != _NONE:
            s.req[e.tail].after = r
        else:
            e.head = r
        e.tail = r
    e.waiting += 1


@compiled
def _dequeue(s: State, r: int) -> None:
    e, q = s.eng[0], s.req[r]
    if q.before != _NONE:
        s.req[q.before].after = q.after
    else:
        e.head = q.after
    if q.after != _NONE:
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
        q.state, q.status, q.finish_s = _ENDED, _REJECTED, q.arrival_s
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
        if q.state == _ENDED:  # the client gave up before
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
            return _DONE
        e.now = s.req[e.next].arrival_s
        arrive(s)
    return _DECIDE


# --- filling a step ---


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
    e.group = _NONE
    e.late_keys = 0


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
    if g == _NONE:
        return
    s.group[g].members = 0
    for k in range(e.running):
        if s.req[s.run[k]].group == g:
            s.req[s.run[k]].group = _NONE


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
    if how == _SWAP and used > 0 and used <= e.host_free:
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
    if q.state == _RUNNING:
        if q.granted > 0:
            unschedule(s, r)
        leave_group(s, r)
        shrink(s, r, 0)
        _leave_running(s, r)
    elif q.state == _WAITING:
        e.host_free += q.host_blocks
        q.host_blocks = 0
        _dequeue(s, r)
    q.state, q.status, q.finish_s = _ENDED, status, e.now
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
        return int64(_NONE)
    if rule == LISTED:
        for v in order:
            q = s.req[v]
            if q.state == _RUNNING and q.preemptions < e.max_preemptions and not _is_needed(s, int64(v)):
                return int64(v)
    best, best_a, best_b, best_spared = int64(_NONE), 0.0, 0.0, False
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
        better = best == _NONE or (best_spared and not spared)
        if not better and best_spared == spared:
            better = a > best_a or (a == best_a and b > best_b)
            better = better or (rule == LOWEST_PRIORITY and a == best_a and b == best_b)
        if better:
            best, best_a, best_b, best_spared = v, a, b, spared
    if best == r and best_spared:
        return int64(_NONE)  # it keeps what it has, and goes on when others are done
    return best


@compiled
def grant(s: State, r: int, tokens: int, rule: int, order: I32) -> int:
    """Let running request r run up to so many tokens in this step; returns how many, or why none."""
    e, q = s.eng[0], s.req[r]
    if e.group != _NONE:
        return NO_BUDGET
    if q.group != _NONE:
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
        if v == _NONE:
            return NO_ROOM
        preempt(s, v, _RECOMPUTE)
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
def interrupt_step(s: State, elapsed_s: float, left_s: float, segments: int) -> None:
    """The step at hand stops after so many of its segments; its members keep what they have until it goes on."""
    e = s.eng[0]
    write_log(s, e.now, elapsed_s, e.waiting)
    g = e.group
    if g == _NONE:
        g = int64(0)
        while s.group[g].members > 0:
            g += 1
    group = s.group[g]
    group.members, group.segments, group.left_s = e.batch, segments, left_s
    e.now += elapsed_s
    e.busy_s += elapsed_s
    e.steps += 1
    e.waited_s = 0.0
    for i in range(e.batch):
        q = s.req[s.batch[i].request]
        q.group, q.group_tokens = g, s.batch[i].tokens
        q.granted = 0
        q.service_s += elapsed_s
        q.run_s = e.now
    e.batch = 0


@compiled
def admit(s: State, r: int, tokens: int, whole: int, spare: int) -> int:
    """Let waiting request r in with up to so many tokens; returns how many it runs, or why none.

    `whole` 1: only if all its tokens fit, not just those it runs now; 2: and take their blocks at once.
    `spare`: blocks that must stay free.
    """
    e, q = s.eng[0], s.req[r]
    if e.group != _NONE:
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
    _dequeue(s, r)
    e.slots -= 1
    q.slot = s.slot[e.slots]
    q.state = _RUNNING
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


# --- running it ---


@compiled
def _is_ragged(s: State) -> bool:
    """Decoding requests of the step at hand hold different numbers of tokens: a dense engine would realign them."""
    held = int64(_NONE)
    for i in range(s.eng[0].batch):
        row = s.batch[i]
        if row.decode == 1:
            if held != _NONE and row.start != held:
                return True
            held = int64(row.start)
    return False


@inlined
def step_s(s: State, context: int) -> float:
    """Seconds that the step at hand takes when attention reads `context` tokens."""
    e = s.eng[0]
    rows = e.decodes
    positions = e.prefill_tokens + e.decode_tokens
    if e.prefills == 0 and rows < len(s.pad):  # a captured graph runs as many rows as it was captured for
        positions = positions * s.pad[rows] // rows if rows > 0 else positions
    c = s.cost
    if e.prefills == 0 and e.decode_tokens == rows:
        seconds = c[DECODE_BASE_S] + max(c[DECODE_WEIGHTS_S], c[DECODE_TOKEN_S] * positions) + c[DECODE_ROW_S] * rows
        seconds += c[DECODE_CONTEXT_S] * context + c[DECODE_SPREAD_S] * np.sqrt(float64(context))
    else:
        seconds = c[BASE_S] + max(c[WEIGHTS_S], c[TOKEN_S] * positions) + c[ROW_S] * (rows + e.prefills)
        seconds += c[PAIR_S] * e.pairs + c[CONTEXT_S] * context + c[CHUNK_S] * e.prefills
        host = c[HOST_S]
        if e.prefills > 0 and rows > 0:
            seconds += c[MIXED_S]
            host += c[HOST_MIXED_S]
        seconds = max(seconds, host)
    seconds += c[SWAP_S] * e.swap_bytes
    if e.held == 0:
        seconds += c[REBUILD_S]
    if c[RAGGED_S] > 0 and e.decode_tokens > e.decodes and _is_ragged(s):
        seconds += c[RAGGED_S] * context
    return seconds


@compiled
def step_seconds(s: State) -> float:
    """Seconds that the step at hand takes."""
    return step_s(s, s.eng[0].context)


@compiled
def draw(s: State, r: int, number: int) -> float:
    """A uniform number that depends on nothing but the seed, the request and a count."""
    x = mix(uint64(s.eng[0].seed) ^ uint64(s.req[r].serial), uint64(number))
    return float64(x >> uint64(11)) / 9007199254740992.0


@compiled
def emit(s: State) -> None:
    """Fill in what the step at hand puts out, from the true lengths and the acceptance rate."""
    e = s.eng[0]
    for i in range(e.batch):
        row = s.batch[i]
        q = s.req[row.request]
        m = 0
        if row.decode == 1:
            m = 1
            while m < row.tokens and draw(s, row.request, int64(q.generated) + m) < e.acceptance:
                m += 1
        elif int64(row.start) + row.tokens == known(s, row.request):
            m = 1
        m = min(m, q.output - q.generated)
        row.emitted = m
        row.stopped = 1 if m > 0 and q.generated + m >= q.output else 0


@inlined
def gap_bin(gap: float) -> int:
    """Bin of a time between two tokens."""
    if gap < GAP_LOW_S:
        return 0
    return min(1 + int64(np.log2(gap / GAP_LOW_S) * GAP_PER_DOUBLING), GAP_BINS - 1)


@compiled
def write_log(s: State, start_s: float, duration_s: float, waiting: int) -> None:
    """A row of the log for the step at hand, if there is room."""
    e = s.eng[0]
    if e.log_steps == 0 or e.logged >= len(s.log):
        return
    row = s.log[e.logged]
    e.logged += 1
    row.start_s, row.duration_s = start_s, duration_s
    row.prefill_tokens, row.decode_tokens = e.prefill_tokens, e.decode_tokens
    row.prefill_requests, row.decode_requests = e.prefills, e.decodes
    row.running, row.waiting = e.running, waiting
    row.kv_blocks = e.kv_blocks - e.free
    row.preemptions = e.preempted


@inlined
def _token(s: State, r: int, time_s: float) -> None:
    e = s.eng[0]
    if e.log_tokens == 1 and e.tokens_logged < len(s.token_request):
        s.token_request[e.tokens_logged] = r
        s.token_s[e.tokens_logged] = time_s
        e.tokens_logged += 1


@compiled
def finish_step(s: State, duration_s: float) -> int:
    """Book the step at hand, which took so long: tokens, times, ends. Returns how many requests ended."""
    e = s.eng[0]
    write_log(s, e.now, duration_s, e.waiting)
    e.now += duration_s
    e.busy_s += duration_s
    e.steps += 1
    e.waited_s = 0.0
    now = e.now
    if e.group != _NONE:
        s.group[e.group].members = 0
    last_gap, last_bin = -1.0, 0
    ended = 0
    for i in range(e.batch):
        row = s.batch[i]
        r = int64(row.request)
        q = s.req[r]
        before = int64(row.start)
        q.granted = 0
        q.new_keys = 0
        q.group = _NONE
        q.service_s += duration_s
        q.run_s = now
        q.work += row.tokens
        m = int64(row.emitted)
        kept = max(m, 1) if row.decode == 1 else int64(row.tokens)
        if row.decode == 1 and row.tokens > 1:
            q.drafted += row.tokens - 1
            q.accepted += kept - 1
        q.recomputed += max(int64(0), min(int64(q.peak), before + kept) - before)
        q.computed = before + kept
        q.peak = max(q.peak, q.computed)
        if kept < row.tokens:
            shrink(s, r, blocks_for(s, q.computed))
        if m > 0:
            if q.generated == 0:
                q.first_token_s = now
                s.gaps[0] += m - 1
            else:
                gap = now - q.last_token_s
                if gap != last_gap:
                    last_gap, last_bin = gap, gap_bin(gap)
                s.gaps[last_bin] += 1
                s.gaps[0] += m - 1
                q.max_gap_s = max(q.max_gap_s, gap)
            q.last_token_s = now
            q.generated += m
            for _ in range(m):
                _token(s, r, now)
        if e.late_keys == 1 or (row.decode == 1 and m > 1):
            publish(s, r, before, int64(q.computed))
        if row.stopped == 1:
            ended += 1
            shrink(s, r, 0)
            q.state, q.status, q.finish_s = _ENDED, _FINISHED, now
            s.slot[e.slots] = q.slot
            e.slots += 1
            if len(s.history) > 0:
                s.history[e.finished % len(s.history)] = q.generated
            e.finished += 1
    e.batch = 0
    if ended > 0:
        kept_running = 0
        for k in range(e.running):
            if s.req[s.run[k]].state == _RUNNING:
                s.run[kept_running] = s.run[k]
                kept_running += 1
        e.running = kept_running
        e.ended += ended
    return ended


@compiled
def blocks_after(s: State, steps: int) -> int:
    """Blocks that the batch, decoding alone, takes more than it holds after so many steps, this one included."""
    need = int64(0)
    for i in range(s.eng[0].batch):
        row = s.batch[i]
        need += blocks_for(s, int64(row.start) + steps) - s.req[row.request].blocks
    return need


@compiled
def jump(s: State, most: int, arrivals: bool, hold: bool) -> int:
    """Make up to `most` steps with the batch at hand, which decodes one token each; returns how many it made.

    The same as that many single steps, to the last bit of every time, but requests are touched once. Stops after a
    step in which a request ends, before blocks run short, and (`arrivals`) as soon as a request has arrived.
    `hold`: steps after the first are told to keep their members.
    """
    e = s.eng[0]
    steps = most
    for i in range(e.batch):
        q = s.req[s.batch[i].request]
        steps = min(steps, int64(q.output) - q.generated)
    if e.log_steps == 1:
        steps = min(steps, len(s.log) - e.logged)
    if e.log_tokens == 1:
        steps = min(steps, (len(s.token_request) - e.tokens_logged) // e.batch)
    steps = max(steps, int64(1))
    if blocks_after(s, steps) > e.free:
        low, high = int64(1), steps  # the blocks of the first step are held already
        while high - low > 1:
            middle = (low + high) // 2
            if blocks_after(s, middle) > e.free:
                high = middle
            else:
                low = middle
        steps = low
    if steps <= 1:
        emit(s)
        finish_step(s, step_s(s, e.context))
        return 1

    upcoming = s.req[e.next].arrival_s if arrivals and e.next < e.num else np.inf
    batch, free, taken, size = e.batch, e.free, int64(0), e.block_tokens
    s.crossing[:] = 0
    for i in range(batch):  # in step k (from 1) a row needs a new block if its tokens before fill theirs
        s.crossing[(1 - int64(s.batch[i].start)) % size] += 1
    made, first_s, longest, sum_s = int64(0), 0.0, 0.0, 0.0
    previous = e.now
    last_gap, last_bin = -1.0, 0
    while made < steps:
        if made > 0:
            e.preempted = 0
            e.swap_bytes = 0.0
            e.held = 1 if hold else 0
            taken += s.crossing[(made + 1) % size]
            e.free = free - taken
        seconds = step_s(s, e.context)
        write_log(s, e.now, seconds, e.waiting)
        previous = e.now
        e.now += seconds
        e.busy_s += seconds
        made += 1
        e.context += batch
        if made == 1:
            first_s = e.now
        else:
            gap = e.now - previous
            if gap != last_gap:
                last_gap, last_bin = gap, gap_bin(gap)
            s.gaps[last_bin] += batch
            longest = max(longest, gap)
        sum_s += seconds
        if e.log_tokens == 1:
            for i in range(batch):
                _token(s, int64(s.batch[i].request), e.now)
        if e.now >= upcoming:
            break
    e.free = free
    # the requests, as if they had made all but the last step one by one; the last is booked as any other
    ended = 0
    for i in range(batch):
        row = s.batch[i]
        r = int64(row.request)
        q = s.req[r]
        gap = first_s - q.last_token_s
        s.gaps[gap_bin(gap)] += 1
        q.max_gap_s = max(q.max_gap_s, gap, longest)
        q.granted = 0
        q.new_keys = 0
        q.group = _NONE
        q.service_s += sum_s
        q.run_s = e.now
        q.work += made
        before = int64(row.start)
        q.recomputed += max(int64(0), min(int64(q.peak), before + made) - before)
        grow(s, r, blocks_for(s, before + made))
        q.computed = before + made
        q.peak = max(q.peak, q.computed)
        if e.caching == 1:
            publish(s, r, before + 1, before + made)
        q.generated += made
        q.last_token_s = e.now
        if q.generated >= q.output:
            ended += 1
    e.steps += made
    e.waited_s = 0.0
    if ended > 0:
        for i in range(batch):
            r = int64(s.batch[i].request)
            q = s.req[r]
            if q.generated >= q.output:
                shrink(s, r, 0)
                q.state, q.status, q.finish_s = _ENDED, _FINISHED, e.now
                s.slot[e.slots] = q.slot
                e.slots += 1
                if len(s.history) > 0:
                    s.history[e.finished % len(s.history)] = q.generated
                e.finished += 1
        kept = 0
        for k in range(e.running):
            if s.req[s.run[k]].state == _RUNNING:
                s.run[kept] = s.run[k]
                kept += 1
        e.running = kept
        e.ended += ended
    e.batch = 0
    return made


@compiled
def hold_on(s: State, steps: int, through_arrival: bool, through_finish: bool) -> int:
    """Make the step at hand, which only decodes, up to `steps` times for those still running; returns how often.

    Ends before blocks run short, and with an arrival or a finish unless told to go on through these.
    """
    e = s.eng[0]
    size = e.batch
    made = int64(0)
    while True:
        before = e.ended
        if e.decode_tokens == e.batch:
            made += jump(s, steps - made, not through_arrival, True)
        else:
            emit(s)
            finish_step(s, step_s(s, e.context))
            made += 1
        full = e.log_steps == 1 and e.logged == len(s.log)
        full = full or (e.log_tokens == 1 and e.tokens_logged + size * (1 + e.max_spec) > len(s.token_request))
        if made >= steps or full or (e.ended > before and not through_finish):
            return made
        if not through_arrival and e.next < e.num and s.req[e.next].arrival_s <= e.now:
            return made
        need, alive = int64(0), 0
        for i in range(size):
            q = s.req[s.batch[i].request]
            if q.state == _RUNNING:
                alive += 1
                tokens = min(int64(s.batch[i].tokens), int64(q.max_new) - q.generated)
                need += max(int64(0), blocks_for(s, q.computed + tokens) - q.blocks)
        if alive == 0 or need > e.free:
            return made
        begin(s)
        for i in range(size):
            r, tokens = int64(s.batch[i].request), int64(s.batch[i].tokens)
            if s.req[r].state == _RUNNING:
                grant(s, r, tokens, NOBODY, NO_ORDER)
        size = e.batch
        e.held = 1
