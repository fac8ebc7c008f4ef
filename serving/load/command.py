"""`dispatchgym load`: traffic for an LLM server, sent when it is due, and what came of it."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from dispatchgym.agents.evaluation.files import atomic_write, make_writable
from dispatchgym.agents.evaluation.machine import machine, versions
from dispatchgym.agents.evaluation.progress import progress
from dispatchgym.envs.llm.metrics import Spread
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.serving.load.client import Target
from dispatchgym.serving.load.run import LoadRun, drive
from dispatchgym.serving.load.traffic import Traffic

FAILED = 1
LATE_S = 0.05
"""Sending later than this, at the 99th percentile, is worth a warning."""


@dataclass(frozen=True, slots=True)
class Options:
    """Send a trace to an OpenAI-compatible server in open loop: every request when it is due, whatever became of the
    others.

    Latencies count from when a request was due, so neither the server's stalls nor this program's hide anything.

    Example: dispatchgym load --trace azure-2023-conv-twin --rate 5 --target http://127.0.0.1:8000
    """

    traffic: Annotated[Traffic, tyro.conf.OmitArgPrefixes] = field(default_factory=Traffic)

    target: str = "http://127.0.0.1:8000"
    """Address of the server."""

    model: str = ""
    """Model to ask for [the first that the server lists]."""

    json: Path | None = None
    """File that gets everything: metrics, and a row a request."""


def main(argv: list[str]) -> int:
    """Run `dispatchgym load`.

    Returns:
        0; 1 when not a single request was answered.

    Raises:
        DispatchGymError: the traffic or the server cannot be used.
    """
    options: Annotated[Options, tyro.conf.FlagCreatePairsOff] = tyro.cli(
        Options, prog="dispatchgym load", args=list(argv)
    )
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    if options.json is not None:
        make_writable(options.json.parent, 0)
    workload, notes = options.traffic.workload()
    for note in notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    run = asyncio.run(_drive(options, workload, err))
    print_run(run, out)
    if options.json is not None:
        said = {"command": shlex.join(["dispatchgym", "load", *argv]), "notes": notes, **head(), **plain(run)}
        with atomic_write(options.json) as file:
            file.write(json.dumps(said, indent=1, allow_nan=False) + "\n")
    return 0 if run.metrics.finished else FAILED


async def _drive(options: Options, workload: Workload, console: Console) -> LoadRun:
    traffic = options.traffic
    target = Target(options.target, model=options.model, api_key=traffic.api_key, timeout_s=traffic.timeout_s)
    try:
        with progress(len(workload), console) as advance:
            return await drive(target, workload, traffic.style, advance)
    finally:
        await target.close()


def head() -> dict[str, Any]:
    """Where and when figures were taken."""
    return {"began": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "versions": versions()}


def plain(run: LoadRun) -> dict[str, Any]:
    """A run as JSON holds it."""
    rows = []
    for outcome in run.outcomes:
        row = asdict(outcome)
        rows.append(
            {name: _finite(value) for name, value in row.items()} | {"token_s": [round(at, 6) for at in row["token_s"]]}
        )
    return {
        "metrics": run.metrics.plain(),
        "statuses": run.statuses,
        "send_lag_s": {name: _finite(value) for name, value in asdict(run.lag).items()},
        "prompt_token_error": _finite(run.prompt_error),
        "requests": rows,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_run(run: LoadRun, console: Console) -> None:
    """The figures of a run."""
    m = run.metrics
    table = Table(box=None, header_style="bold")
    for name in ("", "mean", "p50", "p90", "p99"):
        table.add_column(name, justify="left" if not name else "right")
    spreads: Mapping[str, Spread] = {
        "time to first token": m.ttft_s, "time per output token": m.tpot_s, "longest gap": m.mtpot_s,
        "between events": m.itl_s, "end to end": m.e2e_s,
    }  # fmt: skip
    for name, spread in spreads.items():
        table.add_row(name, *(seconds(getattr(spread, which)) for which in ("mean", "p50", "p90", "p99")))
    console.print(table)
    console.print(
        f"{m.finished} of {m.requests} requests finished in {m.duration_s:.1f} s: {m.throughput_rps:.2f} requests/s, "
        f"{m.throughput_tps:.0f} output tokens/s"
    )
    console.print(
        f"goodput {m.goodput_rps:.2f} requests/s, {m.goodput_tps:.0f} tokens/s; {100 * m.attainment:.1f} % met every "
        f"bound (first token {100 * m.ttft_attainment:.1f} %, tokens after it {100 * m.tpot_attainment:.1f} %)"
    )
    if set(run.statuses) != {"200"}:
        console.print("answers: " + ", ".join(f"{name}: {count}" for name, count in run.statuses.items()))
    if not math.isnan(run.prompt_error) and run.prompt_error > 0.01:
        console.print(
            f"prompts differ from the trace by {100 * run.prompt_error:.1f} % in tokens, as the server counts"
        )
    if run.lag.p99 > LATE_S:
        console.print(
            f"requests were sent up to {run.lag.p99:.2f} s late (99 %): this program is short of CPU, and that is "
            "part of the latencies"
        )


def seconds(value: float) -> str:
    """Readable; "-" for none."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"
