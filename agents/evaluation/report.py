"""report.html: one file with the tables and pictures of an evaluation, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dispatchgym.agents.evaluation.charts import Box, Curve, Point, anytime_chart, box_plot, mean_steps
from dispatchgym.agents.evaluation.family import Finished, Kind, of_variant, title
from dispatchgym.agents.evaluation.measures import MEASURES
from dispatchgym.agents.evaluation.page import count, gantt_explorer, gantt_problem, gantt_run, write_page
from dispatchgym.agents.evaluation.results import Row
from dispatchgym.agents.evaluation.summary import Entry
from dispatchgym.agents.evaluation.table import MOST_COLUMNS, against, difference, interval, number, ranking, seconds
from dispatchgym.agents.evaluation.work import SOLVED

GANTT_BYTES = 3_000_000
"""Start times in the page beyond this are left to the evidence files."""


def write_report(
    path: Path,
    head: Mapping[str, Any],
    finished: Finished,
    rows: Sequence[Row],
    entries: Sequence[Entry],
    failures: Sequence[Mapping[str, Any]],
    remarks: Sequence[tuple[str, str]],
    contradictions: Sequence[str],
) -> None:
    """Write the page; it needs nothing but itself. `remarks` are (shop, line) pairs, put below the shop's table."""
    worlds = list(dict.fromkeys(row.variant for row in rows))
    kinds: dict[str, Kind] = {each["policy"]: each["kind"] for each in head["policies"]}
    family = of_variant(worlds[0])
    gantt = {world: _gantt_data(world, finished, rows, entries) for world in worlds}
    body = [
        _header(family.noun, head, rows),
        _alarms(failures, contradictions),
        '<div class="cards">',
        *(_card(world, entries, kinds) for world in worlds),
        "</div>",
        _legend(family.kinds, kinds.values()),
        *(_world(world, finished, rows, entries, kinds, remarks, bool(gantt[world])) for world in worlds),
        _notes(family.notes, head),
    ]
    write_page(path, f"{head['suite']} - dispatchgym evaluation", body, gantt)


