"""How a scheduler of ours orders SGLang's queue and holds requests back. Imports nothing of SGLang: duck types only."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, Policy, RequestTable
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.serving.plugins.vllm_view import HISTORY, WINDOW, Seen

log = logging.getLogger("dispatchgym.sglang")

MOST_FAULTS = 20
MOST_WAIT_S = 1.0


class Director:
    """Puts the waiting queue in a policy's order, and says who may not be admitted in this step.

    Requests that the policy leaves out wait while others run, for a second in a row at most where it leaves out all;
    with an empty batch nobody is held back. Whatever goes wrong, SGLang's own order stands for that step; after 20 such
    steps the policy is not asked any more.

    Args:
        policy: reset before the first decision, when the engine's sizes are known.
        budget_s: a decision that takes longer is a fault.
        limits: (most running requests, most tokens of a prompt step).

    Attributes:
        held: ids of requests that may not be admitted now.
        faults: by cause: "error", "late".
    """

    def __init__(
        self, policy: Policy, profile: Profile, budget_s: float, limits: tuple[int, int],
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.held: frozenset[str] = frozenset()
        self.faults: Counter[str] = Counter()
        self.is_benched = False
        self.decisions = 0
        self._profile = profile
        self._budget_s = budget_s
        self._max_seqs, self._max_tokens = limits
        self._clock = clock
        self._seen: dict[str, Seen] = {}
        self._next = 0
        self._history: deque[int] = deque(maxlen=HISTORY)
        self._finished = 0
        self._spec: EngineSpec | None = None
        self._waits_from_s: float | None = None

    def order(self, queue: list[Any], batch: Any, cache: Any) -> None:
        """Sort SGLang's queue in place.

        Args:
            queue, batch: its waiting requests and its running batch, or None.
            cache: its prefix cache, which knows the pool of KV tokens.
        """
        self.held = frozenset()
        if self.is_benched or not queue:
            return
        now_s = self._clock()
        try:
            running = [] if batch is None else [r for r in batch.reqs if not r.finished()]
            self._follow(running, queue, now_s)
            view = self._view(running, queue[:WINDOW], cache, now_s)
            began = time.perf_counter()
            plan = self.policy.decide(view)
            if time.perf_counter() - began > self._budget_s:
                self._fault("late")
                return
            if not isinstance(plan, Plan):
                raise TypeError(f"decide returned {type(plan).__name__}, not a Plan")
            self.decisions += 1
            numbers = {self._seen[r.rid].number: r for r in queue}
            chosen = list(dict.fromkeys(int(r) for r, n in plan.grants if int(n) > 0 and int(r) in numbers))
        except Exception:
            log.exception("policy %s failed", self.policy.name)
            self._fault("error")
            return
        ours = {numbers[k].rid for k in chosen}
        queue[:] = [numbers[k] for k in chosen] + [r for r in queue if r.rid not in ours]
        if not chosen:
            self._waits_from_s = now_s if self._waits_from_s is None else self._waits_from_s
        else:
            self._waits_from_s = None
        is_patient = self._waits_from_s is None or now_s - self._waits_from_s < MOST_WAIT_S
        if running and is_patient:
            self.held = frozenset(r.rid for r in queue if r.rid not in ours)

    def _follow(self, running: Iterable[Any], queue: Iterable[Any], now_s: float) -> None:
        """Notice who came, who put out tokens and who is gone. Times are those of the decisions that notice."""
        alive = set()
        for r in (*running, *queue):
            alive.add(r.rid)
            seen = self._seen.get(r.rid)
            if seen is None:
                seen = self._seen[r.rid] = Seen(self._next, now_s, r.sampling_params.custom_params or {})
                self._next += 1
            if len(r.output_ids) > seen.known:
                seen.known, seen.last_token_s, seen.run_s = len(r.output_ids), now_s, now_s
                if seen.first_token_s != seen.first_token_s:
                    seen.first_token_s = now_s
        for rid in [rid for rid in self._seen if rid not in alive]:
            self._history.append(self._seen.pop(rid).known)
            self._finished += 1

    def _view(self, running: list[Any], waiting: list[Any], cache: Any, now_s: float) -> EngineView:
        pool, page = cache.token_to_kv_pool_allocator, int(cache.page_size)
        blocks = int(pool.size) // page
        if self._spec is None:
            config = EngineConfig(
                block_tokens=page, kv_blocks=blocks, max_seqs=self._max_seqs, token_budget=self._max_tokens,
                max_len=blocks * page,
            )  # fmt: skip
            self._spec = EngineSpec(config, self._profile, blocks)
            self.policy.reset(self._spec, 0)
        history = np.array(self._history, np.int32)
        history.flags.writeable = False
        return EngineView(
            now_s=now_s,
            step=self.decisions,
            running=self._table(running, page, is_running=True),
            waiting=self._table(waiting, page, is_running=False),
            free_blocks=(int(pool.available_size()) + int(cache.evictable_size())) // page,
            kv_blocks=blocks,
            block_tokens=page,
            free_seqs=max(self._max_seqs - len(running), 0),
            token_budget=self._max_tokens,
            host_free=0,
            max_preemptions=100,
            history=history,
            finished=self._finished,
            interrupted=False,
            texts=None,
            oracle=None,
        )

    def _table(self, requests: list[Any], page: int, *, is_running: bool) -> RequestTable:
        floats, ints = np.empty((8, len(requests))), np.empty((14, len(requests)), np.int64)
        for k, r in enumerate(requests):
            seen = self._seen[r.rid]
            prompt, out = len(r.origin_input_ids), len(r.output_ids)
            floats[:, k] = (
                seen.queued_s, seen.ttft_slo_s, seen.tpot_slo_s, seen.last_token_s, seen.first_token_s, seen.queued_s,
                seen.run_s, seen.service_s,
            )  # fmt: skip
            computed = prompt + max(out - 1, 0) if is_running else 0
            cached = 0 if is_running else int(r.num_matched_prefix_tokens) // page * page
            ints[:, k] = (
                seen.number, prompt, max(int(r.sampling_params.max_new_tokens), 1), int(r.priority or 0), seen.tenant,
                seen.session, seen.program, computed, out, -(-computed // page), 0, min(cached, prompt - 1),
                int(r.retraction_count), -1,
            )  # fmt: skip
        for array in (floats, ints):
            array.flags.writeable = False
        return RequestTable(ints[0], *floats, *ints[1:])

    def _fault(self, cause: str) -> None:
        self.faults[cause] += 1
        if self.faults.total() >= MOST_FAULTS:
            self.is_benched = True
            log.error("policy %s is not asked any more: %s", self.policy.name, dict(self.faults))
