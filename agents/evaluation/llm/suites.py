"""The contests of the schedulers' papers as named sets of problems, and people's own traces as one more."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.llm.captured import pool_without
from dispatchgym.agents.evaluation.llm.problem import LlmProblem, Traffic
from dispatchgym.agents.simulation.runs import has_slos, rate_per_s
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.envs.llm.workloads import files
from dispatchgym.envs.registry import unknown_name

H200 = load_profile("h200-8b").kv_tokens // 16
LARGE = EngineConfig(kv_blocks=H200, host_blocks=H200)
"""An H200 with an 8B model and vLLM's usual limits."""

SQUEEZED = EngineConfig(kv_blocks=7500, host_blocks=7500)
"""120,000 tokens of KV, as a 7B model has on an 80 GB card in Past-Future's runs."""

REBUILD_S = 1e-3
"""Preparing a batch anew in the i-dlm suite: 15 % of its step at 32 requests, the middle of what I-DLM's notes say."""

RAGGED_S = 6e-7
"""Realigning a token of KV in the exspec suite: with it EQSPEC spends about 40 % of its time so, as EXSPEC reports."""

CLIENTS, CLIENTS_S, STREAM = 60, 120.0, 4000
"""Clients of the past-future suite, within its artifact's 10 to 100, the seconds they go on, and what they may ask."""

HOST_S = 6e-3
"""Launching a step op by op in the laps suite where it counts: about 400 kernels at 15 microseconds; our choice."""

OWN_SLO_S = (2.0, 0.1)
"""Time to the first token and per token after it, for people's own traces without bounds, as in `simulate`."""


@dataclass(frozen=True, slots=True)
class LlmSuite:
    """A named set of problems and how it is run unless told otherwise.

    Args:
        name: as typed.
        summary: one line for `--list`.
        build: the problems, in a fixed order.
        policies: what runs when no policy is named; the first is what others are compared with.
        seeds: draws of each traffic when not said.
    """

    name: str
    summary: str
    build: Callable[[], Iterable[LlmProblem]]
    policies: str
    seeds: int = 5


def _traffic(
    workload: str,
    label: str,
    engine: EngineConfig,
    requests: int,
    *,
    terms: Sequence[tuple[str, float]] = (),
    **more: Any,
) -> Traffic:
    return Traffic(f"{workload}-{label}", workload, engine, requests, tuple(more.items()), terms=tuple(terms))


def _past_future() -> list[tuple[str, Traffic]]:
    loads = {1: 1.2, 2: 0.5, 3: 1.5}  # near what the best scheduler carries
    opened = [
        (f"D{d} {rate:g}/s", _traffic("past-future", f"{d}", SQUEEZED, 200, distribution=d, rate_per_s=rate))
        for d, rate in loads.items()
    ]
    stream = {d: _traffic("past-future", f"{d}-clients", SQUEEZED, STREAM, distribution=d) for d in (1, 3)}
    closed = [
        (f"D{d} {CLIENTS} clients", replace(each, clients=CLIENTS, until_s=CLIENTS_S)) for d, each in stream.items()
    ]
    return opened + closed


def _flow_prefill() -> list[tuple[str, Traffic]]:
    return [
        (f"{rate:g}/s", _traffic("flow-prefill", f"{rate:g}", LARGE, 600, rate_per_s=rate, prefill_only=True))
        for rate in (4.0, 8.0, 12.0, 16.0)
    ]


def _laps() -> list[tuple[str, Traffic]]:
    plain = [
        (f"{rate:g}/s", _traffic("laps", f"{rate:g}", LARGE, 1000, rate_per_s=rate, prefill_only=True))
        for rate in (70.0, 85.0, 100.0, 115.0)
    ]
    slow = _traffic("laps", "launched", LARGE, 1000, terms=(("host_s", HOST_S),), rate_per_s=85.0, prefill_only=True)
    smaller = replace(LARGE, kv_blocks=pool_without(H200, LARGE.block_tokens, slow.step_times()))
    grid = replace(slow, name="laps-captured", engine=smaller, captured=True)
    return [*plain, ("85/s launched", slow), ("85/s captured", grid)]


