"""What the server and its engine tell each other, over a pipe between two processes of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dispatchgym.serving.executor.sampling_params import Sampling

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


# --- to the engine ---


@dataclass(frozen=True, slots=True)
class Submit:
    """A sequence to generate.

    Attributes:
        key: names it from now on; never used twice.
        prompt: token ids, shape (tokens,).
        max_new: most output tokens.
        hashes: one a whole block of the prompt; see Workload. chain: what its next block is hashed with.
        columns: of the request as schedulers see it: ttft_slo_s, tpot_slo_s, priority, tenant, session, program.
        arrived_s: when the server got the request, by the system's monotonic clock: its bounds count from then, though
            the engine takes requests between steps alone. nan for now.
    """

    key: int
    prompt: I32
    max_new: int
    sampling: Sampling
    hashes: I64
    chain: bytes
    columns: Mapping[str, float]
    arrived_s: float = math.nan


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this sequence any more."""

    key: int


@dataclass(frozen=True, slots=True)
class Switch:
    """Another scheduler shall decide; `ticket` names the answer."""

    ticket: int
    scheduler: str


# --- from the engine ---


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine takes requests: its limits, and the scheduler that decides."""

    kv_blocks: int
    block_tokens: int
    max_len: int
    max_seqs: int
    token_budget: int
    scheduler: str
    version: str


class Output(NamedTuple):
    """Tokens of one sequence that a step put out. A tuple: one is made, sent and read for every sequence and step.

    Attributes:
        key: which sequence.
        tokens: ids in order.
        logprobs: of each, its logarithmic probability and the likeliest (id, logprob) at its place; empty where none
            were asked for.
        reason: "" while it goes on; "stop" (a stop token, the last of `tokens`), "length", "dropped" (by the
            scheduler).
        cached: prompt tokens found in the prefix cache.
    """

    key: int
    tokens: tuple[int, ...]
    logprobs: tuple[tuple[float, tuple[tuple[int, float], ...]], ...] = ()
    reason: str = ""
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did and how the engine stands after it.

    Attributes:
        outputs: of sequences that put something out or ended.
        started: sequences that were scheduled for the first time.
        is_interrupted: it was stopped in the middle, for a request that came; it counts when it has gone on to its end.
        prefill_tokens, decode_tokens, prefills, decodes: of the step.
        running, waiting, free_blocks: after it.
        preemptions: so far. repairs, faults: kind -> times so far.
        seconds: of the step. policy_s: of the decision, 0 for a rule inside the engine.
        is_benched: the scheduler has failed too often.
    """

    outputs: tuple[Output, ...]
    started: tuple[int, ...]
    is_interrupted: bool
    prefill_tokens: int
    decode_tokens: int
    prefills: int
    decodes: int
    running: int
    waiting: int
    free_blocks: int
    preemptions: int
    repairs: Mapping[str, int]
    faults: Mapping[str, int]
    seconds: float
    policy_s: float
    is_benched: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine could never hold this sequence."""

    key: int
    why: str


@dataclass(frozen=True, slots=True)
class Switched:
    """Answer to `Switch`: what decides now, and why it is not what was asked for ("" if it is)."""

    ticket: int
    scheduler: str
    version: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine could not be built; it will not become ready by trying again."""

    why: str


ToEngine = Submit | Cancel | Switch
FromEngine = Ready | Step | Refused | Switched | Failed
