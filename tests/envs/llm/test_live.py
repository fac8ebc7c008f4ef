"""An engine on a clock from outside, with requests that come and go while it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.executor import StepResult
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Pin, Plan
from dispatchgym.envs.llm.record import ABORTED, FINISHED
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.state import ENDED, RUNNING
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


def _steps(engine: Engine, clock: Clock, count: int) -> None:
    for _ in range(count):
        clock.now += 0.01
        engine.step()


def _two_turns(engine: Engine, clock: Clock, *, before_end: bool) -> int:
    """Tokens that a second turn finds of a first one of 40 + 60 tokens, named while it runs or after it has ended."""
    first = engine.submit(40, 60, hashes=np.array([1, 2]), grows=True)
    _steps(engine, clock, 20 if before_end else 60)
    computed = int(engine.state.req["computed"][first])
    engine.name_text(first, np.arange(3, computed // 16 + 1))
    check_ledger(engine.state)
    if before_end:
        engine.abort(first)
    assert engine.state.req["state"][first] == ENDED
    engine.release(first)
    second = engine.submit(120, 2, hashes=np.arange(1, 8))
    _steps(engine, clock, 5)
    assert engine.state.req["state"][second] == ENDED
    return int(engine.state.req["cached"][second])


def test_output_that_has_been_named_is_found_by_the_next_turn() -> None:
    assert _two_turns(live(Vllm(), Clock()), Clock(), before_end=False) == 96  # of 99 whose KV was there
    assert _two_turns(live(Vllm(), Clock()), Clock(), before_end=True) == 48  # aborted at 59
    assert _two_turns(live(Vllm(), Clock(), prefix_caching=False), Clock(), before_end=False) == 0


def test_output_can_be_named_only_where_there_is_room() -> None:
    engine = live(Vllm(), Clock())
    plain, growing = (
        engine.submit(40, 60, hashes=np.array([1, 2])),
        engine.submit(40, 9, hashes=np.array([1, 2]), grows=True),
    )
    with pytest.raises(UsageError, match="2 \\+ 1 hashes, and room for 2; it grows only if it was submitted so"):
        engine.name_text(plain, np.array([3]))
    engine.name_text(growing, np.array([3]))
    with pytest.raises(UsageError, match="3 \\+ 2 hashes, and room for 3"):
        engine.name_text(growing, np.array([4, 5]))


class Stored:
    """Which text each block holds, as the engine's batches fill them; texts are lists of tokens, longest turn first."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.texts: dict[int, list[int]] = {}
        self.blocks: dict[int, tuple[int, ...]] = {}
        self.on_host: dict[int, list[tuple[int, ...]]] = {}

    def run(self, batch: Any, interrupt_s: float) -> StepResult:
        emitted, stopped = np.zeros(len(batch.request), np.int32), np.zeros(len(batch.request), np.int8)
        for r in {r for r, _ in batch.swap_out.tolist()}:
            self.on_host[r] = [self.blocks[b] for who, b in batch.swap_out.tolist() if who == r]
        for r, count in batch.swap_in.tolist():
            back = self.on_host.pop(r)
            for i in np.flatnonzero(batch.request == r):
                self.blocks.update(zip(batch.table[batch.slot[i], :count].tolist(), back, strict=True))
        for i, r in enumerate(batch.request.tolist()):
            text, table = self.texts[r], batch.table[batch.slot[i]]
            start, end = int(batch.start[i]), int(batch.start[i] + batch.tokens[i])
            for j in range(-(-start // 16)):  # what it reads is its own text
                place = min(start, 16 * (j + 1))
                assert self.blocks[int(table[j])][:place] == tuple(text[:place])
            for j in range(start // 16, -(-end // 16)):
                self.blocks[int(table[j])] = tuple(text[: min(end, 16 * (j + 1))])
            if end == len(text):
                text.append(hash(tuple(text)) % 1000)
                q = self.engine.state.req[r]
                emitted[i], stopped[i] = 1, q["generated"] + 1 == q["max_new"]
        return StepResult(0.01, emitted, stopped)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_hold_what_their_names_say_while_turns_come_go_and_are_preempted(seed: int) -> None:
    """Conversations, some of them alike, in a pool too small for them; some are aborted, pinned or swapped out."""
    rng = np.random.default_rng(seed)

    class Mixed:
        name, oracle = "mixed", False

        def reset(self, spec: EngineSpec, seed: int) -> None: ...

        def decide(self, view: EngineView) -> Plan:
            ids = [int(r) for r in view.running.id]
            out = [(r, str(rng.choice(["recompute", "swap"]))) for r in ids if rng.random() < 0.03]
            pins = [Pin(int(r), int(rng.integers(0, 120)), 0.2) for r in ids if rng.random() < 0.05]
            return Plan(preempt=out, pins=pins)

    clock = Clock()
    engine = live(Mixed(), clock, kv_blocks=40, max_seqs=5, host_blocks=20)
    stored = engine._executor = Stored(engine)
    names: dict[tuple[int, ...], int] = {}
    pasts: list[list[int]] = [[k % 2] * 40 for k in range(6)]
    open_turns: dict[int, int] = {}

    def name(r: int) -> None:
        text, q = stored.texts[r], engine.state.req[r]
        whole = range(int(q["hashed"]) // 16, min(int(q["computed"]), len(text)) // 16)
        engine.name_text(
            r, np.array([names.setdefault(tuple(text[: 16 * (j + 1)]), len(names) + 1) for j in whole], int)
        )

    def close(r: int) -> None:
        if rng.random() < 0.9:
            name(r)
        pasts[open_turns.pop(r)] = stored.texts.pop(r)
        engine.release(r)

    cached = preempted = 0
    for turn in range(1500):
        for k in range(6):
            if k not in open_turns.values() and rng.random() < 0.2 and turn < 1400:
                text = pasts[k] if len(pasts[k]) < 250 else pasts[(k + 1) % 6][:30]
                text = text + [int(rng.integers(0, 2))] * 7
                hashes = [names.setdefault(tuple(text[: 16 * (j + 1)]), len(names) + 1) for j in range(len(text) // 16)]
                r = engine.submit(len(text), int(rng.integers(1, 60)), hashes=np.array(hashes, int), grows=True)
                stored.texts[r], open_turns[r] = text, k
        for r in list(open_turns):
            if rng.random() < 0.005:
                engine.abort(r)
                close(r)
        clock.now += 0.01
        engine.step()
        for r in list(open_turns):
            if engine.state.req["state"][r] == ENDED:
                cached += int(engine.state.req["cached"][r])
                preempted += int(engine.state.req["preemptions"][r])
                close(r)
            elif rng.random() < 0.5 and engine.state.req["state"][r] == RUNNING:
                name(r)
        if turn % 10 == 0:
            check_ledger(engine.state)
    assert not open_turns
    assert cached > 10_000
    assert preempted > 100
    assert engine.state.eng["free"][0] == 40
    assert engine.state.eng["pins"][0] == 0
