"""`dispatchgym compare`: the same live traffic under several schedulers, or against several servers."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import tyro
from rich.console import Console
from rich.table import Table

from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.agents.evaluation.progress import progress
from dispatchgym.envs.api import UsageError
from dispatchgym.serving.load.client import Target
from dispatchgym.serving.load.command import head, plain
from dispatchgym.serving.load.comparison import MEASURES, Row, compared, verdict
from dispatchgym.serving.load.run import LoadRun, drive
from dispatchgym.serving.load.traffic import Traffic

START_S = 600.0
"""A server has so long to load its model."""
SETTLE_S = 300.0
"""A server has so long to finish what is left of the run before."""


@dataclass(frozen=True, slots=True)
class Options:
    """Send the same trace to a live server under each scheduler, in turns, and print paired differences.

    Each run has its own server (--model or --demo), or the schedulers of one running server are switched (--target), or
    several servers of any make are compared (--targets). A round runs everybody once on the same requests; rounds
    differ in what is drawn and begin with another scheduler.

    Options of the servers that are started stand behind a lone --.

    Example: dispatchgym compare --schedulers vllm,sarathi --demo --rate 4 -- --kv-blocks 500
    Example: dispatchgym compare --targets ours=http://a:8000,theirs=http://b:8000 --trace mine.csv
    """

    traffic: Annotated[Traffic, tyro.conf.OmitArgPrefixes] = field(default_factory=Traffic)

    schedulers: str = "vllm,sarathi"
    """Names with commas between; the first is what the others are compared with."""

    rounds: int = 3
    """Runs of each."""

    model: Path | None = None
    """Start `dispatchgym serve llm --model` with this folder for each run."""

    demo: bool = False
    """The same with the demo's model."""

    server_args: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Further options of these servers: what stands behind a lone --."""

    target: str = ""
    """Address of a running dispatchgym server, whose scheduler is switched."""

    admin_token_file: Path | None = None
    """Its administrator's token."""

    targets: str = ""
    """NAME=URL of several running servers, with commas between."""

    json: Path | None = None
    """File that gets everything."""


def main(argv: list[str]) -> int:
    """Run `dispatchgym compare`; returns the exit code.

    Raises:
        DispatchGymError: the traffic or a server cannot be used.
    """
    cut = argv.index("--") if "--" in argv else len(argv)
    options: Annotated[Options, tyro.conf.FlagCreatePairsOff] = tyro.cli(
        Options, prog="dispatchgym compare", args=argv[:cut]
    )
    options = replace(options, server_args=tuple(argv[cut + 1 :]))
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    names = check(options)
    runs = asyncio.run(_run_all(options, names, err))
    rows = compared(runs)
    print_rows(rows, options, out)
    if options.json is not None:
        said = {
            "command": shlex.join(["dispatchgym", "compare", *argv]),
            **head(),
            "rows": [_plain_row(row) for row in rows],
            "runs": {name: [plain(run) for run in own] for name, own in runs.items()},
        }
        with atomic_write(options.json) as file:
            file.write(json.dumps(said, indent=1, allow_nan=False) + "\n")
    return 0


def check(options: Options) -> list[str]:
    """The contestants' names.

    Raises:
        UsageError: options that do not go together.
    """
    ways = [options.model is not None, options.demo, bool(options.target), bool(options.targets)]
    if sum(ways) != 1:
        raise UsageError("give one of --demo, --model DIR, --target URL, --targets NAME=URL,...")
    if options.target and options.admin_token_file is None:
        raise UsageError("--target needs --admin-token-file: its scheduler is switched")
    if options.rounds < 1:
        raise UsageError(f"--rounds {options.rounds} is below 1")
    if options.targets:
        names = [part.partition("=")[0] for part in options.targets.split(",")]
        if not all("=" in part for part in options.targets.split(",")):
            raise UsageError(f"--targets {options.targets}: write NAME=URL, with commas between")
    else:
        names = [name for name in options.schedulers.replace(" ", "").split(",") if name]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"{', '.join(names) or 'nobody'}: name two or more different ones to compare")
    return names


async def _run_all(options: Options, names: list[str], console: Console) -> dict[str, list[LoadRun]]:
    """Every round with everybody, beginning with another each time."""
    runs: dict[str, list[LoadRun]] = {name: [] for name in names}
    first, notes = options.traffic.workload()
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    with progress(options.rounds * len(names) * len(first), console) as advance:
        for number in range(options.rounds):
            workload, _ = options.traffic.workload(options.traffic.seed + number)
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                async with _server(options, name) as (url, model):
                    # A running server remembers prompts of earlier runs: nobody is to profit from another's.
                    salt = 0 if options.demo or options.model else 1 + number * len(names) + names.index(name)
                    style = replace(options.traffic.style, salt=salt)
                    target = Target(
                        url, model=model, api_key=options.traffic.api_key, timeout_s=options.traffic.timeout_s
                    )
                    try:
                        runs[name].append(
                            await drive(target, workload, style, lambda each, who=name: advance(f"{who}, {each}"))  # type: ignore[misc]
                        )
                    finally:
                        await target.close()
    return runs


