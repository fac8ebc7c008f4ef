"""A compiled scheduler asked over a view orders what it does inside the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.mirror import Asked
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import State
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from tests.conformance.vllm.cases import EVERY_STEP_1_S, random_case

COMPILED = [name for name in SCHEDULERS if isinstance(SCHEDULERS[name](), CompiledPolicy)]


class Both:
    """Fills every step, and asks over the view for the same."""

    oracle = False

    def __init__(self, policy: CompiledPolicy, asked: Asked) -> None:
        self.policy, self.asked, self.name = policy, asked, policy.name
        self.engine: Engine
        self.preemptions = 0

    def prepare(self, state: State, spec: EngineSpec, seed: int) -> None:
        self.policy.prepare(state, spec, seed)
        self.asked.reset(spec, seed)

    def advance(self, state: State, until_s: float) -> int:
        raise NotImplementedError  # the engine asks one plan at a time here; advancing would hide a wrong one

    def fill(self, state: State) -> None:
        plan = self.asked.decide(self.engine.view())
        before = state.req["preemptions"].copy()
        self.policy.fill(state)
        rows = state.batch[: state.eng["batch"][0]]
        assert plan.grants == list(zip(rows["request"].tolist(), rows["tokens"].tolist(), strict=True))
        out = sorted(r for r, _ in plan.preempt)
        assert out == (state.req["preemptions"] > before).nonzero()[0].tolist()
        self.preemptions += len(out)


@pytest.mark.parametrize("name", COMPILED)
def test_a_view_is_enough(name: str) -> None:
    assert len(COMPILED) >= 8
    preemptions = 0
    for seed in range(12):
        case = random_case(seed)
        case = replace(case, shared=[0] * len(case.shared))
        both = Both(SCHEDULERS[name](), Asked(SCHEDULERS[name]()))
        state = fresh_state(case.workload(), case.engine(), EVERY_STEP_1_S, 0, steps=False, tokens=False)
        spec = EngineSpec(case.engine(), EVERY_STEP_1_S, case.kv_blocks)
        both.prepare(state, spec, 0)
        both.engine = Engine(state, both, spec)
        both.engine.run()
        preemptions += both.preemptions
    assert preemptions or name in ("orca", "conservative", "fcfs-static", "aggressive")
