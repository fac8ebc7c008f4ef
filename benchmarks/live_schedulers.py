"""Schedulers of a live server: goodput over slices of traffic that nothing was tuned on, and what the bundle gains.

One `dispatchgym serve llm` runs all of it; on each slice every scheduler gets the same requests in turns, --rounds
times, each round with another draw or the next stretch of the trace. A scheduler's spread is that of its rounds. Then
the bundle's gain over vllm, over each rule, and over the best rule of the slice: a 95 % interval over windows of a
tenth of a round, paired. Beside each scheduler's goodput, and the bundle's gain, what the simulator foretells for these
rounds by the profile. The recorded traces need DISPATCHGYM_DATA. `--model paced:torch-h200-8b` puts a clock in the
model's place: the server and its clients are real, and need no GPU. Without one, and with --quick, a tiny model answers
a few short requests on the CPU; --simulate leaves the server away altogether.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from harness.rows import Measured, Row, arguments, publish, write_rows
from rich.console import Console

from dispatchgym.agents.simulation.names import scheduler
from dispatchgym.agents.simulation.runs import Setting, run
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.metrics import Spread
from dispatchgym.envs.llm.profile import Profile, load_profile
from dispatchgym.serving.executor.fidelity import kendall_tau
from dispatchgym.serving.llm.options import PACED
from dispatchgym.serving.load.compare_command import Options, run_all
from dispatchgym.serving.load.comparison import Row as Compared
from dispatchgym.serving.load.comparison import compared, window_values
from dispatchgym.serving.load.run import LoadRun
from dispatchgym.serving.load.servers import Decisions, Server, started
from dispatchgym.serving.load.traffic import Traffic

BUNDLE, BASE = "bundle:llm-engine", "vllm"
RULES = "flow-prefill,laps,sarathi,past-future,mc-sf+lengths=max,menu"

SHORT = Traffic(prompts="ids", longest_prompt=12_000, longest_output=200)
LAPS = replace(SHORT, trace="laps", set=("prefill_only=True",), rate=120, requests=780)
FLOW = replace(SHORT, trace="flow-prefill", rate=18, requests=117)
CONV = replace(SHORT, trace="azure-2023-conv", rate=31, requests=201, ttft_slo=0.5, tpot_slo=0.05)
CODE = replace(SHORT, trace="azure-2023-code", ttft_slo=1.0, tpot_slo=0.05)
SLICES = {
    "laps-120": replace(LAPS, seed=101), "flow-18": replace(FLOW, seed=101), "conv-31": replace(CONV, skip=4000),
    "code-9": replace(CODE, skip=2000, rate=9, requests=58),
    "laps-120-b": replace(LAPS, seed=103), "flow-18-b": replace(FLOW, seed=103), "conv-31-b": replace(CONV, skip=4600),
    "code-11": replace(CODE, skip=2600, rate=11, requests=72),
}  # fmt: skip
"""By traffic and requests a second: rates at which one H200 with an 8B model serves about half of them in time under
vllm, or nearly all where the rate is the last that vllm can take."""

QUICK = {
    name: replace(SLICES[name], requests=24, rate=12, longest_prompt=300, longest_output=20, ttft_slo=2.0, tpot_slo=0.5)
    for name in ("laps-120", "flow-18")
}

Runs = Mapping[str, Sequence[LoadRun]]
LIBRARIES = ("torch", "numba", "numpy")

LONGEST = 16_384
"""Tokens of a text that the server takes."""


async def run_slice(
    server: Server, token: Path, traffic: Traffic, names: list[str], rounds: int
) -> tuple[Runs, Mapping[str, list[Decisions]]]:  # fmt: skip
    """Every scheduler's rounds on the slice."""
    kept: Runs = {}

    def keep(runs: Runs, _: Mapping[str, list[Decisions]]) -> list[Compared]:
        nonlocal kept
        kept = runs
        return []

    options = Options(traffic=traffic, rounds=rounds, target=server.url, admin_token_file=token)
    _, decisions = await run_all(options, names, Console(stderr=True, highlight=False), keep)
    return kept, decisions


