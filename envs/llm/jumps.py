"""Many steps at once, where nothing is to be decided in between."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import numpy as np

from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.llm.arrivals import begin
from dispatchgym.envs.llm.grants import NO_ORDER, NOBODY, grant
from dispatchgym.envs.llm.ledger import (
    blocks_for,
    grow,
    publish,
    shrink,
)
from dispatchgym.envs.llm.record import FINISHED
from dispatchgym.envs.llm.state import (
    ENDED,
    NONE,
    RUNNING,
    State,
    int64,
)
from dispatchgym.envs.llm.step_time import step_s
from dispatchgym.envs.llm.steps import emit, finish_step, gap_bin, log_token, write_log


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
    made, first_s, longest, sum_s, seconds = int64(0), 0.0, 0.0, 0.0, 0.0
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
                log_token(s, int64(s.batch[i].request), e.now)
        if e.now >= upcoming:
            break
    e.free = free
    e.plain_s = seconds
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
        q.group = NONE
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
                q.state, q.status, q.finish_s = ENDED, FINISHED, e.now
                s.slot[e.slots] = q.slot
                e.slots += 1
                if len(s.history) > 0:
                    s.history[e.finished % len(s.history)] = q.generated
                e.finished += 1
        kept = 0
        for k in range(e.running):
            if s.req[s.run[k]].state == RUNNING:
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
            if q.state == RUNNING:
                alive += 1
                tokens = min(int64(s.batch[i].tokens), int64(q.max_new) - q.generated)
                need += max(int64(0), blocks_for(s, q.computed + tokens) - q.blocks)
        if alive == 0 or need > e.free:
            return made
        begin(s)
        for i in range(size):
            r, tokens = int64(s.batch[i].request), int64(s.batch[i].tokens)
            if s.req[r].state == RUNNING:
                grant(s, r, tokens, NOBODY, NO_ORDER)
        size = e.batch
        e.held = 1
