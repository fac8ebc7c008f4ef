"""`dispatchgym simulate`: replay a workload under several schedulers of one engine, and say which to take."""

from __future__ import annotations

import json
import math
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from dispatchgym.agents.evaluation.files import atomic_write, make_writable
from dispatchgym.agents.evaluation.machine import machine, versions
from dispatchgym.agents.evaluation.progress import progress
from dispatchgym.agents.simulation import runs as running
from dispatchgym.agents.simulation.answer import Answer, answer
from dispatchgym.agents.simulation.names import parameter, scheduler
from dispatchgym.agents.simulation.report import write_report
from dispatchgym.agents.simulation.runs import Run, Setting
from dispatchgym.agents.simulation.table import print_runs
from dispatchgym.agents.simulation.workers import workers
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.backends import AUTO, SIMULATED, TINY, RunsOn
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import Profile, load_profile, profile_names
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads import files, traces
from dispatchgym.solvers.llm.schedulers import SCHEDULERS

FAILED = 1

FEW, FEW_ON_MODEL = 2000, 100
"""Requests of a trace or twin where the user does not say."""

TTFT_SLO_S, TPOT_SLO_S = 2.0, 0.1
"""For traffic without SLOs, where the user does not say."""


@dataclass(frozen=True, slots=True)
class Options:
    """Replay a workload under several schedulers of one simulated LLM engine, and say which to take for it.

    Example: dispatchgym simulate --trace azure-2023-conv --schedulers vllm,sarathi,past-future --report

    Example: dispatchgym simulate --trace mine.csv --rate-scale 2 --ttft-slo 1 --kv-blocks 8000 --report
    """

    trace: str | None = None
    """A public trace, its -twin, a generator (see --list), or a file of your own (columns: docs/simulate.md)."""

    schedulers: str = "vllm,sarathi,sglang,past-future"
    """Names with commas between, or all; the first is what the others are compared with. Constants behind a plus:
    vllm,vllm+watermark=0.02 runs vllm twice."""

    requests: int | None = None
    """Take the first so many; 0 for all. Default: 2000 of a trace or twin, the usual number of a generator, 100
    on a real model."""

    rate_scale: float = 1.0
    """2 makes everything arrive twice as fast."""

    rate: float | None = None
    """Requests a second, for twins, generators and files without arrival times."""

    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Parameters of a generator, such as distribution=2."""

    ttft_slo: float | None = None
    """Bound in seconds on the time to the first token, inf for none. Default: the workload's own; 2 if it has no SLOs
    and is no batch."""

    tpot_slo: float | None = None
    """Bound in seconds per token after the first, mean of a request, inf for none. Default: the workload's own; 0.1 if
    it has no SLOs and is no batch."""

    target: float = 0.9
    """Share of the requests that must be in time where the capacity is searched."""

    capacity: bool = True
    """Search how much traffic each scheduler carries; --no-capacity runs the traffic as it comes only."""

    profile: str = "h200-8b"
    """Step times: GPU and model."""

    executor: str = SIMULATED
    """What runs the steps: simulated, torch for a real model, or module:attr. On a model every scheduler runs once:
    --capacity is for the simulator, and schedulers reckon with --profile."""

    model: str = ""
    """With --executor torch: a Hugging Face directory, or random:tiny, random:1b, random:8b. Default: random:tiny."""

    device: str = ""
    """With --executor torch: cuda, cpu, or auto for a GPU where there is one. Default: auto."""

    kv_blocks: int = 0
    """Blocks of the KV pool; 0 for as many as the profile's GPU holds."""

    block_tokens: int = 16
    """Tokens of a KV block."""

    max_seqs: int = 256
    """Most requests that run at once."""

    token_budget: int = 8192
    """Most tokens of a step."""

    host_blocks: int | None = None
    """Blocks on the host, for schedulers that swap. Default: as many as on the GPU."""

    max_spec: int = 0
    """Most speculative tokens of a request and step, for schedulers that speculate."""

    acceptance: float = 0.7
    """Chance that the next speculative token is right."""

    prefix_caching: bool = True
    """Share KV blocks of equal prefixes."""

    seed: int = 0
    """Of everything that is drawn: workloads, and schedulers that draw."""

    processes: int = 0
    """Schedulers that run at the same time, each in a process; 0 for as many as there are cores."""

    out: Path | None = None
    """Folder of results.json, summary.json and report.html [out/simulate-TRACE]."""

    report: bool = False
    """Write report.html too."""

    strict: bool = False
    """A scheduler whose plan must be repaired fails."""

    list: bool = False
    """List workloads and schedulers, and stop."""


