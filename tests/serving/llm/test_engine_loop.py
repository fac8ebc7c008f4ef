"""The engine's loop on an executor that reads tokens one step late: ends are told whole, and without idling."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from multiprocessing import Pipe

import numpy as np
import pytest

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.serving.executor.paced import A, PacedExecutor
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.llm.engine_loop import EngineLoop, Parts, Recipe
from dispatchgym.serving.llm.messages import Cancel, Ready, Step, Submit
from tests.envs.llm.helpers import PROFILE


class Counted(PacedExecutor):
    """Counts how often it is made to wait for its tokens between two steps."""

    waits = 0
    runs = False

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        self.runs = True
        try:
            return super().run(batch, interrupt_s)
        finally:
            self.runs = False

    def flush(self) -> None:
        self.waits += not self.runs
        super().flush()


def submit(key: int, prompt: int, tokens: int) -> Submit:
    none = np.zeros(0, np.int64)
    return Submit(key, np.arange(prompt, dtype=np.int32), tokens, Sampling(max_new=tokens), none, b"", {})


@pytest.fixture
def served() -> tuple[Counted, dict[int, list[str]]]:
    """What four sequences of different lengths were told, one of them cancelled: letters, then why it ended."""
    executor = Counted(replace(PROFILE, graph_sizes=()), 16)
    config = EngineConfig(kv_blocks=64, max_len=256, max_seqs=8, token_budget=256)
    ours, theirs = Pipe()
    loop = EngineLoop(theirs, Parts(config, PROFILE, executor), Recipe(""), time.monotonic)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    assert isinstance(ours.recv(), Ready)
    for key, tokens in enumerate((3, 7, 200, 12)):
        ours.send(submit(key, 20, tokens))
    told: dict[int, list[str]] = {0: [], 1: [], 2: [], 3: []}
    running, cancelled = 4, False
    while running or not all(told[key] and told[key][-1] == "length" for key in (0, 1, 3)):
        assert ours.poll(10), told
        step = ours.recv()
        assert isinstance(step, Step)
        running = step.running
        for output in step.outputs:
            told[output.key] += [chr(token + ord("a") - A) for token in output.tokens]
            told[output.key] += [output.reason] * bool(output.reason)
        if told[1] and told[1][-1] == "length" and not cancelled:
            ours.send(Cancel(2))
            cancelled = True
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    return executor, told


def test_a_sequence_is_told_all_its_tokens_and_then_why_it_ended(served: tuple[Counted, dict[int, list[str]]]) -> None:
    told = served[1]
    assert told[0] == [*"abc", "length"]
    assert told[1] == [*"abcdefg", "length"]
    assert told[3] == [*"abcdefghijkl", "length"]
    assert "length" not in told[2]


def test_only_the_last_to_end_is_waited_for(served: tuple[Counted, dict[int, list[str]]]) -> None:
    assert served[0].waits == 1
