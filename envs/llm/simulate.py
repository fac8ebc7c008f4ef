"""Run a workload through an engine under a scheduler, in simulated time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.executor import Executor
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, Policy
from dispatchgym.envs.llm.profile import Profile, load_profile
from dispatchgym.envs.llm.record import Record, Requests, Steps, TokenLog
from dispatchgym.envs.llm.setup import fresh_state, with_more_log
from dispatchgym.envs.llm.state import LOG_FULL, State, gap_edges_s
from dispatchgym.envs.llm.workload import Workload


def simulate(
    workload: Workload,
    policy: Policy | CompiledPolicy | None = None,
    engine: EngineConfig | None = None,
    profile: Profile | str = "h200-8b",
    seed: int = 0,
    *,
    steps: bool = True,
    tokens: bool = False,
    strict: bool = False,
    executor: Callable[[State], Executor] | None = None,
) -> Record:
    """The record of a run until every request has ended.

    Args:
        policy: the scheduler, None for first come, first served.
        engine: size and limits of the engine.
        profile: step times, or the name of a profile.
        seed: of the scheduler's draws and of the acceptance of speculative tokens.
        steps, tokens: keep a row a step; the time of every token.
        strict: a plan that would have to be repaired raises.
        executor: makes what runs the steps, and says how long each takes; None for the profile.

    Raises:
        InvalidPlanError: with `strict`, or when the policy raises or returns something else than a plan.
    """
    config = engine or EngineConfig()
    times = load_profile(profile) if isinstance(profile, str) else profile
    policy = RulePolicy("fcfs", BatchingRule()) if policy is None else policy
    state = fresh_state(workload, config, times, seed, steps=steps, tokens=tokens)
    spec = EngineSpec(config, times, int(state.eng["kv_blocks"][0]), workload.slo_kind)
    if isinstance(policy, CompiledPolicy):
        policy.prepare(state, spec, seed)
    else:
        policy.reset(spec, seed)
    if isinstance(policy, CompiledPolicy) and executor is None:
        while policy.advance(state, np.inf) == LOG_FULL:
            state = with_more_log(state)
        return record_of(state, workload, policy.name, {}, decisions=int(state.eng["steps"][0]), policy_s=0.0)
    live = Engine(state, policy, spec, strict=strict, executor=executor(state) if executor is not None else None)
    live.run()
    return record_of(live.state, workload, policy.name, live.repairs, decisions=live.decisions, policy_s=live.policy_s)


def record_of(
    state: State, workload: Workload, policy: str, repairs: dict[str, int], *, decisions: int, policy_s: float
) -> Record:
    """What the arrays of an engine say about its run so far."""
    e, req = state.eng[0], state.req
    requests = Requests(
        status=req["status"].copy(),
        first_scheduled_s=req["first_scheduled_s"].copy(),
        first_token_s=req["first_token_s"].copy(),
        finish_s=req["finish_s"].copy(),
        generated=req["generated"].copy(),
        max_gap_s=req["max_gap_s"].copy(),
        preemptions=req["preemptions"].copy(),
        cached_tokens=req["cached"].copy(),
        computed_tokens=req["work"].copy(),
        recomputed_tokens=req["recomputed"].copy(),
        swap_bytes=req["swap_bytes"].copy(),
        service_s=req["service_s"].copy(),
    )
    rows = state.log[: e["logged"]]
    steps = Steps(**{name: rows[name].copy() for name in rows.dtype.names})
    logged = int(e["tokens_logged"])
    log = TokenLog(state.token_request[:logged].copy(), state.token_s[:logged].copy()) if e["log_tokens"] else None
    return Record(
        workload=workload,
        policy=policy,
        requests=requests,
        steps=steps,
        num_steps=int(e["steps"]),
        end_s=float(np.nanmax(req["finish_s"], initial=0.0)),
        busy_s=float(e["busy_s"]),
        gap_edges_s=gap_edges_s(),
        gap_count=state.gaps.copy(),
        repairs=repairs,
        decisions=decisions,
        policy_s=policy_s,
        kv_blocks=int(e["kv_blocks"]),
        block_tokens=int(e["block_tokens"]),
        tokens=log,
    )
