"""Views made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Oracle, RequestTable, Texts
from dispatchgym.envs.llm.profile import Profile
from tests.envs.llm.helpers import PROFILE

DEFAULTS: dict[str, float] = {
    "arrival_s": 0.0, "ttft_slo_s": np.inf, "tpot_slo_s": np.inf, "last_token_s": np.nan, "first_token_s": np.nan,
    "queued_s": 0.0, "run_s": 0.0, "service_s": 0.0, "prompt_tokens": 16, "max_new_tokens": 100, "priority": 0,
    "tenant": 0, "session": -1, "program": -1, "computed": 0, "generated": 0, "blocks": 0, "host_blocks": 0,
    "cached_tokens": 0, "preemptions": 0, "group": -1,
}  # fmt: skip


def table(rows: list[dict[str, Any]], first_id: int) -> RequestTable:
    """One request a dict of columns; the rest by default."""
    full = [{"id": first_id + k, **DEFAULTS, **row} for k, row in enumerate(rows)]
    floats = [name for name in RequestTable._fields if name.endswith("_s")]
    columns = {
        name: np.array([row[name] for row in full], np.float64 if name in floats else np.int64)
        for name in RequestTable._fields
    }
    return RequestTable(**columns)


def decoding(prompt: int, generated: int, **more: Any) -> dict[str, Any]:
    """A running request that decodes, with just the blocks it needs."""
    held = prompt + generated - 1
    return {
        "prompt_tokens": prompt, "generated": generated, "computed": held, "blocks": -(-held // 16),
        "last_token_s": 0.0, "first_token_s": 0.0, **more,
    }  # fmt: skip


def view(
    running: list[dict[str, Any]] | None = None, waiting: list[dict[str, Any]] | None = None, **more: Any
) -> EngineView:
    """A view of these requests: running ones are 0, 1, ..., waiting ones 100, 101, ... unless they say otherwise."""
    r, w = table(running or [], 0), table(waiting or [], 100)
    kv_blocks = more.pop("kv_blocks", 1000)
    outputs = more.pop("outputs", None)
    oracle = None
    if outputs is not None:
        oracle = Oracle(np.array(outputs[: len(r)], np.int64), np.array(outputs[len(r) :], np.int64))
    hashes = more.pop("hashes", {})
    texts = {request: np.array(blocks, np.int64) for request, blocks in hashes.items()}
    facts: dict[str, Any] = {
        "now_s": 0.0, "step": 0, "running": r, "waiting": w, "free_blocks": kv_blocks - int(r.blocks.sum()),
        "kv_blocks": kv_blocks, "block_tokens": 16, "free_seqs": 64 - len(r), "token_budget": 8192, "host_free": 0,
        "max_preemptions": 100,
        "history": np.zeros(0, np.int32), "finished": 0, "interrupted": False,
        "texts": Texts(texts, 16), "oracle": oracle,
    }  # fmt: skip
    return EngineView(**{**facts, **more})


def ready(policy: Any, *, config: EngineConfig | None = None, profile: Profile = PROFILE, seed: int = 0) -> Any:
    """The policy, reset."""
    policy.reset(EngineSpec(config or EngineConfig(), profile, 1000), seed)
    return policy
