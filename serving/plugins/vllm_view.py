"""What our schedulers see of a vLLM engine: its requests and blocks as an `EngineView`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dispatchgym.envs.llm.policy import EngineView, RequestTable, Texts

WINDOW = 128
"""Requests at the head of the queue that a policy is shown; the others keep their order behind these."""
HISTORY = 1000
_BOUNDS = {"ttft_slo_ms": "ttft_slo_s", "tpot_slo_ms": "tpot_slo_s"}


class Seen:
    """What vLLM does not keep with a request: its number here, its times, what its client asked for beyond vLLM."""

    __slots__ = (
        "first_token_s",
        "known",
        "last_token_s",
        "number",
        "program",
        "queued_s",
        "run_s",
        "service_s",
        "session",
        "tenant",
        "tpot_slo_s",
        "ttft_slo_s",
    )  # fmt: skip

    def __init__(self, number: int, now_s: float, extra: Mapping[str, Any]) -> None:
        self.number = number
        self.queued_s = now_s
        self.run_s = self.service_s = 0.0
        self.first_token_s = self.last_token_s = float("nan")
        self.ttft_slo_s = self.tpot_slo_s = float("inf")
        for name, column in _BOUNDS.items():
            if isinstance(extra.get(name), int | float) and extra[name] > 0:
                setattr(self, column, extra[name] / 1000.0)
        self.tenant = _number(extra.get("tenant"), 0)
        self.session = _number(extra.get("session_id"), -1)
        self.program = _number(extra.get("program_id"), -1)
        self.known = 0


class Sight:
    """Follows a vLLM scheduler's requests, and shows them.

    Args:
        scheduler: of vLLM 0.25.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._seen: dict[str, Seen] = {}
        self._next = 0
        self._history: deque[int] = deque(maxlen=HISTORY)
        self.finished = 0
        self.steps = 0
        self._stepped_s = float("-inf")

    def __getitem__(self, request_id: str) -> Seen:
        return self._seen[request_id]

    def came(self, request: Any, now_s: float) -> None:
        """A request was added."""
        params = request.sampling_params
        extra = (params.extra_args if params is not None else None) or {}
        self._seen[request.request_id] = Seen(self._next, now_s, extra)
        self._next += 1

    def stepped(self, scheduled: Iterable[Any], began_s: float, now_s: float) -> None:
        """A step with these requests has been booked."""
        took_s = now_s - max(began_s, self._stepped_s)
        self._stepped_s = now_s
        self.steps += 1
        for request in scheduled:
            seen = self._seen.get(request.request_id)
            if seen is None:
                continue
            seen.service_s += took_s
            seen.run_s = now_s
            if request.num_output_tokens > seen.known:
                seen.known = request.num_output_tokens
                seen.last_token_s = now_s
                if seen.first_token_s != seen.first_token_s:
                    seen.first_token_s = now_s
            if request.is_finished():
                self._history.append(request.num_output_tokens)
                self.finished += 1
        for request_id in [r for r in self._seen if r not in self._scheduler.requests]:
            del self._seen[request_id]

    def requeued(self, request: Any, now_s: float) -> None:
        """A request was preempted."""
        self._seen[request.request_id].queued_s = now_s

    def view(self, running: list[Any], waiting: list[Any], now_s: float, texts: bool) -> EngineView:
        """The engine with these requests on its lists."""
        scheduler = self._scheduler
        pool, size = scheduler.kv_cache_manager.block_pool, scheduler.block_size
        history = np.array(self._history, np.int32)
        history.flags.writeable = False
        shown = None
        if texts:
            shown = Texts({self._seen[r.request_id].number: _hashes(r, size) for r in (*running, *waiting)}, size)
        return EngineView(
            now_s=now_s,
            step=self.steps,
            running=self._table(running, False),
            waiting=self._table(waiting, True),
            free_blocks=pool.get_num_free_blocks(),
            kv_blocks=pool.num_gpu_blocks - 1,
            block_tokens=size,
            free_seqs=max(scheduler.max_num_running_reqs - len(scheduler.running), 0),
            token_budget=scheduler.max_num_scheduled_tokens,
            host_free=0,
            max_preemptions=100,
            history=history,
            finished=self.finished,
            interrupted=False,
            texts=shown,
            oracle=None,
        )

    def _table(self, requests: list[Any], waiting: bool) -> RequestTable:
        scheduler = self._scheduler
        manager = scheduler.kv_cache_manager
        held = manager.coordinator.single_type_managers[0].req_to_blocks
        floats, ints = np.empty((8, len(requests))), np.empty((14, len(requests)), np.int64)
        for k, r in enumerate(requests):
            seen = self._seen[r.request_id]
            floats[:, k] = (
                r.arrival_time, seen.ttft_slo_s, seen.tpot_slo_s, seen.last_token_s, seen.first_token_s,
                seen.queued_s, seen.run_s, seen.service_s,
            )  # fmt: skip
            cached = 0
            if waiting and manager.enable_caching and not r.skip_reading_prefix_cache:
                _, cached = manager.coordinator.find_longest_cache_hit(r.block_hashes, r.num_tokens - 1)
            ints[:, k] = (
                seen.number, r.num_prompt_tokens, min(r.max_tokens, scheduler.max_model_len - r.num_prompt_tokens),
                r.priority, seen.tenant, seen.session, seen.program, r.num_computed_tokens,
                r.num_output_tokens + r.num_output_placeholders, len(held.get(r.request_id, ())), 0, cached,
                r.num_preemptions, -1,
            )  # fmt: skip
        for array in (floats, ints):
            array.flags.writeable = False
        return RequestTable(ints[0], *floats, *ints[1:])


def _hashes(request: Any, block_tokens: int) -> np.ndarray:
    """Of the prompt's full blocks, in 63 bits."""
    full = request.num_prompt_tokens // block_tokens
    numbers = [int.from_bytes(h[:8], "little") >> 1 for h in request.block_hashes[:full]]
    return np.array(numbers, np.int64)


def _number(value: object, missing: int) -> int:
    """A name as a number that stays the same; `missing` where there is none."""
    if value is None:
        return missing
    if isinstance(value, int):
        return value
    number = 0
    for byte in str(value).encode()[:64]:
        number = (number * 257 + byte) % (2**31 - 1)
    return number
