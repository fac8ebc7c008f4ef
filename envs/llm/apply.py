"""A plan meets the engine: it is carried out as far as it can be, and what cannot be done is counted."""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from typing import Any

from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.batching import fill, rescue
from dispatchgym.envs.llm.grants import LISTED, NO_BUDGET, NO_SLOT, NOTHING_LEFT, admit, end, grant, known, preempt
from dispatchgym.envs.llm.ledger import cached_blocks
from dispatchgym.envs.llm.record import DROPPED
from dispatchgym.envs.llm.state import F64, I32, I64, NONE, PAUSE, RUNNING, SWAP, WAITING, State, int64

REPAIRS = (
    "unknown request",
    "request named twice",
    "no tokens to run",
    "beyond the token budget",
    "no free blocks",
    "no free place",
    "preempted too often",
    "no room on the host",
    "waits too long",
    "nothing to run",
)
UNKNOWN, TWICE, NOTHING, BEYOND, FULL, CROWDED, SPARED, HOST_FULL, OVERSLEPT, IDLE = range(len(REPAIRS))
"""What the engine changes in a plan; names as records and errors give them."""

_RUNNING, _WAITING, _SWAP, _PAUSE, _NONE, _DROPPED = RUNNING, WAITING, SWAP, PAUSE, NONE, DROPPED


@inlined
def _repair(counts: I64, first: I64, kind: int, request: int, tokens: int) -> None:
    counts[kind] += 1
    if first[0] == _NONE:
        first[0], first[1], first[2] = kind, request, tokens


@inlined
def _state(s: State, r: int) -> int:
    """Where request r is; -1 for a number that is no request."""
    if r < 0 or r >= s.eng[0].next:
        return int64(_NONE)
    return int64(s.req[r].state)


@compiled
def apply(
    s: State, drop: I32, preempted: I32, how: I32, grants: I32, tokens: I64, victims: I32, late_keys: bool,
    default: Any, counts: I64, first: I64,
) -> None:  # fmt: skip
    """Fill the step at hand, which `begin` has started, by a plan's orders; see Plan for their meaning.

    `counts` grows by the repairs, shape (len(REPAIRS),); `first` keeps the first of them if it holds -1: kind,
    request, tokens. Where nothing can be run as planned, `default` fills the step.
    """
    e = s.eng[0]
    e.late_keys = 1 if late_keys else 0
    for r in drop:
        where = _state(s, r)
        if where in (_RUNNING, _WAITING):
            end(s, int64(r), int64(_DROPPED))
        else:
            _repair(counts, first, UNKNOWN, r, 0)
    for i in range(len(preempted)):
        r = int64(preempted[i])
        if _state(s, r) != _RUNNING:
            _repair(counts, first, UNKNOWN, r, 0)
        elif s.req[r].preemptions >= e.max_preemptions:
            _repair(counts, first, SPARED, r, 0)
        elif how[i] != _PAUSE:  # a pause is not to be granted anything
            preempt(s, r, int64(how[i]))
            if how[i] == _SWAP and s.req[r].computed > 0 and s.req[r].host_blocks == 0:
                _repair(counts, first, HOST_FULL, r, 0)
    for i in range(len(grants)):
        r, n = int64(grants[i]), tokens[i]
        where = _state(s, r)
        if where not in (_RUNNING, _WAITING):
            _repair(counts, first, UNKNOWN, r, n)
            continue
        if n <= 0:
            _repair(counts, first, NOTHING, r, n)
            continue
        if where == _WAITING and s.req[r].ousted == e.steps + 1:
            continue  # preempted for those before it, as the plan allows
        if where == _RUNNING:
            if s.req[r].granted > 0:
                if e.group == _NONE:  # the others of an interrupted step come with the first
                    _repair(counts, first, TWICE, r, n)
                continue
            got = int64(grant(s, r, n, LISTED, victims))
            most = n
        else:
            got = int64(admit(s, r, n, int64(0), int64(0)))
            most = min(n, known(s, r))
        if got == NO_BUDGET or (got > 0 and got < most and e.budget == 0):
            _repair(counts, first, BEYOND, r, n)
        elif got == NOTHING_LEFT:
            _repair(counts, first, NOTHING, r, n)
        elif got == NO_SLOT:
            _repair(counts, first, CROWDED, r, n)
        elif got < 0 and s.req[r].ousted != e.steps + 1:
            _repair(counts, first, FULL, r, n)
    if e.batch == 0 and e.running + e.waiting > 0:
        if len(grants) > 0:
            _repair(counts, first, IDLE, int64(_NONE), int64(0))
        fill(s, default)
        if e.batch == 0:
            rescue(s)


INTS, FLOATS = 13, 8


@compiled
def gather(s: State, ids: I64, ints: I64, floats: F64) -> None:
    """Columns of the view's tables for these requests: ints (INTS, ids), floats (FLOATS, ids)."""
    for k in range(len(ids)):
        r = ids[k]
        q = s.req[r]
        floats[0, k] = q.arrival_s
        floats[1, k] = q.ttft_slo_s
        floats[2, k] = q.tpot_slo_s
        floats[3, k] = q.last_token_s
        floats[4, k] = q.first_token_s
        floats[5, k] = q.queued_s
        floats[6, k] = q.run_s
        floats[7, k] = q.service_s
        ints[0, k] = q.prompt
        ints[1, k] = q.max_new
        ints[2, k] = q.priority
        ints[3, k] = q.tenant
        ints[4, k] = q.session
        ints[5, k] = q.program
        ints[6, k] = q.computed
        ints[7, k] = q.generated
        ints[8, k] = q.blocks
        ints[9, k] = q.host_blocks
        found = int64(0)
        if q.state == _WAITING and q.host_blocks == 0:
            found = cached_blocks(s, r)[0] * s.eng[0].block_tokens
        ints[10, k] = found
        ints[11, k] = q.preemptions
        ints[12, k] = q.group


@compiled
def queue(s: State, ids: I64) -> None:
    """The waiting requests, head first, into `ids`, shape (waiting,)."""
    r = int64(s.eng[0].head)
    for k in range(len(ids)):
        ids[k] = r
        r = int64(s.req[r].after)