def main(argv: list[str]) -> int:
    """Run `dispatchgym simulate` with the given arguments.

    Returns:
        0; 1 when a scheduler failed.

    Raises:
        DispatchGymError: the request cannot be carried out.
    """
    options = tyro.cli(Options, args=argv, prog="dispatchgym simulate", config=(tyro.conf.FlagCreatePairsOff,))
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    if not out.is_terminal:
        out.width = 240  # nothing is cut off in a file
    if options.list:
        _print_lists(out)
        return 0
    if options.trace is None:
        raise UsageError("name a workload with --trace; --list shows them")
    schedulers = _schedulers(options.schedulers)
    if not 0 < options.target <= 1:
        raise UsageError(f"--target is {options.target}; it must lie between 0 and 1")
    for flag, bound in (("--ttft-slo", options.ttft_slo), ("--tpot-slo", options.tpot_slo)):
        if bound is not None and not bound > 0:
            raise UsageError(f"{flag} is {bound}; it must be a time above 0, inf for no bound")
    workload, notes = _workload(options, options.trace)
    for note in notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    profile = load_profile(options.profile)
    runs_on = RunsOn(options.executor, options.model or TINY, options.device or AUTO)
    if runs_on.is_simulated and (options.model or options.device):
        raise UsageError("--model and --device go with --executor torch")
    engine, facts = _engine(options, profile), dict[str, str]()
    if not runs_on.is_simulated:
        engine, facts = runs_on.backend().fit(engine, workload), dict(runs_on.backend().facts)
        said = ", ".join(f"{name} {value}" for name, value in facts.items())
        err.print(f"note: steps run on a real model ({said})", markup=False, soft_wrap=True)
    setting = Setting(workload, engine, profile, options.seed, options.strict, runs_on)
    folder = options.out or Path("out") / f"simulate-{workload.name}"
    make_writable(folder, 1 << 20)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    searches = (
        runs_on.is_simulated
        and options.capacity
        and running.has_slos(workload)
        and math.isfinite(running.rate_per_s(workload))
    )
    processes = options.processes if runs_on.is_simulated else 1  # several would share the device
    runs, pressed = _run(schedulers, setting, options.target if searches else None, processes, err)
    found = answer(runs, pressed, workload, options.target)
    head = {
        "format": "dispatchgym/simulation-summary",
        "schema": 1,
        "command": shlex.join(["dispatchgym", "simulate", *argv]),
        "began": begun,
        "machine": machine(),
        "versions": versions(),
        "workload": _describe(workload),
        "engine": {name: getattr(setting.engine, name) for name in EngineConfig.__dataclass_fields__},
        "profile": setting.profile.name,
        "runs_on": facts or {"executor": SIMULATED},
        "seed": options.seed,
        "target": options.target,
        "notes": notes,
    }
    _write(folder, head, (*runs, *pressed), found)
    if options.report:
        write_report(folder / "report.html", head, setting, runs, pressed, found)
    _say(runs, found, out)
    written = "report.html" if options.report else "results.json"
    out.print(f"{'report' if options.report else 'results'}: {folder / written}", soft_wrap=True)
    for run in runs:
        if run.metrics is None:
            err.print(f"failed: {run.name}: {run.message}", markup=False, soft_wrap=True)
    return FAILED if any(run.metrics is None for run in runs) else 0


def _schedulers(text: str) -> dict[str, running.Make]:
    """Name as typed -> what makes that scheduler; an unknown name is answered before anything runs."""
    names = SCHEDULERS if text == "all" else filter(None, text.replace(" ", "").split(","))
    found = {name: scheduler(name) for name in names}
    if not found:
        raise UsageError("--schedulers names none; --list shows them")
    return found


def _workload(options: Options, name: str) -> tuple[Workload, list[str]]:
    """The workload asked for, and what a reader should know of it."""
    notes: list[str] = []
    requests = options.requests
    if requests is None and options.executor != SIMULATED:
        requests = FEW_ON_MODEL
        notes.append(f"{requests} requests, for their steps really run; --requests takes more, 0 all")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", files.TraceWarning)
        workload = workloads.load(
            name,
            requests=requests or None,
            rate_scale=options.rate_scale,
            rate_per_s=options.rate,
            seed=options.seed,
            parameters=dict(map(parameter, options.set)),
        )
    for each in caught:
        if not issubclass(each.category, files.TraceWarning):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        else:
            notes.append(str(each.message))
    if requests is None and name not in workloads.GENERATORS and len(workload) > FEW:
        notes.append(f"the first {FEW:,} of {len(workload):,} requests; --requests 0 takes all")
        workload = workload.take(np.arange(FEW))
    ttft_s, tpot_s = options.ttft_slo, options.tpot_slo
    is_batch = math.isinf(running.rate_per_s(workload))
    if ttft_s is None and tpot_s is None and not (is_batch or running.has_slos(workload)):
        ttft_s, tpot_s = TTFT_SLO_S, TPOT_SLO_S
        notes.append(
            f"{name} has no SLOs of its own; every request was given {ttft_s:g} s to the first token and {tpot_s:g} s "
            "per token after it (--ttft-slo, --tpot-slo)"
        )
    return running.with_slos(workload, ttft_s, tpot_s), notes


