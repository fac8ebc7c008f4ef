"""Iteration-level batching with the running first: the family that most engines' own schedulers belong to.

A rule is a handful of choices: how much of a prompt a step takes, what must be free before a request is let in, who
is preempted when blocks run short. First come, first served with the defaults is what the engine does by itself where
a policy gives an empty plan.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.llm.arrivals import begin, next_epoch
from dispatchgym.envs.llm.grants import (
    FEWEST_OUTPUTS,
    LAST,
    LEAST_COMPUTED,
    LOWEST_PRIORITY,
    NO_ORDER,
    admit,
    grant,
    is_decoding,
    known,
)
from dispatchgym.envs.llm.jumps import jump
from dispatchgym.envs.llm.ledger import cached_blocks, unpin
from dispatchgym.envs.llm.policy import EngineSpec
from dispatchgym.envs.llm.state import DECIDE, LOG_FULL, NONE, RUNNING, State, float64, int64
from dispatchgym.envs.llm.step_time import step_seconds
from dispatchgym.envs.llm.steps import emit, finish_step

Mode = Literal["mixed", "prefill-first", "static"]
Order = Literal["arrival", "priority", "deadline", "shortest-prompt", "longest-prefix", "key"]
Admission = Literal["fits", "reserve", "current", "with-prompt"]
Victim = Literal["last", "least-computed", "lowest-priority", "fewest-outputs"]

MIXED, PREFILL_FIRST, STATIC = range(3)
BY_ARRIVAL, BY_PRIORITY, BY_DEADLINE, BY_PROMPT, BY_PREFIX, BY_KEY = range(6)
FITS, RESERVE, CURRENT, WITH_PROMPT = range(4)
_VICTIM = dict(zip(get_args(Victim), (LAST, LEAST_COMPUTED, LOWEST_PRIORITY, FEWEST_OUTPUTS), strict=True))
_DECIDE, _LOG_FULL, _NONE, _RUNNING = DECIDE, LOG_FULL, NONE, RUNNING

RULE = np.dtype(
    [
        ("mode", np.int64),
        ("order", np.int64),
        ("admission", np.int64),
        ("victim", np.int64),
        ("step_tokens", np.int64),
        ("piece_tokens", np.int64),
        ("decodes_first", np.int64),
        ("undivided", np.int64),
        ("whole", np.int64),
        ("watermark", np.float64),
        ("limit", np.float64),
        ("assumed_new", np.int64),
        ("reserve_len", np.int64),
        ("max_running", np.int64),
        ("every", np.int64),
        ("last_tokens", np.int64),
        ("stages", np.int64),
        ("stage_tokens", np.int64),
    ]
)


@dataclass(frozen=True, slots=True)
class BatchingRule:
    """The choices of a scheduler of this family; the defaults are vLLM's, with half its knobs at rest.

    Attributes:
        mode: "mixed": prompt pieces and decodes share a step; "prefill-first": a step is one or the other, prompts
            first; "static": a batch is let in, run to its end, then the next.
        order: who of the waiting comes first; ties by place in the queue. "key" is a number that a scheduler keeps.
        step_tokens: tokens of a step, besides the engine's own limit; 0 for that limit alone.
        piece_tokens: largest piece of a prompt in a step, 0 for no bound.
        decodes_first: running requests that decode come before those that still read their prompt.
        undivided: a prompt is run whole, unless it is longer than a step's limit.
        full_input: all tokens of a request must fit before it is let in, not only its first piece.
        take_input: and their blocks are taken at once.
        watermark: share of the blocks that must stay free when a request is let in beside others.
        admission: "fits": blocks for now; "reserve": prompt and longest output of all, together, within `limit` of
            the pool; "current": KV in use below `limit` of the pool; "with-prompt": KV in use and the newcomer's
            prompt together within `limit` of the pool.
        assumed_new: output length that "reserve" counts with, 0 for each request's own `max_new_tokens`.
        reserve_tokens: what "reserve" counts for every request whatever its lengths, 0 for its own.
        victim: who is preempted when a running request finds no block.
        max_running: requests that run at once, besides the engine's own limit; 0 for that limit alone.
        every: steps between two rounds of admission while something runs.
        last_tokens, stages, stage_tokens: the step's tokens for a prompt shrink as it is read, from `step_tokens` to
            `last_tokens` in so many stages of `stage_tokens`; 0 stages: they do not.
    """

    mode: Mode = "mixed"
    order: Order = "arrival"
    step_tokens: int = 0
    piece_tokens: int = 0
    decodes_first: bool = False
    undivided: bool = False
    full_input: bool = True
    take_input: bool = False
    watermark: float = 0.0
    admission: Admission = "fits"
    limit: float = 1.0
    assumed_new: int = 0
    reserve_tokens: int = 0
    victim: Victim = "last"
    max_running: int = 0
    every: int = 1
    last_tokens: int = 0
    stages: int = 0
    stage_tokens: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("mode", Mode), ("order", Order), ("admission", Admission), ("victim", Victim)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"batching rule: {name} {getattr(self, name)!r} is not one of {get_args(kind)}")
        for name in ("step_tokens", "piece_tokens", "assumed_new", "reserve_tokens", "max_running"):
            if getattr(self, name) < 0:
                raise UsageError(f"batching rule: {name} {getattr(self, name)} is below 0")
        if self.every < 1:
            raise UsageError(f"batching rule: every {self.every} is below 1")
        if self.stages and not (self.stages > 1 and 0 < self.last_tokens <= self.step_tokens and self.stage_tokens > 0):
            raise UsageError("batching rule: stages take 2 or more, stage_tokens, and 0 < last_tokens <= step_tokens")
        for name in ("watermark", "limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"batching rule: {name} {getattr(self, name)} is outside 0..1")

    def packed(self) -> npt.NDArray[Any]:
        """The same as kernels read it, shape (1,) of RULE."""
        many = 2**40
        row = np.zeros(1, RULE)
        row[0] = (
            get_args(Mode).index(self.mode),
            get_args(Order).index(self.order),
            get_args(Admission).index(self.admission),
            _VICTIM[self.victim],
            self.step_tokens or many,
            self.piece_tokens or many,
            self.decodes_first,
            self.undivided,
            2 if self.take_input else int(self.full_input),
            self.watermark,
            self.limit,
            self.assumed_new,
            self.reserve_tokens,
            self.max_running or many,
            self.every,
            self.last_tokens,
            self.stages,
            self.stage_tokens,
        )
        return row


@compiled
def first_waiting(s: State, order: int) -> int:
    """The waiting request that comes first in this order, -1 with none."""
    e = s.eng[0]
    if order == BY_ARRIVAL:
        return int64(e.head)
    best, best_key = int64(_NONE), 0.0
    r = int64(e.head)
    while r != _NONE:
        q = s.req[r]
        if order == BY_PRIORITY:
            key = float64(q.priority)
            if best != _NONE and key == best_key:  # of equals the first to arrive, whatever became of it since
                first = s.req[best]
                if q.arrival_s < first.arrival_s or (q.arrival_s == first.arrival_s and r < best):
                    best = r
        elif order == BY_DEADLINE:
            key = q.arrival_s + q.ttft_slo_s
        elif order == BY_PROMPT:
            key = float64(known(s, r))
        elif order == BY_PREFIX:
            key = -float64(cached_blocks(s, r)[0])
        else:
            key = q.key
        if best == _NONE or key < best_key:
            best, best_key = r, key
        r = int64(q.after)
    return best


@inlined
def _claim(s: State, rule: Any, r: int) -> int:
    """Tokens that "reserve" counts for a request."""
    c, q = rule[0], s.req[r]
    if c.reserve_len > 0:
        return c.reserve_len
    new = c.assumed_new if c.assumed_new > 0 else int64(q.max_new)
    return int64(q.prompt) + max(new, int64(q.generated))


@compiled
def may_enter(s: State, rule: Any, r: int) -> bool:
    """The rule's own condition for letting request r in, besides the blocks it needs now."""
    e, c = s.eng[0], rule[0]
    if e.running >= c.max_running:
        return False
    room = c.limit * e.kv_blocks * e.block_tokens
    if c.admission == RESERVE:
        total = _claim(s, rule, r)
        for k in range(e.running):
            total += _claim(s, rule, int64(s.run[k]))
        return total <= room
    if c.admission == CURRENT or c.admission == WITH_PROMPT:
        held = int64(0)
        for k in range(e.running):
            held += known(s, int64(s.run[k]))
        return held < room if c.admission == CURRENT else held + known(s, r) <= room
    return True


