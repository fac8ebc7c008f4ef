"""What a run was worth: latencies, goodput under SLOs, waste, fairness and the readers' experience."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.record import ABORTED, DROPPED, FINISHED, REJECTED, Record

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

READER_TTFT_S = 1.0
READER_TOKENS_PER_S = 4.8
"""What a reader expects, of the QoE: the first token after a second, then the pace of reading. Andes (2024)."""

PROMPT_COST, OUTPUT_COST = 1.0, 2.0
"""Service counted for a prompt token and an output token. VTC (2024)."""

WINDOW_S = 60.0
"""Of the fairness measures. VTC (2024)."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles, in the unit of the values; nan where there are none."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: F64) -> Spread:
        """Of values that are not nan; percentiles interpolate linearly, as `numpy.percentile` does."""
        known = values[~np.isnan(values)]
        if not known.size:
            return cls(math.nan, math.nan, math.nan, math.nan)
        p50, p90, p99 = np.percentile(known, [50, 90, 99])
        return cls(float(known.mean()), float(p50), float(p90), float(p99))


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Of one class of requests.

    Args:
        requests, finished: how many. attainment: share of all its requests that met every SLO they had.
        goodput_rps: such requests a second of the run.
        ttft_s: arrival to first token. tpot_s: mean time per output token after the first, of each finished request
            with more than one.
    """

    requests: int
    finished: int
    attainment: float
    goodput_rps: float
    ttft_s: Spread
    tpot_s: Spread


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of a run. A request without an SLO meets it; one that did not finish meets none.

    Args:
        requests, finished, dropped, rejected, aborted: how many; the rest was still there when the run was cut short.
        duration_s: first arrival to last end.
        throughput_rps, throughput_tps: finished requests, and output tokens of all, a second.
        goodput_rps, goodput_tps: requests that met every SLO they had, and their output tokens, a second.
        attainment: share of all requests that met every SLO they had. ttft_attainment, tpot_attainment: each alone.
        ttft_s: arrival to first token. tpot_s: mean time per output token after the first, of each finished request
            with more than one. mtpot_s: the longest such time of each. itl_s: over all of these times, to within the
            record's bins. e2e_s: arrival to end of each finished request.
        recompute_tax: share of all tokens run that had been computed before and were given up.
        prefix_hit_rate: share of the tokens to prefill that were found in the cache; nan where steps were not kept.
        preemptions: how often a request lost its place; preempted: requests that did at least once.
        swapped_bytes: moved to the host and back.
        jain: Jain's index over tenants of the share of what they asked for that they got, mean over windows of
            `WINDOW_S`; service_gap, service_gap_max: mean and greatest VTC service difference of these windows. nan
            with one tenant. Prompts count at the first token, outputs evenly from then to the end.
        qoe: mean quality of experience of readers, 0 to 1; nan where token times were not kept.
        busy: share of the duration in which a step ran. mean_batch, mean_kv: requests in a step and share of the KV
            blocks in use, means over busy time; nan where steps were not kept. steps: engine steps.
        repairs: changes that the engine had to make to plans: kind -> number.
        policy_us: CPU microseconds spent in the policy for a step.
        classes: the same of each class, by name.
    """

    requests: int
    finished: int
    dropped: int
    rejected: int
    aborted: int
    duration_s: float
    throughput_rps: float
    throughput_tps: float
    goodput_rps: float
    goodput_tps: float
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    ttft_s: Spread
    tpot_s: Spread
    mtpot_s: Spread
    itl_s: Spread
    e2e_s: Spread
    recompute_tax: float
    prefix_hit_rate: float
    preemptions: int
    preempted: int
    swapped_bytes: float
    jain: float
    service_gap: float
    service_gap_max: float
    qoe: float
    busy: float
    mean_batch: float
    mean_kv: float
    steps: int
    repairs: dict[str, int]
    policy_us: float
    classes: dict[str, ClassMetrics]

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: nested dicts, None for nan and infinity."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def measure(record: Record) -> Metrics:
    """The metrics of a run."""
    r, w = record.requests, record.workload
    ended = r.status == FINISHED
    begin = float(w.arrival_s[0]) if len(w) else 0.0
    duration = max(record.end_s - begin, 1e-12)
    met_ttft, met_tpot = slo_met(record)
    met = met_ttft & met_tpot
    ttft, tpot = record.ttft_s, record.mean_gap_s
    jain, gap, gap_max = fairness(record)
    mean_batch, mean_kv, hit_rate = _of_steps(record)
    work = int(r.computed_tokens.sum())
    return Metrics(
        requests=len(w),
        finished=int(ended.sum()),
        dropped=int((r.status == DROPPED).sum()),
        rejected=int((r.status == REJECTED).sum()),
        aborted=int((r.status == ABORTED).sum()),
        duration_s=duration,
        throughput_rps=int(ended.sum()) / duration,
        throughput_tps=int(r.generated.sum()) / duration,
        goodput_rps=int(met.sum()) / duration,
        goodput_tps=int(r.generated[met].sum()) / duration,
        attainment=_share(met),
        ttft_attainment=_share(met_ttft),
        tpot_attainment=_share(met_tpot),
        ttft_s=Spread.of(ttft),
        tpot_s=Spread.of(tpot),
        mtpot_s=Spread.of(np.where(r.generated > 1, r.max_gap_s, np.nan)),
        itl_s=_of_bins(record.gap_edges_s, record.gap_count),
        e2e_s=Spread.of(np.where(ended, r.finish_s - w.arrival_s, np.nan)),
        recompute_tax=int(r.recomputed_tokens.sum()) / work if work else 0.0,
        prefix_hit_rate=hit_rate,
        preemptions=int(r.preemptions.sum()),
        preempted=int((r.preemptions > 0).sum()),
        swapped_bytes=float(r.swap_bytes.sum()),
        jain=jain,
        service_gap=gap,
        service_gap_max=gap_max,
        qoe=_mean_qoe(record),
        busy=record.busy_s / duration,
        mean_batch=mean_batch,
        mean_kv=mean_kv,
        steps=record.num_steps,
        repairs=dict(record.repairs),
        policy_us=1e6 * record.policy_s / max(record.num_steps, 1),
        classes={
            name: ClassMetrics(
                requests=int(mine.sum()),
                finished=int((mine & ended).sum()),
                attainment=_share(met[mine]),
                goodput_rps=int((met & mine).sum()) / duration,
                ttft_s=Spread.of(ttft[mine]),
                tpot_s=Spread.of(tpot[mine]),
            )
            for k, name in enumerate(w.class_names)
            if (mine := w.class_id == k).any()
        },
    )


