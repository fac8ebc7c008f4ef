"""An executor sees the step it is to run, and the same decisions follow whoever runs it."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.simulate import record_of, simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from tests.envs.llm.helpers import PROFILE, check_ledger, random_workload

CONFIG = EngineConfig(kv_blocks=60, max_seqs=8, token_budget=128, host_blocks=30)


class Copying:
    """Runs batches by copying text: keeps every token in the blocks it is told to use, and checks that what a step
    builds on is there. Times by the formula of the profile, written out anew.

    Token number t of request r is the pair (text, t): requests that share a prefix share its text.
    """

    def __init__(self, workload: Workload, size: int) -> None:
        self.workload = workload
        self.size = size
        self.memory: dict[tuple[int, int], tuple[int, int]] = {}  # (block, place) -> token
        self.host: dict[int, list[dict[int, tuple[int, int]]]] = {}
        self.out = np.zeros(len(workload), int)

    def token(self, r: int, t: int) -> tuple[int, int]:
        first, last = self.workload.hash_ptr[r : r + 2]
        block = t // self.workload.hash_block
        return (int(self.workload.hashes[first + block]) if block < last - first else -r - 1, t)

    def _move(self, batch: Batch) -> int:
        moved = 0
        out: dict[int, list[int]] = {}
        for r, b in batch.swap_out.tolist():
            out.setdefault(r, []).append(b)
        for r, blocks in out.items():
            places = range(self.size)
            self.host[r] = [{p: self.memory[b, p] for p in places if (b, p) in self.memory} for b in blocks]
            moved += len(blocks)
        rows = dict(zip(batch.request.tolist(), batch.slot.tolist(), strict=True))
        for r, count in batch.swap_in.tolist():
            for j, content in enumerate(self.host.pop(r)):
                for p, token in content.items():
                    self.memory[int(batch.table[rows[r], j]), p] = token
            moved += count
        return moved * self.size * PROFILE.kv_bytes_per_token

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        moved = self._move(batch)
        emitted, stopped = np.zeros(len(batch.request), np.int32), np.zeros(len(batch.request), np.int8)
        positions = pairs = context = prompts = 0
        writes = []
        for i, (r, start, n, slot) in enumerate(
            zip(*(c.tolist() for c in (batch.request, batch.start, batch.tokens, batch.slot)), strict=True)
        ):
            for t in range(start + n):
                block = int(batch.table[slot, t // self.size])
                if t >= start:
                    writes.append((block, t % self.size, self.token(r, t)))
                elif self.memory.get((block, t % self.size)) != self.token(r, t):
                    # somebody in this very step may be about to write it
                    assert (block, t % self.size, self.token(r, t)) in writes, (r, t)
            positions += n
            if batch.decode[i]:
                context += start + n
            else:
                prompts += 1
                pairs += n * start + n * (n + 1) // 2
                context += start
            if start + n == int(self.workload.prompt_tokens[r]) + self.out[r]:
                self.out[r] += 1
                emitted[i] = 1
                stopped[i] = self.out[r] == self.workload.output_tokens[r]
        for block, place, token in writes:
            self.memory[block, place] = token
        if prompts == 0:
            positions = min([s for s in PROFILE.graph_sizes if s >= positions] or [positions])
        seconds = PROFILE.base_s + max(PROFILE.weights_s, PROFILE.token_s * positions) + PROFILE.pair_s * pairs
        return StepResult(seconds + PROFILE.context_s * context + moved / PROFILE.swap_bytes_per_s, emitted, stopped)


def run_with(policy: Any, workload: Workload, config: EngineConfig) -> Engine:
    state = fresh_state(workload, config, PROFILE, 0, steps=True, tokens=False)
    spec = EngineSpec(config, PROFILE, config.kv_blocks)
    if not isinstance(policy, CompiledPolicy):
        policy.reset(spec, 0)
    engine = Engine(state, policy, spec, executor=Copying(workload, config.block_tokens))
    engine.run()
    check_ledger(engine.state)
    return engine


@pytest.mark.parametrize(
    "name", ["vllm", "sarathi", "vllm-lcf", "past-future", "sglang", "srtf", "mlfq", "vtc", "batch-llm"]
)
def test_every_step_finds_the_text_it_builds_on(name: str) -> None:
    """Blocks are never handed out while in use, shared prefixes hold the right text, swapped KV comes back."""
    workload = random_workload(5, 24, longest=120, rate=200.0)
    engine = run_with(SCHEDULERS[name](), workload, CONFIG)
    assert (engine.state.req["generated"] == workload.output_tokens).all()
    if name == "mlfq":
        assert engine.state.req["swap_bytes"].sum() > 0
    assert engine.state.req["cached"].sum() > 0


@pytest.mark.parametrize("name", ["vllm", "sarathi", "sglang", "vtc"])
def test_the_simulator_and_another_executor_make_the_same_run(name: str) -> None:
    """The same decisions, and the same times within rounding."""
    workload = random_workload(6, 24, longest=120, rate=200.0)
    policy: Any = SCHEDULERS[name]()
    engine = run_with(policy, workload, CONFIG)
    real = record_of(engine.state, workload, name, {}, decisions=0, policy_s=0.0)
    simulated = simulate(workload, SCHEDULERS[name](), CONFIG, PROFILE)
    assert np.allclose(real.requests.finish_s, simulated.requests.finish_s, rtol=1e-9)
    assert np.array_equal(real.requests.preemptions, simulated.requests.preemptions)


@pytest.mark.parametrize("name", [n for n in SCHEDULERS if not isinstance(SCHEDULERS[n](), CompiledPolicy)])
def test_recorded_views_give_the_same_plans_again(name: str) -> None:
    policy = SCHEDULERS[name]()

    class Recorder:
        oracle = policy.oracle
        texts = getattr(policy, "texts", False)
        seen: list[tuple[EngineView, Plan]]

        def __init__(self) -> None:
            self.name = name
            self.seen = []

        def reset(self, spec: EngineSpec, seed: int) -> None:
            self.spec = spec
            policy.reset(spec, seed)

        def decide(self, view: EngineView) -> Plan:
            plan = policy.decide(view)
            self.seen.append((view, plan))
            return plan

    recorder = Recorder()
    simulate(random_workload(1, 30, rate=100.0), recorder, CONFIG, PROFILE, seed=4)
    policy.reset(recorder.spec, 4)
    for view, plan in recorder.seen:
        again = policy.decide(view)
        assert all(np.array_equal(a, b) for a, b in zip(astuple(plan), astuple(again), strict=True))
