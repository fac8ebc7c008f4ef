"""What runs the batches that an engine orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.state import NONE, State
from dispatchgym.envs.llm.step_time import runs_through, step_seconds
from dispatchgym.envs.llm.steps import emit

I32 = npt.NDArray[np.int32]


class Batch(NamedTuple):
    """A step to run, one row a request; arrays are read-only views that last until the step is over.

    Before the step, the content of `swap_out` blocks goes to the host, and that of `swap_in` requests comes back into
    the first blocks of their rows in `table`.
    """

    request: I32
    start: I32  # tokens whose KV is there
    tokens: I32  # to run from there; a decoding request with more than one verifies a draft
    decode: npt.NDArray[np.int8]  # 1: goes on with its output
    slot: I32  # row of `table`
    admission: npt.NDArray[np.int64]  # number of its admission: a later one means other blocks, even in the same slot
    table: I32  # (max_seqs, blocks): block numbers of each slot
    swap_out: I32  # (n, 2): request, block
    swap_in: I32  # (n, 2): request, number of blocks
    group: int  # the interrupted step that goes on, -1 for a fresh one
    segments_done: int  # of the interrupted step


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did.

    Attributes:
        duration_s: seconds.
        emitted: output tokens of each row, shape (rows,).
        stopped: the row's request has ended with them, shape (rows,).
        segments_done: None for a whole step; else it was interrupted after so many segments, and puts out nothing.
        left_s: of an interrupted step, seconds still to run where they are known.
    """

    duration_s: float
    emitted: I32
    stopped: npt.NDArray[np.int8]
    segments_done: int | None = None
    left_s: float = 0.0


class Executor(Protocol):
    """Runs one batch at a time. Owns device memory; knows blocks by their numbers alone."""

    def run(self, batch: Batch, interrupt_s: float) -> StepResult:
        """Run the batch; `interrupt_s` seconds after its start it should stop at the next segment boundary (inf:
        never)."""


def batch_of(s: State) -> Batch:
    """The step at hand as an executor sees it."""
    e = s.eng[0]
    rows = s.batch[: e["batch"]]
    group = int(e["group"])
    columns = (
        rows["request"].copy(),
        rows["start"].copy(),
        rows["tokens"].copy(),
        rows["decode"].copy(),
        s.req["slot"][rows["request"]],
        s.req["stamp"][rows["request"]],
        s.table.view(),
        s.swap_out[: e["swap_outs"]].view(),
        s.swap_in[: e["swap_ins"]].view(),
    )
    for column in columns:
        column.flags.writeable = False
    return Batch(*columns, group=group, segments_done=0 if group == NONE else int(s.group["segments"][group]))


@runtime_checkable
class Attentive(Executor, Protocol):
    """An executor that looks up from a pass, for engines that do not know when the next request comes."""

    def run_until(self, batch: Batch, has_arrived: Callable[[], bool]) -> StepResult:
        """Run the batch, but stop at the first segment boundary at which somebody has arrived."""


class SimulatedExecutor:
    """Step times from a profile, outputs from the true lengths: reads the engine's arrays instead of a batch."""

    def __init__(self, state: State, segments: int, pause_s: float) -> None:
        self.state = state
        self.segments = segments
        self.pause_s = pause_s

    def run(self, batch: Batch | None, interrupt_s: float) -> StepResult:
        """The step at hand of the engine whose arrays these are."""
        s = self.state
        group = int(s.eng["group"][0])
        done = 0
        if group != NONE:
            done, seconds = int(s.group["segments"][group]), float(s.group["left_s"][group])
        else:
            if runs_through(s):
                interrupt_s = np.inf
            seconds = float(step_seconds(s))
        rows = s.batch[: s.eng["batch"][0]]
        piece = seconds / (self.segments - done)
        if interrupt_s < seconds - piece:
            pieces = max(1, int(np.ceil(interrupt_s / piece)))
            if done + pieces < self.segments:
                nothing = np.zeros(len(rows), np.int32)
                return StepResult(
                    pieces * piece + self.pause_s,
                    nothing,
                    nothing.astype(np.int8),
                    segments_done=done + pieces,
                    left_s=seconds - pieces * piece,
                )
        emit(s)
        return StepResult(seconds, rows["emitted"], rows["stopped"])