@asynccontextmanager
async def _server(options: Options, name: str) -> AsyncIterator[tuple[str, str]]:
    """Address and model of a server on which that contestant decides."""
    if options.targets:
        yield dict(part.split("=", 1) for part in options.targets.split(","))[name], ""
    elif options.target:
        await _switch(options, name)
        yield options.target, ""
    else:
        async with _started(options, name) as url:
            yield url, ""


async def _switch(options: Options, name: str) -> None:
    """Wait until the server has nothing to do, and let another scheduler decide."""
    assert options.admin_token_file is not None
    headers = {"authorization": f"Bearer {options.admin_token_file.read_text(encoding='utf-8').strip()}"}
    async with httpx.AsyncClient(base_url=options.target, headers=headers, timeout=60) as http:
        try:
            async with asyncio.timeout(SETTLE_S):
                while (said := (await http.get("/status")).raise_for_status().json())["running"] + said["waiting"]:
                    await asyncio.sleep(0.2)
            answer = await http.post("/admin/scheduler", json={"scheduler": name})
            answer.raise_for_status()
        except TimeoutError:
            raise UsageError(f"{options.target}: still busy after {SETTLE_S:g} s") from None
        except (httpx.HTTPError, ValueError, LookupError) as error:
            why = error.response.text[:300] if isinstance(error, httpx.HTTPStatusError) else str(error)
            raise UsageError(f"{options.target}: scheduler {name} cannot be switched to: {why}") from None


@asynccontextmanager
async def _started(options: Options, name: str) -> AsyncIterator[str]:
    """Address of a server of our own, which ends with the block."""
    what = ["--demo"] if options.demo else ["--model", str(options.model)]
    command = [
        *(sys.executable, "-m", "dispatchgym", "serve", "llm", *what),
        *("--scheduler", name, "--port", "0", *options.server_args),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    said: list[str] = []
    reader: asyncio.Task[None] | None = None
    try:
        url = ""
        try:
            async with asyncio.timeout(START_S):
                while line := (await process.stderr.readline()).decode(errors="replace"):
                    said = [*said[-20:], line.rstrip()]
                    if line.startswith("listening at "):
                        url = line.split()[-1]
                    if line.startswith("ready: "):
                        break
                else:
                    raise UsageError(f"serve llm --scheduler {name} ended: {said[-1] if said else 'it said nothing'}")
        except TimeoutError:
            raise UsageError(f"serve llm --scheduler {name}: not ready after {START_S:g} s") from None
        reader = asyncio.create_task(_drink(process.stderr))
        yield url
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        if reader is not None:
            await reader


async def _drink(stream: asyncio.StreamReader) -> None:
    """Read what nobody wants, so that its writer does not wait."""
    while await stream.readline():
        pass


def print_rows(rows: list[Row], options: Options, console: Console) -> None:
    """Means and paired differences, and what they say."""
    table = Table(box=None, header_style="bold")
    table.add_column("")
    for measure in MEASURES:
        table.add_column(f"{measure.name}\n{measure.unit}", justify="right")
    base = rows[0]
    for row in rows:
        table.add_row(row.name, *(_number(row.means[measure.name]) for measure in MEASURES))
    for row in rows[1:]:
        table.add_row(f"{row.name} - {base.name}", *(_difference(row, measure.name) for measure in MEASURES))
    console.print(table)
    console.print(
        f"{options.rounds} rounds; differences are means over windows of a tenth of a run, with 95 % intervals"
    )
    console.print(verdict(rows), markup=False, soft_wrap=True)


def _difference(row: Row, measure: str) -> str:
    paired = row.against[measure]
    if paired is None:
        return "-"
    if paired.interval is None:
        return f"{paired.mean:+.3g}"
    return f"{paired.mean:+.3g}\n[{paired.interval.low:+.3g}, {paired.interval.high:+.3g}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _plain_row(row: Row) -> Mapping[str, Any]:
    means = {name: None if math.isnan(value) else value for name, value in row.means.items()}
    against = {name: None if paired is None else paired._asdict() for name, paired in row.against.items()}
    return {"name": row.name, "means": means, "against": against}
