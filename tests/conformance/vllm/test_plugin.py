"""The scheduler that vLLM is given, against vLLM's own and against our engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` runs this")

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan, Policy
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.serving.plugins import vllm as plugin
from dispatchgym.serving.plugins.versions import require_vllm
from dispatchgym.serving.plugins.vllm import LearnedScheduler, Options
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from tests.conformance.vllm.cases import EVERY_STEP_1_S, Case, Step, random_case
from tests.conformance.vllm.stock import its_steps, scheduler


class Clock:
    """The time of a run that is counted in steps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def steered(case: Case, policy: Any, name: str = "policy of a test") -> LearnedScheduler:
    """The plug-in with this policy object in place."""
    engine = scheduler(case, LearnedScheduler)
    engine.options = Options(policy=name, budget_ms=60_000.0)
    engine._policy = policy
    engine.clock = Clock()
    engine.sleep = lambda seconds: None
    return engine


def plain(seed: int) -> Case:
    """A case that a steered engine takes: vLLM's own options at rest."""
    case = random_case(seed)
    return replace(case, by_priority=False, threshold=0, spare=0, chunked=True, full_input=False)


class Noted:
    """A policy whose views and plans are kept."""

    oracle = False

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, policy.name
        self.texts = getattr(policy, "texts", False)
        self.asked: list[tuple[EngineView, Plan]] = []

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.policy.reset(spec, seed)

    def decide(self, view: EngineView) -> Plan:
        plan = self.policy.decide(view)
        self.asked.append((view, plan))
        return plan


@pytest.mark.parametrize("seed", range(60))
def test_without_a_policy_it_is_stock_vllm(seed: int) -> None:
    case = random_case(seed)
    assert its_steps(case, scheduler(case, LearnedScheduler)) == its_steps(case, scheduler(case, AsyncScheduler))


# every kind: from arrays, over the view, with holds, with preemptions of its own, with randomness, with times
@pytest.mark.parametrize(
    "name", ["sarathi", "conservative", "vllm-lcf", "edf", "past-future", "vtc", "sglang", "least-slack", "eb-plus"]
)
def test_vllm_does_what_our_engine_does(name: str) -> None:
    """The same cases under the same policy: tokens and victims of every step are our own engine's."""
    exact = 0
    for seed in range(20):
        case = replace(plain(seed), caching=seed % 2 == 0, shared=[0] * len(plain(seed).shared))
        ours, theirs = our_run(case, name), vllm_run(case, name)
        if isinstance(theirs, list):
            assert ours == theirs, seed
            exact += 1
    assert exact >= 15


def asked(name: str) -> Any:
    policy = SCHEDULERS[name]()
    return plugin.Asked(policy) if isinstance(policy, plugin.CompiledPolicy) else policy


def our_run(case: Case, name: str) -> list[Step]:
    steps: list[Step] = []
    policy = asked(name)
    state = fresh_state(case.workload(), case.engine(), EVERY_STEP_1_S, 0, steps=False, tokens=False)
    spec = EngineSpec(case.engine(), EVERY_STEP_1_S, case.kv_blocks)
    policy.reset(spec, 0)
    engine = Engine(state, policy, spec)

    class Watch:
        """Runs the step at hand and writes it down."""

        def run(self, batch: Any, interrupt_s: float) -> Any:
            before.update(now=float(state.eng["now"][0]))
            rows = tuple(zip(batch.request.tolist(), batch.tokens.tolist(), strict=True))
            gone = np.repeat(np.arange(len(state.req)), state.req["preemptions"] - before["preemptions"])
            before["preemptions"] = state.req["preemptions"].copy()
            steps.append(Step(before["now"], rows, tuple(gone.tolist())))
            return engine._simulated.run(batch, interrupt_s)

    before: dict[str, Any] = {"preemptions": state.req["preemptions"].copy()}
    engine._executor = Watch()
    engine.run()
    return steps


def vllm_run(case: Case, name: str) -> list[Step] | None:
    """None where vLLM cannot run exactly what was planned."""
    policy = asked(name)
    policy.reset(EngineSpec(case.engine(), EVERY_STEP_1_S, case.kv_blocks), 0)
    engine = steered(case, policy)
    steps = its_steps(case, engine, clock=engine.clock)
    assert not engine.faults
    return None if engine.inexact else steps