def slo_met(record: Record) -> tuple[Bools, Bools]:
    """Which requests finished and met their bound on the first token, and on the tokens after it; shapes (n,)."""
    r, w = record.requests, record.workload
    ended = r.status == FINISHED
    gap = r.max_gap_s if w.slo_kind == "max" else record.mean_gap_s
    gap = np.where(r.generated > 1, gap, 0.0)
    # Rounding of times that were added up in another order must not decide.
    first_in_time = record.ttft_s <= w.ttft_slo_s * (1 + 1e-9)
    return ended & first_in_time, ended & (gap <= w.tpot_slo_s * (1 + 1e-9))


def qoe(record: Record, ttft_s: float = READER_TTFT_S, tokens_per_s: float = READER_TOKENS_PER_S) -> F64:
    """Quality of experience of each request's reader, 0 to 1, shape (n,); 0 without a token, nan while unfinished.

    A reader expects the first token after `ttft_s` and then reads `tokens_per_s`: a token is read when it is there and
    the one before it has been read. The quality is the area under the curve of tokens read over time, divided by that
    of a reader who never waited, both until the last token has been read.
    Source: Andes (arXiv 2404.16283), in steps of whole tokens, and without a bonus for tokens ahead of expectation.

    Raises:
        ValueError: the record holds no token times.
    """
    if record.tokens is None:
        raise ValueError("QoE needs the time of every token; run with token times kept")
    n, pace = len(record.workload), 1.0 / tokens_per_s
    order = np.argsort(record.tokens.request, kind="stable")
    of = record.tokens.request[order].astype(np.int64)
    since = record.tokens.time_s[order] - record.workload.arrival_s[of]
    count = np.bincount(of, minlength=n)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    # Read at the latest of: it is there, it is due, the one before was read a pace ago. Less the pace of its number,
    # that is a running maximum within each request; rising offsets keep requests apart.
    late = np.maximum(since - pace * nth, ttft_s)
    apart = 2.0 * (float(late.max()) + 1.0) if late.size else 1.0
    read = np.maximum.accumulate(late + apart * of) - apart * of  # less the pace of its number
    found = np.zeros(n)
    some = count > 0
    last = read[np.cumsum(count)[some] - 1]
    # end - due and end - read, summed over a request's tokens; end is a pace after the last token began to be read.
    c = count[some].astype(np.float64)
    end = last + pace * c
    steps = pace * c * (c - 1) / 2
    whole = c * (end - ttft_s) - steps
    actual = c * end - np.bincount(of, weights=read, minlength=n)[some] - steps
    found[some] = np.minimum(actual / whole, 1.0)
    found[np.isnan(record.requests.finish_s)] = np.nan
    return found


