"""Engines without a model for tests of what is around them: each output token follows from the prompt and its place."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.serving.executor.build import make_executor
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.executor.weights import Model
from dispatchgym.serving.llm.engine_loop import LiveExecutor, Parts
from dispatchgym.serving.llm.model import demo_model

VOCABULARY = 260
END = 256
PROFILE = Profile(
    name="test", gpu="none", model="none", source="roofline", kv_tokens=4096, kv_bytes_per_token=100, segments=8,
    base_s=0.001, weights_s=0.004, token_s=2e-5,
)  # fmt: skip


class Told(NamedTuple):
    ids: npt.NDArray[np.int32]
    logprobs: tuple[tuple[float, tuple[tuple[int, float], ...]], ...]


class Gate:
    """Lets the engine make steps, in the process of the test. Closed, it holds the engine inside a step."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.slow = threading.Event()  # each step takes some milliseconds
        self.steps = 0
        self.fail_at: int | None = None


GATES: dict[str, Gate] = {}


def next_token(prompt: npt.NDArray[np.int32], place: int) -> int:
    """The output token at a place, a printable letter."""
    return 97 + (int(prompt.sum()) * 31 + place * 7) % 26


class LetterExecutor:
    """Puts out letters. What a sequence says depends on its prompt and its seed alone."""

    def __init__(self, gate: Gate, step_s: float, crash_file: str, ends_after: int) -> None:
        self.gate = gate
        self.step_s = step_s
        self.crash_file = crash_file
        self.ends_after = ends_after
        self.prompts: dict[int, tuple[npt.NDArray[np.int32], Sampling]] = {}
        self.told: dict[int, list[int]] = {}

    def add(self, request: int, prompt: npt.NDArray[np.int32], sampling: Sampling) -> None:
        assert request not in self.prompts
        self.prompts[request], self.told[request] = (prompt, sampling), []

    def remove(self, request: int) -> None:
        del self.prompts[request], self.told[request]

    def outputs(self, request: int) -> Told:
        told = self.told[request]
        wanted = self.prompts[request][1].logprobs
        each = tuple((-0.5, tuple((98 + k, -1.0 - k) for k in range(wanted))) for _ in told)
        return Told(np.array(told, np.int32), each if wanted >= 0 else ())

    def is_settled(self, request: int) -> bool:
        return request in self.told

    def flush(self) -> None: ...

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        assert self.gate.is_open.wait(120)
        self.gate.steps += 1
        if self.gate.fail_at is not None and self.gate.steps >= self.gate.fail_at:
            self.gate.fail_at = None
            raise RuntimeError("the device is gone")
        if self.crash_file and Path(self.crash_file).exists():
            Path(self.crash_file).unlink()
            os._exit(17)
        if self.step_s or self.gate.slow.is_set():
            time.sleep(self.step_s or 0.02)
        emitted = np.zeros(len(batch.request), np.int32)
        stopped = np.zeros(len(batch.request), np.int8)
        for row, request in enumerate(batch.request.tolist()):
            prompt, sampling = self.prompts[request]
            told = self.told[request]
            known = len(prompt) + len(told)
            if batch.start[row] + batch.tokens[row] < known:
                continue  # a piece of the prompt, or of what is computed anew
            ends = self.ends_after and len(told) + 1 == self.ends_after and not sampling.ignore_eos
            told.append(END if ends else next_token(prompt, len(told)))
            emitted[row] = 1
            stopped[row] = bool(ends) or len(told) == sampling.max_new
        return StepResult(max(self.step_s, 1e-4), emitted, stopped)


def build(
    gate: str = "", step_s: float = 0.0, crash_file: str = "", ends_after: int = 0, refuse: str = "", **config: Any
) -> Parts:
    """An engine of letters."""
    if refuse:
        from dispatchgym.envs.api import UsageError

        raise UsageError(refuse)
    settings = EngineConfig(**{"kv_blocks": 256, "max_len": 1024, "max_seqs": 32, "token_budget": 512, **config})
    return Parts(settings, PROFILE, LetterExecutor(GATES.get(gate, Gate()), step_s, crash_file, ends_after))


@cache
def tiny() -> Model:
    """The demo's model, without an end of text."""
    made = demo_model()
    return replace(made, spec=replace(made.spec, stop=()))


def build_tiny(executor: str = "plain", **config: Any) -> Parts:
    """An engine over a tiny model on the CPU; `executor`: which of `EXECUTORS` runs its steps."""
    settings = EngineConfig(**{"kv_blocks": 256, "max_len": 1024, "max_seqs": 8, "token_budget": 512, **config})
    return Parts(settings, PROFILE, EXECUTORS[executor](settings))


EXECUTORS: dict[str, Callable[[EngineConfig], LiveExecutor]] = {
    "plain": lambda config: make_executor(tiny(), config),
    "late": lambda config: make_executor(tiny(), config, late=True),
}