def test_recorded_views_give_the_same_orders() -> None:
    """Views from vLLM's scheduler, put to a fresh policy, give the plans that were made; the arrays agree with ours."""
    case = replace(plain(3), caching=True)
    noted = Noted(asked("past-future"))
    noted.reset(EngineSpec(case.engine(), EVERY_STEP_1_S, case.kv_blocks), 0)
    its_steps(case, engine := steered(case, noted), clock=engine.clock)
    again = asked("past-future")
    again.reset(EngineSpec(case.engine(), EVERY_STEP_1_S, case.kv_blocks), 0)
    assert len(noted.asked) > 10
    for view, plan in noted.asked:
        assert again.decide(view).grants == plan.grants
        assert not any(column.flags.writeable for column in (*view.running, *view.waiting))


class Reckless:
    """Plans drawn at random, half of them nonsense; now and then it raises or gives something that is no plan."""

    name, oracle = "reckless", False

    def __init__(self, seed: int, faults: float) -> None:
        self._rng = np.random.default_rng(seed)
        self._faults = faults

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Any:
        rng = self._rng
        if rng.random() < self._faults:
            if rng.random() < 0.5:
                raise RuntimeError("broken on purpose")
            return "no plan"
        everyone = [*view.running.id.tolist(), *view.waiting.id.tolist(), 10**6]
        some = [r for r in rng.permutation(everyone).tolist() if rng.random() < 0.7]
        return Plan(
            grants=[(r, int(rng.integers(-1, 60))) for r in some],
            preempt=[(r, "swap") for r in some if rng.random() < 0.05],
            victims=rng.permutation(everyone).tolist(),
            wait_until_s=view.now_s + 1.0 if rng.random() < 0.1 else None,
            hold_steps=int(rng.integers(1, 4)),
        )


@pytest.mark.parametrize("part", range(10))
def test_nothing_is_lost_or_starved_under_reckless_plans(part: int) -> None:
    """1,000 episodes in all: every request puts out all its tokens, every block comes back."""
    for seed in range(100 * part, 100 * (part + 1)):
        case = random_case(seed)
        n = min(len(case.arrival), 8)
        case = replace(plain(seed), **{c: list(getattr(case, c))[:n] for c in COLUMNS}, max_seqs=4)
        engine = steered(case, Reckless(seed, 0.02 if seed % 2 else 0.0))
        put_out: dict[int, int] = {}
        its_steps(case, engine, most=100_000, clock=engine.clock, put_out=put_out)
        assert put_out == dict(enumerate(case.output))
        assert engine.kv_cache_manager.block_pool.get_num_free_blocks() == case.kv_blocks
        assert not engine.running
        assert not engine.waiting
        if seed % 2 == 0:
            assert not engine.faults


COLUMNS = ("arrival", "prompt", "output", "max_new", "priority", "family", "shared")


class Broken:
    name, oracle = "broken", False

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        raise ValueError("always")


def test_a_policy_that_always_fails_leaves_stock_vllm_and_is_benched() -> None:
    case = plain(5)
    engine = steered(case, Broken())
    assert its_steps(case, engine, clock=engine.clock) == its_steps(case, scheduler(case, AsyncScheduler))
    assert engine.faults == {"error": 20}
    assert engine.is_benched


def test_a_late_decision_is_a_fault() -> None:
    case = plain(5)
    engine = steered(case, asked("past-future"))
    engine._policy.reset(EngineSpec(case.engine(), EVERY_STEP_1_S, case.kv_blocks), 0)
    engine.options = replace(engine.options, budget_ms=0.0)
    assert its_steps(case, engine, clock=engine.clock) == its_steps(case, scheduler(case, AsyncScheduler))
    assert set(engine.faults) == {"late"}


def test_the_policy_comes_from_the_environment_or_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHGYM_POLICY", "sarathi+chunk=64")
    case = plain(1)
    engine = scheduler(case, LearnedScheduler)
    steps = its_steps(case, engine)
    assert max(sum(n for _, n in step.tokens) for step in steps) <= 64
    assert engine.decisions > 0
    assert not engine.faults
    assert Options.of({"dispatchgym": {"policy": "orca"}}).policy == "orca"
    with pytest.raises(UsageError, match=r"dispatchgym\.polcy"):
        Options.of({"dispatchgym": {"polcy": "orca"}})
    monkeypatch.setenv("DISPATCHGYM_POLICY", "mc-sf")
    with pytest.raises(UsageError, match="true output lengths"):
        scheduler(case, LearnedScheduler)
    monkeypatch.setenv("DISPATCHGYM_POLICY", "sarathi")
    with pytest.raises(UsageError, match="scheduling-policy"):
        scheduler(replace(case, by_priority=True), LearnedScheduler)


@pytest.mark.parametrize("version", ["0.24.0", "0.26.0rc1", "0.33.0", "1.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(UsageError, match=r"vLLM >=0\.25,<0\.26"):
        require_vllm(version)
    require_vllm("0.25.1+cpu")