def _engine(options: Options, profile: Profile) -> EngineConfig:
    size = max(options.block_tokens, 1)  # what is less is refused below
    kv_blocks = options.kv_blocks or profile.kv_tokens // size
    return EngineConfig(
        block_tokens=options.block_tokens,
        kv_blocks=kv_blocks,
        host_blocks=kv_blocks if options.host_blocks is None else options.host_blocks,
        max_seqs=options.max_seqs,
        token_budget=options.token_budget,
        max_spec=options.max_spec,
        acceptance=options.acceptance,
        prefix_caching=options.prefix_caching,
    )


def _run(
    schedulers: Mapping[str, running.Make], setting: Setting, target: float | None, processes: int, console: Console
) -> tuple[list[Run], list[Run]]:
    """Every scheduler on the workload as it is, with its capacity where a target is given; and all under pressure.

    Pressure is the greatest rate that one of them carries, if that is more than the workload's own.
    """
    (first, make), *others = schedulers.items()
    with progress(len(schedulers) * (1 if target is None else 2), console) as advance, workers(processes) as submit:
        done = [running.judge(first, make, setting, target)]
        advance(first)
        # The capacity of one is hardly far from that of another.
        near = (done[0].capacity.scale if done[0].capacity else None) or 1.0
        waiting = [submit(running.judge, name, make, setting, target, near) for name, make in others]
        for (name, _), each in zip(others, waiting, strict=True):
            done.append(each.result())
            advance(name)
        scale = max((run.capacity.scale or 0.0 for run in done if run.capacity and not run.oracle), default=0.0)
        if scale <= 1.0:
            return done, []
        fine = [run.name for run in done if run.metrics is not None]
        waiting = [submit(running.run, name, schedulers[name], setting, scale) for name in fine]
        pressed = []
        for name, each in zip(fine, waiting, strict=True):
            pressed.append(each.result())
            advance(f"{name}, under pressure")
        return done, pressed


def _describe(workload: Workload) -> dict[str, Any]:
    rate = running.rate_per_s(workload)
    return {
        "name": workload.name,
        "requests": len(workload),
        "rate_per_s": rate if math.isfinite(rate) else None,
        "mean_prompt_tokens": float(workload.prompt_tokens.mean()),
        "mean_output_tokens": float(workload.output_tokens.mean()),
        "classes": list(workload.class_names),
    }


def _write(folder: Path, head: dict[str, Any], runs: Sequence[Run], found: Answer) -> None:
    """Write results.json, a row a scheduler, and summary.json with the answer."""
    rows = [
        {
            "suite": "llm/simulate",
            "group": head["workload"]["name"],
            "instance": head["workload"]["name"],
            "policy": run.name,
            "oracle": run.oracle,
            "seed": head["seed"],
            "scenario": f"rate x{run.scale:.6g}",
            "rate_scale": run.scale,
            "metric": "goodput_tps",
            "value": None if run.metrics is None else run.metrics.goodput_tps,
            "wall_s": round(run.wall_s, 6),
            "cpu_s": round(run.cpu_s, 6),
            "status": "failed" if run.metrics is None else "ok",
            "message": run.message,
            "capacity": None
            if run.capacity is None
            else {"scale": run.capacity.scale, "is_open": run.capacity.is_open, "tried": run.capacity.tried},
            "metrics": None if run.metrics is None else run.metrics.plain(),
            "versions": head["versions"],
        }
        for run in runs
    ]
    with atomic_write(folder / "results.json") as file:
        file.write("[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]\n")
    said = {"best": found.best, "headline": found.headline, "lines": found.lines}
    with atomic_write(folder / "summary.json") as file:
        file.write(json.dumps({**head, "answer": said}, indent=1, allow_nan=False) + "\n")


def _say(runs: Sequence[Run], found: Answer, out: Console) -> None:
    print_runs(runs, out)
    out.print()
    for line in (found.headline, *found.lines):
        out.print(line, markup=False)
    out.print()


def _print_lists(console: Console) -> None:
    console.print("workloads:")
    for name, trace in traces.TRACES.items():
        console.print(f"  {name:24} {trace.about} (also {name}-twin, synthetic)", markup=False)
    for name in workloads.GENERATORS:
        first = (workloads.GENERATORS[name].__doc__ or "").partition("\n")[0]
        settable = ", ".join(f"{key}={value}" for key, value in workloads.parameters_of(name).items())
        console.print(f"  {name:24} {first}\n  {'':24} --set {settable}", markup=False)
    console.print(f"\nschedulers: {', '.join(SCHEDULERS)}", markup=False)
    console.print(f"profiles: {', '.join(profile_names())}", markup=False)
