"""The same views and the same plans, whether a profile or a real model runs the steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.executor import Batch, SimulatedExecutor, StepResult
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.state import State
from dispatchgym.serving.executor import torch_executor
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.serving.executor.trace_tokens import TraceTokens
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from tests.envs.llm.helpers import PROFILE, random_workload
from tests.serving.executor.models import VOCABULARY, model
from tests.serving.executor.pausing import StopAfter

CONFIG = EngineConfig(kv_blocks=60, max_seqs=8, token_budget=128, host_blocks=30, max_len=300)
TIMES = replace(PROFILE, segments=4)
WORKLOAD = random_workload(8, 16, longest=90, rate=200.0)
PLANNING = [name for name in SCHEDULERS if not isinstance(SCHEDULERS[name](), CompiledPolicy)]


class Recorded:
    """A policy that keeps what it saw and what it ordered."""

    def __init__(self, name: str) -> None:
        self.policy = SCHEDULERS[name]()
        self.name, self.oracle = self.policy.name, self.policy.oracle
        self.texts = getattr(self.policy, "texts", False)
        self.seen: list[tuple[EngineView, Plan]] = []

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.policy.reset(spec, seed)

    def decide(self, view: EngineView) -> Plan:
        plan = self.policy.decide(view)
        self.seen.append((view, plan))
        return plan


class AsSimulated:
    """Runs every step on a real model, and says that it took as long as the profile says: the clocks agree."""

    def __init__(self, state: State) -> None:
        self.simulated = SimulatedExecutor(state, TIMES.segments, TIMES.pause_s)
        self.real = TorchExecutor(
            model("llama"), kv_blocks=CONFIG.kv_blocks, max_seqs=CONFIG.max_seqs, host_blocks=CONFIG.host_blocks,
            max_len=CONFIG.max_len, source=TraceTokens(WORKLOAD, VOCABULARY, state),
        )  # fmt: skip

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        told = self.simulated.run(None, interrupt_s)
        pauses = told.segments_done is not None
        StopAfter.segments = (told.segments_done or 0) - batch.segments_done
        found = self.real.run(batch, 1.0 if pauses else np.inf)
        assert found.segments_done == told.segments_done
        if not pauses:
            assert np.array_equal(found.emitted, told.emitted)
            assert np.array_equal(found.stopped, told.stopped)
        return StepResult(told.duration_s, found.emitted, found.stopped, found.segments_done, told.left_s)


def same(a: Any, b: Any) -> bool:
    """Equal, arrays and all that they are nested in; sums of times may be rounded in another order."""
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        if a.dtype.kind == "f":
            return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-12, atol=0.0, equal_nan=True))
        return bool(np.array_equal(a, b))
    if is_dataclass(a):
        return all(same(getattr(a, each.name), getattr(b, each.name)) for each in fields(a))
    return bool(a == b)


@pytest.mark.parametrize("name", PLANNING)
def test_policies_see_and_order_the_same_over_a_simulator_and_a_real_model(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_executor, "Pace", StopAfter)
    simulated, real = Recorded(name), Recorded(name)
    simulate(WORKLOAD, simulated, CONFIG, TIMES, seed=1)
    simulate(WORKLOAD, real, CONFIG, TIMES, seed=1, executor=AsSimulated)
    assert len(simulated.seen) == len(real.seen) > 20
    for (seen, plan), (seen_too, plan_too) in zip(simulated.seen, real.seen, strict=True):
        assert same(seen, seen_too)
        assert same(plan, plan_too)


@pytest.mark.parametrize("name", ["vllm", "sarathi", "sglang", "vllm-lcf"])
def test_rules_make_the_same_run_over_a_simulator_and_a_real_model(name: str) -> None:
    made = simulate(WORKLOAD, SCHEDULERS[name](), CONFIG, TIMES)
    real = simulate(WORKLOAD, SCHEDULERS[name](), CONFIG, TIMES, executor=AsSimulated)
    assert same(made.requests, real.requests)
    assert same(made.steps, real.steps)
