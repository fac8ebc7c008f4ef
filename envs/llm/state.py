"""Arrays of an engine: its requests, its KV ledger, the step it is about to run, and its logs.

Tokens, blocks and requests are counted in whole numbers, times in seconds. Records instead of one array a quantity:
what compiled functions hand each other stays short.

Constants of this file are baked into @compiled functions: naming these here makes their cache notice a change.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

int64: Any = np.int64  # in kernels: a number of this width, which type checkers take for any number
uint64: Any = np.uint64
float64: Any = np.float64

FUTURE, WAITING, RUNNING, ENDED = range(4)  # where a request is; a swapped one waits, with blocks on the host
NONE = -1
GAP_BINS = 512
GAP_LOW_S, GAP_PER_DOUBLING = 1e-5, 16  # bin k >= 1 starts at GAP_LOW_S * 2 ** ((k - 1) / GAP_PER_DOUBLING)

DECIDE, DONE, LOG_FULL = range(3)  # what the engine stopped for
RECOMPUTE, SWAP, PAUSE = range(3)  # ways to preempt

REQUEST = np.dtype(
    [
        ("arrival_s", np.float64),
        ("ttft_slo_s", np.float64),
        ("tpot_slo_s", np.float64),
        ("prompt", np.int32),
        ("output", np.int32),  # true length, the engine's secret
        ("max_new", np.int32),
        ("priority", np.int32),
        ("tenant", np.int32),
        ("session", np.int32),
        ("program", np.int32),
        ("serial", np.int64),  # names the request's own text in the prefix cache: never used twice
        ("hash_at", np.int64),  # first hash
        ("hash_count", np.int32),
        ("hashed", np.int32),  # tokens, from the start, whose text the hashes name
        # where it stands
        ("state", np.int8),  # FUTURE .. ENDED
        ("status", np.int8),  # how it ended, as in record.py
        ("before", np.int32),  # neighbours in the queue
        ("after", np.int32),
        ("slot", np.int32),  # row of the block table
        ("blocks", np.int32),  # held on the device
        ("host_blocks", np.int32),  # held on the host
        ("computed", np.int32),  # tokens whose KV is held
        ("generated", np.int32),
        ("peak", np.int32),  # most tokens whose KV was ever held: computing these again is waste
        ("granted", np.int32),  # tokens in the step at hand
        ("row", np.int32),  # in the batch at hand
        ("new_keys", np.int32),  # blocks that the step at hand made findable
        ("stamp", np.int64),  # order of admission among the running
        ("group", np.int32),  # interrupted step it belongs to, -1 none
        ("group_tokens", np.int32),  # that it runs in it
        ("pinned", np.int32),  # blocks of its prefix that a pin holds
        ("pinned_until_s", np.float64),
        ("key", np.float64),  # a number that a scheduler keeps with it
        # what is recorded
        ("first_scheduled_s", np.float64),
        ("first_token_s", np.float64),
        ("last_token_s", np.float64),
        ("finish_s", np.float64),
        ("max_gap_s", np.float64),
        ("service_s", np.float64),
        ("queued_s", np.float64),  # when it last entered the queue
        ("run_s", np.float64),  # end of the last step it took part in
        ("ousted", np.int64),  # number of the step that it was last preempted for, from 1
        ("preemptions", np.int32),
        ("accepted", np.int32),  # speculative tokens kept
        ("drafted", np.int32),  # and tried
        ("cached", np.int64),
        ("work", np.int64),  # tokens run
        ("recomputed", np.int64),
        ("swap_bytes", np.float64),
    ]
)
ENGINE = np.dtype(
    [
        # fixed
        ("block_tokens", np.int64),
        ("kv_blocks", np.int64),
        ("host_blocks", np.int64),
        ("max_seqs", np.int64),
        ("token_budget", np.int64),
        ("max_len", np.int64),
        ("max_spec", np.int64),
        ("max_preemptions", np.int64),
        ("caching", np.int64),  # 1: blocks can be found by what they hold
        ("hash_ratio", np.int64),  # blocks a hash stands for
        ("acceptance", np.float64),
        ("seed", np.uint64),
        ("kv_bytes", np.float64),  # of a block
        ("log_tokens", np.int64),
        ("log_steps", np.int64),
        ("jumps", np.int64),
        # where it stands
        ("now", np.float64),
        ("num", np.int64),  # requests known
        ("hashes", np.int64),  # in use
        ("next", np.int64),  # first that has not arrived
        ("head", np.int64),
        ("tail", np.int64),
        ("waiting", np.int64),
        ("running", np.int64),
        ("ended", np.int64),
        ("stamp", np.int64),
        ("free", np.int64),  # blocks that may be taken
        ("host_free", np.int64),
        ("pins", np.int64),  # requests with a pin
        ("slots", np.int64),  # free rows of the block table
        ("steps", np.int64),
        ("logged", np.int64),
        ("tokens_logged", np.int64),
        ("finished", np.int64),  # lengths ever put into the history
        ("busy_s", np.float64),
        ("plain_s", np.float64),  # seconds of the step before, if everyone decoded one token in it; else 0
        ("waited_s", np.float64),  # since the last step
        # the step at hand
        ("batch", np.int64),
        ("budget", np.int64),
        ("prefill_tokens", np.int64),
        ("decode_tokens", np.int64),
        ("prefills", np.int64),
        ("decodes", np.int64),
        ("pairs", np.int64),  # (query, key) pairs of prompt pieces
        ("context", np.int64),  # tokens whose KV is read
        ("preempted", np.int64),
        ("swap_bytes", np.float64),
        ("held", np.int64),  # 1: told to keep the members of the step before
        ("swap_outs", np.int64),
        ("swap_ins", np.int64),
        ("group", np.int64),  # interrupted step that goes on, -1 none
        ("late_keys", np.int64),  # 1: blocks become findable only after the step, which may be interrupted
        # a compiled scheduler's own memory
        ("round", np.int64),  # step of its last round of admissions
    ]
)
BLOCK = np.dtype([("ref", np.int32), ("before", np.int32), ("after", np.int32), ("key", np.int64)])
BATCH = np.dtype(
    [
        ("request", np.int32),
        ("start", np.int32),  # tokens held before
        ("tokens", np.int32),  # to run
        ("decode", np.int8),  # 1: goes on with its output
        ("emitted", np.int32),  # output tokens that came out
        ("stopped", np.int8),  # 1: the last of them ends the request
    ]
)
STEP = np.dtype(
    [
        ("start_s", np.float64),
        ("duration_s", np.float64),
        ("prefill_tokens", np.int32),
        ("decode_tokens", np.int32),
        ("prefill_requests", np.int32),
        ("decode_requests", np.int32),
        ("running", np.int32),
        ("waiting", np.int32),
        ("kv_blocks", np.int32),
        ("preemptions", np.int32),
    ]
)
GROUP = np.dtype([("members", np.int32), ("segments", np.int32), ("left_s", np.float64)])  # segments done

# terms of the step time, in the order of the array `cost`; see profile.py
BASE_S, WEIGHTS_S, TOKEN_S, ROW_S, PAIR_S, CONTEXT_S, CHUNK_S, MIXED_S, REBUILD_S, SWAP_S, RAGGED_S = range(11)
HOST_S, HOST_MIXED_S, LEAD_S = 11, 12, 13
# of a step in which everyone decodes one token
DECODE_BASE_S, DECODE_WEIGHTS_S, DECODE_TOKEN_S, DECODE_ROW_S, DECODE_CONTEXT_S, DECODE_SPREAD_S = range(14, 20)
CAPTURED = 20  # BASE_S .. MIXED_S of captured passes lie so far behind those of launched ones
CAPTURED_LEAD_S, CAPTURED_TOKENS = 28, 29
SIZES, MOST_SIZES = 30, 64  # tokens of the captured passes, rising; inf behind the last
COST_TERMS = SIZES + MOST_SIZES


class State(NamedTuple):
    """Everything that changes, and the few fixed things that kernels read."""

    eng: Any  # (1,) of ENGINE
    req: Any  # (capacity,) of REQUEST
    hashes: I64
    block: Any  # (kv_blocks + 1,) of BLOCK; the last is the ring's knot
    map_key: I64  # (power of two,) 0 none
    map_block: I32
    table: I32  # (max_seqs, blocks of the longest request): block numbers
    slot: I32  # (max_seqs,) stack of free rows
    run: I32  # (max_seqs,) running requests in order of admission
    batch: Any  # (max_seqs,) of BATCH
    group: Any  # (max_seqs,) of GROUP: interrupted steps, by their number
    swap_out: I32  # (kv_blocks, 2): request and block whose content goes to the host before the step
    swap_in: I32  # (max_seqs, 2): request and number of its blocks that come back before the step
    history: I32  # (window,) output lengths of requests that finished, a ring
    cost: F64  # (COST_TERMS,)
    pad: I32  # (max_seqs + 1,) rows that a decode step of so many runs
    crossing: I32  # (block_tokens,) scratch: rows that need a block, by step modulo
    log: Any  # (room,) of STEP
    gaps: I64  # (GAP_BINS,)
    token_request: I32  # (room,)
    token_s: F64


def gap_edges_s() -> F64:
    """Edges of the histogram's bins, shape (GAP_BINS + 1,)."""
    edges = GAP_LOW_S * 2.0 ** (np.arange(GAP_BINS) / GAP_PER_DOUBLING)
    return np.concatenate([[0.0], edges])
