"""Mixed traffic: chat, several tenants, conversations of many turns."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads.arranged import arranged
from dispatchgym.envs.llm.workloads.arrivals import arrivals
from dispatchgym.envs.llm.workloads.lengths import log_normal


def chat(
    rng: np.random.Generator,
    requests: int | None = None,
    *,
    rate_per_s: float = 4.0,
    arrival: str = "poisson",
    prompt_median: float = 400.0,
    output_median: float = 160.0,
    deviation: float = 1.0,
    max_new_tokens: int = 1024,
    ttft_slo_s: float = 2.0,
    tpot_slo_s: float = 0.1,
) -> Workload:
    """Single-turn chat: log-normal lengths under any arrival process, every request with the same SLOs.

    `arrival` is at-once, poisson, gamma, diurnal, burst, bursty or wandering.
    """
    n = requests or 1000
    return arranged(
        arrivals(arrival, rng, n, rate_per_s),
        log_normal(rng, n, prompt_median, deviation, 4, 16_384),
        log_normal(rng, n, output_median, deviation, 1, max_new_tokens),
        max_new_tokens=np.full(n, max_new_tokens),
        ttft_slo_s=np.full(n, ttft_slo_s),
        tpot_slo_s=np.full(n, tpot_slo_s),
        slo_kind="mean",
        name=f"chat-{arrival}",
    )


def tenants(
    rng: np.random.Generator,
    requests: int | None = None,
    *,
    rate_per_s: float = 4.0,
    num_tenants: int = 4,
    skew: float = 2.0,
    flood: float = 0.0,
    max_new_tokens: int = 1024,
) -> Workload:
    """Several tenants with chats of their own lengths and very different rates, as in the VTC paper's setting.

    Tenant k sends `skew` times as much as tenant k + 1. The share `flood` of all requests is one more tenant's, who
    sends long prompts in bursts. SLOs: 2 s to the first token, 0.1 s a token.
    """
    n = requests or 1000
    if num_tenants < 1 or not skew > 0 or not 0.0 <= flood < 1.0:
        raise UsageError(
            f"num_tenants {num_tenants}, skew {skew}, flood {flood}: needs a tenant, a positive skew and 0 <= flood < 1"
        )
    flooding = round(flood * n)
    share = skew ** -np.arange(num_tenants, dtype=np.float64)
    tenant = rng.choice(num_tenants, n - flooding, p=share / share.sum())
    prompt = log_normal(rng, n - flooding, 300.0, 0.9, 4, 8192) + 200 * tenant
    output = log_normal(rng, n - flooding, 150.0, 0.8, 1, max_new_tokens)
    times = arrivals("poisson", rng, n - flooding, rate_per_s * (1 - flood))
    if flooding:
        times = np.concatenate([times, arrivals("burst", rng, flooding, rate_per_s * flood)])
        tenant = np.concatenate([tenant, np.full(flooding, num_tenants)])
        prompt = np.concatenate([prompt, log_normal(rng, flooding, 3000.0, 0.5, 4, 16_384)])
        output = np.concatenate([output, log_normal(rng, flooding, 80.0, 0.5, 1, max_new_tokens)])
    named = tuple(f"tenant {k}" for k in range(num_tenants)) + (("flood",) if flooding else ())
    return arranged(
        times,
        prompt,
        output,
        max_new_tokens=np.full(n, max_new_tokens),
        ttft_slo_s=np.full(n, 2.0),
        tpot_slo_s=np.full(n, 0.1),
        slo_kind="mean",
        tenant=tenant,
        class_id=tenant,
        class_names=named,
        name="tenants",
    )


def sessions(
    rng: np.random.Generator,
    requests: int | None = None,
    *,
    rate_per_s: float = 4.0,
    mean_turns: float = 5.0,
    think_s: float = 8.0,
    system_tokens: int = 512,
    turn_tokens: float = 120.0,
    output_median: float = 200.0,
    max_new_tokens: int = 1024,
) -> Workload:
    """Conversations of many turns: each prompt is all that was said before, answers included, and a new question.

    Turns are geometric in number and follow each other after a pause for thought, exponential, counted from the turn
    before: the trace is fixed beforehand, so a slow engine may see a turn before it has answered the last.
    All conversations begin with the same system prompt. Classes: first turns and later ones.
    """
    n = requests or 1000
    block = 16
    if mean_turns < 1 or not think_s > 0 or system_tokens < 0:
        raise UsageError(f"mean_turns {mean_turns}, think_s {think_s}, system_tokens {system_tokens} cannot be")
    turn_of: list[int] = []
    session: list[int] = []
    while len(session) < n:
        turns = int(rng.geometric(1.0 / mean_turns))
        session += [session[-1] + 1 if session else 0] * turns
        turn_of += range(turns)
    conversation, turn = np.array(session[:n]), np.array(turn_of[:n])
    begin = arrivals("poisson", rng, int(conversation[-1]) + 1, rate_per_s * (conversation[-1] + 1) / n)
    question = log_normal(rng, n, turn_tokens, 0.8, 4, 4096)
    output = log_normal(rng, n, output_median, 0.7, 1, max_new_tokens)
    first = turn == 0
    start = np.flatnonzero(first)[conversation]
    pause = np.where(first, 0.0, rng.exponential(think_s, n))
    passed, said = np.cumsum(pause), np.cumsum(question + output)
    times = begin[conversation] + passed - passed[start]
    prompt = system_tokens + said - output - np.where(start, said[start - 1], 0)
    whole = (prompt + output) // block
    # A conversation's blocks are numbered as they fill; the system prompt's are everybody's.
    ends = np.append(np.flatnonzero(first)[1:], n) - 1
    own = np.maximum(whole[ends] - system_tokens // block, 0)
    base = system_tokens // block + np.concatenate([[0], np.cumsum(own)[:-1]])
    hashes = [
        np.where(
            (k := np.arange(count)) < system_tokens // block, k, base[conversation[i]] + k - system_tokens // block
        )
        for i, count in enumerate(whole)
    ]
    return arranged(
        times,
        prompt,
        output,
        max_new_tokens=np.full(n, max_new_tokens),
        session=conversation,
        ttft_slo_s=np.full(n, 2.0),
        tpot_slo_s=np.full(n, 0.1),
        slo_kind="mean",
        hash_ptr=np.concatenate([[0], np.cumsum(whole)]),
        hashes=np.concatenate(hashes),
        hash_block=block,
        class_id=np.minimum(turn, 1),
        class_names=("first turn", "later turn"),
        name="sessions",
    )
