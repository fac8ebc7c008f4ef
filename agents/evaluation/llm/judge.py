"""Measures a run of a scheduler from its record, after an independent check that it can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dispatchgym.agents.evaluation.llm.problem import LlmAnswer, LlmProblem, Scenario
from dispatchgym.agents.evaluation.work import Result
from dispatchgym.agents.simulation.timeline import bin_edges, timeline
from dispatchgym.envs.api import InvalidScheduleError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.metrics import Metrics, measure
from dispatchgym.envs.llm.record import ABORTED, DROPPED, FINISHED, REJECTED, Record

BINS = 60
"""Of the timeline that is kept for the report."""

EPS = 1e-6


def judged(timed: Result, problem: LlmProblem, answer: LlmAnswer, scenario: Scenario) -> Result:
    """`timed` with the answer filled in, or marked invalid."""
    record = answer.record
    try:
        check(record, problem.instance.engine)
    except InvalidScheduleError as error:
        return replace(timed, status="invalid", message=str(error))
    found = measure(record)
    metrics = flat(found)
    edges = bin_edges(record.end_s, BINS)
    over_time = timeline(record, edges)
    metrics["timeline"] = {
        "end_s": record.end_s,
        **{name: [round(float(x), 4) for x in getattr(over_time, name)] for name in ("kv", "waiting", "running")},
    }
    if not problem.runs_on.is_simulated:
        metrics["runs_on"] = dict(problem.runs_on.backend().facts)
    return replace(timed, value=value_of(problem, answer, scenario), decisions=record.decisions, metrics=metrics)


def value_of(problem: LlmProblem, answer: LlmAnswer, scenario: Scenario) -> float:
    """What the run is worth: the problem's metric."""
    record = answer.record
    if problem.metric != "hindsight_pct":
        return float(getattr(measure(record), problem.metric))
    assert scenario.hindsight is not None
    best = scenario.hindsight.bound - float(scenario.workload.arrival_s.sum())
    return 100.0 * (float((record.requests.finish_s - record.workload.arrival_s).sum()) / best - 1.0)


def flat(found: Metrics) -> dict[str, Any]:
    """The numbers of a run by name, such as ttft_s_p99; what has no value is left out."""
    plain = found.plain()
    metrics: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict) and name.endswith("_s"):
            metrics |= {f"{name}_{key}": number for key, number in value.items() if number is not None}
        elif name == "classes":
            metrics["class_attainment"] = {key: each["attainment"] for key, each in value.items()}
        elif name == "repairs":
            metrics["repairs"] = sum(value.values())
        elif value is not None:
            metrics[name] = value
    metrics["attainment_pct"] = 100.0 * found.attainment
    return metrics


def check(record: Record, engine: EngineConfig) -> None:
    """Facts that hold for every run, looked at from outside the engine.

    Raises:
        InvalidScheduleError: naming the first that does not hold.
    """
    w, r, s = record.workload, record.requests, record.steps
    ended = r.status == FINISHED

    def demand(holds: Any, what: str) -> None:
        wrong = np.flatnonzero(~np.atleast_1d(np.asarray(holds, bool)))
        if wrong.size:
            raise InvalidScheduleError(f"{record.policy}: {what} (first at {int(wrong[0])})")

    gone = ended | np.isin(r.status, (DROPPED, REJECTED, ABORTED))
    demand(gone, "a request neither finished nor was dropped, refused or aborted")
    demand(r.generated[ended] == w.output_tokens[ended], "a finished request has not all its tokens")
    demand(r.first_token_s[ended] >= w.arrival_s[ended] - EPS, "a first token before the arrival")
    demand(r.finish_s[ended] >= r.first_token_s[ended] - EPS, "an end before the first token")
    # Every token of prompt and output but the last was run, found in the cache, or run in vain.
    wanted = w.prompt_tokens.astype(np.int64) + w.output_tokens - 1
    demand(
        (r.computed_tokens - r.recomputed_tokens + r.cached_tokens)[ended] >= wanted[ended],
        "a finished request with tokens that nobody computed",
    )
    demand(s.start_s[1:] >= (s.start_s + s.duration_s)[:-1] - EPS, "a step that begins before the last one ended")
    demand(s.duration_s > 0, "a step that takes no time")
    demand(s.kv_blocks <= record.kv_blocks, "more KV blocks in use than there are")
    demand(s.prefill_tokens + s.decode_tokens <= engine.token_budget, "a step beyond the token budget")
    demand(s.running <= engine.max_seqs, "more requests running than the engine allows")
