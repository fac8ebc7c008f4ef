"""report.html of a simulation: the answer, the table, what each scheduler does over time; one file, no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.evaluation.page import count, write_page
from dispatchgym.agents.simulation.answer import Answer
from dispatchgym.agents.simulation.charts import Area, Line, area_chart, line_chart, tone
from dispatchgym.agents.simulation.runs import Run, Setting, rate_per_s
from dispatchgym.agents.simulation.table import COLUMNS, cell
from dispatchgym.agents.simulation.timeline import bin_edges, timeline
from dispatchgym.envs.llm.metrics import READER_TOKENS_PER_S, READER_TTFT_S
from dispatchgym.envs.llm.record import FINISHED, Record

CURVE_POINTS = 120

F64 = npt.NDArray[np.float64]

NOTES = (
    (
        "The engine",
        "Every scheduler runs on the same simulated engine: same requests, same KV blocks, same step times, same ways "
        "to preempt. It sees what a real engine would show it; output lengths are told only to schedulers marked as "
        "oracle.",
    ),
    (
        "Step times",
        "A step's time is computed from its contents by the profile named above. A profile of source roofline comes "
        "from the memory bandwidth and peak of the device, not from measurements: compare schedulers by it, do not "
        "read its milliseconds as promises.",
    ),
    (
        "In time",
        "A request is in time if it finished and kept every SLO it had: on its first token, and on the tokens after it "
        "(their mean time, or the longest where the workload says so). Attainment is the share of all requests, the "
        "dropped and rejected ones included.",
    ),
    (
        "Capacity",
        "The greatest multiple of the traffic's rate at which the target share is in time, searched by halving over "
        "the same requests. A run of few requests fills and drains an engine for a good part of its time, and its "
        "capacity lies above that of endless traffic: compare it between schedulers.",
    ),
    ("Recompute", "Share of all tokens run that had been computed before and were lost in a preemption."),
    (
        "QoE",
        f"Quality of experience of a reader who expects the first token after {READER_TTFT_S:g} s and reads "
        f"{READER_TOKENS_PER_S:g} tokens a second: 1 if nobody ever waited (Andes, arXiv 2404.16283).",
    ),
)


def write_report(
    path: Path,
    head: Mapping[str, Any],
    setting: Setting,
    runs: Sequence[Run],
    pressed: Sequence[Run],
    found: Answer,
) -> None:
    """Write the page; it needs nothing but itself.

    Args:
        runs: the traffic as it comes; pressed: the same schedulers, or some, with the traffic faster.
    """
    tones = {run.name: tone(number) for number, run in enumerate(runs)}
    body = [
        _header(head, setting, runs),
        _alarm((*runs, *pressed)),
        _answer(found),
        "<section><h2>The traffic as it comes</h2>",
        _table(runs, tones, found.best),
        _classes(runs, tones),
        _curves(setting, runs, tones, head["target"]),
        "</section>",
    ]
    if pressed:
        scale, rate = pressed[0].scale, rate_per_s(setting.workload)
        body += [
            f"<section><h2>Under pressure: {scale:.3g} times this traffic</h2>",
            f"<p>The same requests at {scale * rate:.3g} a second: the most that one of the schedulers carries with "
            f"{100 * head['target']:.0f} % of them in time.</p>",
            _table(pressed, tones, found.best, explained=False),
            _classes(pressed, tones),
            _curves(setting, pressed, tones, head["target"]),
            "</section>",
        ]
    body += [_timelines(pressed or runs, tones), _notes(head)]
    write_page(path, f"{setting.workload.name} - dispatchgym simulation", body, {})


def _header(head: Mapping[str, Any], setting: Setting, runs: Sequence[Run]) -> str:
    w, engine, profile = setting.workload, setting.engine, setting.profile
    rate = rate_per_s(w)
    came = "all there at once" if math.isinf(rate) else f"{rate:.3g} a second over {w.arrival_s[-1]:,.0f} s"
    libraries = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    began = head["began"].replace("T", " ").replace("+00:00", " UTC")
    return (
        '<p class="eyebrow">dispatchgym simulation</p>'
        f"<h1>{escape(w.name)}: which scheduler?</h1>"
        f"<p>{count(len(w), 'request')}, {came}; prompts of {w.prompt_tokens.mean():,.0f} tokens and outputs of "
        f"{w.output_tokens.mean():,.0f} in the mean. {escape(_promises(setting))} "
        f"{count(len(runs), 'scheduler')} on one engine: {escape(profile.model)} on {escape(profile.gpu)} "
        f"(profile {escape(profile.name)}, {escape(profile.source)}), {engine.kv_blocks:,} KV blocks of "
        f"{engine.block_tokens} tokens, at most {engine.max_seqs} requests and {engine.token_budget:,} tokens a "
        "step.</p>"
        f'<p class="soft"><code>{escape(head["command"])}</code><br>{escape(began)} &middot; '
        f"{escape(head['machine']['cpu'])}, {head['machine']['cores']} cores &middot; {escape(libraries)}</p>"
    )


def _promises(setting: Setting) -> str:
    w = setting.workload
    kind = "longest gap" if w.slo_kind == "max" else "mean time"
    said = []
    for name, values, what in (
        ("first token", w.ttft_slo_s, ""),
        ("tokens after it", w.tpot_slo_s, f" ({kind})"),
    ):
        known = np.unique(values[np.isfinite(values)])
        if known.size:
            span = f"{known[0]:g}" if known.size == 1 else f"{known[0]:g} to {known[-1]:g}"
            said.append(f"{name} within {span} s{what}")
    return f"SLOs: {', '.join(said)}." if said else "No SLOs: every request that finishes counts."


def _alarm(runs: Sequence[Run]) -> str:
    failed = [run for run in runs if run.metrics is None]
    if not failed:
        return ""
    lines = "\n".join(escape(f"{run.name}: {run.message}") for run in failed)
    return f'<div class="card alarm"><b>{count(len(failed), "scheduler")} failed.</b><pre>{lines}</pre></div>'


def _answer(found: Answer) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in found.lines)
    return (
        '<div class="card" style="margin: 18px 0"><h3>Which scheduler for this traffic, and by how much</h3>'
        f'<p style="font-size: 18px"><b>{escape(found.headline)}</b></p><ul>{lines}</ul></div>'
    )


def _name_cell(run: Run, tones: Mapping[str, str]) -> str:
    told = ' <span class="spread">oracle</span>' if run.oracle else ""
    return f'<td style="{tones[run.name]}"><span class="dotmark"></span>{escape(run.name)}{told}</td>'


def _table(runs: Sequence[Run], tones: Mapping[str, str], best: str | None, explained: bool = True) -> str:
    columns = [c for c in COLUMNS if any(cell(c, run) != "-" for run in runs)]
    head = "".join(f'<th title="{escape(c.meaning)}">{escape(c.title)}</th>' for c in columns)
    rows = []
    for run in runs:
        style = "best" if run.name == best else ""
        cells = "".join(f'<td class="{style}">{escape(cell(c, run))}</td>' for c in columns)
        failed = "failed" if run.metrics is None else ""
        rows.append(f'<tr class="{failed}">{_name_cell(run, tones)}{cells}</tr>')
    meanings = "; ".join(f"{c.title}: {c.meaning}" for c in columns)
    says = f"Shaded: the scheduler to take. {meanings}." if explained else "Columns as above."
    return (
        f'<div class="scroll"><table><thead><tr><th>scheduler</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f'</table></div><p class="soft">{escape(says)}</p>'
    )


def _classes(runs: Sequence[Run], tones: Mapping[str, str]) -> str:
    names = list(dict.fromkeys(name for run in runs if run.metrics for name in run.metrics.classes))
    if len(names) < 2:
        return ""
    names = names[:12]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for run in runs:
        if run.metrics is None:
            continue
        cells = ""
        for name in names:
            mine = run.metrics.classes[name]
            late = mine.ttft_s.p99
            cells += (
                f"<td>{100 * mine.attainment:.1f} %"
                f'<span class="spread">{"-" if math.isnan(late) else f"{late:.3g} s"}</span></td>'
            )
        rows.append(f"<tr>{_name_cell(run, tones)}{cells}</tr>")
    return (
        "<h3>By class of request</h3>"
        f'<div class="scroll"><table class="groups"><thead><tr><th>scheduler</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="soft">Share of the requests in time, and the time '
        "within which 99 % had their first token.</p>"
    )


def _legend(runs: Sequence[Run], tones: Mapping[str, str]) -> str:
    spans = "".join(
        f'<span style="{tones[run.name]}"><span class="dotmark"></span>{escape(run.name)}</span>'
        for run in runs
        if run.record is not None
    )
    return f'<div class="legend">{spans}</div>'


def _curves(setting: Setting, runs: Sequence[Run], tones: Mapping[str, str], target: float) -> str:
    figures = []
    rate = rate_per_s(setting.workload)
    capacity = [
        Line(run.name, tones[run.name], [(scale * rate, share) for scale, share in _attained(run)])
        for run in runs
        if run.capacity is not None
    ]
    if capacity:
        chart = line_chart(
            capacity,
            "requests a second",
            log_x=True,
            percent=True,
            level=target,
            marks=[(rate, "this traffic")],
            dots=True,
        )
        figures.append(
            f'<figure class="panel"><h4>Requests in time as traffic grows</h4>{chart}<figcaption>The same requests, '
            f"arriving faster or slower. Dashed across: the target of {100 * target:.0f} %. Dots: runs.</figcaption>"
            "</figure>"
        )
    w = setting.workload
    curved: tuple[tuple[str, Callable[[Record], F64], F64 | None, str], ...] = (
        ("Time to the first token", lambda r: r.ttft_s, w.ttft_slo_s, "seconds to the first token"),
        ("Time per token after it", lambda r: r.mean_gap_s, w.tpot_slo_s, "seconds per token, mean of a request"),
        ("Time to the last token", _end_to_end_s, None, "seconds end to end"),
    )
    for title, values, slo, name in curved:
        curves = [
            Line(run.name, tones[run.name], _distribution(values(run.record))) for run in runs if run.record is not None
        ]
        known = np.unique(slo[np.isfinite(slo)]) if slo is not None else np.zeros(0)
        chart = line_chart(curves, name, log_x=True, percent=True, marks=[(float(v), "SLO") for v in known[:6]])
        if chart:
            figures.append(
                f'<figure class="panel"><h4>{title}</h4>{chart}<figcaption>Share of requests that had it by then.'
                "</figcaption></figure>"
            )
    if not figures:
        return ""
    return f'<h3>Curves</h3>{_legend(runs, tones)}<div class="plots">{"".join(figures)}</div>'


def _attained(run: Run) -> list[tuple[float, float]]:
    """(scale, attainment) of every run of the scheduler that is known, by scale."""
    tried = dict(run.capacity.tried) if run.capacity else {}
    if run.metrics is not None:
        tried[run.scale] = run.metrics.attainment
    return sorted(tried.items())


def _end_to_end_s(record: Record) -> F64:
    ended = record.requests.status == FINISHED
    return np.where(ended, record.requests.finish_s - record.workload.arrival_s, np.nan)


def _distribution(values: F64) -> list[tuple[float, float]]:
    """Points of the distribution function of the values, those missing counted as never."""
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return []
    at = np.unique(np.linspace(0, known.size - 1, CURVE_POINTS).astype(np.int64))
    return [(max(float(known[k]), 1e-4), float((k + 1) / values.size)) for k in at]


def _timelines(runs: Sequence[Run], tones: Mapping[str, str]) -> str:
    records = {run.name: run.record for run in runs if run.record is not None}
    if not records:
        return ""
    edges = bin_edges(max(record.end_s for record in records.values()))
    lines = {name: timeline(record, edges) for name, record in records.items()}
    most_tps = max(float((t.prefill_tps + t.decode_tps).max()) for t in lines.values())
    most_requests = max(float((t.running + t.waiting).max()) for t in lines.values())
    most_kv = max(float(t.kv.max()) for t in lines.values())
    scale = runs[0].scale
    what = "The traffic as it comes." if scale == 1.0 else f"Under pressure: {scale:.3g} times this traffic."
    parts = []
    for name, t in lines.items():
        tokens = area_chart(
            edges.tolist(),
            [
                Area("decode tokens a second", "fill: var(--rule); fill-opacity: 0.75", t.decode_tps.tolist()),
                Area("prefill tokens a second", "fill: var(--solver); fill-opacity: 0.6", t.prefill_tps.tolist()),
            ],
            top=most_tps,
        )
        kv = area_chart(
            edges.tolist(),
            [Area("KV blocks in use", "fill: var(--learned); fill-opacity: 0.45", t.kv.tolist())],
            top=most_kv,
            percent=True,
        )
        queue = area_chart(
            edges.tolist(),
            [
                Area("running requests", "fill: var(--search); fill-opacity: 0.65", t.running.tolist()),
                Area("waiting requests", "fill: var(--bad); fill-opacity: 0.5", t.waiting.tolist()),
            ],
            top=most_requests,
        )
        parts.append(
            f'<h3 style="{tones[name]}"><span class="dotmark"></span>{escape(name)}</h3><div class="plots" '
            'style="grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr))">'
            f'<figure class="panel"><h4>Tokens a second in the batches</h4>{tokens}</figure>'
            f'<figure class="panel"><h4>KV pool in use</h4>{kv}</figure>'
            f'<figure class="panel"><h4>Requests in the engine</h4>{queue}</figure></div>'
        )
    marks = "".join(
        f'<span style="--tone: var({colour})"><span class="dotmark"></span>{name}</span>'
        for colour, name in (
            ("--rule", "decode tokens"),
            ("--solver", "prefill tokens, recomputed ones included"),
            ("--learned", "KV blocks in use"),
            ("--search", "running"),
            ("--bad", "waiting"),
        )
    )
    return (
        "<section><h2>What happened over time</h2>"
        f'<p class="soft">{escape(what)} All schedulers have the same axes, so that heights compare.</p>'
        f'<div class="legend">{marks}</div>{"".join(parts)}</section>'
    )


def _notes(head: Mapping[str, Any]) -> str:
    said = "".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in NOTES)
    asides = "".join(f"<li>{escape(note)}</li>" for note in head["notes"])
    more = f"<h3>In this run</h3><ul>{asides}</ul>" if asides else ""
    return (
        f'<section><h2>How to read this</h2><dl class="notes">{said}</dl>{more}'
        '<p class="soft">Every number comes from <code>results.json</code> and <code>summary.json</code> beside this '
        "page; docs/simulate.md describes them.</p></section>"
    )
