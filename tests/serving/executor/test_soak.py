"""Long runs under schedulers that do whatever a plan can say: ledger and device agree at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Pin, Plan
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import RUNNING
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.executor import torch_executor
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.serving.executor.trace_tokens import TraceTokens
from tests.envs.llm.helpers import PROFILE, check_ledger, random_workload
from tests.serving.executor.models import VOCABULARY, model, plain_greedy, reference
from tests.serving.executor.pausing import StopAfter

CONFIG = EngineConfig(kv_blocks=30, max_seqs=6, token_budget=64, host_blocks=20, max_spec=3, max_len=260)
FAMILY = "qwen3"


class Adversary:
    """Grants in any order and amount, nonsense among them; preempts by every way, drops, pins, waits, holds, pauses."""

    name = "adversary"
    oracle = False

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        rng = self.rng
        running, waiting = view.running.id, view.waiting.id
        everybody = np.concatenate([running, waiting])
        if rng.random() < 0.05:
            return Plan(wait_until_s=view.now_s + rng.exponential(0.01))
        if rng.random() < 0.2:
            return Plan()
        order = rng.permutation(everybody)[: rng.integers(1, 9)]
        grants = [(int(r), int(rng.integers(1, rng.choice([2, 5, 100])))) for r in order]
        if rng.random() < 0.1:
            grants.append((int(rng.integers(-2, 60)), int(rng.integers(-1, 5))))
        preempt = [(int(r), str(rng.choice(["swap", "recompute", "pause"]))) for r in running if rng.random() < 0.05]
        return Plan(
            grants=grants, preempt=preempt, victims=rng.permutation(running.copy())[:2],
            drop=[int(r) for r in waiting if rng.random() < 0.004],
            pins=[Pin(int(r), 32, 0.02) for r in running if rng.random() < 0.02],
            hold_steps=int(rng.choice([1, 1, 3])), interruptible=bool(rng.random() < 0.5),
        )  # fmt: skip


class Watched:
    """An executor whose device is compared with the engine's ledger after every step.

    Keys of one request a step are compared with those that transformers computes from its text.
    """

    def __init__(self, executor: TorchExecutor, state: Any, rng: np.random.Generator) -> None:
        self.executor = executor
        self.state = state
        self.rng = rng
        self.pauses = self.compared = 0

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        paused = interrupt_s < np.inf
        StopAfter.segments = int(self.rng.integers(1, 5))
        result = self.executor.run(batch, 1.0 if paused else np.inf)
        duration = 0.001 * (1 + len(batch.request))
        self.pauses += result.segments_done is not None
        size = CONFIG.block_tokens
        for request, slot, start, tokens in zip(batch.request, batch.slot, batch.start, batch.tokens, strict=True):
            blocks = -(-int(start + tokens) // size)
            there = self.executor.slots.table[int(slot), :blocks]
            assert there.tolist() == batch.table[slot, :blocks].tolist(), request
        held = self.executor.cache.host_held
        waiting = self.state.req["host_blocks"]
        assert all(held.get(r, 0) == waiting[r] for r in range(len(waiting)) if waiting[r])
        if result.segments_done is None:
            self._compare_keys(batch)
        return StepResult(duration, result.emitted, result.stopped, result.segments_done)

    def _compare_keys(self, batch: Batch) -> None:
        i = int(self.rng.integers(len(batch.request)))
        request = int(batch.request[i])
        end = int(batch.start[i]) + (1 if batch.decode[i] else int(batch.tokens[i]))
        if not self.executor._sequences.has(request):
            return
        text = self.executor._sequences.text(request)[:end]
        if len(text) < end:
            return  # the device alone knows the rest
        with torch.inference_mode():
            ids = torch.from_numpy(text.astype(np.int64))[None]
            cached = reference(FAMILY)(ids, use_cache=True).past_key_values
        blocks = batch.table[batch.slot[i], : -(-end // CONFIG.block_tokens)].astype(np.int64)
        for layer in range(2):
            keys, values = self.executor.cache.tensor[layer][:, blocks].flatten(1, 2)[:, :end]
            torch.testing.assert_close(keys.transpose(0, 1), cached.layers[layer].keys[0], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(values.transpose(0, 1), cached.layers[layer].values[0], rtol=1e-3, atol=1e-3)
        self.compared += 1


@pytest.mark.parametrize(
    ("seed", "late"),
    [pytest.param(0, False, marks=pytest.mark.slow), (1, True), pytest.param(2, False, marks=pytest.mark.slow)],
)
def test_device_and_ledger_agree_under_any_scheduler(seed: int, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_executor, "Pace", StopAfter)
    workload = random_workload(seed, 30, longest=80, rate=60.0)
    state = fresh_state(workload, CONFIG, PROFILE, 0, steps=False, tokens=False)
    source = TraceTokens(workload, VOCABULARY, state)
    executor = TorchExecutor(
        model(FAMILY), kv_blocks=CONFIG.kv_blocks, max_seqs=CONFIG.max_seqs, host_blocks=CONFIG.host_blocks,
        max_len=CONFIG.max_len, source=source, keep=True, late=late,
    )  # fmt: skip
    watched = Watched(executor, state, np.random.default_rng(seed))
    engine = Engine(state, Adversary(seed), EngineSpec(CONFIG, PROFILE, CONFIG.kv_blocks), executor=watched)
    while engine.step():
        check_ledger(engine.state)
    executor.flush()
    requests = engine.state.req
    done = np.flatnonzero(requests["generated"] == workload.output_tokens)
    assert len(done) > 15
    for request in done.tolist():
        prompt, sampling = source.text(request)
        assert executor.outputs(request).ids.tolist() == plain_greedy(FAMILY, prompt, sampling.max_new)
    assert watched.pauses > 0
    assert watched.compared > 30
    assert requests["swap_bytes"].sum() > 0
    assert requests["preemptions"].sum() > 10
    assert requests["drafted"].sum() > 0
    assert requests["cached"].sum() > 0
    assert (requests["state"] != RUNNING).all()


def test_equal_hashes_are_equal_tokens() -> None:
    """Up to where two requests' hashes part, and nowhere else."""
    none: npt.NDArray[np.float64] = np.zeros(3)
    work = Workload(
        arrival_s=none, prompt_tokens=np.array([40, 50, 20]), output_tokens=np.array([3, 3, 3]), hash_block=16,
        hash_ptr=np.array([0, 2, 5, 6]), hashes=np.array([5, 6, 5, 7, 8, 5]),
    )  # fmt: skip
    state = fresh_state(work, EngineConfig(kv_blocks=30), PROFILE, 0, steps=False, tokens=False)
    source = TraceTokens(work, 1000, state)
    a, b, c = (source.text(r)[0] for r in range(3))
    assert [len(x) for x in (a, b, c)] == [40, 50, 20]
    assert np.array_equal(a[:16], b[:16])
    assert np.array_equal(a[:16], c[:16])
    assert (a[16:40] == b[16:40]).mean() < 0.1
    assert len(set(a.tolist())) > 30
    assert source.text(1)[1].max_new == 3