def _batch_llm() -> list[tuple[str, Traffic]]:
    pools = {"ample KV": H200, "scarce KV": 7500}
    return [
        (label, _traffic("batch-llm", f"{blocks}", replace(LARGE, kv_blocks=blocks, host_blocks=blocks), 600))
        for label, blocks in pools.items()
    ]


def _i_dlm() -> list[tuple[str, Traffic]]:
    terms = (("rebuild_s", REBUILD_S),)
    return [
        (f"{n} at a time", _traffic("i-dlm", f"{n}", replace(LARGE, max_seqs=n, max_spec=3), count, terms=terms))
        for n, count in ((1, 8), (8, 32), (32, 128), (64, 128))
    ]


def _exspec() -> list[tuple[str, Traffic]]:
    terms = (("ragged_s", RAGGED_S),)
    return [("480 prompts", _traffic("exspec", "480", replace(LARGE, max_spec=5), 480, terms=terms))]


ROUNDS = tuple(
    {"base_s": 1.0, **dict.fromkeys(("weights_s", "token_s", "pair_s", "context_s", "pause_s"), 0.0)}.items()
)
"""Step times of the small traces: a round of one second, whatever it holds."""

SMALL_KV, SMALL_REQUESTS = 20, 8


def _small() -> list[LlmProblem]:
    engine = EngineConfig(block_tokens=1, kv_blocks=SMALL_KV, host_blocks=SMALL_KV, prefix_caching=False)
    parameters = {"all at once": 0.0, "0.3 a round": 0.3}
    return [
        LlmProblem(
            "llm/small",
            group,
            _traffic("mc-sf", group, engine, SMALL_REQUESTS, terms=ROUNDS, memory_tokens=SMALL_KV, rate_per_s=rate),
            "small",
        )
        for group, rate in parameters.items()
    ]


SIMPLE = "vllm,vllm-lcf,sglang,sarathi,eb-plus,edf,least-slack"

TUNED = "vllm+tuned,past-future,past-future+tuned,flow-prefill,flow-prefill+tuned,laps,batch-llm+lengths=max"

CONTESTS: dict[str, tuple[str, Callable[[], list[tuple[str, Traffic]]], str]] = {
    "past-future": (
        "Past-Future (arXiv 2507.10150): tokens in time under KV pressure, its three length distributions",
        _past_future,
        "vllm,vllm+tuned,past-future,past-future+tuned,aggressive,conservative,conservative+assumed_new=12000,conservative+tuned,sglang+tuned,sarathi+tuned,"
        "vllm-lcf,menu,mc-sf,oracle,best-in-hindsight",
    ),
    "flow-prefill": (
        "FlowPrefill (arXiv 2602.16603): prompts of four classes with their deadlines, four rates",
        _flow_prefill,
        "vllm,vllm+tuned,flow-prefill,flow-prefill+tuned,flow-prefill+preempt=false,edf,least-slack,sarathi+tuned,"
        "sglang,laps+tuned,menu,oracle,best-in-hindsight",
    ),
    "laps": (
        "LAPS (arXiv 2601.11589): short prompts between long ones, 0.4 s to the first token, four rates",
        _laps,
        "sglang,vllm,vllm+tuned,laps,laps+one_bucket=true,laps+tuned,sarathi+tuned,edf,least-slack,flow-prefill+tuned,menu,oracle,"
        "best-in-hindsight",
    ),
    "batch-llm": (
        "BatchLLM (arXiv 2412.03594): an offline batch with shared prefixes, two sizes of the pool",
        _batch_llm,
        "vllm,vllm+tuned,batch-llm,batch-llm+tuned,batch-llm+lengths=max,sglang+order=lpm,sglang+tuned,eb-plus,"
        "sarathi+tuned,menu,oracle,best-in-hindsight",
    ),
    "i-dlm": (
        "I-DLM (arXiv 2604.11035): strides of four tokens, 1 to 64 requests at a time",
        _i_dlm,
        "i-dlm-stationary+steps=1,i-dlm-stationary,i-dlm-stationary+tuned,i-dlm-stationary+stride=1,vllm,menu,oracle,"
        "best-in-hindsight",
    ),
    "exspec": (
        "EXSPEC (arXiv 2510.22876): batched speculative decoding where unequal lengths must be realigned",
        _exspec,
        "eqspec,exspec,eqspec+batch=8,exspec+batch=8,exspec+batch=1,eqspec+tuned,exspec+tuned,orca+max_running=16,"
        "vllm,menu,oracle,best-in-hindsight",
    ),
}
"""Paper -> summary, traffic of each group, policies."""


