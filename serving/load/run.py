"""A workload sent to a server when it is due, whatever became of what was sent before, and what came of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dispatchgym.envs.llm.metrics import Metrics, Spread, measure
from dispatchgym.envs.llm.record import ABORTED, FINISHED, REJECTED, Record, Requests, Steps
from dispatchgym.envs.llm.state import GAP_BINS, gap_edges_s
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.load.client import Outcome, Target
from dispatchgym.serving.load.prompts import Ruler, ids_of, text_of

AHEAD_S = 0.5
"""Prompts are made so long before they are due."""


@dataclass(frozen=True, slots=True)
class Style:
    """How requests are put.

    Attributes:
        chat: as a chat completion with one message of the user.
        prompts: "text", or token "ids" below `vocabulary`.
        ignore_eos: ask for exactly as many output tokens as the workload has; an extension that vLLM, SGLang and this
            server know.
        salt: another one gives other prompts of the same structure.
    """

    chat: bool = False
    prompts: Literal["text", "ids"] = "text"
    vocabulary: int = 256
    ignore_eos: bool = True
    salt: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class LoadRun:
    """A run against one server.

    Attributes:
        outcomes: one a request of the workload, in its order.
        record: the same as the simulator's metrics read it. What a client cannot see is 0 or empty: steps,
            preemptions, repairs.
        metrics: goodput, attainment, percentiles.
        lag: how late requests were sent, seconds: of this program, not of the server, and counted as waiting.
        prompt_error: mean of |prompt tokens as the server counts / as the workload has - 1|; nan if it does not say.
    """

    outcomes: Sequence[Outcome]
    record: Record
    metrics: Metrics
    lag: Spread
    prompt_error: float

    @property
    def statuses(self) -> dict[str, int]:
        """How requests ended: "200", "429", ..., "broken" for answers that stopped in the middle -> how many."""
        found: dict[str, int] = {}
        for outcome in self.outcomes:
            name = "broken" if outcome.status == 200 and outcome.error else str(outcome.status or "no connection")
            found[name] = found.get(name, 0) + 1
        return dict(sorted(found.items()))


async def drive(
    target: Target, workload: Workload, style: Style, advance: Callable[[str], None] = lambda _: None
) -> LoadRun:
    """Send every request at its time; latencies count from when it was due, so a stall hides nothing.

    Raises:
        UsageError: the server cannot be asked at all.
    """
    await target.find_model()
    ruler = await target.measure() if style.prompts == "text" else None
    begin = time.perf_counter() + AHEAD_S
    first = float(workload.arrival_s[0]) if len(workload) else 0.0
    outcomes = [Outcome(float(at) - first) for at in workload.arrival_s]

    def now_s() -> float:
        return time.perf_counter() - begin

    async def one(request: int) -> None:
        outcome = outcomes[request]
        body = await asyncio.to_thread(body_of, workload, request, target.model, style, ruler)
        await asyncio.sleep(outcome.due_s - now_s())
        await target.stream(body, headers_of(workload, request), outcome, now_s, chat=style.chat)
        advance(str(request))

    tasks: list[asyncio.Task[None]] = []
    try:
        for request in range(len(workload)):
            await asyncio.sleep(outcomes[request].due_s - AHEAD_S - now_s())
            tasks.append(asyncio.create_task(one(request)))
        await asyncio.gather(*tasks)
    finally:  # of a run that is cut short nothing goes on
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return summed_up(workload, outcomes, target.model)


def body_of(workload: Workload, request: int, model: str, style: Style, ruler: Ruler | None) -> dict[str, Any]:
    """The request as the interface wants it."""
    if ruler is None:
        prompt: str | list[int] = ids_of(workload, request, style.vocabulary, style.salt)
    else:
        prompt = text_of(workload, request, ruler, style.salt)
    asked = {"messages": [{"role": "user", "content": prompt}]} if style.chat else {"prompt": prompt}
    return {
        "model": model,
        **asked,
        "max_tokens": int(workload.output_tokens[request] if style.ignore_eos else workload.max_new_tokens[request]),
        "temperature": 1.0,
        "seed": request,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if style.ignore_eos else {}),
    }


def headers_of(workload: Workload, request: int) -> dict[str, str]:
    """What a scheduler wants to know; servers that do not read these headers ignore them."""
    found = {"x-tenant": f"tenant-{workload.tenant[request]}", "x-priority": str(workload.priority[request])}
    for header, bound in (("x-ttft-slo-ms", workload.ttft_slo_s), ("x-tpot-slo-ms", workload.tpot_slo_s)):
        if math.isfinite(bound[request]):
            found[header] = f"{1e3 * bound[request]:.6g}"
    for header, column in (("x-session-id", workload.session), ("x-program-id", workload.program)):
        if column[request] >= 0:
            found[header] = f"{header[2:9]}-{column[request]}"
    return found


def summed_up(workload: Workload, outcomes: Sequence[Outcome], name: str) -> LoadRun:
    """The run's record and metrics."""
    first = float(workload.arrival_s[0]) if len(workload) else 0.0
    due = replace(workload, arrival_s=workload.arrival_s - first)
    count = np.array([_generated(o) for o in outcomes], np.int32)
    edges = gap_edges_s()
    gaps = [np.diff(o.token_s) for o in outcomes]
    bins = np.searchsorted(edges, np.concatenate([*gaps, np.zeros(0)]), side="right") - 1
    requests = Requests(
        status=np.array([_status(o) for o in outcomes], np.int8),
        first_scheduled_s=_nan(len(outcomes)),
        first_token_s=np.array([o.token_s[0] if o.token_s else math.nan for o in outcomes]),
        finish_s=np.array([o.token_s[-1] if o.is_whole and o.token_s else o.end_s for o in outcomes]),
        generated=count,
        max_gap_s=np.array([gap.max(initial=0.0) for gap in gaps]),
        preemptions=np.zeros(len(outcomes), np.int32),
        cached_tokens=np.array([max(o.cached_tokens, 0) for o in outcomes], np.int64),
        computed_tokens=np.zeros(len(outcomes), np.int64),
        recomputed_tokens=np.zeros(len(outcomes), np.int64),
        swap_bytes=np.zeros(len(outcomes)),
        service_s=np.zeros(len(outcomes)),
    )
    nothing: dict[str, Any] = {field: np.zeros(0) for field in Steps.__dataclass_fields__}
    record = Record(
        workload=due, policy=name, requests=requests, steps=Steps(**nothing), num_steps=0,
        end_s=max((o.end_s for o in outcomes), default=0.0), busy_s=math.nan, gap_edges_s=edges,
        gap_count=np.bincount(np.clip(bins, 0, GAP_BINS - 1), minlength=GAP_BINS).astype(np.int64), repairs={},
        decisions=0, policy_s=0.0, kv_blocks=1, block_tokens=1,
    )  # fmt: skip
    lag = Spread.of(np.array([o.sent_s - o.due_s for o in outcomes]))
    told = [(o.prompt_tokens, int(p)) for o, p in zip(outcomes, workload.prompt_tokens, strict=True)]
    errors = [abs(there / wanted - 1) for there, wanted in told if there >= 0]
    return LoadRun(outcomes, record, measure(record), lag, float(np.mean(errors)) if errors else math.nan)


def _status(outcome: Outcome) -> int:
    if outcome.is_whole:
        return FINISHED
    return ABORTED if outcome.status == 200 or outcome.status == 0 else REJECTED


def _generated(outcome: Outcome) -> int:
    return outcome.completion_tokens if outcome.completion_tokens >= 0 else len(outcome.token_s)


def _nan(n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.full(n, math.nan)
