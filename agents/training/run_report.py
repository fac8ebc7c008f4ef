"""report.html of a training run: one file with its curves, tables, schedules and configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.charts import Line, line_chart, short
from dispatchgym.agents.evaluation.page import count, gantt_explorer, write_page
from dispatchgym.agents.training.config import TrainConfig, load
from dispatchgym.agents.training.evaluations import GREEDY, Evaluations

NOTES = (
    (
        "Gap",
        "In a shop, how far a makespan lies above a lower bound known at the start (the longest job, the fullest "
        "machine), in per cent; on a cluster, the per cent of the pods' weight that does not run, or of the GPUs that "
        "are not allocated. The optimum itself lies above that bound, so these gaps are not gaps to the optimum; they "
        "compare policies with one another on the same instances. Each figure is an interquartile mean: the mean of "
        "the middle half.",
    ),
    (
        "Policy",
        "The greedy policy of the averaged weights: what is kept in <code>best/</code> and exported. At iteration 0 it "
        "plays as its starting rule.",
    ),
    (
        "Validation set",
        "Generated instances that training never draws, the same at every evaluation; none is a benchmark's.",
    ),
    (
        "Spread",
        "Standard deviation of the returns of one instance's rollouts, averaged over instances: what the advantages "
        "are made of. At 0 nothing more is learned.",
    ),
    (
        "KL and clip fraction",
        "How far an update moves the policy, and the share of decisions held back by the clip. Spikes mean a learning "
        "rate too high; zeros, one too low.",
    ),
)

SUITES: Mapping[str, str] = {
    "jssp": "jobshop/taillard",
    "bws": "blocking/lawrence",
    "bns": "blocking/lawrence --variant bns",
    "isbjssp": "interrupting/lawrence",
    "repack": "packing/priority-matters",
    "bindings": "packing/openb",
    "engine": "llm/flow-prefill",
}
"""Where a policy of each shop, and of each graph of packing, is judged."""

OUTCOMES = {
    "running": "Running, as of iteration {done} of {of}.",
    "finished": "Finished: {of} iterations.",
    "interrupted": "Interrupted after iteration {done} of {of}; resuming goes on from the latest checkpoint.",
}


def write_run_report(folder: Path, outcome: str = "running") -> None:
    """Write report.html from the run directory's own files; nothing where no evaluation is written down yet.

    Args:
        outcome: "running", "finished", "interrupted", or what went wrong.
    """
    rows = _read(folder / "metrics.jsonl")
    if not rows:
        return
    config = load(folder / "config.resolved.yaml")
    timings = _read(folder / "timing.jsonl")
    evaluations = Evaluations(config.validation.rules)
    for row in rows:
        evaluations.add(row)
    pictures = folder / "pictures.json"
    gantt = json.loads(pictures.read_text(encoding="utf-8")) if pictures.exists() else {}
    body = [
        _header(config, rows, outcome),
        '<div class="cards">',
        _quality_card(config, evaluations),
        _speed_card(timings, rows),
        _next_card(config, folder),
        "</div>",
        _learning(rows, evaluations),
        _by_size(evaluations),
        *(
            f"<section><h2>Schedules</h2><p>Validation instances, the policy at its best above a rule.</p>"
            f"{gantt_explorer(shop)}</section>"
            for shop, problems in gantt.items()
            if problems
        ),
        _health(rows),
        _speed(timings),
        _configuration(folder),
        _notes(),
    ]
    write_page(folder / "report.html", f"{config.name} - dispatchgym training", body, gantt)


def _read(path: Path) -> list[dict[str, Any]]:
    """Lines of a file that is being written: the last may be cut short."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _header(config: TrainConfig, rows: Sequence[Mapping[str, Any]], outcome: str) -> str:
    done = rows[-1]["iteration"]
    if outcome in OUTCOMES:
        said = f"<p>{OUTCOMES[outcome].format(done=done, of=config.iterations)}</p>"
    else:
        said = f'<div class="card alarm"><b>Stopped after iteration {done}.</b><pre>{escape(outcome)}</pre></div>'
    return (
        f'<p class="eyebrow">dispatchgym training</p><h1>{escape(config.name)}</h1>{said}'
        f'<p class="soft">{escape(_instances(config))} &middot; starts as '
        f"rule {escape(str(config.policy.rule))} &middot; seed {config.seed}</p>"
    )


def _instances(config: TrainConfig) -> str:
    """What is trained on, in a few words."""
    if config.graph == "engine":
        return f"LLM engines under random traffic: {', '.join(config.llm.draw.mixes)}"
    if config.graph == "bindings":
        scales = ", ".join(f"{scale:g}" for scale in config.packing.twins.scales)
        return f"GPU clusters, twins of openb at scale {scales}"
    if config.graph == "repack":
        return f"Clusters of {', '.join(map(str, config.packing.pods.nodes))} nodes, generated"
    sizes = ", ".join(f"{jobs}x{machines}" for jobs, machines in dict.fromkeys(config.instances.sizes))
    return f"Shop {config.shop.variant} \u00b7 generated instances {sizes}"


