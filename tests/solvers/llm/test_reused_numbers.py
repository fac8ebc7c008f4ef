"""A live engine gives the number of a request that has ended to another: nobody may take the one for the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import CompiledPolicy, EngineSpec, Pin, Policy
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.solvers.llm.batch_llm import BatchLlm
from dispatchgym.solvers.llm.ltr import LearningToRank
from dispatchgym.solvers.llm.menu import Menu
from dispatchgym.solvers.llm.mlfq import Mlfq
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from dispatchgym.solvers.llm.vtc import Vtc
from tests.envs.llm.helpers import PROFILE, random_workload
from tests.solvers.llm.helpers import decoding, ready, view


def test_mlfq_forgets_the_starved_that_had_the_number() -> None:
    """The first starves, and 5 s of its service no longer count. The second has its number and 5 s of service, which
    do: 10 ms * 2^9 is the first quantum above 5 s."""
    policy = ready(Mlfq(every=1))
    starved = {"prompt_tokens": 1000, "service_s": 5.0, "arrival_s": 1.0, "run_s": 6.0}
    policy.decide(view([], [starved], now_s=10.0))
    assert policy._level(view([], [starved], now_s=10.0).waiting).tolist() == [2]
    another = view([], [{"service_s": 5.0, "arrival_s": 11.0, "run_s": 12.0}], now_s=12.0, step=1)
    policy.decide(another)
    assert policy._level(another.waiting).tolist() == [9]
    assert policy._before == policy._raised == {}


def test_ltr_does_not_raise_who_has_the_number_of_the_starved() -> None:
    policy = ready(LearningToRank(sigma=0.0))
    seen = view([], [{"prompt_tokens": 50, "arrival_s": 0.0}], kv_blocks=4, now_s=11.0, outputs=[90])
    policy.decide(seen)  # raised until 41 s
    new = [{"prompt_tokens": 50, "arrival_s": 12.0}, {"prompt_tokens": 50, "arrival_s": 12.0}]
    plan = policy.decide(view([], new, kv_blocks=4, now_s=12.5, outputs=[90, 10]))
    assert [r for r, _ in plan.grants] == [101]


def test_vtc_books_the_old_to_its_tenant_and_the_new_to_its_own() -> None:
    """Tenant 0's request ends within three steps, its number goes to tenant 1's, who has put out one token."""
    policy = ready(Vtc())
    policy.decide(view([decoding(20, 5, tenant=0, arrival_s=0.0)]))
    policy.counter = {0: 0.0, 1: 0.0}
    policy.decide(view([decoding(20, 1, tenant=1, arrival_s=1.0)], step=3))
    policy.decide(view([decoding(20, 2, tenant=1, arrival_s=1.0)], step=4))
    assert policy.counter == {0: 2.0 * 3, 1: 2.0 * 1}


def test_batch_llm_pins_and_unpins_who_is_there() -> None:
    """Requests 0, 1 and 2 share 3 blocks. 0 reads them and pins; 2 waits on. When 0 is gone and its number another's,
    1 pins in its place, and the other's pins are left alone."""
    hashes = {100: [1, 2, 3, 4], 101: [1, 2, 3, 5], 102: [1, 2, 3, 6]}
    texts: dict[str, Any] = {"hashes": hashes, "outputs": [10, 10, 10]}
    rows = [{"prompt_tokens": 64, "arrival_s": float(k), "id": 100 + k} for k in range(3)]
    policy = ready(BatchLlm("oracle"))
    assert policy.decide(view([], rows, **texts)).pins == []
    first = [decoding(64, 1, id=100 + k, arrival_s=float(k)) for k in range(2)]
    plan = policy.decide(view(first, [rows[2]], free_seqs=0, **texts))
    assert plan.pins == [Pin(100, 48)]
    other = decoding(64, 1, id=100, arrival_s=9.0)
    plan = policy.decide(view([other, first[1]], [rows[2]], free_seqs=0, **texts))
    assert plan.pins == [Pin(101, 48)]
    plan = policy.decide(view([other, first[1], decoding(64, 1, id=102, arrival_s=2.0)], [], **texts))
    assert plan.pins == [Pin(101, 0)]


@pytest.mark.parametrize("name", ["mlfq", "ltr", "vtc", "batch-llm", "andes", "sglang", "laps", "past-future"])
def test_a_live_engine_that_reuses_numbers_serves_everyone(name: str) -> None:
    policy = SCHEDULERS[name]()
    assert not isinstance(policy, CompiledPolicy)
    serve_waves(policy, 3)


def test_the_menu_counts_everyone_and_remembers_the_last_and_the_present() -> None:
    """30 requests under 3 numbers. Choices are due after 8, 13, 19 and 25 of them, and made when the wave is there."""
    menu = Menu(window=4)
    serve_waves(menu, 10)
    assert len(menu.choices) == 4
    assert len(menu._seen) == len(menu._hashes) == 8
    stays = {"id": 0, "arrival_s": 100.0, "prompt_tokens": 60, "max_new_tokens": 8}
    for k in range(20):
        menu._watch(view([stays], [{**stays, "id": 1, "arrival_s": 101.0 + k}], hashes={0: [], 1: []}))
        assert (0, 100.0) in menu._seen
    assert len(menu._seen) == 9


def serve_waves(policy: Policy, waves: int) -> None:
    """Three requests a wave, each let go before the next: the same three numbers each time."""
    clock = [0.0]
    config = EngineConfig(kv_blocks=40, host_blocks=40, max_seqs=4, token_budget=128, max_len=200)
    state = fresh_state(random_workload(0, 0), config, PROFILE, 0, steps=False, tokens=False)
    spec = EngineSpec(config, PROFILE, 40)
    policy.reset(spec, 0)
    engine = Engine(state, policy, spec, clock=lambda: clock[0])
    for wave in range(waves):
        numbers = [engine.submit(60, 8 + k, hashes=np.arange(3)) for k in range(3)]
        assert sorted(numbers) == [0, 1, 2], wave
        for _ in range(200):
            clock[0] += 0.01
            if not engine.step():
                break
        assert (engine.state.req["generated"][:3] == engine.state.req["output"][:3]).all()
        for r in numbers:
            engine.release(r)
