"""`dispatchgym compare`: the same live traffic under several schedulers, or against several servers."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from dispatchgym.agents.evaluation.files import atomic_write, make_writable
from dispatchgym.agents.evaluation.progress import progress
from dispatchgym.envs.api import UsageError
from dispatchgym.serving.llm.schedulers import load_scheduler
from dispatchgym.serving.load.client import Target, secret_in
from dispatchgym.serving.load.command import head, plain
from dispatchgym.serving.load.comparison import MEASURES, Row, compared, verdict
from dispatchgym.serving.load.run import LoadRun, drive
from dispatchgym.serving.load.servers import Decisions, Server, started
from dispatchgym.serving.load.traffic import Traffic

Keep = Callable[[Mapping[str, list[LoadRun]], Mapping[str, list[Decisions]]], list[Row]]


@dataclass(frozen=True, slots=True)
class Options:
    """Send the same trace to a live server under each scheduler, in turns, and print paired differences.

    The schedulers of one server are switched, which is started here (--model or --demo) or runs already (--target), or
    several servers of any make are compared (--targets). A round runs everybody once on the same requests; rounds
    differ in what is drawn, or in which part of a trace is sent, and begin with another scheduler.

    Options of the server that is started stand behind a lone --.

    Example: dispatchgym compare --schedulers vllm,sarathi --demo --rate 4 -- --kv-blocks 500

    Example: dispatchgym compare --targets ours=http://a:8000,theirs=http://b:8000 --trace mine.csv
    """

    traffic: Annotated[Traffic, tyro.conf.OmitArgPrefixes] = field(default_factory=Traffic)

    schedulers: str = "vllm,sarathi"
    """Names with commas between; the first is what the others are compared with."""

    rounds: int = 3
    """Runs of each."""

    model: str = ""
    """Start `dispatchgym serve llm --model` with this folder, or random:1b, random:8b."""

    demo: bool = False
    """The same with the demo's model."""

    server_args: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Further options of this server: what stands behind a lone --."""

    target: str = ""
    """Address of a running dispatchgym server, whose scheduler is switched; the one before decides again afterwards."""

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
    if options.json is not None:
        make_writable(options.json.parent, 0)
    began = {"command": shlex.join(["dispatchgym", "compare", *argv]), **head()}

    made: Mapping[str, list[LoadRun]] = {}

    def keep(runs: Mapping[str, list[LoadRun]], decisions: Mapping[str, list[Decisions]]) -> list[Row]:
        nonlocal made
        made = runs
        rows = compared({name: own for name, own in runs.items() if own})
        if options.json is not None:
            said = {
                **began,
                "rows": [_plain_row(row) for row in rows],
                "decisions": decisions,
                "runs": {name: [plain(run) for run in own] for name, own in runs.items()},
            }
            with atomic_write(options.json) as file:
                file.write(json.dumps(said, allow_nan=False) + "\n")
        return rows

    rows, decisions = asyncio.run(run_all(options, names, err, keep))
    print_rows(rows, options, out)
    print_decisions(decisions, out)
    print_answers(made, out)
    return 0


def check(options: Options) -> list[str]:
    """The contestants' names.

    Raises:
        UsageError: options that do not go together.
        DispatchGymError: a scheduler that no live engine can run.
    """
    ways = [bool(options.model), options.demo, bool(options.target), bool(options.targets)]
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
    if options.model or options.demo:
        for name in names:
            load_scheduler(name)  # before a server is started, and the others have run
    return names


async def run_all(
    options: Options, names: list[str], console: Console, keep: Keep
) -> tuple[list[Row], dict[str, list[Decisions]]]:
    """Every round with everybody, beginning with another each time; `keep` makes rows of what is there so far.

    Raises:
        DispatchGymError: the traffic or a server cannot be used.
    """
    runs: dict[str, list[LoadRun]] = {name: [] for name in names}
    decisions: dict[str, list[Decisions]] = {name: [] for name in names}
    rows: list[Row] = []
    first, notes = options.traffic.workload()
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    async with _servers(options, names) as servers:
        with progress(options.rounds * len(names) * len(first), console) as advance:
            for number in range(options.rounds):
                workload, _ = options.traffic.workload(number)
                turn = number % len(names)
                for name in (*names[turn:], *names[:turn]):
                    server = servers[name]
                    if server.admin_token:
                        await server.switch(name)
                    style = options.traffic.style
                    target = Target(server.url, api_key=options.traffic.api_key, timeout_s=options.traffic.timeout_s)
                    try:
                        runs[name].append(
                            await drive(target, workload, style, lambda each, who=name: advance(f"{who}, {each}"))  # type: ignore[misc]
                        )
                    finally:
                        await target.close()
                    if server.admin_token:
                        decisions[name].append(await server.decisions())
                    rows = keep(runs, decisions)
    return rows, decisions


@asynccontextmanager
async def _servers(options: Options, names: list[str]) -> AsyncIterator[dict[str, Server]]:
    """Whom each contestant's requests are sent to."""
    if options.targets:
        yield {name: Server(url) for name, url in (part.split("=", 1) for part in options.targets.split(","))}
    elif options.target:
        assert options.admin_token_file is not None
        server = Server(options.target, secret_in(options.admin_token_file))
        before = await server.scheduler()
        try:
            yield dict.fromkeys(names, server)
        finally:
            if await server.scheduler() != before:
                await server.switch(before)
    else:
        what = ["--demo"] if options.demo else ["--model", options.model]
        async with started([*what, "--scheduler", names[0], *options.server_args]) as server:
            yield dict.fromkeys(names, server)


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


def print_decisions(decisions: Mapping[str, list[Decisions]], console: Console) -> None:
    """What the schedulers took to decide, where somebody measured it."""
    for name, own in decisions.items():
        slow = [each["p99_ms"] for each in own if each["p99_ms"] is not None]
        faults = sum(sum(each["faults"].values()) for each in own)
        if slow or faults:
            said = f"{name}: a decision took {_number(max(slow, default=math.nan))} ms (p99, the slowest round)"
            console.print(said + (f", {faults} were left to its fallback rule" if faults else ""), markup=False)


def print_answers(runs: Mapping[str, Sequence[LoadRun]], console: Console) -> None:
    """How requests ended, where not all were answered whole."""
    for name, own in runs.items():
        ended = sum((Counter(run.statuses) for run in own), Counter[str]())
        if set(ended) != {"200"}:
            said = ", ".join(f"{status}: {count}" for status, count in ended.items())
            console.print(f"{name}: of {ended.total()} answers {said}", markup=False)


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