def _problems(suite: str, contest: str) -> list[LlmProblem]:
    return [LlmProblem(suite, group, traffic, contest) for group, traffic in CONTESTS[contest][1]()]


def _contest(name: str) -> LlmSuite:
    summary, _, policies = CONTESTS[name]
    return LlmSuite(f"llm/{name}", summary, lambda: _problems(f"llm/{name}", name), policies)


def _smoke() -> list[LlmProblem]:
    small = replace(SQUEEZED, kv_blocks=1000, host_blocks=1000)
    return [
        LlmProblem(
            "llm/smoke", "squeezed",
            Traffic("smoke-chat", "chat", small, 60, (("rate_per_s", 20.0),)), "own",
        ),
        LlmProblem(
            "llm/smoke", "12/s",
            _traffic("flow-prefill", "smoke", LARGE, 60, rate_per_s=12.0, prefill_only=True), "flow-prefill",
        ),
        LlmProblem("llm/smoke", "batch", _traffic("batch-llm", "smoke", LARGE, 60), "batch-llm"),
    ]  # fmt: skip


def _all() -> list[LlmProblem]:
    return [each for name in CONTESTS for each in _problems("llm/all", name) if each.instance.is_plain]


SUITES: dict[str, LlmSuite] = {
    suite.name: suite
    for suite in (
        LlmSuite("llm/smoke", "three small contests: seconds", _smoke, "vllm,sglang,flow-prefill,mc-sf", 2),
        *map(_contest, CONTESTS),
        LlmSuite(
            "llm/small",
            f"{SMALL_REQUESTS} tiny requests, rounds of one step: gaps to the best without preemption, by CP-SAT",
            _small,
            "vllm,mc-sf,hindsight,past-future,sglang,srtf,conservative,aggressive,vllm-lcf",
            10,
        ),
        LlmSuite(
            "llm/all", "all six contests, and the mean over them", _all, f"{SIMPLE},{TUNED},menu,best-in-hindsight", 3
        ),
    )
}

MADE: tuple[tuple[str, str], ...] = ()


def suite(name: str) -> LlmSuite:
    """The suite called `name`.

    Raises:
        UnknownNameError: with the closest names.
    """
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    return SUITES[name]


def own_traces(pattern: str) -> LlmSuite:
    """The traces of a folder or of a glob pattern, on an H200 with an 8B model; see docs/simulate.md for the columns.

    Raises:
        UsageError: nothing to read, or two of one name. InvalidInstanceError: naming file, line and column.
    """
    folder = Path(pattern)
    found = folder.iterdir() if folder.is_dir() else [folder] if folder.is_file() else map(Path, glob.glob(pattern))
    paths = sorted(path for path in found if path.name.removesuffix(".gz").endswith(files.SUFFIXES))
    if not paths:
        raise UsageError(f"no trace at {pattern}; give .csv, .json or .jsonl files, each also with .gz")
    traffics = [_own(path) for path in paths]
    names = [traffic.name for traffic in traffics]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two traces at {pattern} are called {twice[0]!r}; rename one")
    return LlmSuite(
        "instances",
        pattern,
        lambda: [LlmProblem("instances", each.name, each, "own") for each in traffics],
        f"{SIMPLE},past-future,flow-prefill,laps",
        1,
    )


def _own(path: Path) -> Traffic:
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    traffic = Traffic(path.name.removesuffix(".gz").rpartition(".")[0], str(path.resolve()), LARGE, content=content)
    workload = traffic.draw(0)
    if has_slos(workload) or rate_per_s(workload) == float("inf"):
        return traffic
    return replace(traffic, ttft_slo_s=OWN_SLO_S[0], tpot_slo_s=OWN_SLO_S[1])
