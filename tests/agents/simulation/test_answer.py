"""The answer in plain words: from made-up runs, whose right answer is plain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dispatchgym.agents.simulation.answer import answer
from dispatchgym.agents.simulation.runs import MOST_SCALE, Capacity, Run
from dispatchgym.envs.llm.metrics import Metrics, Spread
from dispatchgym.envs.llm.workload import Workload

TRAFFIC = Workload(np.arange(11) / 2.0, [5] * 11, [2] * 11, ttft_slo_s=[1.0] * 11)  # two a second
BATCH = Workload(np.zeros(11), [5] * 11, [2] * 11)

_SPREAD = Spread(0.1, 0.1, 0.1, 0.1)
_METRICS = Metrics(
    requests=11, finished=11, dropped=0, rejected=0, aborted=0, duration_s=6.0, throughput_rps=2.0, throughput_tps=4.0,
    goodput_rps=2.0, goodput_tps=4.0, attainment=1.0, ttft_attainment=1.0, tpot_attainment=1.0, ttft_s=_SPREAD,
    tpot_s=_SPREAD, mtpot_s=_SPREAD, itl_s=_SPREAD, e2e_s=_SPREAD, recompute_tax=0.0, prefix_hit_rate=0.0,
    preemptions=0, preempted=0, swapped_bytes=0.0, jain=1.0, service_gap=0.0, service_gap_max=0.0, qoe=1.0, busy=1.0,
    mean_batch=1.0, mean_kv=0.1, steps=10, repairs={}, policy_us=0.0, classes={},
)  # fmt: skip


def made(name: str, carries: float | str | None = "unknown", oracle: bool = False, **metrics: object) -> Run:
    found = None if carries == "unknown" else Capacity(carries, ())  # type: ignore[arg-type]
    return Run(name, oracle, None, replace(_METRICS, **metrics), 1.0, 1.0, capacity=found)  # type: ignore[arg-type]


def test_the_best_is_named_with_its_gain_over_the_first() -> None:
    found = answer([made("vllm", 4.0), made("laps", 5.0), made("orca", 2.0)], [], TRAFFIC, 0.9)
    assert found.best == "laps"
    assert found.headline.startswith("Take laps: one engine then carries 25 % more traffic than with vllm, with")
    assert "every scheduler keeps the SLOs of at least 99 %" in found.lines[0]
    assert "10 requests a second under laps (5 times this traffic) and 8 requests a second under vllm" in found.lines[1]


def test_a_gain_within_the_fineness_is_no_reason_to_change() -> None:
    found = answer([made("vllm", 4.0), made("laps", 4.13)], [], TRAFFIC, 0.9)
    assert found.best == "vllm"
    assert found.headline.startswith("Stay with vllm")


def test_an_oracle_is_a_mark_and_never_the_answer() -> None:
    found = answer([made("vllm", 4.0), made("mc-sf", 9.0, oracle=True)], [], TRAFFIC, 0.9)
    assert found.best == "vllm"
    assert "mc-sf is told every output length beforehand" in found.lines[-1]
    assert answer([made("mc-sf", 9.0, oracle=True)], [], TRAFFIC, 0.9).best is None


def test_failed_schedulers_are_passed_over_even_as_the_first() -> None:
    failed = replace(made("vllm"), metrics=None, message="broke")
    found = answer([failed, made("orca", 2.0), made("laps", 6.0)], [], TRAFFIC, 0.9)
    assert "carries 3.0 times the traffic that it carries with orca, with the same" in found.headline
    assert answer([failed], [], TRAFFIC, 0.9).best is None


def test_late_requests_waste_and_repairs_are_told() -> None:
    runs = [
        made("vllm", 1.5, attainment=0.4, recompute_tax=0.2, preemptions=1234, ttft_s=Spread(9, 9, 9, 9.0)),
        made("laps", None, attainment=0.8, repairs={"budget": 3, "blocks": 4}, ttft_s=Spread(1, 1, 1, 1.5)),
    ]
    found = answer(runs, [], TRAFFIC, 0.9)
    text = " ".join(found.lines)
    assert "laps keeps the SLOs of 80.0 % of the requests, vllm of 40.0 %" in text
    assert "vllm spends 20.0 % of its computing on tokens it had computed before (1,234 preemptions)" in text
    assert "within 1.5 s under laps and within 9.0 s under vllm" in text
    assert found.best == "vllm"  # it carries the traffic, laps not even a sixteenth of it
    with_repairs = answer([runs[1], runs[0]], [], TRAFFIC, 0.9)
    assert "had to repair 7 things in the plans of laps" in " ".join(with_repairs.lines)
    assert with_repairs.headline == "Take vllm: with laps one engine carries not even a sixteenth of this traffic."


def test_where_none_carries_the_traffic_the_requests_in_time_decide() -> None:
    runs = [made("vllm", 0.3, attainment=0.2), made("laps", None, attainment=0.7), made("orca", 0.4, attainment=0.1)]
    found = answer(runs, [], TRAFFIC, 0.9)
    assert (
        found.headline == "Take laps: one engine then serves 3.5 times the requests in time that it serves with vllm."
    )
    assert "too much for one engine" in found.lines[1]


def test_traffic_far_beyond_an_engine_is_not_ranked() -> None:
    found = answer([made("vllm", None, attainment=0.0), made("laps", None, attainment=0.01)], [], TRAFFIC, 0.9)
    assert (found.best, found.headline.partition(":")[0]) == ("vllm", "No scheduler helps")
    assert "too much for one engine" in found.lines[1]


def test_without_slos_the_mean_request_decides() -> None:
    traffic = replace(TRAFFIC, ttft_slo_s=np.full(11, np.inf))
    slow, fast = made("vllm", e2e_s=Spread(2, 2, 2, 2)), made("srtf", e2e_s=Spread(1.6, 1, 2, 2))
    found = answer([slow, fast], [], traffic, 0.9)
    assert (
        found.headline
        == "Take srtf: one engine then gives 25 % more tokens a second to the mean request than with vllm."
    )
    assert "the mean request takes 2.0 s under vllm; the least is 1.6 s under srtf" in found.lines[0]


def test_a_batch_is_judged_by_its_tokens_a_second() -> None:
    found = answer([made("vllm", throughput_tps=100.0), made("batch-llm", throughput_tps=150.0)], [], BATCH, 0.9)
    assert found.headline == "Take batch-llm: one engine then gives 50 % more tokens a second than with vllm."
    assert found.lines[0].startswith("The batch takes 6.0 s under vllm")


def test_an_open_capacity_says_so() -> None:
    found = answer([made("vllm", 1.0), made("laps", MOST_SCALE)], [], TRAFFIC, 0.9)
    assert "512 or more requests a second under laps" in found.lines[1]


def test_one_scheduler_alone_is_no_comparison() -> None:
    assert answer([made("vllm", 4.0)], [], TRAFFIC, 0.9).headline.startswith("Only vllm was run")


def test_the_price_of_a_gain_is_told() -> None:
    pressed = [
        replace(made("vllm", ttft_s=Spread(1, 1, 1, 12.0)), scale=5.0),
        replace(made("laps", ttft_s=Spread(1, 1, 1, 52.0)), scale=5.0),
    ]
    found = answer([made("vllm", 4.0), made("laps", 5.0)], pressed, TRAFFIC, 0.9)
    assert "at 10 requests a second one in a hundred waits 52.0 s and more" in " ".join(found.lines)
    assert "The price" not in " ".join(answer([made("laps", 5.0), made("vllm", 4.0)], pressed, TRAFFIC, 0.9).lines)