def _card(title: str, facts: Sequence[tuple[str, str, str]]) -> str:
    """Facts as (what, value, remark); the value is the large one."""
    said = "".join(
        f'<div><dt>{escape(what)}</dt><dd><b>{escape(value)}</b></dd><dd class="soft">{escape(remark)}</dd></div>'
        for what, value, remark in facts
    )
    return f'<div class="card"><h3>{escape(title)}</h3><dl>{said}</dl></div>'


def _quality_card(config: TrainConfig, evaluations: Evaluations) -> str:
    best, first = evaluations.best, evaluations.rows[0] if evaluations.rows else None
    if best is None or first is None:
        return ""
    facts = [("Policy at its best", f"{best[GREEDY]:.2f} %", f"iteration {best['iteration']}")]
    if rule := evaluations.best_rule():
        ahead = rule.gap - best[GREEDY]
        remark = f"{rule.rule}; the policy is {abs(ahead):.2f} points {'better' if ahead > 0 else 'worse'}"
        facts.append(("Best rule", f"{rule.gap:.2f} %", remark if ahead else f"{rule.rule}; the policy equals it"))
    where = "at the start" if first["iteration"] == 0 else f"at iteration {first['iteration']}, on a new set"
    facts.append(("Policy " + where, f"{first[GREEDY]:.2f} %", f"rule {config.policy.rule}"))
    return _card(f"Validation gap, {count(config.validation.instances, 'instance')}", facts)


def _speed_card(timings: Sequence[Mapping[str, float]], rows: Sequence[Mapping[str, Any]]) -> str:
    rates = [t["decisions_per_s"] for t in timings if "decisions_per_s" in t]
    if not rates:
        return ""
    spent = {name: sum(t.get(f"{name}_s", 0.0) for t in timings) for name in ("rollout", "update", "evaluation")}
    total = sum(spent.values())
    decisions = sum(row.get("rollout/decisions", 0.0) for row in rows)
    shares = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in spent.items())
    facts = [
        ("Decisions a second", f"{sorted(rates)[len(rates) // 2]:,.0f}", "rollout and update together, median"),
        ("Time", _duration(total), shares),
        ("Decisions learned from", f"{decisions:,.0f}", count(int(rows[-1]["iteration"]), "iteration")),
    ]
    if memory := max(t.get("gpu_memory_mib", 0.0) for t in timings):
        facts.append(("GPU memory", f"{memory:,.0f} MiB", "the most in use"))
    return _card("Speed", facts)


def _next_card(config: TrainConfig, folder: Path) -> str:
    run, suite = escape(str(folder)), SUITES.get(config.graph, SUITES[config.shop.variant])
    policies = ",".join((*config.validation.rules[:1], "bundle:BUNDLE"))
    commands = [
        ("Export the best weights", f"dispatchgym export {run} --out BUNDLE"),
        ("Judge them", f"dispatchgym evaluate {suite} --policies {policies}"),
        ("Train on", f"dispatchgym train --resume {run} iterations=N"),
    ]
    if (folder / "wandb").is_dir():
        commands.append(("Upload to wandb", f"wandb sync {run}/wandb/offline-run-*"))
    said = "".join(f"<div><dt>{what}</dt><dd><code>{command}</code></dd></div>" for what, command in commands)
    return f'<div class="card"><h3>What next</h3><dl>{said}</dl></div>'


def _learning(rows: Sequence[Mapping[str, Any]], evaluations: Evaluations) -> str:
    lines = [Line("policy", "learned", [(row["iteration"], row[GREEDY]) for row in evaluations.rows])]
    if any("validation/best" in row for row in evaluations.rows):
        points = [(row["iteration"], row["validation/best"]) for row in evaluations.rows if "validation/best" in row]
        lines.append(Line("best of samples", "search", points))
    if evaluations.rows:
        at = evaluations.rows[0]["iteration"]
        lines += [
            Line(rule, "rule", [(at, evaluations.rules[f"validation/{rule}"])])
            for rule in evaluations.names
            if f"validation/{rule}" in evaluations.rules
        ]
    return _section(
        "Learning",
        _panel("Validation gap", line_chart(lines, "%"), "Greedy policy beside the rules, interquartile mean."),
        _curves(rows, "Return of a rollout", ("rollout/return", "mean"), ("rollout/best", "best of its instance")),
        _ahead(evaluations),
        _curves(rows, "Spread of the rollouts of an instance", ("rollout/spread", "spread"), zero=True),
    )


