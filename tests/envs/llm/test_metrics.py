"""Metrics against hand arithmetic on small records, and against token-by-token loops on larger ones."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.llm import metrics
from dispatchgym.envs.llm.record import DROPPED, FINISHED, UNFINISHED, Record, Requests, Steps, TokenLog
from dispatchgym.envs.llm.workload import Workload


def record(
    workload: Workload,
    *,
    status: list[int],
    first: list[float],
    finish: list[float],
    generated: list[int],
    tokens: list[tuple[int, float]] | None = None,
    steps: list[dict[str, float]] | None = None,
    **rest: Any,
) -> Record:
    """A record with zeros wherever nothing is said."""
    n = len(workload)
    columns = {
        "max_gap_s": np.zeros(n),
        "preemptions": np.zeros(n, np.int32),
        "cached_tokens": np.zeros(n, np.int64),
        "computed_tokens": np.zeros(n, np.int64),
        "recomputed_tokens": np.zeros(n, np.int64),
        "swap_bytes": np.zeros(n),
        "service_s": np.zeros(n),
    }
    columns |= {name: np.array(rest.pop(name)) for name in list(rest) if name in columns}
    requests = Requests(
        status=np.array(status, np.int8),
        first_scheduled_s=workload.arrival_s.copy(),
        first_token_s=np.array(first, float),
        finish_s=np.array(finish, float),
        generated=np.array(generated, np.int32),
        **columns,
    )
    names = Steps.__dataclass_fields__
    rows = steps or []
    log = Steps(**{name: np.array([row.get(name, 0) for row in rows], float) for name in names})
    return Record(
        workload=workload,
        policy="hand",
        requests=requests,
        steps=log,
        num_steps=len(rows),
        end_s=rest.pop("end_s", None) or float(np.nanmax(finish)),
        busy_s=rest.pop("busy_s", 0.0),
        gap_edges_s=np.array(rest.pop("edges", [0.0, 0.1, 0.2, 0.4])),
        gap_count=np.array(rest.pop("count", [0, 0, 0]), np.int64),
        repairs=rest.pop("repairs", {}),
        decisions=len(rows),
        policy_s=rest.pop("policy_s", 0.0),
        kv_blocks=10,
        block_tokens=16,
        tokens=None if tokens is None else TokenLog(*map(np.array, zip(*tokens, strict=True))),
    )


def workload(n: int, **columns: Any) -> Workload:
    given = {"arrival_s": np.zeros(n), "prompt_tokens": np.full(n, 10), "output_tokens": np.full(n, 5)}
    return Workload(**(given | columns))


def test_latencies_and_goodput_by_hand() -> None:
    w = workload(
        4,
        arrival_s=[1.0, 2.0, 3.0, 4.0],
        output_tokens=[5, 1, 3, 5],
        ttft_slo_s=[1.0, 1.0, np.inf, 9.0],
        tpot_slo_s=[0.5, 0.1, 0.4, 9.0],
        slo_kind="mean",
        class_id=[0, 0, 1, 1],
        class_names=("chat", "batch"),
    )
    r = record(
        w,
        status=[FINISHED, FINISHED, FINISHED, DROPPED],
        first=[2.0, 3.5, 4.0, math.nan],
        finish=[4.0, 3.5, 5.0, 11.0],
        generated=[5, 1, 3, 0],
        max_gap_s=[1.1, 0.0, 0.6, 0.0],
    )
    m = metrics.measure(r)
    # First tokens after 1, 1.5 and 1 s; (4 - 2) / 4 = 0.5 and (5 - 4) / 2 = 0.5 s a token.
    assert m.ttft_s.mean == pytest.approx(3.5 / 3)
    assert m.ttft_s.p50 == 1.0
    assert m.ttft_s.p90 == pytest.approx(1.4)  # 80 % of the way from 1 to 1.5
    assert (m.tpot_s.mean, m.tpot_s.p99) == (0.5, 0.5)
    assert (m.mtpot_s.p50, m.e2e_s.mean) == (pytest.approx(0.85), pytest.approx((3 + 1.5 + 2) / 3))
    # Request 0 meets both; 1 is late with its first token; 2 has no bound on it but 0.5 > 0.4; 3 was dropped.
    assert [x.tolist() for x in metrics.slo_met(r)] == [
        [True, False, True, False],
        [True, True, False, False],
    ]
    assert (m.attainment, m.ttft_attainment, m.tpot_attainment) == (0.25, 0.5, 0.5)
    assert m.duration_s == 10.0
    assert (m.goodput_rps, m.goodput_tps) == (pytest.approx(0.1), pytest.approx(0.5))
    assert (m.throughput_rps, m.throughput_tps) == (pytest.approx(0.3), pytest.approx(0.9))
    assert (m.requests, m.finished, m.dropped, m.rejected) == (4, 3, 1, 0)
    assert m.classes["chat"].attainment == 0.5
    assert m.classes["chat"].goodput_rps == pytest.approx(0.1)
    assert (m.classes["batch"].attainment, m.classes["batch"].finished) == (0.0, 1)


def test_a_bound_on_the_longest_gap_looks_at_the_longest() -> None:
    for kind, met in (("max", False), ("mean", True)):
        w = workload(1, tpot_slo_s=[0.5], slo_kind=kind)
        r = record(w, status=[FINISHED], first=[1.0], finish=[2.0], generated=[5], max_gap_s=[0.7])
        assert metrics.slo_met(r)[1].tolist() == [met]


def test_waste_and_cache_by_hand() -> None:
    m = metrics.measure(
        record(
            workload(2),
            status=[FINISHED, FINISHED],
            first=[1.0, 1.0],
            finish=[2.0, 4.0],
            generated=[5, 5],
            cached_tokens=[0, 30],
            computed_tokens=[60, 40],
            recomputed_tokens=[20, 0],
            preemptions=[3, 0],
            swap_bytes=[0.0, 7.0],
            policy_s=0.5,
            busy_s=3.0,
            repairs={"budget": 2},
            steps=[
                {"duration_s": 1.0, "prefill_tokens": 50, "prefill_requests": 1, "decode_requests": 1, "kv_blocks": 4},
                {"duration_s": 3.0, "prefill_tokens": 20, "prefill_requests": 0, "decode_requests": 6, "kv_blocks": 8},
            ],
        )
    )
    assert m.recompute_tax == 0.2  # 20 of 100
    assert m.prefix_hit_rate == 0.3  # 30 of 30 + 70
    assert (m.preemptions, m.preempted, m.swapped_bytes) == (3, 1, 7.0)
    assert m.mean_batch == 5.0  # (2 * 1 + 6 * 3) / 4
    assert m.mean_kv == pytest.approx(0.7)  # (4 * 1 + 8 * 3) / 4 of 10 blocks
    assert (m.busy, m.policy_us, m.repairs) == (0.75, 250_000.0, {"budget": 2})


def test_gaps_between_tokens_come_from_their_bins() -> None:
    r = record(
        workload(1),
        status=[FINISHED],
        first=[1.0],
        finish=[2.0],
        generated=[5],
        edges=[0.0, 1.0, 2.0, 4.0],
        count=[5, 4, 1],
    )
    m = metrics.measure(r)
    assert m.itl_s.mean == pytest.approx((5 * 0.5 + 4 * 1.5 + 3.0) / 10)
    assert (m.itl_s.p50, m.itl_s.p90) == (pytest.approx(1.0), pytest.approx(2.0))
    assert m.itl_s.p99 == pytest.approx(3.8)  # nine tenths into the last bin


def test_quality_of_experience_by_hand() -> None:
    w = workload(3, arrival_s=[0.0, 10.0, 20.0], output_tokens=[3, 2, 1])
    # A reader expects the first token after 1 s and two tokens a second: 0.5 s each.
    # Request 0: there at 0.2, 0.3 and 3; due at 1, 1.5 and 2; read at 1, 1.5 and 3, done at 3.5.
    #   (2.5 + 2 + 0.5) / (2.5 + 2 + 1.5) = 5 / 6.
    # Request 1: there 4 s late (at 15 and 15.1), read at 5 and 5.5 after arrival, done at 6: (1 + 0.5) / (5 + 4.5).
    # Request 2: no token at all.
    r = record(
        w,
        status=[FINISHED, FINISHED, DROPPED],
        first=[0.2, 15.0, math.nan],
        finish=[3.0, 15.1, 25.0],
        generated=[3, 2, 0],
        tokens=[(0, 0.2), (0, 0.3), (0, 3.0), (1, 15.0), (1, 15.1)],
    )
    assert metrics.qoe(r, ttft_s=1.0, tokens_per_s=2.0) == pytest.approx([5 / 6, 1.5 / 9.5, 0.0])


def test_quality_of_experience_is_the_area_of_a_slow_reader() -> None:
    rng = np.random.default_rng(0)
    n = 40
    arrival = np.sort(rng.uniform(0, 100, n))
    count = rng.integers(1, 30, n)
    times = [np.sort(a + rng.exponential(4.0, c)) for a, c in zip(arrival, count, strict=True)]
    tokens = sorted(((i, float(t)) for i, ts in enumerate(times) for t in ts), key=lambda each: each[1])
    r = record(
        workload(n, arrival_s=arrival, output_tokens=count),
        status=[FINISHED] * n,
        first=[t[0] for t in times],
        finish=[t[-1] for t in times],
        generated=count.tolist(),
        tokens=tokens,
    )
    for i, found in enumerate(metrics.qoe(r)):
        done, due = -np.inf, 1.0
        waited = never = 0.0
        read = []
        for t in times[i]:
            done = max(t - arrival[i], due, done)
            read.append(done)
            done, due = done + 1 / 4.8, due + 1 / 4.8
        for k, at in enumerate(read):
            waited += done - at
            never += done - (1.0 + k / 4.8)
        assert found == pytest.approx(waited / never)


def test_fairness_by_hand() -> None:
    # Two tenants ask for 20 each (10 of prompt, 2 * 5 of output) in window one. Tenant 0 has all of it there, tenant 1
    # its prompt and, finishing at 12, 3 of 5 s' worth of its output: the rest comes in window two.
    w = workload(2, tenant=[0, 1])
    r = record(w, status=[FINISHED, FINISHED], first=[2.0, 7.0], finish=[4.0, 12.0], generated=[5, 5], end_s=12.0)
    jain, mean, most = metrics.fairness(r, window_s=10.0)
    # Window one: shares 1 and 16 / 20; differences 0 and min(20 - 16, 20 - 16) = 4. Window two: tenant 0 asks nothing.
    assert jain == pytest.approx(1.8**2 / (2 * (1 + 0.64)))
    assert (mean, most) == (pytest.approx(2.0), pytest.approx(4.0))


def test_one_tenant_has_no_fairness() -> None:
    r = record(workload(1), status=[FINISHED], first=[1.0], finish=[2.0], generated=[5])
    assert all(math.isnan(x) for x in metrics.fairness(r))


def test_a_run_cut_short_and_an_empty_one_give_plain_numbers() -> None:
    r = record(
        workload(1),
        status=[UNFINISHED],
        first=[math.nan],
        finish=[math.nan],
        generated=[0],
        end_s=1.0,
        tokens=[(0, 0.5)],
    )
    plain = metrics.measure(r).plain()
    assert plain["ttft_s"]["mean"] is None
    assert plain["attainment"] == 0.0
    json.dumps(plain, allow_nan=False)
    with pytest.raises(ValueError, match="time of every token"):
        metrics.qoe(record(workload(1), status=[FINISHED], first=[1.0], finish=[2.0], generated=[5]))