def _header(noun: str, head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    problems = len({(row.variant, row.group, row.instance) for row in rows})
    session = head["sessions"][-1]
    machines = dict.fromkeys(f"{s['cpu']}, {s['cores']} cores" for s in head["sessions"])
    libraries = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    valid = sum(row.status in SOLVED for row in rows)
    return (
        '<p class="eyebrow">dispatchgym evaluation</p>'
        f"<h1>{escape(head['suite'])}</h1>"
        f"<p>{len(head['policies'])} policies on {problems} problems, {count(head['seeds'], 'seed')}: {len(rows)} "
        f"runs, of which {valid} gave a {noun} that the independent validator accepts. Others are compared with "
        f"<b>{escape(head['base'])}</b>.</p>"
        f'<p class="soft">{escape(session["began"].replace("T", " ").replace("+00:00", " UTC"))} &middot; '
        f"{escape('; '.join(machines))} &middot; {escape(libraries)}</p>"
    )


def _alarms(failures: Sequence[Mapping[str, Any]], contradictions: Sequence[str]) -> str:
    parts = []
    if contradictions:
        lines = "\n".join(escape(line) for line in contradictions[:10])
        parts.append(
            '<div class="card alarm"><b>Facts that contradict each other.</b> A reference, the validator or a '
            f"model is wrong; trust no number here until it is found.<pre>{lines}</pre></div>"
        )
    if failures:
        lines = "\n".join(escape(f"{f['status']}: {f['item']}\n{f['message'].strip()}") for f in failures[:10])
        more = " The first 10 of them:" if len(failures) > 10 else ""
        parts.append(
            f'<div class="card alarm"><b>{count(len(failures), "run")} failed</b> and count in no mean.{more}'
            f"<pre>{lines}</pre></div>"
        )
    return "\n".join(parts)


def _card(world: str, entries: Sequence[Entry], kinds: Mapping[str, Kind]) -> str:
    """What a manager reads: the best policy of each kind in one shop."""
    total = sorted((e for e in entries if e.variant == world and e.group is None), key=ranking)
    lines = []
    for label, wanted in of_variant(world).cards:
        best = next((e for e in total if kinds[e.policy] in wanted and e.mean is not None), None)
        if best is None:
            continue
        proven = f", {best.proven} of {best.runs} proven optimal" if best.proven else ""
        unsolved = f", {best.runs - best.solved} of {best.runs} unsolved" if best.solved < best.runs else ""
        spread = interval(best.mean_interval, best.metric)
        lines.append(
            f"<div><dt>{label}</dt><dd><b>{escape(best.policy)}</b> &nbsp;<b>{number(best.mean, best.metric)}</b></dd>"
            f'<dd class="soft">{spread} in {seconds(best.wall_s)}{proven}{unsolved}</dd></div>'
        )
    what = "mean " + against(total[0])
    return (
        f'<div class="card"><h3><a href="#{world}">{title(world)}</a></h3><dl>{"".join(lines)}</dl>'
        f'<p class="soft">{escape(what)}</p></div>'
    )


def _legend(meanings: Mapping[Kind, str], kinds: Iterable[Kind]) -> str:
    present = set(kinds)
    return (
        '<div class="legend">'
        + "".join(
            f'<span class="{kind}"><span class="dotmark"></span>{meaning}</span>'
            for kind, meaning in meanings.items()
            if kind in present
        )
        + "</div>"
    )


def _world(
    world: str,
    finished: Finished,
    rows: Sequence[Row],
    entries: Sequence[Entry],
    kinds: Mapping[str, Kind],
    remarks: Sequence[tuple[str, str]],
    has_gantt: bool,
) -> str:
    in_shop = [entry for entry in entries if entry.variant == world]
    total = sorted((e for e in in_shop if e.group is None), key=ranking)
    groups = list(dict.fromkeys(e.group for e in in_shop if e.group is not None))
    parts = [f'<section id="{world}"><h2>{title(world)}</h2>', _total_table(total, kinds)]
    parts += [f'<p class="soft">{escape(line)}.</p>' for shop, line in remarks if shop == world]
    if len(groups) > 1:
        parts += ["<h3>Mean of each group</h3>", _group_table(in_shop, total, groups, kinds)]
    if figures := of_variant(world).figures(world, finished, in_shop):
        parts.append(figures)
    if not MEASURES[total[0].metric].is_all_or_nothing:
        parts += ["<h3>Spread within each group</h3>", _box_plots(world, rows, in_shop, total, groups, kinds)]
    if chart := _anytime(world, finished, rows, kinds):
        parts += ["<h3>What more time buys</h3>", chart]
    if has_gantt:
        parts += ["<h3>The schedules themselves</h3>", gantt_explorer(world)]
    return "\n".join([*parts, "</section>"])


def _total_table(total: Sequence[Entry], kinds: Mapping[str, Kind]) -> str:
    base = next((entry.base for entry in total if entry.base), "")
    variant = total[0].variant
    more = of_variant(variant).columns.get(variant, ())
    has_builder, has_middle = not more, not MEASURES[total[0].metric].is_all_or_nothing
    head = "".join(
        f'<th class="{css}">{name}</th>'
        for name, css in (
            ("policy", "left"),
            *((("builder", "left"),) if has_builder else ()),
            (MEASURES[total[0].metric].title, ""),
            *((("IQM", ""),) if has_middle else ()),
            (f"difference to {escape(base)}" if base else "difference", ""),
            ("better&nbsp;/ same&nbsp;/ worse", ""),
            *((name, "") for name, _ in more),
            ("proven", ""),
            ("solved", ""),
            ("decisions", ""),
            ("wall", ""),
            ("CPU", ""),
        )
    )
    best = _best_mean(total, kinds)
    body = []
    for e in total:
        pair = e.paired
        body.append(
            f'<tr class="{"failed" if e.failed else ""}">{_name_cell(e.policy, kinds)}'
            + (f'<td class="left">{escape(e.builder or "-")}</td>' if has_builder else "")
            + f'<td class="{"best" if e.mean is not None and e.mean == best else ""}">{number(e.mean, e.metric)}'
            f'<span class="spread">{interval(e.mean_interval, e.metric)}</span></td>'
            + (_middle_cell(e) if has_middle else "")
            + f"<td>{_difference_cell(e)}</td>"
            f"<td>{f'{pair.better} / {pair.equal} / {pair.worse}' if pair else ''}</td>"
            + "".join(f"<td>{escape(cell(e))}</td>" for _, cell in more)
            + f"<td>{e.proven or ''}</td><td>{e.solved}/{e.runs}</td>"
            f"<td>{'' if e.decisions is None else f'{e.decisions:.0f}'}</td>"
            f"<td>{seconds(e.wall_s)}</td><td>{seconds(e.cpu_s)}</td></tr>"
        )
    caption = f"Mean {against(total[0])}; {total[0].instances} instances. 95 % intervals in brackets."
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f'<p class="soft">{escape(caption)}</p>'
    )


