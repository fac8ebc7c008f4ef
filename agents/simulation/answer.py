"""Which scheduler for this traffic, and by how much: the comparison in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dispatchgym.agents.simulation.runs import FINENESS, LEAST_SCALE, Run, has_slos, rate_per_s
from dispatchgym.envs.llm.metrics import Metrics
from dispatchgym.envs.llm.workload import Workload

SAME = 1.5 * FINENESS
"""Differences up to this share are called none: one step of the search for the capacity is."""

GOOD = 0.99
"""Attainment with which nobody would look for another scheduler."""


WITHIN_REACH = 0.5
"""Share of the traffic that one engine must carry under some scheduler, for capacities to be compared."""

HARDLY = 0.05
"""Attainment below which shares are not worth comparing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Args:
    best: the scheduler to take, None where all failed. headline: one sentence. lines: the reasons, a sentence each.
    """

    best: str | None
    headline: str
    lines: tuple[str, ...]


def answer(runs: Sequence[Run], pressed: Sequence[Run], workload: Workload, target: float) -> Answer:
    """The answer from these runs; the first scheduler is what the others are compared with.

    Args:
        runs: the workload as it comes. pressed: at the greatest rate that one of them carries, if that is more.
    """
    fine = [run for run in runs if run.metrics is not None]
    real = [run for run in fine if not run.oracle]
    if not real:
        return Answer(None, "No scheduler that a real engine could run came to an end.", ())
    base = runs[0] if runs[0] in real else real[0]
    rate = rate_per_s(workload)
    yardstick = _yardstick(real, workload)
    best = base if _is_hopeless(real, yardstick) else _best(real, base, yardstick)
    lines = [_at_this_load(real, base, best, rate, has_slos(workload))]
    if best.capacity is not None:
        lines.append(_at_capacity(real, best, base, rate, target))
    if refused := _m(best).rejected:
        lines.append(f"{refused:,} requests were refused on arrival: the KV pool can never hold them.")
    lines += _price(pressed or fine, best, base, rate)
    lines += _tails(real, base)
    lines += _costs(best, base)
    lines += _oracles(fine)
    return Answer(best.name, _headline(best, base, real, yardstick), tuple(lines))


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What schedulers are ranked by; more of `value` is better, and `noun` is what there is more of."""

    verb: str
    noun: str
    value: Callable[[Run], float]


CAPACITY = Yardstick("carries", "traffic", lambda run: (run.capacity.scale if run.capacity else None) or 0.0)
IN_TIME = Yardstick("serves", "requests in time", lambda run: _m(run).attainment)
SPEED = Yardstick("gives", "tokens a second to the mean request", lambda run: 1.0 / max(_m(run).e2e_s.mean, 1e-9))
THROUGHPUT = Yardstick("gives", "tokens a second", lambda run: _m(run).throughput_tps)


def _yardstick(real: Sequence[Run], workload: Workload) -> Yardstick:
    """Of a batch its tokens a second; of traffic without SLOs its speed; where nobody carries half of the traffic its
    requests in time; else the capacity."""
    if not math.isfinite(rate_per_s(workload)):
        return THROUGHPUT
    if not has_slos(workload):
        return SPEED
    return CAPACITY if max(map(CAPACITY.value, real)) >= WITHIN_REACH else IN_TIME


def _is_hopeless(real: Sequence[Run], yardstick: Yardstick) -> bool:
    """Whether the traffic is so far beyond one engine that hardly anybody is in time under any scheduler."""
    return yardstick is IN_TIME and max(map(yardstick.value, real)) < HARDLY


def _best(real: Sequence[Run], base: Run, yardstick: Yardstick) -> Run:
    """The best by value; among those within `SAME` of it the base if it is one, else the least mean end to end."""
    most = max(map(yardstick.value, real))
    close = [run for run in real if yardstick.value(run) >= most / (1 + SAME)]
    return base if base in close else min(close, key=lambda run: _finite(_m(run).e2e_s.mean))


def _headline(best: Run, base: Run, real: Sequence[Run], yardstick: Yardstick) -> str:
    if _is_hopeless(real, yardstick):
        return "No scheduler helps: hardly a request of this traffic is in time under any of them."
    if best is base:
        if len(real) == 1:
            return f"Only {base.name} was run: there is nothing to compare it with."
        return f"Stay with {base.name}: no other scheduler of this run is worth the change for this traffic."
    verb, noun = yardstick.verb, yardstick.noun
    most, usual = yardstick.value(best), yardstick.value(base)
    if usual <= 0:
        nothing = "not even a sixteenth of this traffic" if yardstick is CAPACITY else f"no {noun}"
        return f"Take {best.name}: with {base.name} one engine {verb} {nothing}."
    if most / usual >= 2:
        gain = f"{most / usual:.1f} times the {noun} that it {verb} with {base.name}"
    else:
        gain = f"{100 * (most / usual - 1):.0f} % more {noun} than with {base.name}"
    kept = ", with the same promises kept" if yardstick is CAPACITY else ""
    return f"Take {best.name}: one engine then {verb} {gain}{kept}."


