"""The engine without a model: how long it takes, what it says, and where it stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.envs.llm.executor import Batch
from dispatchgym.envs.llm.profile import Captured
from dispatchgym.envs.llm.state import NONE
from dispatchgym.serving.executor.byte_tokenizer import byte_tokenizer
from dispatchgym.serving.executor.paced import PacedExecutor
from dispatchgym.serving.executor.sampling_params import Sampling
from tests.envs.llm.helpers import PROFILE

TIMES = replace(
    PROFILE, base_s=0.004, weights_s=0.0, token_s=1e-5, row_s=0.0, pair_s=0.0, context_s=0.0, mixed_s=0.0, chunk_s=0.0,
    pause_s=0.002, segments=8, swap_bytes_per_s=1e6, kv_bytes_per_token=100,
)  # fmt: skip
"""A step is 4 ms and 0.01 ms a token; it can stop after each eighth."""


def executor(*prompts: int, captured: bool = False, **sampling: int) -> PacedExecutor:
    profile = (
        replace(TIMES, captured=Captured((2048,), base_s=0.02, weights_s=0.0, token_s=1e-9)) if captured else TIMES
    )
    made = PacedExecutor(profile, 16)
    for number, tokens in enumerate(prompts):
        made.add(number, np.zeros(tokens, np.int32), Sampling(max_new=3, **sampling))
    return made


def batch(*rows: tuple[int, int, int, int], group: int = NONE, done: int = 0, swapped: int = 0) -> Batch:
    """Of (request, start, tokens, decodes)."""
    request, start, tokens, decode = np.array(rows, np.int32).T
    nothing, out = np.zeros((0, 2), np.int32), np.zeros((swapped, 2), np.int32)
    slot, table = np.arange(len(rows), dtype=np.int32), np.zeros((len(rows), 8), np.int32)
    return Batch(
        request, start, tokens, decode.astype(np.int8), slot, slot.astype(np.int64), table, out, nothing, group, done
    )  # fmt: skip


def when(answers: list[bool]) -> Callable[[], bool]:
    """Somebody has arrived: these answers, one a question."""
    return lambda: answers.pop(0)


def test_a_step_takes_what_the_profile_says_and_tokens_come_when_they_would() -> None:
    made = executor(100, 50, logprobs=1)
    began = time.perf_counter()
    first = made.run(batch((0, 0, 100, 0), (1, 0, 30, 0), swapped=2), np.inf)
    assert time.perf_counter() - began >= 0.004 + 0.0013 + 0.0032
    assert first.duration_s == pytest.approx(0.004 + 0.0013 + 0.0032)
    assert (first.emitted.tolist(), first.stopped.tolist()) == ([1, 0], [0, 0])  # the second has 20 tokens to read
    assert byte_tokenizer().decode(made.outputs(0).ids) == "a"
    ids = made.outputs(0).ids.tolist()
    assert made.outputs(0).logprobs == ((0.0, ((ids[0], 0.0),)),)
    plain = made.run(batch((0, 100, 1, 1)), np.inf)
    assert (plain.emitted.tolist(), plain.stopped.tolist()) == ([1], [0])
    assert len(made.outputs(0).ids) == 1  # the second token is on its way
    last = made.run(batch((0, 101, 1, 1)), np.inf)
    assert last.stopped.tolist() == [1]
    assert len(made.outputs(0).ids) == 2
    made.flush()
    assert byte_tokenizer().decode(made.outputs(0).ids) == "abc"
    # Planned while the one before ran, a step begins at its end.
    assert plain.duration_s + last.duration_s == pytest.approx(2 * 0.00401, abs=0.002)
    made.remove(0)


def test_a_prompt_stops_at_the_next_segment_and_goes_on_from_there() -> None:
    made = executor(1600)
    stopped = made.run_until(batch((0, 0, 1600, 0)), when([False, False, True]))
    assert stopped.segments_done == 3
    assert stopped.emitted.tolist() == [0]
    assert stopped.duration_s >= 0.0075 + 0.002
    again = made.run_until(batch((0, 0, 1600, 0), group=0, done=3), when([True]))
    assert again.segments_done == 4
    rest = made.run_until(batch((0, 0, 1600, 0), group=0, done=4), when([False] * 9))
    assert rest.segments_done is None
    assert rest.emitted.tolist() == [1]
    assert rest.duration_s == pytest.approx(0.01)


def test_a_captured_pass_runs_through_and_a_longer_one_may_stop() -> None:
    made = executor(2048, 2049, captured=True)
    captured = made.run_until(batch((0, 0, 2048, 0)), when([]))
    assert captured.segments_done is None
    assert captured.duration_s == pytest.approx(0.02, abs=1e-4)
    longer = made.run_until(batch((1, 0, 2049, 0)), when([True]))
    assert longer.segments_done == 1