def _middle_cell(entry: Entry) -> str:
    spread = interval(entry.interquartile_mean_interval, entry.metric)
    return f'<td>{number(entry.interquartile_mean, entry.metric)}<span class="spread">{spread}</span></td>'


def _difference_cell(entry: Entry) -> str:
    value, _, spread = difference(entry).partition(" ")
    return f'{escape(value)}<span class="spread">{escape(spread)}</span>'


def _group_table(
    entries: Sequence[Entry], total: Sequence[Entry], groups: Sequence[str], kinds: Mapping[str, Kind]
) -> str:
    """Policies against groups, the longer list downwards."""
    by_pair = {(entry.policy, entry.group): entry for entry in entries}
    best = {group: _best_mean([e for e in entries if e.group == group], kinds) for group in groups}

    def cell(policy: str, group: str) -> str:
        entry = by_pair.get((policy, group))
        css = "best" if entry and entry.mean is not None and entry.mean == best[group] else ""
        return f'<td class="{css}">{number(entry.mean, entry.metric) if entry else "-"}</td>'

    policies = [entry.policy for entry in total]
    if len(groups) <= MOST_COLUMNS:
        first, columns = "policy", groups
        body = [_name_cell(policy, kinds) + "".join(cell(policy, group) for group in groups) for policy in policies]
    else:
        first, columns = "group", policies
        body = [f"<td>{escape(group)}</td>" + "".join(cell(policy, group) for policy in policies) for group in groups]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return (
        f'<div class="scroll"><table class="groups"><thead><tr><th>{first}</th>{head}</tr></thead>'
        f"<tbody>{''.join(f'<tr>{row}</tr>' for row in body)}</tbody></table></div>"
        f'<p class="soft">{of_variant(total[0].variant).shaded}</p>'
    )


def _name_cell(policy: str, kinds: Mapping[str, Kind]) -> str:
    return f'<td class="{kinds[policy]}"><span class="dotmark"></span>{escape(policy)}</td>'


def _best_mean(entries: Iterable[Entry], kinds: Mapping[str, Kind]) -> float | None:
    """The best mean of a policy that solved everything and was told nothing beforehand."""
    can = [e for e in entries if e.mean is not None and e.solved == e.runs and kinds[e.policy] != "clairvoyant"]
    return min(can, key=ranking).mean if can else None


def _box_plots(
    world: str,
    rows: Sequence[Row],
    entries: Sequence[Entry],
    total: Sequence[Entry],
    groups: Sequence[str],
    kinds: Mapping[str, Kind],
) -> str:
    plots = []
    for group in groups:
        entry = next(e for e in entries if e.group == group)
        unit = MEASURES[entry.metric].unit
        boxes = []
        for policy in (each.policy for each in total):
            mine = [r for r in rows if (r.variant, r.group, r.policy) == (world, group, policy)]
            values = [v for r in mine if (v := r.gap_pct if entry.metric == "gap_pct" else r.value) is not None]
            boxes.append(Box(policy, kinds[policy], values))
        if any(box.values for box in boxes):
            plots.append(
                f'<figure class="panel"><h4>{escape(group)}</h4>{box_plot(boxes, unit, zero=entry.metric == "gap_pct")}'
                f"<figcaption>{escape(against(entry))}</figcaption></figure>"
            )
    return f'<div class="plots">{"".join(plots)}</div>'