def fairness(record: Record, window_s: float = WINDOW_S) -> tuple[float, float, float]:
    """Jain's index, mean and greatest service difference over windows, as `Metrics` tells; nan with one tenant.

    The difference of a window is how much less a tenant got than the one that got most, as far as it had asked for
    more: the greatest over tenants. What a tenant asks for in a window is what came in it and what was left before.
    Source: VTC (OSDI 2024), for windows side by side.
    """
    w, r = record.workload, record.requests
    tenants, of = np.unique(w.tenant, return_inverse=True)
    if len(tenants) < 2:
        return math.nan, math.nan, math.nan
    edges = np.arange(float(w.arrival_s[0]), record.end_s + window_s, window_s)
    edges = np.append(edges, edges[-1] + window_s) if len(edges) < 2 else edges
    asked = PROMPT_COST * w.prompt_tokens + OUTPUT_COST * w.output_tokens
    asked = np.where(r.status == FINISHED, asked, 0.0)  # what was never served tells nothing of shares
    came, served = np.zeros((2, len(tenants), len(edges)))
    for k in range(len(tenants)):
        mine = np.flatnonzero((of == k) & (r.status == FINISHED))
        came[k] = _cumulative(w.arrival_s[mine], asked[mine], edges)
        served[k] = _cumulative(r.first_token_s[mine], PROMPT_COST * w.prompt_tokens[mine], edges)
        served[k] += _ramps(r.first_token_s[mine], r.finish_s[mine], OUTPUT_COST * r.generated[mine], edges)
    got = np.diff(served, axis=1)
    wanted = came[:, 1:] - served[:, :-1]
    gaps = np.minimum(got.max(axis=0) - got, np.maximum(wanted - got, 0.0)).max(axis=0)
    jains = [
        float(share.sum() ** 2 / (len(share) * (share**2).sum()))
        for window in range(len(edges) - 1)
        if (some := wanted[:, window] > 1e-9).sum() > 1
        and (share := np.minimum(got[some, window] / wanted[some, window], 1.0)).any()
    ]
    return float(np.mean(jains)) if jains else math.nan, float(gaps.mean()), float(gaps.max())


def _cumulative(at: F64, amount: npt.NDArray[Any], edges: F64) -> F64:
    """Sum of the amounts that came before each edge."""
    order = np.argsort(at, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(amount[order])])
    found: F64 = total[np.searchsorted(at[order], edges, side="left")]
    return found


def _ramps(begin: F64, end: F64, amount: npt.NDArray[Any], edges: F64) -> F64:
    """Sum at each edge of amounts that flow in evenly from begin to end."""
    found = np.zeros(len(edges))
    for a, b, x in zip(begin, end, amount, strict=True):
        found += x * np.clip((edges - a) / max(b - a, 1e-9), 0.0, 1.0)
    return found


def _mean_qoe(record: Record) -> float:
    if record.tokens is None:
        return math.nan
    found = qoe(record)
    known = found[~np.isnan(found)]
    return float(known.mean()) if known.size else math.nan


def _of_steps(record: Record) -> tuple[float, float, float]:
    """Mean batch and share of KV blocks over busy time, and the hit rate of the prefix cache."""
    s = record.steps
    busy = float(s.duration_s.sum())
    if not busy:
        return math.nan, math.nan, math.nan
    batch = float((s.duration_s * (s.prefill_requests + s.decode_requests)).sum()) / busy
    kv = float((s.duration_s * s.kv_blocks).sum()) / busy / record.kv_blocks
    cached = int(record.requests.cached_tokens.sum())
    wanted = cached + int(s.prefill_tokens.sum(dtype=np.int64))
    return batch, kv, cached / wanted if wanted else math.nan


def _of_bins(edges: F64, count: npt.NDArray[np.int64]) -> Spread:
    """Mean and percentiles of binned values, evenly spread within their bins."""
    total = int(count.sum())
    if not total:
        return Spread.of(np.zeros(0))
    below = np.concatenate([[0.0], np.cumsum(count)]) / total
    mean = float((count * (edges[1:] + edges[:-1]) / 2).sum()) / total
    p50, p90, p99 = (float(np.interp(q, below, edges)) for q in (0.5, 0.9, 0.99))
    return Spread(mean, p50, p90, p99)


def _share(of: Bools) -> float:
    return float(of.mean()) if of.size else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
