"""`dispatchgym evaluate`: run policies over a suite, write results.json, summary.json and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from dispatchgym.agents.evaluation import report
from dispatchgym.agents.evaluation.evidence import BYTES_PER_OPERATION
from dispatchgym.agents.evaluation.family import Finished, every_family
from dispatchgym.agents.evaluation.files import make_writable
from dispatchgym.agents.evaluation.journal import Journal, start_over
from dispatchgym.agents.evaluation.machine import machine
from dispatchgym.agents.evaluation.pool import run_items
from dispatchgym.agents.evaluation.progress import progress
from dispatchgym.agents.evaluation.request import Evaluation, Options, prepare
from dispatchgym.agents.evaluation.results import conflicts, make_rows, write_results
from dispatchgym.agents.evaluation.summary import summarise, write_summary
from dispatchgym.agents.evaluation.table import print_summary
from dispatchgym.agents.evaluation.work import FAILURES

FAILED = 1
INTERRUPTED = 130  # what a shell reports for a program that ends by Ctrl-C
BYTES_PER_JOURNAL_OPERATION = 24


def main(argv: list[str]) -> int:
    """Run `dispatchgym evaluate` with the given arguments.

    Returns:
        0; 1 when a run failed, gave an invalid schedule, or contradicts a proven reference; 130 when interrupted.

    Raises:
        DispatchGymError: the request cannot be carried out.
    """
    options = tyro.cli(Options, args=argv, prog="dispatchgym evaluate", config=(tyro.conf.FlagCreatePairsOff,))
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    if not out.is_terminal:
        out.width = 240  # nothing is cut off in a file
    if options.list:
        _print_lists(out)
        return 0
    evaluation = prepare(options)
    folder = options.out or Path("out") / evaluation.suite.replace("/", "-")
    _make_folders(folder, options.evidence, evaluation)
    for note in evaluation.notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    path = folder / "journal.jsonl"
    if options.fresh:
        start_over(path)
    session = {"began": datetime.now(UTC).isoformat(timespec="seconds"), **machine()}
    with Journal(path, evaluation.settings, session) as journal:
        if not _run(evaluation, journal, options.processes, err):
            return INTERRUPTED
        finished = [(item, journal.results[item.key]) for item in evaluation.items]
        if options.evidence:
            evaluation.family.evidence(finished, options.evidence)
        return _finish(evaluation, finished, journal.sessions, folder, out, err)


def _make_folders(out: Path, evidence: Path | None, evaluation: Evaluation) -> None:
    operations = sum(item.problem.records for item in evaluation.items)
    # Report and results come on top of the journal, and are small beside it.
    make_writable(out, 2 * operations * BYTES_PER_JOURNAL_OPERATION)
    if evidence:
        make_writable(evidence, operations * BYTES_PER_OPERATION)


def _run(evaluation: Evaluation, journal: Journal, workers: int, console: Console) -> bool:
    """Run what the journal lacks; whether all of it was finished."""
    items = [item for item in evaluation.items if item.key not in journal.results]
    if done := len(evaluation.items) - len(items):
        console.print(f"{done} of {len(evaluation.items)} runs were done before (--fresh starts over)")
    if not items:
        return True
    crew = f"{min(workers, len(items))} worker(s)" if workers else "this process"
    console.print(f"{len(items)} runs on {crew}, results in {journal.path.parent}", soft_wrap=True)
    try:
        with progress(len(items), console) as advance, closing(run_items(items, workers)) as running:
            for item, result in running:
                journal.add(result)
                if result.status in FAILURES:
                    console.print(_failure_line(item.key, result.status, result.message), markup=False, soft_wrap=True)
                advance(f"{item.problem.instance.name} {item.policy.name}")
    except KeyboardInterrupt:
        done = sum(item.key in journal.results for item in evaluation.items)
        console.print(
            f"interrupted: {done} of {len(evaluation.items)} runs are kept in {journal.path}; "
            "the same command goes on from there",
            soft_wrap=True,
        )
        return False
    return True


def _finish(
    evaluation: Evaluation,
    finished: Finished,
    sessions: Sequence[Mapping[str, Any]],
    folder: Path,
    out: Console,
    err: Console,
) -> int:
    """Write every file, print the table; the exit code."""
    rows = make_rows(finished)
    entries = summarise(rows, evaluation.base.name)
    failures = [
        {"item": item.key, "status": result.status, "message": result.message}
        for item, result in finished
        if result.status in FAILURES
    ]
    contradictions = conflicts(finished)
    head = {
        "format": "dispatchgym/evaluation-summary",
        "schema": 1,
        "suite": evaluation.suite,
        "base": evaluation.base.name,
        "seeds": evaluation.seeds,
        "policies": [{"policy": policy.name, "kind": policy.kind} for policy in evaluation.policies],
        "runs": len(rows),
        "sessions": list(sessions),
        "versions": evaluation.settings["versions"],
        "notes": list(evaluation.notes),
    }
    remarks = evaluation.family.remarks(finished)
    write_results(rows, folder / "results.json")
    write_summary(
        entries,
        folder / "summary.json",
        head,
        failures,
        {**remarks.plain, "conflicts": contradictions},
    )
    report.write_report(folder / "report.html", head, finished, rows, entries, failures, remarks.lines, contradictions)
    print_summary(entries, out)
    for _, line in remarks.lines:
        out.print(line, markup=False, soft_wrap=True)
    for line in contradictions:
        err.print(f"contradiction: {line}", markup=False, soft_wrap=True)
    if failures:
        err.print(f"{len(failures)} of {len(rows)} runs failed; see {folder / 'summary.json'}", soft_wrap=True)
    out.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    return FAILED if failures or contradictions else 0


def _failure_line(key: str, status: str, message: str) -> str:
    lines = message.strip().splitlines() or [""]
    return f"{status}: {key}: {lines[-1]}"


def _print_lists(console: Console) -> None:
    console.print("suites:")
    families = every_family()
    lines = [line for f in families for line in (*((suite.name, suite.summary) for suite in f.suites()), *f.made)]
    width = max(len(name) for name, _ in lines)
    for name, summary in lines:
        console.print(f"  {name:{width}}  {summary}", markup=False)
    for family in families:
        console.print(f"\npolicies, {family.name}:")
        width = max(len(form) for form, _ in family.forms)
        for form, meaning in family.forms:
            console.print(f"  {form:{width}}  {meaning}", markup=False)
