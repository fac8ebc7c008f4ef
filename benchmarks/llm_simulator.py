"""Engine iterations and requests per second of CPU time on one core: the LLM simulator under rule and view policies.

Workload of the comparison: 1,000 requests with the lengths of Azure's 2023 conversation trace (of its synthetic twin
where the trace is not here), Poisson arrivals at 4/s, one replica, at most 512 tokens a step and 128 requests.

The peer is Vidur (git 7d47513) on the same requests with the same step times, its metrics off, in the same run. It cuts
requests to its 4,096 tokens. `make bench-peers` installs what it needs; its source is on no package index, so clone
it: `git clone https://github.com/microsoft/vidur .vidur && git -C .vidur checkout 7d47513`. Without, figures of another
day stand in its place: 8,600 iterations and 510 requests per CPU second, with step times of its own, on which the same
requests take a third of the iterations. BLIS (f90a1e3) makes about 6,000 and 260 to 295, and was not run beside.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.schedulers import SCHEDULERS

QUOTED = {"iterations": 8_600.0, "requests": 510.0}
ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
CHUNK = EngineConfig(token_budget=512, max_seqs=128)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--vidur", type=Path, default=ROOT / ".vidur", help="a clone of Vidur; default .vidur")
    options = parser.parse_args()
    repeats = 3 if options.quick else 9
    rows = []
    conversation = workloads.load("azure-2023-conv-twin", requests=1000, rate_per_s=4.0, seed=0)
    if workloads.traces.is_here("azure-2023-conv"):
        real = workloads.load("azure-2023-conv", requests=1000)
        conversation = replace(real, arrival_s=conversation.arrival_s)
    peer = vidur(options.vidur, conversation, 1 if options.quick else 3)
    label = "Vidur" if peer else "Vidur, quoted"
    rows += [Row("Vidur", rate.value, f"{unit}/s", rate.spread) for unit, rate in peer.items()]
    other = {unit: rate.value for unit, rate in peer.items()} or QUOTED
    for name in ("vllm", "sarathi"):
        for jumps in (True, False):
            engine = replace(CHUNK, jumps=jumps)
            steps, requests = timed(conversation, name, engine, repeats)
            how = "" if jumps else ", step by step"
            for unit, rate, bar in (("iterations", steps, "90,000"), ("requests", requests, "5,000")):
                bar = f"bar {bar}" if name == "vllm" else ""
                rows.append(Row(f"{name}{how}", rate.value, f"{unit}/s", rate.spread, label, other[unit], bar))
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


def vidur(checkout: Path, workload: Workload, repeats: int) -> dict[str, Measured]:
    """Its iterations and requests per second of CPU time on the same requests; empty where it is not here."""
    if not PEERS.exists() or not (checkout / "vidur").is_dir():
        missing = "make bench-peers" if not PEERS.exists() else f"a clone of Vidur at {checkout}"
        print(f"note: Vidur was not run; it needs {missing} (see --help)", file=sys.stderr)
        return {}
    columns = ("arrival_s", "prompt_tokens", "output_tokens")
    request = {name: getattr(workload, name).tolist() for name in columns}
    request |= {"chunk": CHUNK.token_budget, "places": CHUNK.max_seqs}
    request["step"] = {name: x for name, x in asdict(load_profile("h200-8b")).items() if name.endswith("_s")}
    script = ROOT / "benchmarks" / "peers" / "llm_simulator.py"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(request, file)
        file.flush()
        command = [str(PEERS), str(script), str(checkout), file.name, str(repeats)]
        out = subprocess.run(command, capture_output=True, text=True, check=False)
    if out.returncode:
        raise SystemExit(f"error: Vidur failed: {out.stderr.strip().splitlines()[-1]}")
    found = json.loads(out.stdout.splitlines()[-1])
    return {unit: Measured.of(found[unit]) for unit in QUOTED}


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