def _ahead(evaluations: Evaluations) -> str:
    """Points by which the policy is below the best rule of each size, evaluation by evaluation."""
    points: dict[str, list[tuple[float, float]]] = {size: [] for size in evaluations.sizes}
    for row in evaluations.rows:
        ahead = evaluations.ahead(row)
        for size, line in points.items():
            if f"ahead/{size}" in ahead:
                line.append((row["iteration"], ahead[f"ahead/{size}"]))
    if len(evaluations.rows) < 2 or not any(points.values()):
        return ""
    tones = ("learned", "search", "solver", "rule", "clairvoyant")
    lines = [Line(size, tones[k % len(tones)], line) for k, (size, line) in enumerate(points.items())]
    return _panel(
        "Ahead of the best rule, by size",
        line_chart(lines, zero=True),
        "Points by which the policy's gap is smaller than that of the best rule of the size.",
    )


def _health(rows: Sequence[Mapping[str, Any]]) -> str:
    entropy = [{**row, "entropy": -row["train/entropy_loss"]} for row in rows if "train/entropy_loss" in row]
    return _section(
        "PPO health",
        _curves(rows, "KL divergence of an update", ("train/approx_kl", "KL"), zero=True),
        _curves(rows, "Clip fraction", ("train/clip_fraction", "clipped"), zero=True),
        _curves(entropy, "Entropy of a decision", ("entropy", "entropy"), zero=True),
        _curves(rows, "Explained variance of the critic", ("train/explained_variance", "explained")),
        _curves(rows, "Learning rate", ("train/learning_rate", "learning rate"), zero=True),
        _curves(rows, "Loss", ("train/loss", "loss")),
    )


def _speed(timings: Sequence[Mapping[str, float]]) -> str:
    latest = list({t["iteration"]: t for t in timings}.values())  # a resumed run did some iterations twice
    return _section(
        "Speed",
        _curves(latest, "Decisions a second", ("decisions_per_s", "decisions/s"), zero=True),
        _curves(latest, "Seconds of an iteration", ("rollout_s", "rollout"), ("update_s", "update"), zero=True),
    )


def _curves(rows: Sequence[Mapping[str, Any]], title: str, *lines: tuple[str, str], zero: bool = False) -> str:
    """A panel of metrics, each given as (name in the row, name in the picture)."""
    tones = ("learned", "search")
    drawn = [
        Line(label, tone, [(row["iteration"], row[name]) for row in rows if name in row])
        for tone, (name, label) in zip(tones, lines, strict=False)
    ]
    last = [f"{line.label} {short(float(f'{line.points[-1][1]:.3g}'))}" for line in drawn if line.points]
    return _panel(title, line_chart(drawn, zero=zero), "Last: " + ", ".join(last) + ".")


def _panel(title: str, chart: str, caption: str) -> str:
    if not chart:
        return ""
    return f'<figure class="panel"><h4>{escape(title)}</h4>{chart}<figcaption>{escape(caption)}</figcaption></figure>'


def _section(title: str, *panels: str) -> str:
    drawn = "".join(panels)
    return f'<section><h2>{title}</h2><div class="plots">{drawn}</div></section>' if drawn else ""


def _by_size(evaluations: Evaluations) -> str:
    best = evaluations.best
    if best is None or not evaluations.sizes:
        return ""
    rules = [rule for rule in evaluations.names if f"validation/{rule}" in evaluations.rules]
    head = "".join(f"<th>{escape(name)}</th>" for name in (*rules, "policy", "ahead of the best rule"))
    body = []
    for size in (*evaluations.sizes, ""):
        end = f"/{size}" if size else ""
        gaps = [evaluations.rules[f"validation/{rule}{end}"] for rule in rules] + [best[GREEDY + end]]
        ahead = evaluations.ahead(best).get(f"ahead/{size or 'all'}", math.nan)
        cells = "".join(f'<td class="{"best" if gap == min(gaps) else ""}">{gap:.2f}</td>' for gap in gaps)
        body.append(
            f"<tr><td>{escape(size) or 'all'}</td>{cells}<td>{'' if math.isnan(ahead) else f'{ahead:+.2f}'}</td></tr>"
        )
    return (
        '<section><h2>Quality by size</h2><div class="scroll"><table class="groups"><thead><tr><th>size</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="soft">Validation gap in per cent; the policy as in iteration {best["iteration"]}, its best. '
        "Shaded: the smallest of the row.</p></section>"
    )


def _configuration(folder: Path) -> str:
    text = (folder / "config.resolved.yaml").read_text(encoding="utf-8")
    changes = "".join(_changes(folder))
    return (
        f'<section><h2>Configuration</h2>{changes}<div class="card"><pre class="config">{escape(text)}</pre></div>'
        "</section>"
    )


def _changes(folder: Path) -> Iterator[str]:
    for row in _read(folder / "resumed.jsonl"):
        yield f"<p>Resumed with <code>{escape(' '.join(row['overrides']))}</code>.</p>"


def _notes() -> str:
    said = "".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in NOTES)
    return (
        f'<section><h2>How to read this</h2><dl class="notes">{said}</dl><p class="soft">Every number comes from '
        "<code>metrics.jsonl</code> and <code>timing.jsonl</code> beside this page.</p></section>"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
