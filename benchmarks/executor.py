"""The torch executor under the full engine, with vLLM's rules, on random weights: speed, and where time goes.

Workloads W256 and W1024: so many requests at once, prompts and outputs of 100 to 1024 tokens from `random.Random(0)`,
token ids 0 to 10000, greedy, ends of text ignored. The scheduler does not know how long outputs become. Output tokens
a second is all output tokens over the wall time of the whole batch, submission and prompts included.

The bound is an ideal first-come-first-served schedule on `--bandwidth` and `--peak`: a decoding step takes the larger
of weights over bandwidth and 2 parameters a row over peak, and its KV over bandwidth; prompts take their operations
over peak.

Figures of peers marked "noted" were measured on another day on the same kind of machine (NVIDIA H200, torch 2.11), not
in this run. On a machine without a GPU, and with --quick, a tiny model runs on the CPU.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import EngineSpec
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.executor import fast_path, sweep
from dispatchgym.serving.executor.build import fit_config, make_executor, rough_profile
from dispatchgym.serving.executor.decode_rows import COLUMNS
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.parallel import Leader
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.executor.sequences import Sequences
from dispatchgym.serving.executor.spec import ModelSpec
from dispatchgym.serving.executor.torch_executor import TorchExecutor
from dispatchgym.serving.executor.weights import Model
from dispatchgym.solvers.llm.vllm import Vllm

I32 = npt.NDArray[np.int32]

NOTED = {
    ("1b", "W256"): {"vLLM 0.25.1, noted": 33_500, "transformers CB with FA3, noted": 22_800},
    ("1b", "W1024"): {"vLLM 0.25.1, noted": 38_700, "transformers CB with FA3, noted": 25_300},
    ("8b", "W256"): {"vLLM 0.25.1, noted": 9_990, "transformers CB with FA3, noted": 7_090},
    ("8b", "W1024"): {"vLLM 0.25.1, noted": 12_280},
}
PARTS = ("decode", "passes", "prefill", "workloads", "latency", "profile")
PROMPTS = (16, 48, 112, 176, 240, 304, 368, 432, 496, 600, 900, 1300)
"""Tokens of the prompts of `passes`."""
CLASSES = {
    "attention": ("_decode_kernel", "_combine_kernel", "_piece_kernel"),
    "matrix products": ("nvjet", "gemm", "splitKreduce", "cutlass", "gemv"),
    "norm": ("_add_norm",),
    "rotation and store": ("_rope_store",),
    "activation": ("_silu",),
    "drawing": ("_best", "_pick", "_threshold"),
    "copies": ("Memcpy", "Memset"),
}


@dataclass(frozen=True)
class Request:
    prompt: I32
    output: int


def drawn(count: int, longest: int = 1024) -> list[Request]:
    """The workload's requests, drawn one after another: prompt length, prompt, output length."""
    rng = random.Random(0)
    low = min(100, longest // 4)
    requests = []
    for _ in range(count):
        prompt = [rng.randint(0, 10_000) for _ in range(rng.randint(low, longest))]
        requests.append(Request(np.array(prompt, np.int32), rng.randint(low, longest)))
    return requests


class Bench:
    """An engine on an executor, live on the wall clock."""

    def __init__(
        self, model: Model, max_seqs: int, token_budget: int, max_len: int,
        make: Callable[[Model, EngineConfig], TorchExecutor | Leader] = make_executor, kv_blocks: int = 0,
    ) -> None:  # fmt: skip
        config = EngineConfig(max_seqs=max_seqs, token_budget=token_budget, max_len=max_len, kv_blocks=kv_blocks)
        config = fit_config(model, config)
        self.model = model
        self.config = config
        before = time.perf_counter()
        self.executor = make(model, config)
        self.start_s = time.perf_counter() - before
        self.spent: dict[str, tuple[int, float]] = {}
        profile = rough_profile(model, config)
        none = np.zeros(0, np.int32)
        state = fresh_state(Workload(np.zeros(0), none, none), config, profile, 0, steps=False, tokens=False)
        policy, spec = Vllm(), EngineSpec(config, profile, config.kv_blocks)
        policy.prepare(state, spec, 0)
        self.engine = Engine(state, policy, spec, executor=self.executor, clock=time.perf_counter)
        self.play([Request(np.arange(1, 40, dtype=np.int32), 20) for _ in range(min(8, max_seqs))])

    def submit(self, request: Request) -> int:
        r = self.engine.submit(len(request.prompt), request.output)
        self.executor.add(r, request.prompt % self.model.spec.vocabulary, Sampling(request.output, ignore_eos=True))
        return r

    def release(self, numbers: Sequence[int]) -> None:
        """Check that the requests have put out all they should, and forget them."""
        self.executor.flush()
        for r in numbers:
            assert len(self.executor.outputs(r).ids) == self.engine.state.req["max_new"][r]
            self.executor.remove(r)
            self.engine.release(r)

    def play(self, requests: Sequence[Request]) -> float:
        """Seconds until all have been served that come now; `spent` tells for which kinds of steps."""
        begin = time.perf_counter()
        numbers = [self.submit(request) for request in requests]
        before = time.perf_counter()
        self.spent = {"submission": (0, before - begin)}
        went_on = True
        while went_on:
            e = self.engine.state.eng[0]
            went_on = self.engine.step()
            now = time.perf_counter()
            kind = "mixed" if e["prefills"] and e["decodes"] else "prompts" if e["prefills"] else "decoding"
            steps, seconds = self.spent.get(kind, (0, 0.0))
            self.spent[kind] = steps + 1, seconds + now - before
            before = now
        self.executor.flush()
        seconds = time.perf_counter() - begin
        self.release(numbers)
        return seconds

    def arrive(self, requests: Sequence[Request], rate_per_s: float) -> dict[str, float]:
        """Latencies of requests that come at random at this rate, seconds."""
        gaps = np.random.default_rng(0).exponential(1 / rate_per_s, len(requests))
        begin = time.perf_counter()
        due = deque(zip((begin + np.cumsum(gaps)).tolist(), requests, strict=True))
        numbers = []
        while True:
            while due and due[0][0] <= time.perf_counter():
                numbers.append(self.submit(due.popleft()[1]))
            if not self.engine.step():
                if not due:
                    break
                time.sleep(max(0.0, due[0][0] - time.perf_counter()))
        self.executor.flush()
        rows = self.engine.state.req[numbers]
        ttft = rows["first_token_s"] - rows["arrival_s"]
        gap = (rows["finish_s"] - rows["first_token_s"]) / np.maximum(rows["generated"] - 1, 1)
        span = float(rows["finish_s"].max() - begin)
        found = {"tokens_per_s": float(rows["generated"].sum()) / span}
        for name, values in (("ttft", ttft), ("tpot", gap)):
            for q in (50, 90, 99):
                found[f"{name}_p{q}"] = float(np.percentile(values, q))
        self.release(numbers)
        return found


@contextmanager
def watched(bench: Bench) -> Iterator[tuple[list[float], list[float]]]:
    """Collects how long the host waits for each plain step's tokens, and what launching each takes."""
    waits: list[float] = []
    launches: list[float] = []
    assert isinstance(bench.executor, TorchExecutor)
    assert bench.executor._fast is not None
    steps = bench.executor._fast._steps
    book, launch = fast_path.PlainStep.book, steps.launch

    def booked(step: fast_path.PlainStep, sequences: Sequences) -> None:
        before = time.perf_counter()
        step._flight.wait()
        waits.append(time.perf_counter() - before)
        book(step, sequences)

    def launched(flight: fast_path.Flight, rows: int) -> None:
        before = time.perf_counter()
        launch(flight, rows)
        launches.append(time.perf_counter() - before)

    with mock.patch.object(fast_path.PlainStep, "book", booked), mock.patch.object(steps, "launch", launched):
        yield waits, launches


def host_us(bench: Bench, running: int) -> tuple[Measured, float]:
    """What a plain step costs the host with so many running: engine, policy, executor, launch; waiting left out.

    And what of this is the launch of the captured step, which is the driver's. The spread is the least and P90.
    """
    numbers = [bench.submit(Request(np.arange(1, 65, dtype=np.int32), 400)) for _ in range(running)]
    while bench.engine.state.eng["waiting"][0] or (bench.engine.state.req["generated"][numbers] == 0).any():
        bench.engine.step()
    for _ in range(20):
        bench.engine.step()
    costs = []
    with watched(bench) as (waits, launches):
        for _ in range(100):
            before, known = time.perf_counter(), len(waits)
            bench.engine.step()
            costs.append(1e6 * (time.perf_counter() - before - sum(waits[known:])))
    while bench.engine.step():
        pass
    bench.release(numbers)
    cost = Measured(statistics.median(costs), (min(costs), float(np.percentile(costs, 90))))
    return cost, 1e6 * statistics.median(launches)


def bound_s(
    spec: ModelSpec, requests: Sequence[Request], kv_tokens: int, max_seqs: int, bw: float, peak: float
) -> float:
    """Seconds of the ideal schedule."""
    parameters, kv = spec.parameters, spec.kv_bytes_per_token(torch.bfloat16)
    body = parameters - spec.vocabulary * spec.hidden
    attention = 2 * spec.layers * spec.heads * spec.head_dim
    seconds, waiting = 0.0, deque(requests)
    context, left = np.zeros(0), np.zeros(0)
    reserved = np.zeros(0)
    while waiting or len(left):
        come: list[Request] = []
        while waiting and len(left) + len(come) < max_seqs:
            need = len(waiting[0].prompt) + waiting[0].output
            if reserved.sum() + sum(len(r.prompt) + r.output for r in come) + need > kv_tokens:
                break
            come.append(waiting.popleft())
        lengths = np.array([len(r.prompt) for r in come])
        seconds += float((2 * body * lengths + attention * lengths**2.0).sum()) / peak
        context = np.concatenate([context, lengths + 1])
        left = np.concatenate([left, [r.output - 1 for r in come]])
        reserved = np.concatenate([reserved, [len(r.prompt) + r.output for r in come]])
        alive = left > 0
        context, left, reserved = context[alive], left[alive], reserved[alive]
        if len(left):
            seconds += max(2 * parameters / bw, 2 * parameters * len(left) / peak) + float(context.sum()) * kv / bw
            context, left = context + 1, left - 1
            alive = left > 0
            context, left, reserved = context[alive], left[alive], reserved[alive]
    return seconds


def decode_rows(model: Model, sizes: Sequence[int], context: int, bw: float, peak: float) -> list[Row]:
    """Time of a captured step alone, at one context for all rows."""
    from dispatchgym.serving.executor.decode_rows import CHANGED_SLOT, COLUMNS, POSITION, SLOT, TOKEN
    from dispatchgym.serving.executor.graphs import StepGraphs
    from dispatchgym.serving.executor.kv_cache import KVCache
    from dispatchgym.serving.executor.model import Decoder
    from dispatchgym.serving.executor.recording import recorder
    from dispatchgym.serving.executor.slots import SlotTable
    from dispatchgym.serving.executor.triton_ops import TritonOps

    spec, most = model.spec, max(sizes)
    each = -(-context // 16)
    cache = KVCache(spec, most * each, 16, 0, model.device, model.dtype)
    cache.tensor.normal_()
    slots = SlotTable(most, each, most * each, model.device)
    slots.table[:most] = torch.randperm(most * each, device=model.device).view(most, each)
    slots.newest.random_(0, spec.vocabulary)
    steps = StepGraphs(Decoder(spec, model.weights, cache.tensor, TritonOps()), slots, most, sizes)
    with torch.inference_mode():
        steps.capture(recorder(model.device))
    rows = []
    for size in sizes:
        pitch = steps.pitch_of(size)
        times = []
        for _ in range(25):
            flight = steps.next_flight()
            columns = flight.rows[: COLUMNS * pitch].reshape(COLUMNS, pitch)
            columns[SLOT], columns[POSITION], columns[TOKEN], columns[CHANGED_SLOT:] = slots.padding, 0, 0, -1
            columns[SLOT, :size], columns[POSITION, :size] = np.arange(size), context - 1
            columns[TOKEN, :size] = -1
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]  # torch's
            begin.record()
            steps.launch(flight, size)
            end.record()
            times.append((begin, end))
        torch.cuda.synchronize()
        ms = Measured.of([b.elapsed_time(e) for b, e in times[5:]])
        ideal = max(2 * spec.parameters / bw, 2 * spec.parameters * size / peak)
        ideal += size * context * spec.kv_bytes_per_token(model.dtype) / bw
        rows.append(
            Row(f"{spec.name} decoding step, {size} rows of {context}", ms.value, "ms", ms.spread, "bound", ideal * 1e3)
        )
    return rows


def pass_rows(model: Model) -> list[Row]:
    """Steps that read a prompt beside 16 decoding requests, captured where that pays, and op by op."""
    config = fit_config(model, EngineConfig(max_seqs=256, token_budget=8192, max_len=8192, kv_blocks=2048))
    ms: list[list[float]] = []
    for passes in (False, True):
        bench = sweep.Bench(make_executor(model, config, passes=passes), config, model.spec.vocabulary)
        ms.append([1e3 * bench.measure(sweep.Mix((512,) * 16, ((0, n),))).seconds for n in PROMPTS])
        del bench
        gc.collect()
        torch.cuda.empty_cache()
    return [
        Row(f"{model.spec.name} step of 16 rows and a prompt of {n}", fast, "ms", (fast, fast), "op by op", slow)
        for n, slow, fast in zip(PROMPTS, *ms, strict=True)
    ]


def prefill_row(bench: Bench, count: int, length: int) -> Row:
    """Operations a second of a step that reads so many whole prompts, waited for, host included."""
    spec = bench.model.spec
    body = spec.parameters - spec.vocabulary * spec.hidden
    work = 2 * body * count * length + 2 * spec.layers * spec.heads * spec.head_dim * count * length**2
    rates = []
    for turn in range(6):
        prompts = np.random.default_rng(turn).integers(0, spec.vocabulary, (count, length), np.int32)
        rates.append(work / bench.play([Request(prompt, 1) for prompt in prompts]) / 1e12)
    rate = Measured.of(rates[1:])
    bar = "bar 580" if (spec.name, count) == ("8b", 8) else ""
    return Row(f"{spec.name} prompts, {count} x {length}", rate.value, "TFLOP/s", rate.spread, bar=bar)


def profile_rows(bench: Bench, running: int) -> list[Row]:
    """Share of a plain step's time by kind of kernel."""
    from torch.profiler import ProfilerActivity, profile

    numbers = [bench.submit(Request(np.arange(512, dtype=np.int32), 200)) for _ in range(running)]
    while bench.engine.state.eng["waiting"][0] or (bench.engine.state.req["generated"][numbers] < 20).any():
        bench.engine.step()
    torch.cuda.synchronize()
    steps = 20
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        before = time.perf_counter()
        for _ in range(steps):
            bench.engine.step()
        torch.cuda.synchronize()
        wall = 1e6 * (time.perf_counter() - before) / steps
    spent: dict[str, float] = {}
    for event in trace.events():
        if event.device_type.name == "CUDA":
            kind = next((k for k, parts in CLASSES.items() if any(p in event.name for p in parts)), "other")
            spent[kind] = spent.get(kind, 0.0) + event.device_time / steps
    spent["between kernels"] = max(0.0, wall - sum(spent.values()))
    while bench.engine.step():
        pass
    bench.release(numbers)
    name = f"{bench.model.spec.name} step of {running} rows"
    return [
        Row(f"{name}, {kind}", us, "us", (us, us), bar=f"{us / wall:.1%}")
        for kind, us in sorted(spent.items(), key=lambda item: -item[1])
    ]


def workload_rows(
    bench: Bench, name: str, requests: Sequence[Request], repeats: int, bw: float, peak: float
) -> list[Row]:
    """Output tokens a second, beside the bound and the figures of others."""
    model = bench.model.spec.name
    tokens = sum(r.output for r in requests)
    rates = Measured.of([tokens / bench.play(requests) for _ in range(repeats)])
    title = f"{model} {name}"
    if not bw:
        return [Row(title, rates.value, "tokens/s", rates.spread)]
    kv_tokens = bench.config.kv_blocks * bench.config.block_tokens
    bound = tokens / bound_s(bench.model.spec, requests, kv_tokens, bench.config.max_seqs, bw, peak)
    rows = [
        Row(title, rates.value, "tokens/s", rates.spread, peer, value)
        for peer, value in {"bound": bound, **NOTED.get((model, name), {})}.items()
    ]
    for kind, (steps, seconds) in bench.spent.items():
        rows.append(Row(f"{title}, {kind}", seconds, "s", (seconds, seconds), bar=f"{steps} steps, the last run"))
    return rows


def latency_rows(bench: Bench, rates: Sequence[float], seconds: float) -> list[Row]:
    """Time to the first token and between tokens under random arrivals."""
    rows = []
    for rate in rates:
        found = bench.arrive(
            drawn(max(8, int(rate * seconds)), 1024 if bench.model.device.type == "cuda" else 64), rate
        )
        title = f"{bench.model.spec.name} at {rate:g}/s"
        rows.append(Row(f"{title}, served", found["tokens_per_s"], "tokens/s", (found["tokens_per_s"],) * 2))
        for name in ("ttft", "tpot"):
            p50, p90, p99 = (1e3 * found[f"{name}_p{q}"] for q in (50, 90, 99))
            rows.append(Row(f"{title}, {name} median", p50, "ms", (p50, p99), bar=f"p90 {p90:.1f}, p99 {p99:.1f}"))
    return rows


def on_gpu(options: argparse.Namespace, say: Callable[[list[Row]], None]) -> None:
    models, parts, loads = (text.split(",") for text in (options.models, options.parts, options.workloads))
    bw, peak = options.bandwidth * 1e12, options.peak * 1e12
    for name in models:
        model = open_model(f"random:{name}")
        if "decode" in parts:
            say(decode_rows(model, (1, 32, 128, 256), 1024, bw, peak))
            torch.cuda.empty_cache()
        if "passes" in parts:
            say(pass_rows(model))
        for load in loads if set(parts) - {"decode", "passes"} else ():
            count = int(load.removeprefix("W"))
            bench = Bench(model, count, 8192, 9216)
            print(
                f"{name} {load}: {bench.config.kv_blocks * 16:,} KV tokens, started in {bench.start_s:.1f} s",
                flush=True,
            )
            if "prefill" in parts and load == loads[0]:
                say([prefill_row(bench, 8, 1024), prefill_row(bench, 1, 8192)])
            if "workloads" in parts:
                say(workload_rows(bench, load, drawn(count), options.repeats if count < 1000 else 1, bw, peak))
            if "profile" in parts and load == loads[0]:
                cost, launch = host_us(bench, count)
                bar = f"bar 100; spread: least and P90; {launch:.0f} us of it launch the captured step"
                say([Row(f"{name} host work of a step, {count} running", cost.value, "us", cost.spread, bar=bar)])
                say(profile_rows(bench, count))
            if "latency" in parts and load == loads[0]:
                top = 60.0 if name == "1b" else 14.0
                say(latency_rows(bench, [top / 4, top / 2, top * 3 / 4, top], options.seconds))
            del bench
            gc.collect()
            torch.cuda.empty_cache()


class Instant:
    """Captured steps that take no time: what is left is the host's work. Every token is 1."""

    def __init__(self, rows: int) -> None:
        self.rows, self.tokens = np.zeros(COLUMNS * rows, np.int32), np.ones(rows, np.int32)
        self._pitch = rows

    def pitch_of(self, rows: int) -> int:
        return self._pitch

    def next_flight(self) -> Instant:
        return self

    def launch(self, flight: fast_path.Flight, rows: int) -> None:
        """Nothing is started."""

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        """It is here."""


def without_device(model: Model, config: EngineConfig) -> TorchExecutor:
    """An executor whose captured steps are instant."""
    return TorchExecutor(
        model, kv_blocks=config.kv_blocks, max_seqs=config.max_seqs, block_tokens=config.block_tokens,
        host_blocks=config.host_blocks, max_len=config.max_len, late=True,
        graphs=lambda decoder, slots: Instant(config.max_seqs),
    )  # fmt: skip


def on_cpu(say: Callable[[list[Row]], None]) -> None:
    torch.set_num_threads(1)
    cost, _ = host_us(Bench(open_model("random:tiny", "cpu"), 256, 8192, 1024, without_device, 256 * 32), 256)
    bar = "spread: least and P90; nothing is launched"
    say([Row("tiny host work of a step, 256 running", cost.value, "us", cost.spread, bar=bar)])
    bench = Bench(open_model("random:tiny", "cpu"), 16, 256, 512)
    say(workload_rows(bench, "W16, short", drawn(16, 64), 3, 0.0, 1.0))
    say(latency_rows(bench, [20.0], 1.0))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", default="1b,8b", help="sizes of random models: 1b, 8b [%(default)s]")
    parser.add_argument("--workloads", default="W256,W1024", help="numbers of requests [%(default)s]")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure [%(default)s]")
    parser.add_argument("--repeats", type=int, default=2, help="runs of W256; of W1024 one [%(default)s]")
    parser.add_argument("--seconds", type=float, default=8, help="of arrivals, at each rate [%(default)s]")
    parser.add_argument(
        "--bandwidth", type=float, default=4.26, help="of the bound, TB/s [%(default)s, an H200's copy]"
    )
    parser.add_argument("--peak", type=float, default=790, help="of the bound, TFLOP/s [%(default)s, an H200 in bf16]")
    options = parser.parse_args()
    for part in options.parts.split(","):
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is not known; known are {', '.join(PARTS)}")
    rows: list[Row] = []

    def say(more: list[Row]) -> None:
        rows.extend(more)
        for r in more:
            beside = f"  {r.ratio:.2f} of {r.peer}" if r.ratio is not None else ""
            print(f"  {r.name}: {r.value:,.3f} {r.unit} {beside}  {r.bar}", flush=True)

    if options.quick or not torch.cuda.is_available():
        on_cpu(say)
    else:
        on_gpu(options, say)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(device, file=sys.stderr)
    publish(rows, options.json, ["torch", "numba", "numpy"])


if __name__ == "__main__":
    main()
