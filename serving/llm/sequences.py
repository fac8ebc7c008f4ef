"""What the server keeps of the requests that clients wait for, and the ways in which these end badly."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import DispatchGymError, UsageError
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.llm.messages import Output, Submit


class BusyError(DispatchGymError):
    """Too much is waiting already, or a tenant asks too often; come again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(DispatchGymError):
    """The server ends, or its engine is gone."""


class EngineLostError(DispatchGymError):
    """The engine went down while this request ran."""


class SwitchError(DispatchGymError):
    """The scheduler that was asked for does not decide; the one before does."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be asked at a time.

    Args:
        waiting: sequences that wait for their first step.
        waiting_tokens: prompt tokens of these together.
        output_tokens: of one sequence, where a client asks for more or says nothing.
        backoff_s: before the engine is started for the second time in a row; doubles each time.
        slo_margin: share of a client's bounds that schedulers are not told of. Profiles err by a few per cent, and the
            way to the client takes its time: who plans up to the bound is late.
        stall_s: an engine that has requests and says nothing for so long is killed, and started again.
    """

    waiting: int = 512
    waiting_tokens: int = 4_000_000
    output_tokens: int = 16_384
    backoff_s: float = 1.0
    stall_s: float = 300.0
    slo_margin: float = 0.03

    def __post_init__(self) -> None:
        if min(self.waiting, self.waiting_tokens, self.output_tokens) < 1 or self.backoff_s < 0 or self.stall_s <= 0:
            raise UsageError(
                f"limits of {self.waiting} waiting sequences (--max-waiting), {self.waiting_tokens} waiting tokens and "
                f"{self.output_tokens} output tokens (--max-output) must be at least 1, and times not negative"
            )
        if not 0 <= self.slo_margin < 1:
            raise UsageError(f"--slo-margin {self.slo_margin:g} must be 0 or more and below 1")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One sequence that a request asks for; `max_new` None for as many as there is room for."""

    prompt: npt.NDArray[np.int32]
    max_new: int | None
    sampling: Sampling


@dataclass(slots=True, eq=False)
class Sequence:
    """What the server knows of a sequence. Times are seconds of the frontend's clock, nan where there are none yet."""

    submit: Submit
    group: Group
    index: int
    tenant: str
    ttft_slo_s: float
    tpot_slo_s: float
    arrived_s: float
    state: Literal["queued", "running", "ended"] = "queued"
    scheduled_s: float = float("nan")
    first_s: float = float("nan")
    last_s: float = float("nan")
    generated: int = 0
    cached: int = 0
    tries: int = 0  # engines that it was handed to

    @property
    def in_time(self) -> bool:
        """Every bound that it had was met so far; that on tokens after the first bounds their mean."""
        return self.first_s - self.arrived_s <= self.ttft_slo_s and self.tpot_s <= self.tpot_slo_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first, 0 with fewer than two."""
        return (self.last_s - self.first_s) / (self.generated - 1) if self.generated > 1 else 0.0


@dataclass(slots=True, eq=False)
class Group:
    """The sequences of one request, and the news of them: (index, output), or what ended them all."""

    sequences: list[Sequence] = field(default_factory=list)
    news: asyncio.Queue[tuple[int, Output] | DispatchGymError] = field(default_factory=asyncio.Queue)
