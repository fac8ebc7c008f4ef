"""Writes down what vLLM's scheduler does with a few cases, for the default tests: `make vllm-traces`."""

from __future__ import annotations

import json
from pathlib import Path

import vllm

from tests.conformance.vllm.cases import random_case
from tests.conformance.vllm.stock import its_steps, scheduler

TRACES = Path(__file__).parents[2] / "solvers" / "llm" / "vllm_traces.json"
MOST_STEPS, MOST_TOKENS = 250, 1200


def main() -> None:
    """One short case of each kind: with and without preemptions, caching, priorities, pieces."""
    kinds: dict[tuple[bool, ...], dict[str, object]] = {}
    for seed in range(1000, 1200):
        case = random_case(seed)
        steps = its_steps(case, scheduler(case))
        preempted = any(step.preempted for step in steps)
        kind = (preempted, case.caching, case.by_priority, case.chunked)
        rows = [[step.now, *(n for pair in step.tokens for n in pair), list(step.preempted)] for step in steps]
        if kind not in kinds and 20 < len(steps) < MOST_STEPS and sum(map(len, rows)) < MOST_TOKENS:
            kinds[kind] = {"case": case.to_json(), "steps": rows}
    traces = json.dumps({"vllm": vllm.__version__, "traces": list(kinds.values())}, separators=(",", ":"))
    TRACES.write_text(traces.replace('{"case"', '\n{"case"') + "\n")
    print(f"{TRACES}: {len(kinds)} traces, {len(traces) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
