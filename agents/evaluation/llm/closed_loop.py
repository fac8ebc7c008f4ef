"""Clients that wait for an answer before they ask again, as Past-Future's runs have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.executor import Executor
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, Policy
from dispatchgym.envs.llm.profile import Profile
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.simulate import record_of
from dispatchgym.envs.llm.state import ENDED, State
from dispatchgym.envs.llm.workload import Workload

NEVER_S = 1e9
"""Arrival of a request that nobody has sent yet."""


def closed_loop(
    stream: Workload,
    policy: Policy | CompiledPolicy,
    config: EngineConfig,
    profile: Profile,
    seed: int,
    *,
    clients: int,
    until_s: float,
    executor: Callable[[State], Executor] | None = None,
) -> Record:
    """The record of a run of `until_s` seconds in which `clients` clients have one request each in the system.

    A request that breaks its bounds, on the first token or on the longest gap, is aborted at the end of the step in
    which it does, and its client sends the next of the stream. What is there at the end is aborted too.

    Source: the artifact of Gong et al., ASPLOS 2025 (WuSiYu/lightllm-ae). Departure: it sends the aborted request
    again, this the next one: with lengths drawn alike, long requests get no second chance to be tried.

    Args:
        stream: requests in the order in which they are sent; their arrivals are not looked at. If it ends early, so
            does the run.
    """
    arrival_s = np.where(np.arange(len(stream)) < clients, 0.0, NEVER_S)
    state = fresh_state(replace(stream, arrival_s=arrival_s), config, profile, seed, steps=True, tokens=False)
    spec = EngineSpec(config, profile, int(state.eng["kv_blocks"][0]), stream.slo_kind)
    if isinstance(policy, CompiledPolicy):
        policy.prepare(state, spec, seed)
    else:
        policy.reset(spec, seed)
    engine = Engine(state, policy, spec, executor=executor(state) if executor is not None else None)
    sent = min(clients, len(stream))
    while engine.step():
        rows, now = engine.state.req, float(engine.state.eng["now"][0])
        for r in _late(rows[:sent], now):
            engine.abort(r)
        following = clients + int(engine.state.eng["ended"][0])
        if now >= until_s or following > len(stream):
            break
        rows["arrival_s"][sent:following] = now
        sent = following
    for r in range(sent):
        engine.abort(r)
    state = engine.state._replace(req=engine.state.req[:sent])
    came = replace(stream.take(np.arange(sent)), arrival_s=state.req["arrival_s"].copy())
    return record_of(state, came, policy.name, engine.repairs, decisions=engine.decisions, policy_s=engine.policy_s)


def _late(rows: Any, now_s: float) -> list[int]:
    """Requests in the system that can keep their bounds no more."""
    there = np.flatnonzero(rows["state"] != ENDED)
    q = rows[there]
    started = q["generated"] > 0
    since = now_s - np.where(started, q["last_token_s"], q["arrival_s"])
    late = since > np.where(started, q["tpot_slo_s"], q["ttft_slo_s"])
    late |= started & ((q["max_gap_s"] > q["tpot_slo_s"]) | (q["first_token_s"] - q["arrival_s"] > q["ttft_slo_s"]))
    found: list[int] = there[late].tolist()
    return found
