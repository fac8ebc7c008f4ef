"""Every step and every request of every run as JSON lines, so that anyone can check them without this package.

Runs are deterministic: evidence is made by running each once more, every step seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from dispatchgym.agents.evaluation.family import Finished
from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.agents.evaluation.llm.judge import value_of
from dispatchgym.agents.evaluation.llm.problem import LlmAnswer, LlmProblem
from dispatchgym.agents.evaluation.problem import derived_seed
from dispatchgym.agents.evaluation.work import SOLVED, WorkItem
from dispatchgym.envs.api import InvalidScheduleError
from dispatchgym.envs.llm.executor import Batch, Executor, StepResult
from dispatchgym.envs.llm.record import FINISHED, Record
from dispatchgym.envs.llm.state import State

SAME = 1e-6
"""Times that were added up in another order differ by rounding."""

Line = dict[str, Any]


@dataclass(slots=True)
class Watch:
    """An executor as the simulator's own, which notes who ran what in every step.

    Attributes:
        make: what makes the executor that runs the steps.
        grants: of each step (request, tokens); preempted: who had lost its place since the step before.
    """

    make: Callable[[State], Executor]
    grants: list[list[list[int]]] = field(default_factory=list)
    preempted: list[list[int]] = field(default_factory=list)

    def __call__(self, state: State) -> Watch:
        self._state = state
        self._inner = self.make(state)
        self._before = state.req["preemptions"].copy()
        return self

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        self.grants.append(np.stack([batch.request, batch.tokens], axis=1).tolist())
        now = self._state.req["preemptions"].copy()
        self.preempted.append(np.flatnonzero(now > self._before).tolist())
        self._before = now
        return self._inner.run(batch, interrupt_s)

    _state: State = field(init=False)
    _inner: Executor = field(init=False)
    _before: Any = field(init=False)


def write_evidence(finished: Finished, folder: Path) -> None:
    """Write `steps.jsonl` and `requests.jsonl`; docs/llm_suites.md describes both.

    Raises:
        InvalidScheduleError: a run that did not come out the same again.
    """
    with atomic_write(folder / "steps.jsonl") as steps, atomic_write(folder / "requests.jsonl") as requests:
        for item, result in finished:
            if result.status not in SOLVED or result.value is None:
                continue
            record, watch, value = again(item)
            if not math.isclose(value, result.value, rel_tol=SAME, abs_tol=SAME):
                raise InvalidScheduleError(f"{item.key}: {result.value} the first time, {value} the second")
            head = {
                "group": item.problem.group,
                "instance": item.problem.instance.name,
                "policy": item.policy.name,
                "seed": item.seed,
            }
            about = {"metric": item.problem.metric, "value": result.value}
            _write(requests, {**head, **about, **_requests(record, item)})
            for number, step in enumerate(_steps(record, watch)):
                _write(steps, {**head, "step": number, **step})


def again(item: WorkItem) -> tuple[Record, Watch, float]:
    """The run once more: record, what was seen, and its value."""
    problem = cast(LlmProblem, item.problem)
    watch = Watch(problem.instance.executor)
    scenario = replace(problem.scenario(item.seed), watch=watch)
    seed = derived_seed("policy", item.policy.name, problem.instance.digest, str(item.seed))
    answer: LlmAnswer = item.policy.prepare(problem)(scenario, seed)
    return answer.record, watch, value_of(problem, answer, scenario)


def _write(file: Any, line: Line) -> None:
    file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")


def _steps(record: Record, watch: Watch) -> list[Line]:
    s = record.steps
    if len(s.start_s) != len(watch.grants):
        raise InvalidScheduleError(f"{record.policy}: {len(s.start_s)} steps logged, {len(watch.grants)} seen")
    return [
        {
            "start_s": start,
            "duration_s": duration,
            "grants": watch.grants[k],
            "preempted": watch.preempted[k],
            "kv_blocks": blocks,
            "waiting": waiting,
        }
        for k, (start, duration, blocks, waiting) in enumerate(
            zip(s.start_s.tolist(), s.duration_s.tolist(), s.kv_blocks.tolist(), s.waiting.tolist(), strict=True)
        )
    ]


def _requests(record: Record, item: WorkItem) -> Line:
    w, r, engine = record.workload, record.requests, item.problem.instance.engine
    facts: Line = {
        "kv_blocks": record.kv_blocks,
        "token_budget": engine.token_budget,
        "max_seqs": engine.max_seqs,
        "slo_kind": w.slo_kind,
        "end_s": record.end_s,
    }
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "ttft_slo_s", "tpot_slo_s"):
        facts[name] = _numbers(getattr(w, name).tolist())
    for name in ("first_token_s", "finish_s", "max_gap_s", "cached_tokens"):
        facts[name] = _numbers(getattr(r, name).tolist())
    return {**facts, "finished": (r.status == FINISHED).tolist()}


def _numbers(values: Sequence[float]) -> list[float | None]:
    """None for no number: a bound that does not exist, a token that never came."""
    return [x if math.isfinite(x) else None for x in values]
