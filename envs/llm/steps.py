"""A step runs: what it puts out, and how its results are booked."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.grants import known
from dispatchgym.envs.llm.ledger import (
    blocks_for,
    mix,
    publish,
    shrink,
)
from dispatchgym.envs.llm.record import FINISHED
from dispatchgym.envs.llm.state import (
    ENDED,
    GAP_BINS,
    GAP_LOW_S,
    GAP_PER_DOUBLING,
    NONE,
    RUNNING,
    State,
    float64,
    int64,
    uint64,
)


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
def log_token(s: State, r: int, time_s: float) -> None:
    e = s.eng[0]
    if e.log_tokens == 1 and e.tokens_logged < len(s.token_request):
        s.token_request[e.tokens_logged] = r
        s.token_s[e.tokens_logged] = time_s
        e.tokens_logged += 1


@compiled
def interrupt_step(s: State, elapsed_s: float, left_s: float, segments: int) -> None:
    """The step at hand stops after so many of its segments; its members keep what they have until it goes on."""
    e = s.eng[0]
    write_log(s, e.now, elapsed_s, e.waiting)
    g = e.group
    if g == NONE:
        g = int64(0)
        while s.group[g].members > 0:
            g += 1
    group = s.group[g]
    group.members, group.segments, group.left_s = e.batch, segments, left_s
    e.now += elapsed_s
    e.busy_s += elapsed_s
    e.plain_s = 0.0
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
def finish_step(s: State, duration_s: float) -> int:
    """Book the step at hand, which took so long: tokens, times, ends. Returns how many requests ended."""
    e = s.eng[0]
    write_log(s, e.now, duration_s, e.waiting)
    e.now += duration_s
    e.busy_s += duration_s
    e.plain_s = duration_s if e.prefills == 0 and e.decode_tokens == e.decodes else 0.0
    e.steps += 1
    e.waited_s = 0.0
    now = e.now
    if e.group != NONE:
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
        q.group = NONE
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
                log_token(s, r, now)
        if e.late_keys == 1 or (row.decode == 1 and m > 1):
            publish(s, r, before, int64(q.computed))
        if row.stopped == 1:
            ended += 1
            shrink(s, r, 0)
            q.state, q.status, q.finish_s = ENDED, FINISHED, now
            s.slot[e.slots] = q.slot
            e.slots += 1
            if len(s.history) > 0:
                s.history[e.finished % len(s.history)] = q.generated
            e.finished += 1
    e.batch = 0
    if ended > 0:
        kept_running = 0
        for k in range(e.running):
            if s.req[s.run[k]].state == RUNNING:
                s.run[kept_running] = s.run[k]
                kept_running += 1
        e.running = kept_running
        e.ended += ended
    return ended
