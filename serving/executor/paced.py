"""An engine without a model: it takes as long as a profile says, and says letters. For servers where no GPU is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.calibrate import predict, step_cost
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.state import NONE
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.executor.torch_executor import Outputs

I32 = npt.NDArray[np.int32]

A, LETTERS = 64, 26
"""The byte tokenizer's tokens of a to z: the alphabet, in order, is what every request is told."""

EARLY_S = 5e-5
"""Sleeping ends so late."""


@dataclass(slots=True)
class _Text:
    prompt: int
    sampling: Sampling
    out: int = 0  # tokens put out
    known: int = 0  # of these, the host's


@dataclass(slots=True)
class _Stopped:
    left_s: float
    segments: int


class PacedExecutor:
    """Runs no batch: waits until the device of the profile would have run it.

    As on a GPU, a step in which everyone decodes one token is not waited for: the next is planned while it runs, and
    its tokens are known once it is over. Steps that read prompts are waited for, and may stop between two segments.
    Drafts are never accepted.

    Args:
        profile: how long steps take.
    """

    def __init__(self, profile: Profile, block_tokens: int) -> None:
        self._profile = profile
        self._swap_s = block_tokens * profile.kv_bytes_per_token / profile.swap_bytes_per_s
        self._texts: dict[int, _Text] = {}
        self._stopped: dict[int, _Stopped] = {}
        self._pending: list[int] = []
        self._free_s = 0.0  # when the device has run everything
        self._plain_s = 0.0  # the last step's time, if everyone decoded one token in it; else 0

    def add(self, request: int, prompt: I32, sampling: Sampling) -> None:
        """A request that batches may name from now on."""
        self._texts[request] = _Text(len(prompt), sampling)

    def remove(self, request: int) -> None:
        """Forget a request."""
        del self._texts[request]
        self._stopped.pop(request, None)

    def outputs(self, request: int) -> Outputs:
        """What the request has put out so far, each token for certain."""
        text = self._texts[request]
        ids = A + np.arange(text.known, dtype=np.int32) % LETTERS
        if text.sampling.logprobs < 0:
            return Outputs(ids, ())
        return Outputs(ids, tuple((0.0, ((token, 0.0),)[: text.sampling.logprobs]) for token in ids.tolist()))

    def is_settled(self, request: int) -> bool:
        """The host knows all that the request has been told."""
        return self._texts[request].known == self._texts[request].out

    def flush(self) -> None:
        """Wait for what is on its way."""
        _sleep_until(self._free_s)
        self._book()

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        """Wait as long as the batch takes; see Executor."""
        until_s = time.perf_counter() + interrupt_s
        return self._run(batch, lambda: time.perf_counter() >= until_s, np.isfinite(interrupt_s))

    def run_until(self, batch: Batch, has_arrived: Callable[[], bool]) -> StepResult:
        """Wait as long as the batch takes; see Attentive."""
        return self._run(batch, has_arrived, True)

    def _run(self, batch: Batch, should_stop: Callable[[], bool], may_stop: bool) -> StepResult:
        began_s = time.perf_counter()
        seconds, done, is_plain = self._cost(batch, began_s)
        seconds += self._swap_s * (len(batch.swap_out) + int(batch.swap_in[:, 1].sum()))
        start_s = max(began_s, self._free_s)
        stops_at = self._stop(batch, start_s, seconds, done, should_stop) if may_stop and not is_plain else None
        if stops_at is not None:
            self._free_s = time.perf_counter() + self._profile.pause_s
            nothing = np.zeros(len(batch.request), np.int32)
            return StepResult(self._free_s - start_s, nothing, nothing.astype(np.int8), segments_done=stops_at)
        _sleep_until(self._free_s)
        self._book()
        self._free_s = start_s + seconds
        self._plain_s = seconds if is_plain else 0.0
        emitted, stopped = self._say(batch)
        if not is_plain:
            self.flush()
        return StepResult(max(self._free_s - start_s, 1e-6), emitted, stopped)

    def _cost(self, batch: Batch, now_s: float) -> tuple[float, int, bool]:
        """Seconds that are left of the step, segments that it has run, and whether everyone decodes one token."""
        if batch.group != NONE:
            before = [self._stopped.pop(request) for request in batch.request.tolist()]
            return before[0].left_s, before[0].segments, False
        cost = step_cost(batch.start, batch.tokens, batch.decode, 1.0)
        plain_before_s = self._plain_s if self._free_s > now_s else 0.0
        cost = replace(cost, plain_before_s=plain_before_s)
        return float(predict(self._profile, [cost])[0]), 0, cost.is_plain

    def _stop(
        self, batch: Batch, start_s: float, seconds: float, done: int, should_stop: Callable[[], bool]
    ) -> int | None:
        """Segments after which the step has stopped; None if it goes on to its end."""
        if self._profile.of_pass(int(batch.tokens.sum()))[0] is not self._profile:  # captured, it runs through
            return None
        piece_s = seconds / (self._profile.segments - done)
        for segment in range(done + 1, self._profile.segments):
            _sleep_until(start_s + (segment - done) * piece_s)
            if should_stop():
                left_s = seconds - (segment - done) * piece_s
                self._stopped.update(dict.fromkeys(batch.request.tolist(), _Stopped(left_s, segment)))
                return segment
        return None

    def _say(self, batch: Batch) -> tuple[I32, npt.NDArray[np.int8]]:
        """Put out a token for everyone whose text has been read to its end."""
        emitted, stopped = np.zeros(len(batch.request), np.int32), np.zeros(len(batch.request), np.int8)
        for row, (request, read) in enumerate(
            zip(batch.request.tolist(), (batch.start + batch.tokens).tolist(), strict=True)
        ):
            text = self._texts[request]
            if batch.decode[row] or read >= text.prompt + text.out:
                text.out += 1
                emitted[row], stopped[row] = 1, text.out >= text.sampling.max_new
                self._pending.append(request)
        return emitted, stopped

    def _book(self) -> None:
        for request in self._pending:
            if request in self._texts:
                self._texts[request].known = self._texts[request].out
        self._pending = []


def _sleep_until(moment_s: float) -> None:
    while (left_s := moment_s - time.perf_counter()) > 0:
        time.sleep(max(left_s - EARLY_S, 1e-6))
