"""An engine on a clock from outside, with requests that come and go while it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.envs.llm.record import ABORTED, FINISHED
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import ENDED
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.batch_llm import BatchLlm
from dispatchgym.solvers.llm.vllm import Vllm
from tests.envs.llm.helpers import PROFILE, check_ledger


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def live(policy: Any, clock: Clock, **config: Any) -> Engine:
    """An engine that nobody has asked anything; its longest request has 512 tokens."""
    none = np.zeros(0)
    settings = EngineConfig(**{"kv_blocks": 64, "max_seqs": 4, "max_len": 512, **config})
    workload = Workload(arrival_s=none, prompt_tokens=none, output_tokens=none)
    state = fresh_state(workload, settings, PROFILE, 0, steps=False, tokens=False)
    spec = EngineSpec(settings, PROFILE, 64)
    if hasattr(policy, "reset"):
        policy.reset(spec, 0)
    return Engine(state, policy, spec, clock=clock)


def test_requests_come_and_go_and_their_numbers_are_used_again() -> None:
    clock = Clock()
    engine = live(Vllm(), clock)
    assert not engine.step()
    rng = np.random.default_rng(0)
    open_requests: list[int] = []
    numbers: set[int] = set()
    statuses = []
    for turn in range(600):
        if turn < 500 and len(open_requests) < 8:
            hashes = np.concatenate([[1, 2], rng.integers(3, 10**9, 2)])
            r = engine.submit(int(rng.integers(64, 80)), int(rng.integers(1, 40)), hashes=hashes, priority=turn % 3)
            open_requests.append(r)
            numbers.add(r)
        if turn % 17 == 0 and open_requests:
            engine.abort(open_requests[0])
        clock.now += 0.004
        engine.step()
        for r in [r for r in open_requests if engine.state.req["state"][r] == ENDED]:
            statuses.append(int(engine.state.req["status"][r]))
            engine.release(r)
            open_requests.remove(r)
        if turn % 20 == 0:
            check_ledger(engine.state)
    assert not open_requests
    assert set(statuses) == {FINISHED, ABORTED}
    assert len(statuses) > 60
    assert max(numbers) < 9  # never more than eight at a time
    assert engine.state.eng["free"][0] == 64
    assert len(engine.state.hashes) <= 4096


def test_a_request_that_does_not_fit_is_refused_with_the_bound() -> None:
    engine = live(Vllm(), Clock())
    with pytest.raises(UsageError, match=r"400 \+ 200 tokens: this engine holds at most 512 at a time"):
        engine.submit(400, 200)
    with pytest.raises(UsageError, match="both must be >= 1"):
        engine.submit(0, 5)
    with pytest.raises(UsageError, match="colour is not something a request has"):
        engine.submit(5, 5, colour=1)


def test_a_plan_that_waits_returns_to_the_caller_until_its_time_is_up() -> None:
    class Waits:
        name = "waits"
        oracle = False

        def reset(self, spec: EngineSpec, seed: int) -> None:
            pass

        def decide(self, view: EngineView) -> Plan:
            return Plan(wait_until_s=view.now_s + 60.0)

    clock = Clock()
    engine = live(Waits(), clock, max_wait_s=0.5)
    r = engine.submit(10, 1)
    assert engine.step()
    assert engine.wait_until_s == 0.5
    clock.now = 0.4
    engine.step()
    assert engine.wait_until_s == 0.5
    assert engine.state.req["state"][r] != ENDED
    clock.now = 0.5
    engine.step()
    assert engine.state.req["status"][r] == FINISHED
    assert engine.repairs == {"waits too long": 1}


def test_policies_that_read_texts_see_those_of_the_present() -> None:
    clock = Clock()
    engine = live(BatchLlm("max"), clock)
    r = engine.submit(40, 5, hashes=np.array([7, 8, 9]))
    view = engine.view()
    assert view.texts is not None
    assert {k: v.tolist() for k, v in view.texts.hashes.items()} == {r: [7, 8, 9]}
    while engine.step():
        clock.now += 0.01
    assert engine.state.req["status"][r] == FINISHED
