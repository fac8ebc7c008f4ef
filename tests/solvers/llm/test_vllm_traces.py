"""What vLLM 0.25.1's own scheduler did, written down by tests/conformance/vllm/record.py, and what our policy does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.vllm.cases import Case, Step, our_steps

TRACES = json.loads((Path(__file__).parent / "vllm_traces.json").read_text())["traces"]


@pytest.mark.parametrize("trace", TRACES, ids=[f"seed-{trace['case']['seed']}" for trace in TRACES])
def test_tokens_and_victims_are_those_of_vllm(trace: dict[str, Any]) -> None:
    theirs = [
        Step(now, tuple(zip(flat[::2], flat[1::2], strict=True)), tuple(preempted))
        for now, *flat, preempted in trace["steps"]
    ]
    assert our_steps(Case(**trace["case"])) == theirs


def test_every_kind_is_there() -> None:
    cases = [trace["case"] for trace in TRACES]
    for option in ("caching", "by_priority", "chunked", "full_input"):
        assert {case[option] for case in cases} == {False, True}
    assert sum(any(step[-1] for step in trace["steps"]) for trace in TRACES) >= 4
