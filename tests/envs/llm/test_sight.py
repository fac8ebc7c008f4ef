"""What a policy sees of a step: its time as the engine's own formula has it, and the columns about it by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.agents.llm_policy import ChoicePolicy
from dispatchgym.envs.llm.batch import EngineBatch, Room
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.draws import DrawConfig, Serving, draw, draw_profile
from dispatchgym.envs.llm.graph import COLUMNS, FIRST_ENGINE
from dispatchgym.envs.llm.planning import step_of_plan
from dispatchgym.envs.llm.policy import EngineView, Plan
from dispatchgym.envs.llm.profile import Captured, Decoding, Profile
from dispatchgym.envs.llm.sight import Sight, fitting, seconds
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from tests.envs.llm.helpers import PROFILE, random_workload

ROOMY = EngineConfig(kv_blocks=2000, max_seqs=24, token_budget=256)


class Expecting(ChoicePolicy):
    """Notes how long every step is expected to take."""

    def __init__(self) -> None:
        super().__init__(stops=False)
        self.expected_s: list[float] = []

    def decide(self, view: EngineView) -> Plan:
        plan = super().decide(view)
        if len(plan.grants):
            self.expected_s.append(float(step_of_plan(self._sight)))
        return replace(plan, hold_steps=1)


def measured(seed: int) -> Profile:
    """A drawn profile like measured ones."""
    rng = np.random.default_rng(seed)
    while True:
        profile = draw_profile(rng)
        if profile.decoding is not None:
            return replace(profile, chunk_s=1e-4, captured=captured_like(profile))


def captured_like(profile: Profile) -> Captured:
    """Small steps of other prompts than all, which are captured."""
    p = profile
    return Captured(
        (8, 16, 40), 0.4 * p.base_s, 0.5 * p.weights_s, 0.8 * p.token_s, 2 * p.row_s, 0.9 * p.pair_s,
        1.2 * p.context_s, 2e-5, 0.5 * p.mixed_s, 0.3 * p.lead_s,
    )  # fmt: skip


@pytest.mark.parametrize("profile", [PROFILE, *(measured(seed) for seed in range(6))], ids=lambda p: p.name)
def test_steps_take_as_long_as_expected(profile: Profile) -> None:
    """Prompts and decoding, mixed or not, on graphs, behind captured steps, and where the host is the slower."""
    policy = Expecting()
    record = simulate(random_workload(3, 60, rate=40.0, shared=False), policy, ROOMY, profile, strict=True)
    assert policy.expected_s == pytest.approx(record.steps.duration_s.tolist(), rel=1e-9)


def test_a_piece_that_is_said_to_fit_is_the_longest_that_does() -> None:
    """Against every length, where time rises with the tokens, in steps of captured sizes up to 40, then smoothly."""
    profile = replace(measured(1), pair_s=0.0)
    profile = replace(profile, captured=captured_like(profile))
    engine = replace(ROOMY, history=256)
    problem = Serving(random_workload(5, 40, rate=400.0, shared=False), engine, profile)
    batch = EngineBatch(1, Room.of([problem]))
    batch.load(0, problem)
    batch.begin()
    found: list[int] = []
    for k in range(200):
        if batch.count[0] == 0:
            break
        sight = Sight(*(array[0] for array in batch.turns.sight))
        for start in (0, 30):
            times = np.array([seconds(sight, n, start) for n in range(1, ROOMY.token_budget + 1)])
            for limit_s in (*np.quantile(times, [0.0, 0.02, 0.1, 0.3, 1.0]) * (1 + 1e-9), times[0] * 0.9):
                longest = int(np.flatnonzero(times <= limit_s).max(initial=-1)) + 1
                assert fitting(sight, start, limit_s) == longest
                found.append(longest)
        batch.step(np.full(1, k % batch.count[0]))
    assert min(found) == 0
    assert any(0 < n <= 8 for n in found)
    assert max(found) == ROOMY.token_budget


def test_half_of_the_profiles_are_like_measured_ones() -> None:
    profiles = [draw(np.random.default_rng(seed), DrawConfig(requests=(5, 9))).profile for seed in range(200)]
    hosts = np.array([p.host_s / (p.plain_decoding.base_s + p.plain_decoding.weights_s) for p in profiles])
    assert 70 <= (hosts > 0).sum() <= 130
    assert hosts.max() > 4  # decoding steps
    assert hosts[hosts > 0].min() < 1
    assert len({(p.decoding is None, p.host_s > 0, bool(p.graph_sizes)) for p in profiles}) == 2
    assert {p.lead_s > 0 for p in profiles if p.host_s > 0} == {True, False}


def listed(prompts: list[int], due_s: list[float], profile: Profile, take: int = 0) -> np.ndarray:
    """Rows of the longest pieces of all that are listed, once the first `take` of the list have been taken."""
    n = len(prompts)
    workload = Workload(np.zeros(n), np.array(prompts), np.ones(n, np.int64), ttft_slo_s=np.array(due_s))
    engine = EngineConfig(kv_blocks=500, max_seqs=16, token_budget=4000, history=256)
    problem = Serving(workload, engine, profile)
    batch = EngineBatch(1, Room.of([problem]))
    batch.load(0, problem)
    batch.begin()
    for _ in range(take):
        batch.step(np.zeros(1, np.int64))
    count = batch.count[0]
    who, row = batch.turns.choices.who[0, :count], batch.turns.choices.row[0, :count]
    return np.array([row[np.flatnonzero(who == k)[-1]] for k in range(n) if k in who])


def column(rows: np.ndarray, name: str) -> list[float]:
    found: list[float] = rows[:, COLUMNS[name]].tolist()
    return found


LAUNCHED = replace(
    PROFILE, pair_s=0.0, weights_s=0.0, token_s=1e-4, host_s=0.011, decoding=Decoding(0.001, 0.001, 0.0, 0.0, 0.0, 0.0)
)
"""A decoding step takes 2 ms; one that reads 1 ms and 0.1 ms a token, at least 11 ms: 100 tokens."""


def test_columns_of_pieces_by_hand() -> None:
    # 60 tokens are planned: 7 ms of 11. 40 more are free; 100 add 6 ms, and would take 11 ms alone; 300 would take 31.
    rows = listed([60, 40, 100, 300], [1.0, 1.0, 1.0, 1.0], LAUNCHED, take=1)
    assert column(rows, "adds") == pytest.approx(np.log1p(np.array([0, 6, 26]) / 2).tolist())
    assert column(rows, "saved") == pytest.approx([1.0, 1 - 6 / 11, 1 - 26 / 31])
    assert column(rows, "work") == pytest.approx(np.log1p(np.array([11, 11, 31]) / 2).tolist())
    spare, floor = COLUMNS["spare"], COLUMNS["floor"]
    assert min(spare, floor) > FIRST_ENGINE
    assert rows[0, spare] == pytest.approx(4 / 11)
    assert rows[0, floor] == pytest.approx(np.log1p(11 / 2))
    assert rows[0, COLUMNS["step"]] == rows[0, COLUMNS["reads"]] == pytest.approx(np.log1p(1.0))


def test_who_is_made_late_by_a_piece_by_hand() -> None:
    # The first is planned, due in 15 ms. 40 tokens more are free; with 100 it takes 17 ms: it is late, and so is the
    # second, which then has 20 - 11 = 9 ms left, too few for any step but this one.
    rows = listed([60, 40, 100, 10], [0.015, 0.02, 1.0, 1.0], LAUNCHED, take=1)
    assert column(rows, "spoils") == [0.0, 1.0, 0.0]
    rows = listed([60, 40, 100, 10], [1.0, 0.023, 1.0, 1.0], LAUNCHED, take=1)
    assert column(rows, "delays") == [0.0, 1.0, 0.0]
    assert column(rows, "spoils") == [0.0, 0.0, 0.0]


def test_the_backlog_by_hand() -> None:
    # By due time 100, 150, 50, 400 tokens: 10, 15, 5, 40 ms. The second would end at 25 ms, behind its 24: of these two
    # it is the longer, and left out. Then 10 + 5 and 55 ms are in time. The last is hopeless from the start.
    rows = listed([400, 100, 150, 50, 900], [0.1, 0.02, 0.024, 0.03, 0.05], LAUNCHED)
    assert column(rows, "dropped") == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert column(rows, "ahead") == pytest.approx(np.log1p(np.array([15, 0, 55, 10, 55]) / 2).tolist())
    assert column(rows, "due") == pytest.approx(np.log1p(np.array([100, 20, 24, 30, 50]) / 2).tolist())
    assert rows[0, COLUMNS["dropping"]] == pytest.approx(1 / 4)
