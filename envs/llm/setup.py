"""The arrays of a fresh engine with a workload ahead of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.state import (
    BATCH,
    BLOCK,
    ENDED,
    ENGINE,
    GAP_BINS,
    GROUP,
    NONE,
    REQUEST,
    STEP,
    State,
)
from dispatchgym.envs.llm.workload import Workload

LOG_ROOM = 1 << 14
"""Rows that a log starts with; it doubles when it is full."""

_NOT_YET = ("first_scheduled_s", "first_token_s", "last_token_s", "finish_s")


def fresh_state(
    workload: Workload, config: EngineConfig, profile: Profile, seed: int, *, steps: bool, tokens: bool
) -> State:
    """Everything allocated, nothing arrived. `steps` and `tokens`: keep a log of them.

    Raises:
        UsageError: the workload's hashes do not fall on block boundaries.
    """
    size = config.block_tokens
    kv_blocks = config.kv_blocks or profile.kv_tokens // size
    max_len = config.max_len or kv_blocks * size
    if len(workload.hashes) and workload.hash_block % size:
        raise UsageError(
            f"engine: block_tokens {size} does not divide the {workload.hash_block} tokens of a hash of workload "
            f"{workload.name!r}"
        )
    req = _requests(workload)
    longest = np.minimum(req["prompt"].astype(np.int64) + req["max_new"], max_len) + config.max_spec
    row = -(-max(int(longest.max(initial=1)), config.max_len + config.max_spec) // size) + 1

    eng = np.zeros(1, ENGINE)
    e: Any = eng[0]
    e["block_tokens"], e["kv_blocks"], e["host_blocks"] = size, kv_blocks, config.host_blocks
    e["max_seqs"], e["token_budget"], e["max_len"] = config.max_seqs, config.token_budget, max_len
    e["max_spec"], e["max_preemptions"], e["acceptance"] = config.max_spec, config.max_preemptions, config.acceptance
    e["caching"], e["hash_ratio"] = config.prefix_caching, max(1, workload.hash_block // size)
    e["seed"], e["kv_bytes"] = seed % 2**63, size * profile.kv_bytes_per_token
    e["log_steps"], e["log_tokens"], e["jumps"] = steps, tokens, config.jumps
    e["hashes"] = len(workload.hashes)
    e["num"], e["head"], e["tail"] = len(workload), NONE, NONE
    e["free"], e["host_free"], e["slots"], e["group"] = kv_blocks, config.host_blocks, config.max_seqs, NONE

    block = np.zeros(kv_blocks + 1, BLOCK)
    block["after"] = np.roll(np.arange(kv_blocks + 1), -1)
    block["before"] = np.roll(np.arange(kv_blocks + 1), 1)
    places = 1 << (2 * kv_blocks).bit_length() if config.prefix_caching else 1
    return State(
        eng=eng,
        req=req,
        hashes=np.array(workload.hashes),
        block=block,
        map_key=np.zeros(places, np.int64),
        map_block=np.zeros(places, np.int32),
        table=np.zeros((config.max_seqs, row), np.int32),
        slot=np.arange(config.max_seqs, dtype=np.int32)[::-1].copy(),
        run=np.zeros(config.max_seqs, np.int32),
        batch=np.zeros(config.max_seqs, BATCH),
        group=np.zeros(config.max_seqs, GROUP),
        swap_out=np.zeros((kv_blocks if config.host_blocks else 0, 2), np.int32),
        swap_in=np.zeros((config.max_seqs, 2), np.int32),
        history=np.zeros(config.history, np.int32),
        cost=profile.terms(),
        pad=profile.padding(config.max_seqs).copy(),
        crossing=np.zeros(size, np.int32),
        log=np.zeros(LOG_ROOM if steps else 0, STEP),
        gaps=np.zeros(GAP_BINS, np.int64),
        token_request=np.zeros(LOG_ROOM + 4 * config.max_seqs * (1 + config.max_spec) if tokens else 0, np.int32),
        token_s=np.zeros(LOG_ROOM + 4 * config.max_seqs * (1 + config.max_spec) if tokens else 0),
    )


def _requests(workload: Workload) -> npt.NDArray[Any]:
    req = fresh_requests(len(workload))
    for name in ("arrival_s", "ttft_slo_s", "tpot_slo_s", "priority", "tenant", "session", "program"):
        req[name] = getattr(workload, name)
    req["prompt"], req["output"] = workload.prompt_tokens, workload.output_tokens
    req["max_new"] = workload.max_new_tokens
    req["serial"] = np.arange(len(workload))
    req["hash_at"], req["hash_count"] = workload.hash_ptr[:-1], np.diff(workload.hash_ptr)
    # a last hash that ends with the prompt says nothing about the output in the same block
    prompt = req["prompt"].astype(np.int64)
    covered = req["hash_count"].astype(np.int64) * workload.hash_block
    beyond = covered >= prompt + workload.hash_block
    req["hashed"] = np.minimum(covered, prompt + np.where(beyond, req["output"], 0))
    return req


def fresh_requests(n: int) -> npt.NDArray[Any]:
    """Requests of which nothing is known yet."""
    req = np.zeros(n, REQUEST)
    for name in ("before", "after", "slot", "group"):
        req[name] = NONE
    for name in _NOT_YET:
        req[name] = np.nan
    return req


def with_request(s: State, hashes: npt.NDArray[np.int64]) -> State:
    """The same with room for another request, and for its hashes at the end of `State.hashes`.

    Arrays double; hashes of requests that have ended, and are not pinned, make room.
    """
    e = s.eng[0]
    if e["num"] == len(s.req):
        more = np.zeros(max(64, len(s.req)), REQUEST)
        s = s._replace(req=np.concatenate([s.req, more]))
    used = int(e["hashes"])
    if used + len(hashes) > len(s.hashes):
        rows = s.req[: e["num"]]
        alive = np.flatnonzero((rows["state"] != ENDED) | (rows["pinned"] > 0))
        kept = [s.hashes[q["hash_at"] : q["hash_at"] + q["hash_count"]] for q in rows[alive]]
        rows["hash_count"][~np.isin(np.arange(len(rows)), alive)] = 0
        rows["hash_at"][alive] = np.cumsum([0, *(len(k) for k in kept)])[: len(alive)]
        used = sum(len(k) for k in kept)
        room = np.zeros(max(1024, 2 * (used + len(hashes))), np.int64)
        room[:used] = np.concatenate([*kept, room[:0]])
        s = s._replace(hashes=room)
    s.hashes[used : used + len(hashes)] = hashes
    s.eng["hashes"][0] = used + len(hashes)
    return s


def with_more_log(s: State) -> State:
    """The same with twice the room for logs."""
    return s._replace(
        log=np.concatenate([s.log, np.zeros_like(s.log)]),
        token_request=np.concatenate([s.token_request, np.zeros_like(s.token_request)]),
        token_s=np.concatenate([s.token_s, np.zeros_like(s.token_s)]),
    )