def _anytime(world: str, finished: Finished, rows: Sequence[Row], kinds: Mapping[str, Kind]) -> str:
    """Solver curves over the problems of one shop that have a reference, beside everybody else's time and gap."""
    curves: dict[str, tuple[list[list[tuple[float, float]]], list[list[tuple[float, float]]]]] = {}
    others: dict[str, list[Row]] = {}
    for (_, result), row in zip(finished, rows, strict=True):
        if row.variant != world or row.reference is None or row.gap_pct is None:
            continue
        if result.history:
            found, bounds = curves.setdefault(row.policy, ([], []))
            scale = 100.0 / row.reference
            found.append([(float(t), v * scale - 100) for t, v, _ in _known(result.history)])
            bounds.append([(float(t or 0), float(b or 0) * scale - 100) for t, _, b in result.history])
        else:
            others.setdefault(row.policy, []).append(row)
    if not curves:
        return ""
    lines = [
        Curve(policy, kinds[policy], mean_steps(found), mean_steps(bounds))
        for policy, (found, bounds) in curves.items()
    ]
    points = [
        Point(
            policy,
            kinds[policy],
            sum(r.wall_s for r in mine) / len(mine),
            sum(r.gap_pct or 0 for r in mine) / len(mine),
        )
        for policy, mine in others.items()
        if policy not in curves
    ]
    return (
        f'<figure class="panel anytime">{anytime_chart(lines, points)}<figcaption>Mean gap over wall time. '
        "Lines: the solver's best schedule so far, over the runs that found one, from the moment all of them had; "
        "dashed: its proven bound. "
        "Dots: policies that answer once.</figcaption></figure>"
    )


def _known(history: Sequence[Sequence[float | int | None]]) -> Iterable[tuple[float, float, float | None]]:
    """The entries of a solver's history that have a schedule."""
    for t, objective, bound in history:
        if t is not None and objective is not None:
            yield t, objective, bound


def _gantt_data(world: str, finished: Finished, rows: Sequence[Row], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The problems of a shop with their schedules of the first seed, as many as fit into the page."""
    problems: dict[tuple[str, str, str | None], dict[str, Any]] = {}
    size = 0
    total = sorted((e for e in entries if e.variant == world and e.group is None), key=ranking)
    base = next((e.base for e in total if e.base), total[0].policy)
    first = [base, next((e.policy for e in total if e.policy != base), base)]
    for (item, result), row in zip(finished, rows, strict=True):
        problem, key = item.problem, (row.group, row.instance, row.scenario)
        if row.variant != world or item.seed != 0 or not result.operations:
            continue
        if key not in problems:
            if size > GANTT_BYTES:
                continue
            problems[key] = gantt_problem(
                row.instance + (f", {row.scenario}" if row.scenario else ""),
                problem.instance,
                problem.scenario(0),
                blocking=world != "jssp",
                first=first,
            )
            size += 9 * problem.instance.num_ops
        start, end, _ = result.operations
        problems[key]["runs"][row.policy] = gantt_run(
            row.value, row.gap_pct, row.reference_kind, start, end if problem.varies else None
        )
        size += (10 if problem.varies else 5) * problem.instance.num_ops
    return list(problems.values())


def _notes(notes: Sequence[tuple[str, str]], head: Mapping[str, Any]) -> str:
    said = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in notes)
    asides = "".join(f"<li>{escape(note)}</li>" for note in head["notes"])
    more = f"<h3>In this run</h3><ul>{asides}</ul>" if asides else ""
    return (
        f'<section><h2>How to read this</h2><dl class="notes">{said}</dl>{more}'
        '<p class="soft">Every number comes from <code>results.json</code> and <code>summary.json</code> beside '
        "this page; docs/formats.md describes them.</p></section>"
    )
