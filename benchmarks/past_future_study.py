"""The offline study of Past-Future (ASPLOS 2025) on this engine: steps, use of the pool, and evictions for each policy.

3,000 requests, all there at the start, a pool of 120,000 tokens, a round of admissions every 10 decode steps, at most
32,768 prompt tokens a step; evictions cost no time. Peer figures: the script of WuSiYu/lightllm-ae, run by us. It is
unseeded and its policies saw different draws, whose total work differs by about 1.2 % from draw to draw, so steps are
given for 100 steps that the draw would take with the pool always full, for the peer by the
expected work. Evictions depend on the draw most: three seeded runs of the same script gave 8.2, 8.0 and 8.5 for
past-future on D1 and 3.4, 3.2 and 2.7 on D3. For aggressive it lets an evicted request in again by its prompt alone,
without the output that comes back with it, and evicts it once more; by both, it evicts 86.7 and 34.1 (seed 0).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.aggressive import Aggressive
from dispatchgym.solvers.llm.conservative import Conservative
from dispatchgym.solvers.llm.past_future import PastFuture

POOL, REQUESTS = 120_000, 3000
LENGTHS = {1: ((32, 4096), (2048, 4096)), 2: ((3000, 5000), (3000, 5000)), 3: ((2048, 4096), (32, 4096))}
SCRIPT = {  # steps, use of the pool in per cent, evictions for 100 requests
    "conservative": {1: (484_670, 57.7, 0.0), 2: (839_270, 71.5, 0.0), 3: (384_090, 59.8, 0.0)},
    "aggressive": {1: (280_980, 98.4, 93.5), 2: (611_930, 97.9, 93.3), 3: (231_520, 98.1, 35.2)},
    "past-future": {1: (300_050, 93.1, 7.2), 2: (654_830, 92.1, 7.2), 3: (236_620, 94.6, 3.0)},
}
POLICIES: dict[str, Callable[[], Conservative | Aggressive | PastFuture]] = {
    "conservative": lambda: Conservative(limit=1.0, assumed_new=4096, every=10),
    "aggressive": lambda: Aggressive(limit=0.99, every=10, with_prompt=True),
    "past-future": lambda: PastFuture(window=1000, reserve=0.03, initial=512, poll=10),
}
ENGINE = EngineConfig(
    block_tokens=1, kv_blocks=POOL, token_budget=32_768, max_seqs=1024, prefix_caching=False, max_preemptions=10**6
)


def main() -> None:
    options = arguments(__doc__).parse_args()
    rows = []
    for distribution in (3,) if options.quick else (1, 2, 3):
        for name, policy in POLICIES.items():
            seeds = 1 if options.quick or name == "past-future" else 5
            steps, use, evicted = np.array([study(distribution, policy(), seed) for seed in range(seeds)]).T
            peer_steps, peer_use, peer_evicted = SCRIPT[name][distribution]
            title = f"D{distribution} {name}"
            for unit, ours, peer in (
                ("steps, full pool = 100", 100 * steps, 100 * peer_steps / expected_work(distribution)),
                ("% of the pool used", use, peer_use),
                ("evictions / 100 req", evicted, peer_evicted),
            ):
                spent = Measured.of(ours.tolist())
                rows.append(Row(f"{title}: {unit}", spent.value, "", spent.spread, "script", peer or None))
    publish(rows, options.json, ["numba", "numpy"])


def study(distribution: int, policy: Conservative | Aggressive | PastFuture, seed: int) -> tuple[float, float, float]:
    """Steps for each that full use would take, mean use of the pool in per cent, evictions for 100 requests."""
    prompts, outputs = LENGTHS[distribution]
    rng = np.random.default_rng(seed)
    workload = Workload(
        arrival_s=np.zeros(REQUESTS),
        prompt_tokens=rng.integers(*prompts, REQUESTS, endpoint=True).astype(np.int32),
        output_tokens=rng.integers(*outputs, REQUESTS, endpoint=True).astype(np.int32),
        max_new_tokens=np.full(REQUESTS, max(outputs[1], 4096)),
    )
    record = simulate(workload, policy, ENGINE)
    prompt, output = workload.prompt_tokens.astype(float), workload.output_tokens.astype(float)
    work = float((prompt * output + output * (output + 1) / 2).sum()) / POOL
    use = 100 * float(np.average(record.steps.kv_blocks)) / POOL
    return record.num_steps / work, use, 100 * float(record.requests.preemptions.sum()) / REQUESTS


def expected_work(distribution: int) -> float:
    """Steps that a draw takes on average with the pool always full."""
    (a, b), (c, d) = LENGTHS[distribution]
    output = (c + d) / 2
    square = output**2 + ((d - c + 1) ** 2 - 1) / 12
    return REQUESTS * ((a + b) / 2 * output + (square + output) / 2) / POOL


if __name__ == "__main__":
    main()
