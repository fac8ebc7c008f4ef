"""Captured steps of short prompts, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from dispatchgym.agents.evaluation.llm.captured import CapturedPrompts, pool_without
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from tests.envs.llm.helpers import PROFILE

LAUNCHED = replace(PROFILE, host_s=0.02, pair_s=0.0)


def durations(prompts: list[int], profile: Profile = LAUNCHED) -> list[float]:
    n = len(prompts)
    workload = Workload(arrival_s=np.zeros(n), prompt_tokens=np.array(prompts), output_tokens=np.full(n, 1))
    executor = partial(CapturedPrompts, times=profile)
    record = simulate(workload, None, EngineConfig(prefix_caching=False), profile, executor=executor)
    return record.steps.duration_s.tolist()


def test_a_short_batch_is_padded_to_the_grid_and_launched_at_once() -> None:
    """Three prompts up to 100 tokens: 4 of 128, 512 positions of 20 us. One of 20: 32, in the weights' shadow."""
    assert durations([100, 20, 30]) == pytest.approx([0.001 + 512 * 2e-5])
    assert durations([20]) == pytest.approx([0.005])


def test_what_the_grid_does_not_hold_is_launched_step_by_step() -> None:
    assert durations([257]) == pytest.approx([0.02])  # the host's time
    assert durations([2000]) == pytest.approx([0.001 + 2000 * 2e-5])
    assert durations([1] * 65) == pytest.approx([0.02])


def test_attention_is_padded_too() -> None:
    profile = replace(LAUNCHED, pair_s=1e-9)
    assert durations([100], profile) == pytest.approx([0.005 + 1e-9 * 128 * 129 / 2])


def test_captured_steps_take_room_from_the_pool() -> None:
    """42 steps of 240 MB are 10.08 GB; a block of 16 tokens of 131,072 bytes is 2.1 MB: 4,807 blocks."""
    profile = replace(PROFILE, kv_bytes_per_token=131_072)
    assert pool_without(55_000, 16, profile) == 55_000 - 4807
