"""The search for the capacity against trying every scale, and runs of real schedulers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dispatchgym.agents.simulation import runs
from dispatchgym.agents.simulation.names import parameter, scheduler
from dispatchgym.agents.simulation.runs import FINENESS, LEAST_SCALE, MOST_SCALE, STEPS, Setting, capacity
from dispatchgym.envs.api import InvalidPlanError, UnknownNameError, UsageError
from dispatchgym.envs.llm import workloads
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.profile import load_profile
from dispatchgym.envs.llm.workload import Workload

GRID = LEAST_SCALE * (MOST_SCALE / LEAST_SCALE) ** (np.arange(STEPS + 1) / STEPS)


@pytest.mark.parametrize("near", [1.0, 1e-9, 3.7, 1e9])
@pytest.mark.parametrize("limit", [0.01, LEAST_SCALE, 0.3, 1.0, 1.02, 5.55, 100.0, MOST_SCALE, 1e9])
def test_the_search_finds_what_trying_every_scale_finds(limit: float, near: float) -> None:
    asked: list[float] = []

    def attainment(scale: float) -> float:
        asked.append(scale)
        return 1.0 if scale <= limit * (1 + 1e-12) else 0.5

    found = capacity(attainment, 0.9, near)
    below = [scale for scale in GRID if scale <= limit * (1 + 1e-12)]
    if below:
        assert found.scale == pytest.approx(below[-1])
    else:
        assert found.scale is None
    assert found.is_open == (limit >= MOST_SCALE)
    assert len(asked) == len(set(asked)) <= 2 * math.log2(STEPS) + 2
    assert [scale for scale, _ in found.tried] == sorted(asked)


def test_a_start_near_the_capacity_saves_runs() -> None:
    def tries(near: float) -> int:
        return len(capacity(lambda scale: float(scale <= 20.0), 0.9, near).tried)

    assert tries(20.0) <= 4 < tries(1.0)


def test_scales_of_the_search_are_as_fine_as_it_says() -> None:
    assert pytest.approx(GRID[1] / GRID[0] - 1) == FINENESS == pytest.approx(0.033, abs=0.001)


def small(**rest: object) -> Setting:
    workload = workloads.load("chat", requests=60, parameters={"rate_per_s": 20.0})
    given = {"engine": EngineConfig(kv_blocks=1200), "profile": load_profile("h200-8b"), "seed": 0, "strict": False}
    return Setting(workload, **(given | rest))  # type: ignore[arg-type]


def test_a_run_measures_its_scheduler_at_its_scale() -> None:
    setting = small()
    slow, fast = (runs.run("vllm", scheduler("vllm"), setting, scale) for scale in (1.0, 4.0))
    assert slow.metrics is not None
    assert fast.metrics is not None
    assert fast.record is not None
    assert (slow.scale, fast.scale, slow.oracle) == (1.0, 4.0, False)
    assert slow.metrics.finished == fast.metrics.finished == 60
    assert fast.record.workload.arrival_s == pytest.approx(setting.workload.arrival_s / 4)
    assert fast.metrics.e2e_s.mean > slow.metrics.e2e_s.mean
    assert 0 < fast.metrics.qoe <= slow.metrics.qoe <= 1
    assert runs.attainment(scheduler("vllm"), setting, 4.0) == fast.metrics.attainment


class Raises:
    """A scheduler with a bug."""

    name, oracle = "raises", False

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        raise ZeroDivisionError("no such luck")


def test_a_scheduler_that_raises_fails_alone_and_says_where() -> None:
    found = runs.run("raises", Raises, small())
    assert (found.record, found.metrics) == (None, None)
    assert "raises" in found.message
    with pytest.raises(InvalidPlanError):
        runs.attainment(Raises, small(), 2.0)


def test_slos_are_given_to_all_or_left_as_they_are() -> None:
    own = workloads.load("past-future", requests=10)
    kept = runs.with_slos(own, None, None)
    assert (kept.ttft_slo_s[0], kept.tpot_slo_s[0], kept.slo_kind) == (10.0, 1.5, "max")
    other = runs.with_slos(own, 9.0, None)
    assert (other.ttft_slo_s.tolist(), other.tpot_slo_s[0], other.slo_kind) == ([9.0] * 10, 1.5, "max")
    none = Workload([0.0, 1.0], [5, 5], [2, 2])
    assert not runs.has_slos(none)
    given = runs.with_slos(none, math.inf, 0.5)
    assert (given.tpot_slo_s.tolist(), given.slo_kind) == ([0.5, 0.5], "mean")
    assert runs.has_slos(given)


def test_rates_of_traffic_and_of_a_batch() -> None:
    assert runs.rate_per_s(Workload([0.0, 1.0, 4.0], [5] * 3, [2] * 3)) == 0.5
    assert runs.rate_per_s(Workload([0.0, 0.0], [5] * 2, [2] * 2)) == math.inf


def test_constants_are_given_behind_a_plus() -> None:
    made = scheduler("vllm+watermark=0.25+priority=true")()
    assert made.name == "vllm"
    assert scheduler("vllm")() is not scheduler("vllm")()
    with pytest.raises(UnknownNameError, match="constant of scheduler vllm 'watermrk' is not known; did you mean 'wat"):
        scheduler("vllm+watermrk=1")
    with pytest.raises(UsageError, match="'watermark' is no NAME=VALUE"):
        scheduler("vllm+watermark")
    with pytest.raises(UnknownNameError, match="scheduler 'vlm' is not known; did you mean 'vllm'"):
        scheduler("vlm")


def test_values_read_as_what_they_look_like() -> None:
    assert [parameter(t)[1] for t in ("a=2", "a=2.5", "a=True", "a=gamma")] == [2, 2.5, True, "gamma"]
