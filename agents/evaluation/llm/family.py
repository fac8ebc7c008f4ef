"""LLM serving as a family of problems; see `evaluation.family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

from dispatchgym.agents.evaluation.charts import Line, line_chart
from dispatchgym.agents.evaluation.family import Column, Family, Finished, Kind, Remarks
from dispatchgym.agents.evaluation.llm import on_backend, published, suites
from dispatchgym.agents.evaluation.llm.evidence import write_evidence
from dispatchgym.agents.evaluation.llm.judge import judged
from dispatchgym.agents.evaluation.llm.policies import FORMS, parse_policy
from dispatchgym.agents.evaluation.llm.problem import WORLDS, LlmProblem, Traffic
from dispatchgym.agents.evaluation.summary import Entry
from dispatchgym.envs.llm.backends import SIMULATOR
from dispatchgym.envs.llm.config import EngineConfig

KINDS: Mapping[Kind, str] = {
    "rule": "is told no output lengths",
    "learned": "learned, told no output lengths",
    "search": "simulates before it chooses",
    "clairvoyant": "told output lengths, or guesses made of them",
    "solver": "exact solver, told everything",
}

NOTES = (
    (
        "Identical mechanism",
        "Every scheduler runs on the same engine: same requests, KV blocks, step times, preemption and "
        "prefix cache. Only its decisions differ.",
    ),
    (
        "Goodput",
        "Requests that finished and kept every SLO they had, or their output tokens, a second from the first arrival "
        "to the last end. Without SLOs it is the throughput.",
    ),
    (
        "Step times",
        "Of the profile h200-8b unless --profile says otherwise; with --executor torch those of a real model. Compare "
        "schedulers by them, do not read milliseconds as promises.",
    ),
    (
        "Told output lengths",
        "No real engine knows them. Such schedulers stand in the table as marks to compare with.",
    ),
    (
        "IQM and intervals",
        "The interquartile mean is the mean of the middle half. Intervals are 95 % stratified bootstrap intervals: "
        "the requests are drawn anew with every seed. Differences are per cent of the base's value on the same draw.",
    ),
    ("Time", "Wall and CPU time of one run. Runs share the machine with the other workers of this evaluation."),
)


def _column(title: str, name: str, form: str = "{:.1f}", factor: float = 1.0) -> Column:
    """The mean of one of the runs' numbers."""

    def cell(entry: Entry) -> str:
        return form.format(factor * entry.means[name]) if name in entry.means else "-"

    return title, cell


IN_TIME = _column("in time", "attainment_pct", "{:.1f}%")
TTFT = _column("TTFT p99", "ttft_s_p99", "{:.2f} s")
TPOT = _column("TPOT p99", "tpot_s_p99", "{:.0f} ms", 1000)
KV = _column("KV in use", "mean_kv", "{:.0f}%", 100)
PREEMPTED = _column("preemptions", "preemptions")
TAX = _column("recompute", "recompute_tax", "{:.1f}%", 100)
HITS = _column("cache hits", "prefix_hit_rate", "{:.1f}%", 100)
STEPS = _column("steps", "steps", "{:.0f}")
BATCH = _column("mean batch", "mean_batch")

COLUMNS: Mapping[str, Sequence[Column]] = {
    "past-future": (IN_TIME, TTFT, _column("MTPOT p99", "mtpot_s_p99", "{:.2f} s"), PREEMPTED, TAX, KV),
    "flow-prefill": (IN_TIME, TTFT),
    "laps": (IN_TIME, TTFT),
    "batch-llm": (HITS, PREEMPTED, TAX, KV),
    "i-dlm": (STEPS, BATCH),
    "exspec": (STEPS, BATCH),
    "small": (STEPS, PREEMPTED),
    "own": (IN_TIME, TTFT, TPOT, PREEMPTED, TAX, KV),
}


def _figures(variant: str, finished: Finished, entries: Sequence[Entry]) -> str:
    """KV in use and the queue over time, of the first seed of each group."""
    charts: dict[tuple[str, str], list[Line]] = {}
    for item, result in finished:
        if item.problem.variant != variant or item.seed != 0 or not result.metrics:
            continue
        over = result.metrics["timeline"]
        step = over["end_s"] / max(1, len(over["kv"]))
        for name, factor in (("kv", 100.0), ("waiting", 1.0)):
            points = [(step * k, factor * value) for k, value in enumerate(over[name])]
            lines = charts.setdefault((item.problem.group, name), [])
            lines.append(Line(item.policy.name, item.policy.kind, points))
    says = {
        "kv": ("%", "KV blocks in use, per cent, over seconds."),
        "waiting": ("", "Requests waiting, over seconds."),
    }
    panels = [
        f'<figure class="panel"><h4>{escape(group)}</h4>{line_chart(lines, says[name][0], zero=True)}'
        f"<figcaption>{says[name][1]} First seed.</figcaption></figure>"
        for (group, name), lines in charts.items()
    ]
    return f'<h3>Over time</h3><div class="plots">{"".join(panels)}</div>' if panels else ""


def _remarks(finished: Finished) -> Remarks:
    """Ratios beside the published ones, constants that were tuned, who was best in hindsight, means over contests."""
    values = published.values_of(finished)
    lines, claims = published.claim_lines(values)
    means = published.means_over_contests(values)
    chosen: dict[tuple[str, str], dict[str, int]] = {}
    for item, result in finished:
        for key in ("tuned", "best"):
            if key in result.notes:
                counts = chosen.setdefault((item.problem.variant, item.policy.name), {})
                counts[result.notes[key]] = counts.get(result.notes[key], 0) + 1
    for (world, policy), counts in chosen.items():
        said = ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda c: -c[1]))
        lines.append((world, f"{policy} was, in so many runs: {said}"))
    lines += [(next(iter(values)), line) for line in published.mean_lines(means)]
    return Remarks(lines, {"claims": claims, "means_over_contests": means})


def _tiny(problem: LlmProblem) -> LlmProblem:
    traffic = problem.instance
    few = Traffic("tiny", "chat", EngineConfig(kv_blocks=4096, host_blocks=64, max_spec=traffic.engine.max_spec), 3)
    return replace(problem, instance=replace(few, terms=traffic.terms), runs_on=SIMULATOR)


LLM = Family(
    name="llm",
    noun="run",
    titles=WORLDS,
    kinds=KINDS,
    cards=(
        ("Best that is told no lengths", ("rule", "learned", "search")),
        ("Best that is told them", ("clairvoyant",)),
        ("Exact solver", ("solver",)),
    ),
    shaded="Shaded: the best that is told no output lengths.",
    notes=NOTES,
    suites=suites.SUITES.values,
    made=suites.MADE,
    forms=FORMS,
    suite=suites.suite,
    own=suites.own_traces,
    parse_policy=parse_policy,
    tiny=_tiny,
    judge=judged,
    columns=COLUMNS,
    figures=_figures,
    evidence=write_evidence,
    remarks=_remarks,
    problems=on_backend.problems,
    asides=on_backend.notes,
)
