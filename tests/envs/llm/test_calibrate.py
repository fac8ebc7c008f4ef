"""A profile is found again from the times that it gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.calibrate import StepCost, fit, predict, relative_errors, step_cost, summary
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.executor import Batch, SimulatedExecutor, StepResult
from dispatchgym.envs.llm.profile import Captured, Decoding, Profile
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.workloads import load
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from tests.envs.llm.helpers import PROFILE

TRUE = replace(PROFILE, row_s=3e-6, chunk_s=4e-5, mixed_s=3e-4)


def by_hand(profile: Profile, start: list[int], tokens: list[int], decode: list[int]) -> float:
    """The formula of the profile, written out anew."""
    seconds, run = profile.base_s, sum(tokens)
    if all(decode):
        run = min(size for size in (*profile.graph_sizes, 10**6) if size >= len(decode)) if run <= 8 else run
    seconds += max(profile.weights_s, profile.token_s * run) + profile.row_s * len(tokens)
    for held, n, goes_on in zip(start, tokens, decode, strict=True):
        seconds += profile.context_s * (held + n if goes_on else held)
        if not goes_on:
            seconds += profile.chunk_s + profile.pair_s * sum(held + k + 1 for k in range(n))
    return seconds + (profile.mixed_s if any(decode) and not all(decode) else 0.0)


def random_steps(count: int, noise: float) -> list[StepCost]:
    rng = np.random.default_rng(4)
    steps = []
    for _ in range(count):
        rows = int(rng.integers(1, 30))
        decode = (rng.random(rows) < rng.choice([0.0, 0.5, 1.0])).astype(int)
        tokens = np.where(decode == 1, 1, rng.integers(2, 400, rows))
        start = rng.integers(0, 3000, rows) * (rng.random(rows) < 0.8)
        seconds = by_hand(TRUE, start.tolist(), tokens.tolist(), decode.tolist())
        steps.append(step_cost(start, tokens, decode, seconds * (1 + noise * rng.standard_normal())))
    return steps


def test_predictions_follow_the_formula() -> None:
    assert predict(TRUE, random_steps(100, 0.0)) == pytest.approx([s.seconds for s in random_steps(100, 0.0)])


def test_a_profile_is_found_again() -> None:
    blank = replace(PROFILE, base_s=1.0, weights_s=0.0, token_s=0.0, pair_s=0.0, context_s=0.0)
    found = fit(blank, random_steps(200, 0.0))
    assert found.source == "measured"
    assert relative_errors(found, random_steps(300, 0.0)[200:]).max() < 0.02
    for name in ("token_s", "pair_s", "context_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.1)
    assert found.base_s + found.weights_s == pytest.approx(TRUE.base_s + TRUE.weights_s, rel=0.05)


def test_steps_that_were_held_up_do_not_bend_the_profile() -> None:
    """One step in ten takes ten times as long: least squares would follow those."""
    steps = random_steps(200, 0.01)
    steps = [replace(s, seconds=s.seconds * 10) if k % 10 == 0 else s for k, s in enumerate(steps)]
    found = fit(PROFILE, steps)
    assert summary(found, random_steps(300, 0.0)[200:])["mape"] < 0.03


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="5 measured steps are too few"):
        fit(PROFILE, random_steps(5, 0.0))


CAPTURED = replace(
    TRUE,
    host_s=4e-3,
    host_mixed_s=1e-3,
    lead_s=5e-4,
    decoding=Decoding(4e-4, 3e-4, 2e-6, 1e-6, 8e-9, 1e-6),
    captured=Captured((16, 48, 128), 3e-3, 0.0, 8e-6, 5e-6, 2e-9, 3e-8, 1e-5, 2e-4, lead_s=2e-4),
    graph_sizes=(1, 2, 4, 8, 32),
)


def captured_steps(count: int) -> list[StepCost]:
    """Steps of CAPTURED, by hand: those of few tokens, verified drafts too, are captured, others wait for the host."""
    found: list[StepCost] = []
    for step in random_steps(count, 0.0):
        if step.prefill_tokens > 1000 and len(found) % 2:  # a small one
            step = replace(step, prefill_tokens=40 * len(found) % 100 + step.prefills, pairs=step.pairs // 20)
        if step.is_plain and len(found) % 4 == 0:
            step = replace(step, decode_tokens=3 * step.decodes)
        if step.is_plain:
            d = CAPTURED.plain_decoding
            run = next(size for size in CAPTURED.graph_sizes if size >= step.decodes)
            seconds = d.base_s + max(d.weights_s, d.token_s * run) + d.row_s * step.decodes
            seconds += d.context_s * step.read + d.spread_s * step.read**0.5
        elif (tokens := step.decode_tokens + step.prefill_tokens) <= 128:
            before = 2e-3 if step.is_mixed and len(found) % 3 else 0.0
            run = 16 if tokens <= 16 else 48 if tokens <= 48 else 128
            pieces = step.prefills + (step.decodes if step.decode_tokens > step.decodes else 0)
            seconds = 3e-3 + 8e-6 * run + 5e-6 * (step.decodes + step.prefills) + 2e-9 * step.pairs + 3e-8 * step.read
            seconds += 1e-5 * pieces + (2e-4 if step.is_mixed else 0.0) - min(before, 2e-4)
            step = replace(step, plain_before_s=before)
        else:
            before = 2e-3 if step.is_mixed and len(found) % 2 else 0.0
            seconds = max(step.seconds - min(before, 5e-4), (5e-3 if step.is_mixed else 4e-3) - before)
            step = replace(step, plain_before_s=before)
        found.append(replace(step, seconds=seconds))
    return found


def test_captured_steps_and_the_host_s_part_are_predicted_and_found_again() -> None:
    steps = captured_steps(400)
    assert predict(CAPTURED, steps) == pytest.approx([s.seconds for s in steps])
    rough = replace(CAPTURED, host_s=0.0, host_mixed_s=0.0, decoding=None, captured=None)
    found = fit(rough, steps[:300], (16, 48, 128))
    assert found.decoding is not None
    assert found.decoding.context_s == pytest.approx(8e-9, rel=0.1)
    assert found.lead_s == pytest.approx(5e-4, rel=0.2)
    assert found.captured is not None
    assert found.captured.sizes == (16, 48, 128)
    assert found.captured.lead_s == pytest.approx(2e-4, rel=0.2)
    assert found.captured.token_s == pytest.approx(8e-6, rel=0.1)
    assert summary(found, steps[300:])["mape"] < 0.02


def test_too_few_captured_passes_are_fitted_with_the_others() -> None:
    steps = captured_steps(400)
    few = [step for k, step in enumerate(steps) if step.is_plain or step.tokens > 128 or k < 12]
    assert fit(CAPTURED, few, (16, 48, 128)).captured is None


def test_the_engine_takes_the_times_that_the_fit_predicts() -> None:
    workload = load("azure-2023-conv-twin", requests=30, seed=3)
    config = EngineConfig(kv_blocks=4000, max_seqs=16, token_budget=300)
    profile = replace(CAPTURED, kv_tokens=64000)
    costs: list[StepCost] = []

    class Noting:
        def __init__(self, state: State) -> None:
            self.state = state
            self.inner = SimulatedExecutor(state, CAPTURED.segments, CAPTURED.pause_s)

        def run(self, batch: Batch, interrupt_s: float) -> StepResult:
            result = self.inner.run(batch, interrupt_s)
            cost = step_cost(batch.start, batch.tokens, batch.decode, result.duration_s)
            before = float(self.state.eng["plain_s"][0])
            assert before in (0.0, costs[-1].seconds if costs else 0.0)
            costs.append(replace(cost, plain_before_s=before))
            return result

    simulate(workload, SCHEDULERS["vllm"](), config, profile, executor=Noting)
    assert len(costs) > 100
    assert {(step.is_plain, step.is_mixed) for step in costs} == {(True, False), (False, True), (False, False)}
    assert any(step.plain_before_s > 0 for step in costs if step.is_mixed)
    assert predict(profile, costs) == pytest.approx([step.seconds for step in costs])
