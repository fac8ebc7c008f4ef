"""What Prometheus sees of the LLM server: vLLM's names where it has them, `dispatchgym:` for the rest."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dispatchgym.serving.llm.messages import Step

if TYPE_CHECKING:
    from dispatchgym.serving.llm.sequences import Sequence

_LATENCY_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_POLICY_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

RECENT = 200
"""Finished requests with a bound that the recent attainment is taken over."""
MOST_DECISIONS = 20_000
"""Last decisions of a scheduler that its percentiles are taken over."""


class LlmMetrics:
    """Counters, gauges and histograms of one server, in a registry of their own.

    Attributes:
        recent: whether each of the last requests that had a bound met it.
        decisions_s: what the present scheduler's last decisions took; empty for rules that run inside the engine.
    """

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self.recent: deque[bool] = deque(maxlen=RECENT)
        self.decisions_s: deque[float] = deque(maxlen=MOST_DECISIONS)
        self._model = model
        of_model = ["model_name"]

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, [*of_model, *labels], registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, [*of_model, *labels], registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, of_model, buckets=buckets, registry=self.registry).labels(model)

        self._running = gauge("vllm:num_requests_running", "Sequences that run.").labels(model)
        self._waiting = gauge("vllm:num_requests_waiting", "Sequences that wait for their first step.").labels(model)
        self._kv = gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.").labels(model)
        self._preemptions = counter("vllm:num_preemptions", "Sequences that lost their place.").labels(model)
        self._prompt = counter("vllm:prompt_tokens", "Prompt tokens of finished requests.").labels(model)
        self._generated = counter("vllm:generation_tokens", "Tokens put out.").labels(model)
        self._queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up.").labels(model)
        self._hits = counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.").labels(model)
        self._success = counter("vllm:request_success", "Finished sequences.", "finished_reason")
        self._ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _LATENCY_S)
        self.gap = histogram("vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", _GAP_S)
        self._tpot = histogram("vllm:request_time_per_output_token_seconds", "Mean of each sequence.", _GAP_S)
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to end.", _LATENCY_S)
        self._queue = histogram("vllm:request_queue_time_seconds", "Arrival to first step.", _LATENCY_S)
        self._prompts = histogram("vllm:request_prompt_tokens", "Of each sequence.", _TOKENS)
        self._outputs = histogram("vllm:request_generation_tokens", "Of each sequence.", _TOKENS)
        self._step_tokens = histogram("vllm:iteration_tokens_total", "Tokens of a step.", _TOKENS)

        self._steps = counter("dispatchgym:steps", "Engine steps.").labels(model)
        self._interrupted = counter("dispatchgym:steps_interrupted", "Stopped by arrivals.").labels(model)
        self._step_s = histogram("dispatchgym:step_seconds", "Of a step, decision included.", _GAP_S)
        self._policy_s = histogram("dispatchgym:policy_seconds", "Of a decision.", _POLICY_S)
        self._repairs = counter("dispatchgym:plan_repairs", "Changes that the engine made to plans.", "kind")
        self._faults = counter("dispatchgym:policy_fallbacks", "Decisions made by the fallback rule.", "cause")
        self._benched = gauge("dispatchgym:policy_benched", "1: the scheduler failed too often.").labels(model)
        self._scheduler = gauge("dispatchgym:scheduler_info", "1 for the one that decides.", "scheduler", "version")
        self._slo = counter("dispatchgym:slo_requests", "Finished requests that had a bound.", "met")
        self.restarts = counter("dispatchgym:engine_restarts", "Times that the engine was started again.").labels(model)
        self._turned_away = counter("dispatchgym:turned_away", "Requests answered with 429.", "cause")
        self.composition = {"prefill_tokens": 0, "decode_tokens": 0, "prefills": 0, "decodes": 0, "steps": 0}
        self.step_seconds = 0.0

    def turned_away(self, cause: str) -> None:
        """A request was answered with 429."""
        self._turned_away.labels(self._model, cause).inc()

    def queue(self, waiting: int, running: int) -> None:
        """So many wait and run now."""
        self._waiting.set(waiting)
        self._running.set(running)

    def scheduler(self, name: str, version: str) -> None:
        """That one decides from now on."""
        self._scheduler.clear()
        self.decisions_s.clear()
        self._scheduler.labels(self._model, name, version).set(1)
        self._benched.set(0)

    def step(self, step: Step, kv_blocks: int | None, before: Step | None) -> None:
        """A step was made; `before` is the one before it, None after a start."""
        if kv_blocks:
            self._kv.set(1.0 - step.free_blocks / kv_blocks)
        self._benched.set(step.is_benched)
        self._interrupted.inc(step.is_interrupted)
        tokens = step.prefill_tokens + step.decode_tokens
        if tokens:
            self._steps.inc()
            self._step_s.observe(step.seconds)
            self._step_tokens.observe(tokens)
            self.step_seconds += step.seconds
            for name in ("prefill_tokens", "decode_tokens", "prefills", "decodes"):
                self.composition[name] += getattr(step, name)
            self.composition["steps"] += 1
        if step.policy_s:
            self._policy_s.observe(step.policy_s)
            self.decisions_s.append(step.policy_s)
        self._generated.inc(sum(len(output.tokens) for output in step.outputs))
        grown = before is not None and step.preemptions >= before.preemptions
        self._preemptions.inc(step.preemptions - (before.preemptions if before is not None and grown else 0))
        for counter, now, then in (
            (self._repairs, step.repairs, before.repairs if before is not None else {}),
            (self._faults, step.faults, before.faults if before is not None else {}),
        ):
            for kind, count in now.items():
                more = count - then.get(kind, 0)
                counter.labels(self._model, kind).inc(more if more >= 0 else count)

    def finished(self, sequence: Sequence, reason: str, now_s: float) -> None:
        """A sequence has ended."""
        self._success.labels(self._model, reason).inc()
        has_bound = math.isfinite(sequence.ttft_slo_s) or math.isfinite(sequence.tpot_slo_s)
        is_whole = reason in ("stop", "length")
        if has_bound and reason != "abort":
            met = is_whole and sequence.in_time
            self._slo.labels(self._model, str(met).lower()).inc()
            self.recent.append(met)
        if not is_whole:
            return
        prompt = len(sequence.submit.prompt)
        self._prompt.inc(prompt)
        self._queries.inc(prompt)
        self._hits.inc(sequence.cached)
        self._prompts.observe(prompt)
        self._outputs.observe(sequence.generated)
        self._queue.observe(sequence.scheduled_s - sequence.arrived_s)
        self._ttft.observe(sequence.first_s - sequence.arrived_s)
        self._e2e.observe(now_s - sequence.arrived_s)
        if sequence.generated > 1:
            self._tpot.observe(sequence.tpot_s)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
