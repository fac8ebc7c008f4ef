"""The workload shapes of the schedulers' papers. What a paper does not say is our choice, and said so here."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads.arranged import arranged
from dispatchgym.envs.llm.workloads.arrivals import arrivals
from dispatchgym.envs.llm.workloads.lengths import log_normal

PAST_FUTURE = {
    1: ((32, 4096), (2048, 4096)),
    2: ((3000, 5000), (3000, 5000)),
    3: ((2048, 4096), (32, 4096)),
}
"""Distribution -> least and greatest prompt and output."""


def past_future(
    rng: np.random.Generator,
    requests: int | None = None,
    *,
    distribution: int = 1,
    rate_per_s: float = 0.0,
    ttft_slo_s: float = 10.0,
    mtpot_slo_s: float = 1.5,
) -> Workload:
    """Uniform lengths of distribution 1 (decode-heavy), 2 (balanced) or 3 (prefill-heavy); 3,000 requests.

    Source: the artifact of Past-Future (arXiv 2507.10150): its lengths, number and the SLOs of its 7B and 13B runs (the
    second on the longest gap). `rate_per_s` 0 has all there at once; the artifact's closed loop of clients is not made.
    Departure: outputs of distribution 2 may be 5,000 tokens long, which its script caps at 4,096.
    """
    if distribution not in PAST_FUTURE:
        raise UsageError(f"distribution is {distribution}; it must be 1, 2 or 3")
    n = requests or 3000
    (low_in, high_in), (low_out, high_out) = PAST_FUTURE[distribution]
    return arranged(
        arrivals("poisson", rng, n, rate_per_s) if rate_per_s else np.zeros(n),
        rng.integers(low_in, high_in, n, endpoint=True),
        rng.integers(low_out, high_out, n, endpoint=True),
        max_new_tokens=np.full(n, high_out),
        ttft_slo_s=np.full(n, ttft_slo_s),
        tpot_slo_s=np.full(n, mtpot_slo_s),
        slo_kind="max",
        name=f"past-future-{distribution}",
    )


FLOW_PREFILL = (
    # class, share, TTFT SLO s, TBT SLO s, median prompt, deviation of its logarithm, median output
    ("text", 0.70, 0.25, 0.1, 300.0, 0.9, 250.0),
    ("image", 0.05, 0.5, 0.1, 900.0, 0.5, 200.0),
    ("search", 0.15, 4.0, 0.2, 3500.0, 0.6, 300.0),
    ("file", 0.10, 6.0, 0.2, 9000.0, 0.7, 300.0),
)


def flow_prefill(
    rng: np.random.Generator,
    requests: int | None = None,
    *,
    rate_per_s: float = 4.0,
    arrival: str = "poisson",
    slo_scale: float = 1.0,
    prefill_only: bool = False,
) -> Workload:
    """Four classes of requests with SLOs from 0.25 to 6 s to the first token.

    Source of classes and SLOs: FlowPrefill (arXiv 2602.16603) and its code; `slo_scale` sweeps 0.4 to 2 there. The
    shares and lengths of the classes are our choice: the trace it replays is not used here. `prefill_only` ends every
    request with its first token, as on an instance that only prefills.
    """
    n = requests or 1000
    share = np.array([each[1] for each in FLOW_PREFILL])
    of = rng.choice(len(FLOW_PREFILL), n, p=share / share.sum())
    prompt, output = np.ones(n, np.int64), np.ones(n, np.int64)
    for k, (_, _, _, _, median, deviation, median_out) in enumerate(FLOW_PREFILL):
        mine = of == k
        prompt[mine] = log_normal(rng, int(mine.sum()), median, deviation, 16, 32_768)
        output[mine] = log_normal(rng, int(mine.sum()), median_out, 0.8, 1, 2048)
    if prefill_only:
        output[:] = 1
    return arranged(
        arrivals(arrival, rng, n, rate_per_s),
        prompt,
        output,
        max_new_tokens=np.full(n, 1 if prefill_only else 2048),
        ttft_slo_s=slo_scale * np.array([each[2] for each in FLOW_PREFILL])[of],
        tpot_slo_s=slo_scale * np.array([each[3] for each in FLOW_PREFILL])[of],
        slo_kind="mean",
        class_id=of,
        class_names=tuple(each[0] for each in FLOW_PREFILL),
        name="flow-prefill",
    )


def laps(
    rng: np.random.Generator,
    requests: int | None = None,
    *,
    rate_per_s: float = 8.0,
    arrival: str = "poisson",
    share_short: float = 0.8,
    boundary_tokens: int = 256,
    ttft_slo_s: float = 0.4,
    prefill_only: bool = False,
) -> Workload:
    """Many short prefills, as of later turns of a conversation, between few long ones.

    Source: LAPS (arXiv 2601.11589): the boundary of about 256 tokens and the SLO of 0.4 s to the first token. The share
    of short ones and the lengths (short: up to the boundary; long: log-normal about 1,500) are our choice, standing for
    its multi-turn ShareGPT and LMSYS-Chat sets.
    """
    n = requests or 1000
    if not 0.0 <= share_short <= 1.0:
        raise UsageError(f"share_short is {share_short}; it must lie between 0 and 1")
    is_long = rng.random(n) >= share_short
    short = log_normal(rng, n, boundary_tokens / 4, 0.7, 8, boundary_tokens)
    prompt = np.where(is_long, log_normal(rng, n, 1500.0, 0.8, boundary_tokens + 1, 16_384), short)
    output = np.ones(n, np.int64) if prefill_only else log_normal(rng, n, 150.0, 0.8, 1, 1024)
    return arranged(
        arrivals(arrival, rng, n, rate_per_s),
        prompt,
        output,
        max_new_tokens=np.full(n, 1 if prefill_only else 1024),
        ttft_slo_s=np.full(n, ttft_slo_s),
        tpot_slo_s=np.full(n, 0.1),
        slo_kind="mean",
        class_id=is_long.astype(np.int64),
        class_names=("short", "long"),
        name="laps",
    )


def batch_llm(
    rng: np.random.Generator,
    requests: int | None = None,
    *,
    group_size: float = 8.0,
    prefix_tokens: int = 1500,
    tail_tokens: int = 200,
    nested: float = 0.5,
) -> Workload:
    """An offline batch whose prompts share prefixes in groups, in random order, all there at once; no SLOs.

    Groups are geometric in size about `group_size`; their prefixes are uniform about `prefix_tokens`, tails about
    `tail_tokens`; in the share `nested` of the groups half of the members share a second, shorter prefix behind the
    first. Groups differ in their outputs (log-normal about 30 to 400 tokens), so the order of groups matters.
    Source of the setting: BatchLLM (arXiv 2412.03594); its industry workload is not public and the numbers are ours.
    """
    n = requests or 1000
    block = 16
    if group_size < 1 or prefix_tokens < block or tail_tokens < block:
        raise UsageError(
            f"group_size {group_size}, prefix_tokens {prefix_tokens}, tail_tokens {tail_tokens} are too few"
        )
    group: list[int] = []
    while len(group) < n:
        group += [group[-1] + 1 if group else 0] * int(rng.geometric(1.0 / group_size))
    of = np.array(group[:n])
    num = int(of[-1]) + 1
    first = rng.integers(prefix_tokens // 2, 3 * prefix_tokens // 2, num) // block
    second = np.where(rng.random(num) < nested, rng.integers(prefix_tokens // 8, prefix_tokens // 4, num) // block, 0)
    in_second = rng.random(n) < 0.5
    shared = first[of] + np.where(in_second, second[of], 0)
    tail = rng.integers(tail_tokens // 2, 3 * tail_tokens // 2, n)
    own = tail // block
    base = np.concatenate([[0], np.cumsum(first + second)[:-1]])  # blocks of a group's prefixes
    begin = int((first + second).sum()) + np.concatenate([[0], np.cumsum(own)[:-1]])  # blocks of a request's own
    order = rng.permutation(n)
    hashes = [
        np.concatenate([base[of[i]] + np.arange(shared[i]), begin[i] + np.arange(own[i])]) for i in order.tolist()
    ]
    mean_output = np.exp(rng.uniform(np.log(30.0), np.log(400.0), num))
    output = np.clip(np.rint(mean_output[of] * np.exp(rng.normal(0, 0.3, n))), 1, 2048).astype(np.int64)
    return arranged(
        np.zeros(n),
        (shared * block + tail)[order],
        output[order],
        max_new_tokens=np.full(n, 2048),
        hash_ptr=np.concatenate([[0], np.cumsum((shared + own)[order])]),
        hashes=np.concatenate(hashes),
        hash_block=block,
        program=of[order],
        name="batch-llm",
    )


def mc_sf(
    rng: np.random.Generator, requests: int | None = None, *, memory_tokens: int = 0, rate_per_s: float = 0.0
) -> Workload:
    """Tiny requests for an engine that holds `memory_tokens` tokens: prompts of 1 to 5, outputs that just fit.

    All at once, 40 to 60 requests; or Poisson, `rate_per_s` counted per step of one second. The memory, 30 to 50, is
    drawn where it is 0, and stands in the name. To run it: blocks of one token, as many as the memory.
    Source: the synthetic set of MC-SF (arXiv 2502.07115), as we know it.
    """
    memory = memory_tokens or int(rng.integers(30, 50, endpoint=True))
    if memory < 7:
        raise UsageError(f"memory_tokens is {memory}; prompts of 5 tokens and an output need at least 7")
    n = requests or int(rng.integers(40, 60, endpoint=True))
    prompt = rng.integers(1, 5, n, endpoint=True)
    output = rng.integers(1, memory - prompt, endpoint=True)
    return arranged(
        arrivals("poisson", rng, n, rate_per_s) if rate_per_s else np.zeros(n),
        prompt,
        output,
        max_new_tokens=memory - prompt,
        name=f"mc-sf-memory{memory}",
    )


def exspec(rng: np.random.Generator, requests: int | None = None, *, longest_prompt: int = 1024) -> Workload:
    """480 prompts of mixed tasks, sorted by length, all there at once, for batched speculative decoding.

    Source: EXSPEC (arXiv 2510.22876) on SpecBench: the number, the sorting and the limit on prompts. The lengths
    themselves (log-normal about 220 tokens; outputs about 160, at most 512) are our choice.
    """
    n = requests or 480
    return arranged(
        np.zeros(n),
        np.sort(log_normal(rng, n, 220.0, 0.9, 16, longest_prompt)),
        log_normal(rng, n, 160.0, 0.6, 8, 512),
        max_new_tokens=np.full(n, 512),
        name="exspec",
    )


def i_dlm(rng: np.random.Generator, requests: int | None = None, *, rate_per_s: float = 0.0) -> Workload:
    """500 mathematics problems with long answers, all there at once, for strided decoding in a stable batch.

    Source: I-DLM (arXiv 2604.11035) on MATH-500, at 1 to 64 requests at a time: set the engine's limit to that. The
    lengths (prompts log-normal about 110 tokens, answers about 900, at most 4,096) are our choice.
    """
    n = requests or 500
    return arranged(
        arrivals("poisson", rng, n, rate_per_s) if rate_per_s else np.zeros(n),
        log_normal(rng, n, 110.0, 0.5, 16, 2048),
        log_normal(rng, n, 900.0, 0.7, 32, 4096),
        max_new_tokens=np.full(n, 4096),
        name="i-dlm",
    )
