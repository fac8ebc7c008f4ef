"""Engine iterations and requests per second of CPU time on one core: the LLM simulator under rule and view policies.

Workload of the comparison: 1,000 requests with the lengths of Azure's 2023 conversation trace (of its synthetic twin
where the trace is not here), Poisson arrivals at 4/s, one replica, at most 512 tokens a step. Peers are quoted from an
earlier run on this kind of machine, not run beside: Vidur (git 7d47513, metrics off) makes 8,600 iterations and 510
requests per CPU second on it, BLIS (f90a1e3) about 6,000 and 260 to 295. A step of our profile is shorter than theirs,
so the same requests take more iterations here.
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace

import numpy as np
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.schedulers import SCHEDULERS

VIDUR_ITERATIONS, VIDUR_REQUESTS = 8_600.0, 510.0
CHUNK = EngineConfig(token_budget=512, max_seqs=128)


def main() -> None:
    options = arguments(__doc__).parse_args()
    repeats = 3 if options.quick else 9
    rows = []
    conversation = workloads.load("azure-2023-conv-twin", requests=1000, rate_per_s=4.0, seed=0)
    if workloads.traces.is_here("azure-2023-conv"):
        real = workloads.load("azure-2023-conv", requests=1000)
        conversation = replace(real, arrival_s=conversation.arrival_s)
    for name in ("vllm", "sarathi"):
        for jumps in (True, False):
            engine = replace(CHUNK, jumps=jumps)
            steps, requests = timed(conversation, name, engine, repeats)
            how = "" if jumps else ", step by step"
            bar = "bar 90,000" if name == "vllm" else ""
            rows.append(
                Row(f"{name}{how}", steps.value, "iterations/s", steps.spread, "Vidur, quoted", VIDUR_ITERATIONS, bar)
            )
            bar = "bar 5,000" if name == "vllm" else ""
            rows.append(
                Row(f"{name}{how}", requests.value, "requests/s", requests.spread, "Vidur, quoted", VIDUR_REQUESTS, bar)
            )
    for name in ("past-future", "mc-sf", "sglang", "flow-prefill", "laps"):
        steps, requests = timed(conversation, name, CHUNK, 1 if options.quick else 3)
        rows.append(Row(f"{name}, over the view", steps.value, "iterations/s", steps.spread))

    for running in (16, 64, 256, 1024):
        length = 1000 if options.quick else 4000
        crowd = closed(running, length)
        engine = EngineConfig(token_budget=2048, max_seqs=running, jumps=False, kv_blocks=running * (length // 16 + 3))
        steps, _ = timed(crowd, "vllm", engine, repeats)
        each = Measured(1e9 / steps.value / running, (1e9 / steps.spread[1] / running, 1e9 / steps.spread[0] / running))
        rows.append(Row(f"vllm, {running} running, step by step", each.value, "ns/(it x req)", each.spread))

    many = workloads.load(
        "azure-2023-conv-twin", requests=20_000 if options.quick else 100_000, rate_per_s=20.0, seed=0
    )
    before = time.process_time()
    record = simulate(many, SCHEDULERS["vllm"](), EngineConfig(token_budget=2048), steps=True)
    spent = time.process_time() - before
    rows.append(Row(f"vllm, {len(many):,} requests", spent, "CPU s", (spent, spent), bar="100,000: bar 30 s"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(
        Row(f"peak memory, {record.num_steps:,} steps logged", memory, "MiB", (memory, memory), bar="bar 500 MB")
    )
    publish(rows, options.json, ["numba", "numpy"])


def timed(workload: Workload, name: str, engine: EngineConfig, repeats: int) -> tuple[Measured, Measured]:
    """Iterations and requests per second of CPU time; one warm-up first."""
    run(workload, name, engine)
    iterations, requests = [], []
    for _ in range(repeats):
        before = time.process_time()
        record = run(workload, name, engine)
        spent = time.process_time() - before
        iterations.append(record.num_steps / spent)
        requests.append(len(workload) / spent)
    return Measured.of(iterations), Measured.of(requests)


def run(workload: Workload, name: str, engine: EngineConfig) -> Record:
    return simulate(workload, SCHEDULERS[name](), engine)


def closed(running: int, steps: int) -> Workload:
    """As many requests as may run at once, all there at the start, with short prompts and outputs of `steps` tokens."""
    n = running
    return Workload(
        arrival_s=np.zeros(n), prompt_tokens=np.full(n, 16), output_tokens=np.full(n, steps), name=f"{n} at once"
    )


if __name__ == "__main__":
    main()
