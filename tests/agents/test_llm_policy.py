"""The scheduler that plans choice by choice: stopped steps, drafts and the overdue, on hand-made traffic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.llm_drafts import draft_of
from dispatchgym.agents.llm_policy import ChoicePolicy
from dispatchgym.agents.numpy_network import NumpyNetwork
from dispatchgym.agents.runtime import OneGraph, Runtime
from dispatchgym.envs.api import InvalidPlanError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.graph import COLUMNS, MERIT
from dispatchgym.envs.llm.outlook import PATIENCE_STEPS, TURNS
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.profile import Profile, load_profile
from dispatchgym.envs.llm.record import FINISHED
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads import load
from tests.envs.llm.helpers import PROFILE, random_workload

ROUNDS = replace(PROFILE, base_s=0.01, weights_s=0.0, token_s=1e-3, pair_s=0.0, context_s=0.0, pause_s=0.0, segments=10)
"""A step is 10 ms and 1 ms for each of its tokens; it can stop after each tenth."""

ROOMY = EngineConfig(kv_blocks=256, token_budget=2000, max_seqs=16)


def two(ttft_s: float) -> Workload:
    """A prompt of 1,000 tokens, and after 0.3 s one of 20 with this bound; a token each."""
    return Workload(
        arrival_s=np.array([0.0, 0.3]), prompt_tokens=np.array([1000, 20]), output_tokens=np.array([1, 1]),
        ttft_slo_s=np.array([10.0, ttft_s]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ttft_s", "first"),
    [
        # The long prompt takes 1.01 s. It may stop at 0.303 s; the short one takes 0.03 s.
        (0.2, [1.01 + 0.03, 0.303 + 0.03]),
        (5.0, [1.01, 1.01 + 0.03]),
    ],
)
def test_a_step_stops_for_who_would_be_late_and_for_nobody_else(ttft_s: float, first: list[float]) -> None:
    record = simulate(two(ttft_s), ChoicePolicy(), ROOMY, ROUNDS, strict=True)
    assert record.requests.first_token_s == pytest.approx(first)
    unstopped = simulate(two(ttft_s), ChoicePolicy(stops=False), ROOMY, ROUNDS, strict=True)
    assert unstopped.requests.first_token_s == pytest.approx([1.01, 1.04])


class Watched(ChoicePolicy):
    """Notes, of every plan, when it was made, who runs, and whether the step may stop; and how many are stopped."""

    def reset(self, spec: EngineSpec, seed: int) -> None:
        super().reset(spec, seed)
        self.plans: list[tuple[float, list[int], bool]] = []
        self.stopped: list[int] = []

    def decide(self, view: EngineView) -> Plan:
        made = super().decide(view)
        group = view.running.group
        self.stopped.append(len(np.unique(group[group >= 0])))
        self.plans.append((view.now_s, np.asarray(made.grants)[:, 0].tolist(), made.interruptible))
        return made


@pytest.mark.parametrize(("bound_s", "stops"), [(5.0, False), (0.2, True)])
def test_a_step_may_stop_only_if_somebody_like_those_before_could_be_late(bound_s: float, stops: bool) -> None:
    # Forty of 20 tokens (0.03 s each), one at a time; then a long one of 1.01 s: longer than some had to spare.
    before = 40
    workload = Workload(
        arrival_s=np.arange(before + 1.0), prompt_tokens=np.array([20] * before + [1000]),
        output_tokens=np.ones(before + 1, np.int64), ttft_slo_s=np.array([bound_s] * before + [10.0]),
    )  # fmt: skip
    policy = Watched()
    simulate(workload, policy, ROOMY, ROUNDS, strict=True)
    assert policy.plans[0][2]  # nobody is known as yet
    assert policy.plans[-1][1:] == ([before], stops)


def test_steps_are_not_begun_stopped_and_left_one_after_the_other() -> None:
    # Twice what the engine can serve: somebody is always in danger, and what the choices prefer need not help them.
    profile = load_profile("torch-h200-8b")
    workload = load("laps", requests=1600, rate_per_s=240, seed=101, parameters={"prefill_only": True})
    engine = EngineConfig(kv_blocks=profile.kv_tokens // 16, max_len=16_384)
    policy = Watched()
    simulate(workload, policy, engine, profile)
    assert max(policy.stopped) <= 4


@pytest.mark.parametrize("seed", range(12))
def test_stopped_steps_end_and_need_no_repair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    workload = replace(
        random_workload(seed, 30, rate=60.0, shared=seed % 2 == 0), ttft_slo_s=rng.uniform(0.02, 0.5, 30)
    )
    engine = EngineConfig(kv_blocks=80, token_budget=int(rng.integers(40, 300)), max_seqs=12)
    record = simulate(workload, ChoicePolicy(), engine, replace(PROFILE, token_s=4e-4))
    assert (record.requests.status == FINISHED).all()
    assert not {"beyond", "unknown", "twice", "idle"} & {kind.split()[0] for kind in record.repairs}


def spec_of(profile: Profile, max_spec: int, acceptance: float = 0.5) -> EngineSpec:
    return EngineSpec(EngineConfig(max_spec=max_spec, acceptance=acceptance), profile, 256)


def plan(**numbers: float) -> dict[str, Any]:
    usual = {"decodes": 4, "context": 400, "prefill_tokens": 0, "free": 100, "budget": 1000}
    return {**usual, **numbers}


def test_drafts_by_hand() -> None:
    # A step is 10 ms and 1 ms a token; with a chance of 1/2 drafts of 0, 1, 2, 3 put out 1, 1.5, 1.75, 1.875 tokens in
    # 14, 18, 22, 26 ms: 14, 12, 12.6, 13.9 ms each.
    assert draft_of(plan(), spec_of(ROUNDS, 3)) == 1
    # Beside a prompt of 96 tokens that is the same: 110, 114, 118, 122 ms less 12 for each of these tokens. The draft
    # with the most tokens a second of this step would be 3.
    assert draft_of(plan(prefill_tokens=96), spec_of(ROUNDS, 3)) == 1
    # Where tokens are free up to a hundred, all are drafted.
    assert draft_of(plan(), spec_of(replace(ROUNDS, weights_s=0.1, base_s=0.0), 3)) == 3
    # Realigning what 400 tokens hold costs 40 ms, more than all that could be won.
    assert draft_of(plan(), spec_of(replace(ROUNDS, ragged_s=1e-4), 3)) == 0
    # No blocks, nobody, no speculation.
    assert draft_of(plan(free=3), spec_of(ROUNDS, 3)) == 0
    assert draft_of(plan(decodes=0), spec_of(ROUNDS, 3)) == 0
    assert draft_of(plan(), spec_of(ROUNDS, 0)) == 0


def test_drafts_where_they_must_be_realigned_do_not_cost_more_than_they_win() -> None:
    workload = load("exspec", requests=96, seed=11)
    engine = EngineConfig(kv_blocks=8192, max_seqs=48, max_spec=5)
    profile = replace(PROFILE, ragged_s=6e-7)
    with_drafts = simulate(workload, ChoicePolicy(), engine, profile)
    without = simulate(workload, ChoicePolicy(), replace(engine, max_spec=0), profile)
    assert with_drafts.end_s < 0.97 * without.end_s


def test_under_lasting_overload_nobody_waits_for_ever() -> None:
    """A long request is hopeless from the start; short ones that can be in time come faster than the engine serves."""
    profile = replace(ROUNDS, token_s=5e-3)
    patience_s = PATIENCE_STEPS * (profile.base_s + profile.token_s)
    n = round(2.0 * patience_s / 0.1)
    workload = Workload(
        arrival_s=np.append(0.0, 0.1 * np.arange(n)), prompt_tokens=np.append(900, np.full(n, 20)),
        output_tokens=np.append(3, np.full(n, 3)), ttft_slo_s=np.append(1e-3, np.full(n, 2.0)),
    )  # fmt: skip
    record = simulate(workload, ChoicePolicy(), replace(ROOMY, token_budget=64, max_seqs=4), profile, steps=False)
    last_s = workload.arrival_s[-1]
    assert record.end_s > 1.05 * last_s  # overload
    first_s = record.requests.first_token_s[0]
    # Others leave its pieces 20 tokens of a step or more: its 900 are up to 45. Before each come up to 15 prompts of
    # others, of 20 + 2 tokens and a few steps.
    assert patience_s <= first_s < patience_s + 45 * (TURNS * 22 * profile.token_s + 10 * profile.base_s) < last_s
    assert (record.requests.status == FINISHED).all()


class Rule:
    """A runtime whose network is the merit, and a bonus for admitting long prompts."""

    rule_weight = 6.0

    def __init__(self, bonus: float, told: bool = True) -> None:
        self.bonus = bonus
        if not told:
            self.rule_weight = None  # type: ignore[assignment]

    def one(self, graph: OneGraph) -> np.ndarray[Any, Any]:
        x = graph.x["request"]
        bonus = self.bonus * x[:, COLUMNS["admit"]] * x[:, COLUMNS["known"]]
        return np.asarray(6.0 * x[:, MERIT] + bonus, np.float32)


def finishes(policy: ChoicePolicy, seed: int) -> list[float]:
    engine = EngineConfig(kv_blocks=80, token_budget=120, max_seqs=12)
    record = simulate(random_workload(seed, 40, rate=60.0), policy, engine, PROFILE)
    found: list[float] = record.requests.finish_s.tolist()
    return found


@pytest.mark.parametrize("seed", range(4))
def test_scoring_once_keeps_up_with_the_plan(seed: int) -> None:
    merit = finishes(ChoicePolicy(), seed)
    assert finishes(ChoicePolicy(cast(Any, Rule(0.0))), seed) == merit
    assert finishes(ChoicePolicy(cast(Any, Rule(0.0)), fresh=True), seed) == merit
    # What is added depends on the request alone, so that scoring once and anew are the same, and not the merit.
    once = finishes(ChoicePolicy(cast(Any, Rule(40.0))), seed)
    assert once == finishes(ChoicePolicy(cast(Any, Rule(40.0, told=False))), seed) != merit


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InvalidPlanError, match="not all numbers"):
        finishes(ChoicePolicy(cast(Any, Rule(float("nan")))), 0)
    for fresh in (False, True):
        with pytest.raises(InvalidPlanError, match="not all numbers"):
            finishes(ChoicePolicy(noisy(float("nan")), fresh=fresh), 0)


class Piecewise(Runtime):
    """A network that nobody knows to be a kernel's."""

    name = "numpy"

    def __init__(self, inner: Runtime) -> None:
        super().__init__(inner.spec, inner.config)
        self.inner, self.rule_weight = inner, inner.rule_weight

    def one(self, graph: OneGraph) -> npt.NDArray[np.float32]:
        return self.inner.one(graph)