def _at_this_load(real: Sequence[Run], base: Run, best: Run, rate: float, promises: bool) -> str:
    if not math.isfinite(rate):
        quickest = min(real, key=lambda run: _m(run).duration_s)
        return (
            f"The batch takes {_m(base).duration_s:,.1f} s under {base.name}; the quickest is {quickest.name} with "
            f"{_m(quickest).duration_s:,.1f} s."
        )
    at = f"At this traffic's own rate of {rate:.3g} requests a second"
    if not promises:
        quick = min(real, key=lambda run: _finite(_m(run).e2e_s.mean))
        return (
            f"{at} the mean request takes {_seconds(_m(base).e2e_s.mean)} under {base.name}; the least is "
            f"{_seconds(_m(quick).e2e_s.mean)} under {quick.name}."
        )
    if min(_m(run).attainment for run in real) >= GOOD:
        return (
            f"{at} every scheduler keeps the SLOs of at least {100 * GOOD:.0f} % of the requests: any will do until it "
            "grows."
        )
    top = max(real, key=lambda run: _m(run).attainment)
    said = f"{at} {top.name} keeps the SLOs of {_percent(_m(top).attainment)} of the requests"
    if top is not base:
        said += f", {base.name} of {_percent(_m(base).attainment)}"
    if best not in (top, base):
        said += f", {best.name} of {_percent(_m(best).attainment)}"
    worst = min(real, key=lambda run: _m(run).attainment)
    if worst not in (top, base, best):
        said += f", {worst.name}, the last, of {_percent(_m(worst).attainment)}"
    return f"{said}."


def _at_capacity(real: Sequence[Run], best: Run, base: Run, rate: float, target: float) -> str:
    if max(map(CAPACITY.value, real)) < WITHIN_REACH:
        return (
            f"That is too much for one engine: no scheduler keeps the SLOs of {100 * target:.0f} % of the requests. "
            "More engines, or other promises, would do more than any scheduler."
        )

    def says(run: Run) -> str:
        assert run.capacity is not None
        if run.capacity.scale is None:
            return f"less than {LEAST_SCALE * rate:.3g} requests a second under {run.name}"
        more = " or more" if run.capacity.is_open else ""
        return (
            f"{run.capacity.scale * rate:.3g}{more} requests a second under {run.name} "
            f"({run.capacity.scale:.2g} times this traffic)"
        )

    said = f"With {100 * target:.0f} % of the requests in time, one engine carries {says(best)}"
    if best is not base and base.capacity is not None:
        said += f" and {says(base)}"
    return f"{said}; the search is {100 * FINENESS:.1f} % fine."


def _price(pressed: Sequence[Run], best: Run, base: Run, rate: float) -> list[str]:
    """How late the late ones are under the best, where they are later than under the base."""
    by_name = {run.name: run for run in pressed if run.metrics is not None}
    if best is base or not {best.name, base.name} <= by_name.keys():
        return []
    late, usual = (_m(by_name[run.name]).ttft_s.p99 for run in (best, base))
    if not late > 1.25 * usual:
        return []
    when = f"at {pressed[0].scale * rate:.3g} requests a second" if math.isfinite(rate) else "of the batch"
    return [
        f"The price: {when} one in a hundred waits {_seconds(late)} and more for its first token under {best.name}, "
        f"{_seconds(usual)} under {base.name}."
    ]


def _tails(real: Sequence[Run], base: Run) -> list[str]:
    """Who is quickest to the slowest hundredth of first tokens, if by more than a tenth."""
    known = [run for run in real if math.isfinite(_m(run).ttft_s.p99)]
    if base not in known:
        return []
    quickest = min(known, key=lambda run: _m(run).ttft_s.p99)
    fast, usual = _m(quickest).ttft_s.p99, _m(base).ttft_s.p99
    if fast > 0.9 * usual:
        return []
    return [
        f"As it comes, 99 % of the requests have their first token within {_seconds(fast)} under {quickest.name} and "
        f"within {_seconds(usual)} under {base.name}."
    ]


def _costs(best: Run, base: Run) -> list[str]:
    lines = []
    for run in (base, best) if best is not base else (base,):
        m = _m(run)
        if m.recompute_tax > 0.02:
            lines.append(
                f"{run.name} spends {_percent(m.recompute_tax)} of its computing on tokens it had computed before "
                f"({m.preemptions:,} preemptions)."
            )
        if total := sum(m.repairs.values()):
            lines.append(f"The engine had to repair {total:,} things in the plans of {run.name}.")
    return lines


def _oracles(fine: Sequence[Run]) -> list[str]:
    told = [run.name for run in fine if run.oracle]
    if not told:
        return []
    are = "is" if len(told) == 1 else "are"
    return [
        f"{', '.join(told)} {are} told every output length beforehand, as no real engine is: a mark to compare with, "
        "not a choice."
    ]


def _m(run: Run) -> Metrics:
    assert run.metrics is not None
    return run.metrics


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
