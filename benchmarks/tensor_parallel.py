"""One engine over several GPUs of a host, and several engines beside each other: workload W256 of executor.py.

`--ways 1,2,2-eager,1x2`: one GPU; two that share every layer, with captured decoding steps and without; two engines of
one GPU each, side by side. On a machine without GPUs, and with --quick, a tiny model runs over processes of the CPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue

import executor as one_gpu
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.serving.executor.build import fit_config, make_executor
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.parallel import Leader, follow, orders_group
from dispatchgym.serving.executor.shares import Share
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.serving.executor.weights import Model

KV_BLOCKS = 32_768
PATIENCE_S = 240


@dataclass(frozen=True)
class Way:
    """How many GPUs share an engine, how many engines there are, and whether decoding steps are captured."""

    name: str
    shares: int
    engines: int
    captured: bool


@dataclass(frozen=True)
class Job:
    """What every process is told."""

    way: Way
    model: str
    folder: str
    requests: int
    longest: int
    on_gpu: bool
    repeats: int


def parse_way(text: str) -> Way:
    shares, _, engines = text.removesuffix("-eager").partition("x")
    return Way(text, int(shares), int(engines or 1), not text.endswith("-eager"))


def run(rank: int, job: Job, found: Queue[tuple[int, list[float]]]) -> None:
    """A process: one GPU of an engine."""
    engine, share = divmod(rank, job.way.shares)
    torch.set_num_threads(1)
    if job.on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if job.on_gpu else "gloo", init_method=f"file://{job.folder}/engine{engine}", rank=share,
        world_size=job.way.shares,
    )  # fmt: skip
    device = f"cuda:{rank}" if job.on_gpu else "cpu"
    model = open_model(f"random:{job.model}", device, share=Share(share, job.way.shares))
    make = partial(make_executor, graphs=job.way.captured)
    blocks, budget, longest = (KV_BLOCKS, 8192, 9216) if job.on_gpu else (512, 256, 512)
    orders = orders_group()
    if share > 0:
        config = EngineConfig(max_seqs=job.requests, token_budget=budget, max_len=longest, kv_blocks=blocks)
        follow(make(model, fit_config(model, config)), orders)
    else:

        def lead(model: Model, config: EngineConfig) -> TorchExecutor | Leader:
            executor = make(model, config)
            return Leader(executor, orders) if job.way.shares > 1 else executor

        bench = one_gpu.Bench(model, job.requests, budget, longest, lead, blocks)
        requests = one_gpu.drawn(job.requests, job.longest)
        tokens = sum(request.output for request in requests)
        found.put((engine, [tokens / bench.play(requests) for _ in range(job.repeats)]))
        if isinstance(bench.executor, Leader):
            bench.executor.close()
    dist.barrier()
    dist.destroy_process_group()


def measured(job: Job) -> Measured:
    """Output tokens a second of all engines together.

    Raises:
        RuntimeError: a process failed, or nothing came within PATIENCE_S.
    """
    context = processes.get_context("spawn")
    found: Queue[tuple[int, list[float]]] = context.Queue()
    group = [
        context.Process(target=run, args=(rank, job, found), daemon=True)
        for rank in range(job.way.shares * job.way.engines)
    ]
    for process in group:
        process.start()
    rates: dict[int, list[float]] = {}
    deadline = time.monotonic() + PATIENCE_S
    try:
        while len(rates) < job.way.engines:
            if any(process.exitcode for process in group) or time.monotonic() > deadline:
                raise RuntimeError(f"{job.way.name}: {[process.exitcode for process in group]} are the exit codes")
            if not found.empty():
                engine, each = found.get()
                rates[engine] = each
            time.sleep(0.05)
        for process in group:
            process.join(30)
    finally:
        for process in group:
            process.kill()
    return Measured.of([sum(each) for each in zip(*rates.values(), strict=True)])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="8b", help="size of the random model: 1b, 8b [%(default)s]")
    parser.add_argument("--ways", default="1,2,2-eager,1x2", help="see above [%(default)s]")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each [%(default)s]")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.quick
    rows: list[Row] = []
    alone: float | None = None
    for way in map(parse_way, (options.ways if on_gpu else "1,2").split(",")):
        if on_gpu and way.shares * way.engines > torch.cuda.device_count():
            sys.exit(f"--ways {way.name}: there are {torch.cuda.device_count()} GPUs")
        with tempfile.TemporaryDirectory() as folder:
            model, requests, longest = (options.model, 256, 1024) if on_gpu else ("tiny", 8, 32)
            rate = measured(Job(way, model, folder, requests, longest, on_gpu, options.repeats if on_gpu else 1))
        row = Row(
            f"{model} W{requests}, {way.name}", rate.value, "tokens/s", rate.spread, "one engine, one device", alone
        )
        if way.shares == way.engines == 1 and alone is None:
            alone = rate.value
        rows.append(row)
        print(f"  {row.name}: {row.value:,.0f} tokens/s", flush=True)
    publish(rows, options.json, ["torch", "numpy"])


if __name__ == "__main__":
    main()
