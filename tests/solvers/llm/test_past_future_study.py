"""The offline study of Past-Future: its script's steps and use of the pool, within 3 %; see benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.aggressive import Aggressive
from dispatchgym.solvers.llm.conservative import Conservative
from dispatchgym.solvers.llm.past_future import PastFuture

POOL, N = 120_000, 3000


def conservative() -> Conservative:
    return Conservative(limit=1.0, assumed_new=4096, every=10)


def aggressive() -> Aggressive:
    return Aggressive(limit=0.99, every=10, with_prompt=True)


def past_future() -> PastFuture:
    return PastFuture(window=1000, reserve=0.03, initial=512, poll=10)


# distribution 1: prompts of 32-4096, outputs of 2048-4096; distribution 3 the other way round
@pytest.mark.parametrize(
    ("policy", "prompts", "outputs", "script_steps", "script_use"),
    [
        (conservative, (32, 4096), (2048, 4096), 484_670, 0.577),
        (conservative, (2048, 4096), (32, 4096), 384_090, 0.598),
        (aggressive, (32, 4096), (2048, 4096), 280_980, 0.984),
        (aggressive, (2048, 4096), (32, 4096), 231_520, 0.981),
        pytest.param(past_future, (32, 4096), (2048, 4096), 300_050, 0.931, marks=pytest.mark.slow),
        pytest.param(past_future, (2048, 4096), (32, 4096), 236_620, 0.946, marks=pytest.mark.slow),
    ],
)
def test_the_published_study(
    policy: Any, prompts: tuple[int, int], outputs: tuple[int, int], script_steps: int, script_use: float
) -> None:
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(*prompts, N, endpoint=True), rng.integers(*outputs, N, endpoint=True)
    workload = Workload(
        arrival_s=np.zeros(N), prompt_tokens=prompt, output_tokens=output, max_new_tokens=np.full(N, 4096)
    )
    engine = EngineConfig(
        block_tokens=1, kv_blocks=POOL, token_budget=32_768, max_seqs=1024, prefix_caching=False,
        max_preemptions=10**6,
    )  # fmt: skip
    record = simulate(workload, policy(), engine)
    # the script is unseeded: its steps are compared for the work of this draw against that of the average draw
    work = float((prompt.astype(float) * output + output * (output + 1.0) / 2).sum())
    span, mean = outputs[1] - outputs[0] + 1, sum(outputs) / 2
    average = N * (sum(prompts) / 2 * mean + (mean**2 + (span**2 - 1) / 12 + mean) / 2)
    assert record.num_steps / work == pytest.approx(script_steps / average, rel=0.03)
    assert record.steps.kv_blocks.mean() / POOL == pytest.approx(script_use, rel=0.03)