@inlined
def _piece(s: State, rule: Any, left: int, read: int) -> int:
    """Tokens of a prompt, of which `read` are read and `left` are left, that this step may run."""
    e, c = s.eng[0], rule[0]
    n = min(left, c.piece_tokens)
    if c.stages > 0:
        stage = min(read // c.stage_tokens, c.stages - 1)
        step = c.step_tokens - (c.step_tokens - c.last_tokens) * stage // (c.stages - 1)
        n = max(min(n, step - e.prefill_tokens - e.decode_tokens), int64(0))
    if c.undivided == 1 and n > e.budget and (n <= e.token_budget or e.prefills > 0):
        return int64(0)
    return n


@inlined
def _go_on(s: State, rule: Any, decodes: bool, prefills: bool) -> None:
    """Grant the running their next tokens, in order of admission, up to the first that gives up its own blocks."""
    e, c = s.eng[0], rule[0]
    k = int64(0)
    while k < e.running and e.budget > 0:
        r = int64(s.run[k])
        stamp = s.req[r].stamp
        if s.req[r].granted == 0:
            if is_decoding(s, r):
                if decodes:
                    grant(s, r, int64(1), c.victim, NO_ORDER)
            elif prefills:
                n = _piece(s, rule, known(s, r) - s.req[r].computed, int64(s.req[r].computed))
                if n > 0:
                    grant(s, r, n, c.victim, NO_ORDER)
        if s.req[r].state != _RUNNING:
            break
        # whoever was preempted meanwhile has left the list
        k = min(k + 1, e.running)
        while k > 0 and s.req[s.run[k - 1]].stamp > stamp:
            k -= 1


@inlined
def _let_in(s: State, rule: Any, preempted: int) -> None:
    """Admit from the queue until the first that must wait; nobody, if more than `preempted` have been preempted."""
    e, c = s.eng[0], rule[0]
    spare = int64(c.watermark * e.kv_blocks)
    if c.every > 1 and e.waiting > 0:
        if e.running > 0 and e.steps < e.round + c.every:
            return
        e.round = e.steps
    while e.waiting > 0 and e.budget > 0 and e.preempted <= preempted:
        r = first_waiting(s, c.order)
        if not may_enter(s, rule, r):
            break
        left = known(s, r) - s.req[r].computed
        if c.undivided == 1 and s.req[r].host_blocks == 0:
            left -= cached_blocks(s, r)[0] * e.block_tokens
        n = _piece(s, rule, left, int64(s.req[r].computed))
        if n == 0 or admit(s, r, n, c.whole, spare if e.running > 0 else int64(0)) < 0:
            break


@compiled
def fill(s: State, rule: Any) -> None:
    """Fill the step at hand, in which nothing has been granted yet, by the rule."""
    e, c = s.eng[0], rule[0]
    e.budget = min(e.budget, c.step_tokens)
    if c.mode == MIXED:
        while e.batch == 0:  # once more where all that came of it was a preemption
            before = int64(e.preempted)
            if c.decodes_first == 1:
                _go_on(s, rule, True, False)
                _go_on(s, rule, False, True)
            else:
                _go_on(s, rule, True, True)
            _let_in(s, rule, before)
            if e.preempted == before:
                return
        return
    if c.mode == STATIC:
        reading = e.running == 0
        for k in range(e.running):
            reading = reading or s.req[s.run[k]].generated == 0
        if e.running == 0:
            _let_in(s, rule, int64(0))
        elif reading:
            _go_on(s, rule, False, True)
    else:
        _go_on(s, rule, False, True)
        _let_in(s, rule, int64(0))
    if e.batch == 0:
        _go_on(s, rule, True, False)


@compiled
def rescue(s: State) -> None:
    """Fill a step that came out empty: pins end, the running go on in order, else the first in the queue comes in."""
    e = s.eng[0]
    for how in range(2):
        e.budget = e.token_budget
        k = int64(0)
        while k < e.running and e.batch == 0:
            grant(s, int64(s.run[k]), e.token_budget, LAST, NO_ORDER)
            k += 1
        r = int64(e.head)
        while r != _NONE and e.batch == 0:
            after = int64(s.req[r].after)
            admit(s, r, e.token_budget, int64(0), int64(0))
            r = after
        if e.batch > 0:
            return
        if how == 0:
            for r in range(e.next):
                unpin(s, r)


@compiled
def is_steady(s: State, order: int) -> bool:
    """The step at hand decodes one token of every running request, and nothing was given back.

    Nor may outputs of the running turn up in the prompt of one who could be next.
    """
    e = s.eng[0]
    if e.prefills > 0 or e.batch != e.running or e.decode_tokens != e.batch or e.preempted > 0:
        return False
    return e.waiting == 0 or s.req[first_waiting(s, order)].hashed == 0


@compiled
def run(s: State, rule: Any, until_s: float) -> int:
    """Run the engine by the rule until all is done, the clock passes `until_s`, or the log is full; says which.

    While every running request decodes and nobody can come in, steps are alike until a request ends or arrives: who
    found no room finds less of it later. Such stretches are jumped over.
    """
    e = s.eng[0]
    while True:
        code = next_epoch(s)
        if code != _DECIDE or e.now >= until_s:
            return code
        if e.log_steps == 1 and e.logged == len(s.log):
            return _LOG_FULL
        if e.log_tokens == 1 and e.tokens_logged + e.max_seqs * (1 + e.max_spec) > len(s.token_request):
            return _LOG_FULL
        begin(s)
        fill(s, rule)
        if e.batch == 0:
            rescue(s)
        if e.jumps == 1 and is_steady(s, rule[0].order):
            most = int64(2**40)
            if rule[0].every > 1 and e.waiting > 0:
                most = e.round + rule[0].every - e.steps
            jump(s, most, True, False)
        else:
            emit(s)
            finish_step(s, step_seconds(s))


class RulePolicy:
    """A scheduler that is a batching rule."""

    oracle = False

    def __init__(self, name: str, rule: BatchingRule) -> None:
        self.name = name
        self.rule = rule
        self._packed = rule.packed()

    def prepare(self, state: State, spec: EngineSpec, seed: int) -> None:
        """Nothing to prepare."""

    def fill(self, state: State) -> None:
        """Fill the step at hand."""
        fill(state, self._packed)

    def advance(self, state: State, until_s: float) -> int:
        """Run by the rule."""
        return run(state, self._packed, until_s)