def simulated(traffic: Traffic, names: Sequence[str], rounds: int, profile: Profile) -> Runs:
    """The same rounds as the simulator foretells them.

    Raises:
        RuntimeError: a scheduler's plan that no engine can carry out.
    """
    engine = EngineConfig(kv_blocks=profile.kv_tokens // 16, max_len=LONGEST)
    found: dict[str, list[LoadRun]] = {name: [] for name in names}
    for number in range(rounds):
        workload, _ = traffic.workload(number)
        workload = replace(workload, arrival_s=workload.arrival_s - workload.arrival_s[0])
        for name, own in found.items():
            one = run(name, scheduler(name), Setting(workload, engine, profile, number, strict=False))
            if one.record is None or one.metrics is None:
                raise RuntimeError(f"{name}: {one.message}")
            own.append(LoadRun((), one.record, one.metrics, Spread.of(np.zeros(1)), np.nan))
    return found


def goodput(runs: Runs) -> dict[str, Measured]:
    """Requests in time a second, of each scheduler's rounds."""
    return {
        who: Measured.of([float(np.mean(window_values(run, "goodput"))) for run in own]) for who, own in runs.items()
    }


def gain(runs: Runs, ours: str, base: str) -> tuple[float, tuple[float, float]]:
    """Goodput that `ours` has more than `base`, in per cent of it, and the 95 % interval."""
    first, second = compared({name: runs[name] for name in (base, ours)})
    paired, of = second.against["goodput"], first.means["goodput"]
    assert paired is not None
    mean, (low, high) = paired.mean, paired.interval if paired.interval is not None else (np.nan, np.nan)
    share = 100 / of if of > 0 else np.inf
    return (mean * share if mean else 0.0), (low * share if low else 0.0, high * share if high else 0.0)


def slice_rows(name: str, runs: Runs, foretold: Runs, decisions: Mapping[str, list[Decisions]]) -> list[Row]:
    """Goodput of each scheduler, what the bundle gains, and how long its decisions take."""
    rows, live, expected = [], goodput(runs), goodput(foretold)
    for who, own in runs.items():
        slow = max((each["p99_ms"] or 0.0 for each in decisions.get(who, [])), default=0.0)
        said = f"{100 * np.mean([run.metrics.attainment for run in own]):.0f} % in time"
        said += f", decisions p99 {slow:.2f} ms" if slow else ""
        peer, peer_value = ("simulator", expected[who].value) if runs is not foretold else (None, None)
        rows.append(Row(f"{name}, {who}", live[who].value, "requests/s", live[who].spread, peer, peer_value, said))
    rules = [who for who in runs if who != BUNDLE]
    if BUNDLE in runs and rules:
        best = max(rules, key=lambda who: live[who].value)
        for base in rules:
            value, interval = gain(runs, BUNDLE, base)
            rows.append(Row(f"{name}, {BUNDLE} over {base}", value, "%", interval, bar="best rule" * (base == best)))
    if runs is not foretold:
        tau = kendall_tau(*([side[who].value for who in runs] for side in (live, expected)))
        rows.append(Row(f"{name}, Kendall tau of live and simulated", tau, "", (tau, tau)))
    return rows


def mean_rows(slices: Mapping[str, Runs]) -> list[Row]:
    """The bundle's mean gain over the slices: over vllm, over the best single rule, over each slice's best rule."""
    rules = [who for who in next(iter(slices.values())) if who != BUNDLE]
    if not rules:
        return []
    gains = {base: [gain(runs, BUNDLE, base)[0] for runs in slices.values()] for base in rules}
    single = min(rules, key=lambda base: np.mean(gains[base]))
    best = [min(each) for each in zip(*gains.values(), strict=True)]
    told = {f"over {base}": gains[base] for base in (BASE, single) if base in gains}
    return [
        Row(f"mean of {len(slices)} slices, {BUNDLE} {name}", float(np.mean(values)), "%", (min(values), max(values)))
        for name, values in (told | {"over the best rule of each": best}).items()
    ]


async def run_slices(
    slices: Mapping[str, Traffic], names: list[str], rounds: int, profile: Profile, serve: Sequence[str] | None,
    json: Path | None,
) -> list[Row]:  # fmt: skip
    """All rows; those of a slice are printed, and written to `json`, as soon as they are known. `serve` None: simulated
    alone."""
    found: dict[str, Runs] = {}
    rows: list[Row] = []

    def keep(name: str, runs: Runs, foretold: Runs, decisions: Mapping[str, list[Decisions]]) -> None:
        found[name] = runs
        own = slice_rows(name, runs, foretold, decisions)
        show(own)
        rows.extend(own)
        if json is not None:
            write_rows(rows, json, LIBRARIES)

    if serve is None:
        for name, traffic in slices.items():
            foretold = simulated(traffic, names, rounds, profile)
            keep(name, foretold, foretold, {})
    else:
        async with started(["--scheduler", names[0], *serve]) as server:
            with TemporaryDirectory() as scratch:
                token = Path(scratch) / "token"
                token.touch(mode=0o600)
                token.write_text(server.admin_token)
                for name, traffic in slices.items():
                    runs, decisions = await run_slice(server, token, traffic, names, rounds)
                    keep(name, runs, simulated(traffic, names, rounds, profile), decisions)
    return rows + (mean_rows(found) if BUNDLE in names else [])


def show(rows: Sequence[Row]) -> None:
    """One line a row."""
    for row in rows:
        low, high = row.spread
        beside = f"{row.peer_value:8,.1f} {row.peer}" if row.peer_value is not None else ""
        print(
            f"  {row.name:52} {row.value:8,.1f} [{low:,.1f}, {high:,.1f}] {row.unit:10} {beside:18} {row.bar}",
            flush=True,
        )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="random:8b", help="as for serve llm [%(default)s]")
    parser.add_argument("--profile", default="torch-h200-8b", help="with which schedulers reckon [%(default)s]")
    parser.add_argument("--slices", default=",".join(SLICES), help="[%(default)s]")
    parser.add_argument("--schedulers", default=f"{BASE},{RULES},{BUNDLE}", help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=2, help="[%(default)s]")
    parser.add_argument(
        "--faster", type=float, nargs="+", default=[1.0], help="every slice at its rate times each of these [1]"
    )
    parser.add_argument("--simulate", action="store_true", help="what the simulator foretells alone, on any machine")
    options = parser.parse_args()
    if unknown := [name for name in options.slices.split(",") if name not in SLICES]:
        parser.error(f"--slices: {unknown[0]!r} is not known; known are {', '.join(SLICES)}")
    if wrong := [factor for factor in options.faster if not 0 < factor < np.inf]:
        parser.error(f"--faster must be above 0, not {wrong[0]:g}")
    slices = {
        name if factor == 1 else f"{name} x{factor:g}": replace(
            SLICES[name], rate=factor * (SLICES[name].rate or 0.0), requests=int(factor * SLICES[name].requests)
        )
        for factor in options.faster
        for name in options.slices.split(",")
    }
    names, profile = options.schedulers.split(","), load_profile(options.profile)
    serve: list[str] | None = ["--model", options.model, "--profile", options.profile, "--max-len", str(LONGEST)]
    if options.simulate:
        serve = None
    elif options.quick or not (torch.cuda.is_available() or options.model.startswith(PACED)):
        slices, names, options.rounds = QUICK, [BASE, "flow-prefill", BUNDLE], 1
        serve, profile = ["--demo"], load_profile("cpu-tiny")
    rows = asyncio.run(run_slices(slices, names, options.rounds, profile, serve, options.json))
    publish(rows, options.json, LIBRARIES)


if __name__ == "__main__":
    main()
