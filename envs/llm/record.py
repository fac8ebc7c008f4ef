"""What came out of a run, request by request and step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.workload import Workload

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

# Baked into @compiled functions: naming these here makes their cache notice a change.
UNFINISHED, FINISHED, DROPPED, REJECTED, ABORTED = range(5)
"""How a request ended: still in the system (only where a run was cut short); all tokens given; given up by the
scheduler; refused on arrival, since the engine could never hold it; ended by the client or by a failure."""


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """One entry a request of the workload, in its order; shape (n,). Times are seconds on the clock of the arrivals."""

    status: I8  # UNFINISHED .. ABORTED
    first_scheduled_s: F64  # when its first tokens were scheduled, nan if never
    first_token_s: F64  # nan if none
    finish_s: F64  # when it ended, however it ended; nan while UNFINISHED
    generated: I32  # output tokens given
    max_gap_s: F64  # longest time between two output tokens, 0 with fewer than two
    preemptions: I32  # times its KV was given up or swapped out
    cached_tokens: I64  # prompt tokens found in the prefix cache instead of computed, over all admissions
    computed_tokens: I64  # tokens run through the model, recomputation included
    recomputed_tokens: I64  # of these, tokens that had been computed before and were given up
    swap_bytes: F64  # moved to the host and back
    service_s: F64  # seconds of the steps it took part in


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """One entry an engine step, in order; shape (steps,)."""

    start_s: F64
    duration_s: F64
    prefill_tokens: I32  # prompt tokens, and tokens computed anew after a preemption
    decode_tokens: I32  # positions of decoding requests, speculative ones included
    prefill_requests: I32
    decode_requests: I32
    running: I32  # requests that hold KV blocks after the step was planned
    waiting: I32  # requests in the queue after the step was planned
    kv_blocks: I32  # blocks in use while the step runs
    preemptions: I32  # requests preempted when the step was planned


@dataclass(frozen=True, slots=True, eq=False)
class TokenLog:
    """When every output token came out: request and time, in order of time; shape (tokens,)."""

    request: I32
    time_s: F64


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A run of one policy on one workload.

    Attributes:
        workload: what was asked.
        policy: name of the policy.
        requests, steps: what happened.
        num_steps: steps made, also where `steps` was not kept.
        end_s: time at which the last request ended.
        busy_s: seconds in which a step ran.
        gap_edges_s: edges of the bins of times between output tokens, rising, shape (bins + 1,).
        gap_count: gaps in each bin; the last bin also holds the longer ones, shape (bins,).
        repairs: what the engine had to change in the policy's plans: kind -> number.
        decisions: plans asked for; over a jump one plan serves many steps.
        policy_s: CPU seconds spent in the policy, 0 where it runs compiled inside the engine.
        kv_blocks: size of the KV pool.
        block_tokens: tokens a block holds.
        tokens: every output token's time, where the run was asked to keep it.
    """

    workload: Workload
    policy: str
    requests: Requests
    steps: Steps
    num_steps: int
    end_s: float
    busy_s: float
    gap_edges_s: F64
    gap_count: I64
    repairs: dict[str, int]
    decisions: int
    policy_s: float
    kv_blocks: int
    block_tokens: int
    tokens: TokenLog | None = None

    @property
    def ttft_s(self) -> F64:
        """Time from arrival to first token, nan without one; shape (n,)."""
        return self.requests.first_token_s - self.workload.arrival_s

    @property
    def mean_gap_s(self) -> F64:
        """Mean time per output token after the first, nan with fewer than two of a finished request; shape (n,)."""
        r = self.requests
        gaps = np.where(r.generated > 1, r.generated - 1, np.nan)
        last = np.where(r.status == FINISHED, r.finish_s, np.nan)
        return np.asarray((last - r.first_token_s) / gaps, np.float64)