def noisy(alpha: float = 0.3) -> NumpyNetwork:
    """The shipped network with noise on its weights, so that it differs from the merit."""
    folder = bundles.find("llm-engine")
    shipped = bundles.load(folder, "numpy").runtime
    rng = np.random.default_rng(0)
    weights = {name: np.asarray(value, np.float32) for name, value in bundles.stored_weights(folder).items()}
    for name, value in sorted(weights.items()):
        if name.endswith((".weight", ".bias")):
            weights[name] = value + rng.normal(0, alpha, value.shape).astype(np.float32)
    network = NumpyNetwork(shipped.spec, shipped.config, weights)
    network.rule_weight = shipped.rule_weight
    return network


class Both(ChoicePolicy):
    """Decides by the kernel; over every view, piece by piece as well."""

    def __init__(self, network: NumpyNetwork, fresh: bool) -> None:
        super().__init__(network, fresh=fresh)
        self.other = ChoicePolicy(Piecewise(network), fresh=fresh)
        self.merit = ChoicePolicy()
        self.decisions = self.own = 0

    def reset(self, spec: EngineSpec, seed: int) -> None:
        super().reset(spec, seed)
        self.other.reset(spec, seed)
        self.merit.reset(spec, seed)

    def decide(self, view: EngineView) -> Plan:
        plan, other, merit = super().decide(view), self.other.decide(view), self.merit.decide(view)
        assert np.array_equal(plan.grants, other.grants)
        assert replace(plan, grants=()) == replace(other, grants=())
        self.decisions += 1
        self.own += not np.array_equal(plan.grants, merit.grants)
        return plan


@pytest.mark.parametrize("fresh", [False, True])
def test_plans_of_the_kernel_are_those_made_piece_by_piece(fresh: bool) -> None:
    both = Both(noisy(), fresh)
    engine = EngineConfig(kv_blocks=300, token_budget=256, max_seqs=24)
    for seed in range(3):
        workload = replace(
            random_workload(seed, 120, rate=400.0), ttft_slo_s=np.random.default_rng(seed).uniform(0.05, 2.0, 120)
        )
        simulate(workload, both, engine, PROFILE)
    assert both.decisions > 300
    assert both.own > 30  # the network is no mere merit
