"""A compiled scheduler asked for a plan: the arrays of an engine, set up as a view shows them.

So that a scheduler which runs inside our engine can decide for another one. Where requests share blocks a view does
not say which: of the blocks in use, the last admitted are taken to share, and prefixes in the cache to be held by
nobody; such plans are cautious.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.llm.apply import queue
from dispatchgym.envs.llm.arrivals import begin
from dispatchgym.envs.llm.ledger import enter_key, key_of
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import F64, I64, NONE, RUNNING, WAITING, State, int64
from dispatchgym.envs.llm.workload import Workload

_RUNNING, _WAITING, _NONE = RUNNING, WAITING, NONE
FLOATS = ("arrival_s", "ttft_slo_s", "tpot_slo_s", "last_token_s", "queued_s", "service_s")
INTS = (
    "prompt_tokens", "max_new_tokens", "priority", "tenant", "session", "program", "computed", "generated", "blocks",
    "host_blocks", "cached_tokens", "preemptions",
)  # fmt: skip


@compiled
def _show(s: State, running: int, free: int, floats: F64, ints: I64) -> None:
    """Set up the arrays; columns are requests, the running first, in the order of the views's tables."""
    e = s.eng[0]
    count, knot, used = ints.shape[1], int64(e.kv_blocks), int64(e.kv_blocks) - free
    e.num = e.next = count
    e.running, e.waiting, e.slots = running, count - running, e.max_seqs - running
    e.head, e.tail, e.stamp, e.preempted, e.batch = _NONE, _NONE, running, 0, 0
    s.map_key[:] = 0
    for b in range(knot):
        s.block[b].key = 0
        s.block[b].ref = 1 if b < used else 0
    s.block[knot].after, s.block[knot].before = knot, knot
    for b in range(used, knot):
        last = int64(s.block[knot].before)
        s.block[last].after = b
        s.block[b].before, s.block[b].after = last, knot
        s.block[knot].before = b
    e.free = free
    taken, idle = int64(0), int64(used)
    for k in range(count):
        q = s.req[k]
        q.arrival_s, q.ttft_slo_s, q.tpot_slo_s = floats[0, k], floats[1, k], floats[2, k]
        q.last_token_s, q.queued_s, q.service_s = floats[3, k], floats[4, k], floats[5, k]
        q.prompt, q.max_new, q.priority, q.tenant = ints[0, k], ints[1, k], ints[2, k], ints[3, k]
        q.session, q.program, q.computed, q.generated = ints[4, k], ints[5, k], ints[6, k], ints[7, k]
        q.blocks, q.host_blocks, q.preemptions = ints[8, k], ints[9, k], ints[11, k]
        q.serial, q.hashed, q.granted, q.group, q.ousted = k, 0, 0, _NONE, 0
        q.first_token_s = q.last_token_s
        if k < running:
            q.state, q.slot, q.stamp, q.peak = _RUNNING, k, k, q.computed
            s.run[k] = k
            for j in range(q.blocks):
                b = taken % max(used, int64(1))
                if taken >= used:
                    s.block[b].ref += 1
                taken += 1
                s.table[k, j] = b
            continue
        found = ints[10, k] // e.block_tokens
        q.state, q.slot, q.blocks, q.peak = _WAITING, _NONE, 0, found * e.block_tokens
        q.before, q.after = e.tail, _NONE
        if e.head == _NONE:
            e.head = k
        else:
            s.req[e.tail].after = k
        e.tail = k
        for j in range(found):
            if idle < knot:
                enter_key(s, key_of(s, int64(k), j), idle)
                idle += 1
    for k in range(running, int64(e.max_seqs)):
        s.slot[e.max_seqs - 1 - k] = k


class Asked:
    """A compiled scheduler that answers a view with a plan.

    Args:
        policy: the scheduler.
    """

    oracle = False

    def __init__(self, policy: CompiledPolicy) -> None:
        self.policy = policy
        self.name = policy.name

    def reset(self, spec: EngineSpec, seed: int) -> None:
        """A new run begins."""
        config = replace(spec.config, kv_blocks=spec.kv_blocks, max_len=0)
        self._spec, self._seed = EngineSpec(config, spec.profile, spec.kv_blocks, spec.slo_kind), seed
        self._state: State | None = None
        self._make_room(64, 256)

    def _make_room(self, requests: int, tokens: int) -> None:
        self._room = requests, tokens
        nobody = Workload(
            arrival_s=np.zeros(requests),
            prompt_tokens=np.full(requests, tokens, np.int32),
            output_tokens=np.ones(requests, np.int32),
        )
        spec, before = self._spec, self._state
        self._state = fresh_state(nobody, spec.config, spec.profile, self._seed, steps=False, tokens=False)
        if before is None:
            self.policy.prepare(self._state, spec, self._seed)
        else:
            self._state.eng["round"] = before.eng["round"]

    def decide(self, view: EngineView) -> Plan:
        """The step that the scheduler would make, and whom it would preempt."""
        running, waiting = view.running, view.waiting
        ids = np.concatenate([running.id, waiting.id])
        floats = np.stack([np.concatenate([getattr(running, c), getattr(waiting, c)]) for c in FLOATS])
        ints = np.stack([np.concatenate([getattr(running, c), getattr(waiting, c)]) for c in INTS])
        longest = int((ints[0] + ints[1]).max(initial=1))
        if len(ids) > self._room[0] or longest > self._room[1]:
            self._make_room(max(2 * len(ids), self._room[0]), max(2 * longest, self._room[1]))
        s = self._state
        assert s is not None
        e = s.eng[0]
        _show(s, len(running), view.free_blocks, floats, ints)
        e["now"], e["steps"], e["host_free"] = view.now_s, view.step, view.host_free
        begin(s)
        e["budget"] = min(int(e["budget"]), view.token_budget)
        self.policy.fill(s)
        rows = s.batch[: e["batch"]]
        grants = list(zip(ids[rows["request"]].tolist(), rows["tokens"].tolist(), strict=True))
        out = np.flatnonzero(s.req["preemptions"][: len(running)] > running.preemptions)
        queued = np.empty(int(e["waiting"]), np.int64)
        queue(s, queued)
        ousted = queued[np.isin(queued, out)][::-1]  # the last preempted is at the head
        return Plan(grants=grants, preempt=[(int(r), "recompute") for r in ids[ousted]])
