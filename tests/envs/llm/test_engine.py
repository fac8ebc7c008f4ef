"""The engine keeps its books under any policy, however bad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchgym.envs.api import InvalidPlanError
from dispatchgym.envs.llm.batching import BatchingRule, RulePolicy
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Pin, Plan
from dispatchgym.envs.llm.record import DROPPED, FINISHED, REJECTED
from dispatchgym.envs.llm.setup import fresh_state
from dispatchgym.envs.llm.simulate import record_of, simulate
from dispatchgym.envs.llm.state import ENDED
from dispatchgym.envs.llm.workload import Workload
from tests.envs.llm.helpers import PROFILE, PlainFcfs, check_ledger, random_workload


class Reckless:
    """Orders at random: grants of anything, preemptions, drops, pins, waits, holds, nonsense."""

    name = "reckless"
    oracle = False

    def __init__(self, malice: float = 0.1, drops: bool = True) -> None:
        self.malice = malice
        self.drops = drops

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def decide(self, view: EngineView) -> Plan:
        rng, malice = self.rng, self.malice
        ids = np.concatenate([view.running.id, view.waiting.id])
        rng.shuffle(ids)
        grants = [(int(r), int(rng.integers(1, 80))) for r in ids if rng.random() < 0.8]
        if rng.random() < malice:
            grants += [(int(rng.integers(-5, 100)), int(rng.integers(-3, 10**12))) for _ in range(3)]
        preempt = [
            (int(r), ["recompute", "swap", "pause"][rng.integers(3)]) for r in view.running.id if rng.random() < malice
        ]
        return Plan(
            grants=grants if rng.random() < 0.9 else (),
            preempt=preempt,
            victims=rng.permutation(ids) if rng.random() < 0.5 else (),
            drop=[int(r) for r in ids if self.drops and rng.random() < 0.002],
            pins=[Pin(int(r), int(rng.integers(0, 100)), float(rng.random())) for r in ids if rng.random() < malice],
            wait_until_s=view.now_s + float(rng.random()) if rng.random() < malice else None,
            wake_on_arrival=bool(rng.random() < 0.5),
            hold_steps=int(rng.integers(1, 8)),
            hold_through=frozenset(["arrival"] if rng.random() < 0.5 else ["finish"]),
            interruptible=bool(rng.random() < 0.5),
        )


class Cruel:
    """Preempts all that it may at every step, and always grants the youngest first."""

    name = "cruel"
    oracle = False

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        young_first = view.waiting.id[::-1].tolist() + view.running.id[::-1].tolist()
        return Plan(
            grants=[(r, 10) for r in young_first],
            preempt=[(r, "recompute") for r in view.running.id.tolist()],
            victims=sorted(young_first),
        )


class Lazy:
    """Waits for ever."""

    name = "lazy"
    oracle = False

    def reset(self, spec: EngineSpec, seed: int) -> None:
        pass

    def decide(self, view: EngineView) -> Plan:
        return Plan(wait_until_s=view.now_s + 1e9)


def engine_of(workload: Workload, config: EngineConfig, policy: Any, seed: int = 0) -> Engine:
    state = fresh_state(workload, config, PROFILE, seed, steps=True, tokens=True)
    spec = EngineSpec(config, PROFILE, int(state.eng["kv_blocks"][0]))
    policy.reset(spec, seed)
    return Engine(state, policy, spec)


def check_end(engine: Engine, workload: Workload) -> None:
    """Every request has ended once, with all its tokens if finished, and all that was computed is accounted for."""
    req = engine.state.req
    assert (req["state"] == ENDED).all()
    assert np.isin(req["status"], (FINISHED, DROPPED, REJECTED)).all()
    finished = req["status"] == FINISHED
    assert (req["generated"][finished] == workload.output_tokens[finished]).all()
    assert int(engine.state.eng["free"][0]) == int(engine.state.eng["kv_blocks"][0]) - int(
        (engine.state.block["ref"][:-1] > 0).sum()
    )
    # a finished request has the KV of all but its last token: from the cache, or run; anything run beyond that was
    # lost and is counted, or is a rejected draft
    needed = req["prompt"].astype(np.int64) + req["output"] - 1
    drafts = req["drafted"].astype(np.int64) - req["accepted"]
    never_lost = finished & (req["preemptions"] == 0)
    run = req["work"] + req["cached"] - drafts - req["recomputed"]
    # the last step may draft past the end of the text: those positions count as rejected
    assert (run[never_lost] == needed[never_lost]).all()
    lossy = finished & (req["preemptions"] > 0)
    assert (run[lossy] >= needed[lossy]).all()  # what it found again of its own text counts twice
    no_cache = finished & (req["cached"] == 0)
    assert (run[no_cache] == needed[no_cache]).all()
    log = engine.state.log[: engine.state.eng["logged"][0]]
    assert (np.diff(log["start_s"]) >= 0).all()
    assert (log["duration_s"] > 0).all()
    assert (log["start_s"][1:] >= log["start_s"][:-1] + log["duration_s"][:-1] - 1e-9).all()
    assert (log["kv_blocks"] <= engine.state.eng["kv_blocks"][0]).all()
    tokens = int(engine.state.eng["tokens_logged"][0])
    assert tokens == req["generated"].sum()
    assert int(engine.state.gaps.sum()) == int(np.maximum(req["generated"] - 1, 0).sum())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    blocks=st.integers(30, 90),
    seqs=st.integers(1, 12),
    budget=st.integers(1, 200),
    spec=st.integers(0, 4),
    host=st.sampled_from([0, 20, 200]),
    caching=st.booleans(),
)
def test_blocks_and_tokens_are_conserved_under_reckless_plans(
    seed: int, blocks: int, seqs: int, budget: int, spec: int, host: int, caching: bool
) -> None:
    workload = random_workload(seed, 12)
    config = EngineConfig(
        kv_blocks=blocks, max_seqs=seqs, token_budget=budget, max_spec=spec, host_blocks=host,
        prefix_caching=caching, max_preemptions=5, max_wait_s=0.2,
    )  # fmt: skip
    engine = engine_of(workload, config, Reckless(), seed)
    turns = 0
    while engine.step():
        turns += 1
        if turns % 5 == 0 or turns < 40:
            check_ledger(engine.state)
        assert turns < 50_000
    check_ledger(engine.state)
    check_end(engine, workload)


@pytest.mark.parametrize("policy", [Cruel(), Lazy()])
def test_everything_ends_under_hostile_policies(policy: Any) -> None:
    workload = random_workload(3, 15)
    engine = engine_of(workload, EngineConfig(kv_blocks=30, max_seqs=6, max_preemptions=4), policy)
    engine.run()
    check_end(engine, workload)
    assert sum(engine.repairs.values()) > 0


def test_a_request_that_can_never_fit_is_refused_on_arrival() -> None:
    workload = Workload(
        arrival_s=np.array([0.0, 0.5, 1.0]),
        prompt_tokens=np.array([100, 1000, 100]),
        output_tokens=np.array([5, 5, 5]),
        max_new_tokens=np.array([5, 5, 600]),
    )
    record = simulate(workload, None, EngineConfig(kv_blocks=40), PROFILE)  # 640 tokens
    assert record.requests.status.tolist() == [FINISHED, REJECTED, REJECTED]
    assert record.requests.finish_s[1:].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("seed", range(6))
def test_the_compiled_rule_is_first_come_first_served(seed: int) -> None:
    workload = random_workload(seed, shared=False, rate=200.0)
    config = EngineConfig(
        kv_blocks=[40, 60, 100][seed % 3], max_seqs=[4, 16][seed % 2], token_budget=[64, 300][seed // 3],
        prefix_caching=False,
    )  # fmt: skip
    inside = simulate(workload, None, config, PROFILE)
    plain = simulate(workload, PlainFcfs(), config, PROFILE, strict=True)
    assert plain.repairs == {}
    for name in ("finish_s", "first_token_s", "preemptions", "recomputed_tokens", "max_gap_s"):
        assert np.array_equal(getattr(inside.requests, name), getattr(plain.requests, name)), name
    for name in inside.steps.__dataclass_fields__:
        assert np.array_equal(getattr(inside.steps, name), getattr(plain.steps, name)), name


def test_an_empty_plan_means_first_come_first_served() -> None:
    class Empty(Lazy):
        def decide(self, view: EngineView) -> Plan:
            return Plan()

    workload = random_workload(1, rate=100.0)
    config = EngineConfig(kv_blocks=50)
    left, right = simulate(workload, Empty(), config, PROFILE), simulate(workload, None, config, PROFILE)
    assert np.array_equal(left.requests.finish_s, right.requests.finish_s)
    assert left.repairs == {}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), blocks=st.integers(30, 120), budget=st.integers(8, 300), rate=st.floats(2.0, 300.0),
    shared=st.booleans(),
)  # fmt: skip
def test_jumps_give_what_single_steps_give(seed: int, blocks: int, budget: int, rate: float, shared: bool) -> None:
    workload = random_workload(seed, 30, rate=rate, shared=shared)
    records = []
    for jumps in (True, False):
        config = EngineConfig(kv_blocks=blocks, token_budget=budget, jumps=jumps)
        state = fresh_state(workload, config, PROFILE, 0, steps=True, tokens=True)
        RulePolicy("fcfs", BatchingRule()).advance(state, np.inf)
        records.append((state, record_of(state, workload, "", {}, decisions=0, policy_s=0.0)))
    (a, left), (b, right) = records
    for name in a.req.dtype.names or ():
        if name == "service_s":  # a sum, added up in another order
            assert np.allclose(a.req[name], b.req[name], rtol=1e-12, atol=0)
        elif name != "slot":
            assert np.array_equal(a.req[name], b.req[name], equal_nan=name.endswith("_s")), name
    for name in left.steps.__dataclass_fields__:
        assert np.array_equal(getattr(left.steps, name), getattr(right.steps, name)), name
    assert np.array_equal(left.gap_count, right.gap_count)
    assert left.tokens is not None
    assert right.tokens is not None
    assert np.array_equal(left.tokens.time_s, right.tokens.time_s)
    assert left.busy_s == right.busy_s
    check_ledger(a)


def test_an_interrupted_step_goes_on_where_it_stopped() -> None:
    """A prompt of 1,000 tokens takes 25 ms in 8 pieces; the second request comes at 10 ms: after the fourth piece."""

    class NewestFirst(Lazy):
        def decide(self, view: EngineView) -> Plan:
            waiting, reading = view.waiting.id.tolist(), view.running.id[~view.running.decoding].tolist()
            if waiting or reading:
                return Plan(grants=[((waiting or reading)[0], 8192)], interruptible=True)
            return Plan(grants=[(r, 1) for r in view.running.id.tolist()])

    workload = Workload(
        arrival_s=np.array([0.0, 0.010]), prompt_tokens=np.array([1000, 100]), output_tokens=np.array([1, 1])
    )
    record = simulate(workload, NewestFirst(), EngineConfig(kv_blocks=200), PROFILE)
    long_s = 0.001 + 1000 * 2e-5 + 1000 * 1001 / 2 * 1e-9
    short_s = 0.001 + 0.004 + 100 * 101 / 2 * 1e-9
    stop = 4 * long_s / 8
    assert record.requests.finish_s == pytest.approx([long_s + short_s, stop + short_s], abs=1e-12)
    assert record.requests.computed_tokens.tolist() == [1000, 100]
    assert record.num_steps == 3


def test_swapped_requests_come_back_without_recomputation() -> None:
    class SwapOnce(Lazy):
        def decide(self, view: EngineView) -> Plan:
            if view.step == 3:
                return Plan(preempt=[(0, "swap")], wait_until_s=view.now_s + 0.1, wake_on_arrival=False)
            return Plan()

    workload = Workload(arrival_s=np.zeros(1), prompt_tokens=np.array([40]), output_tokens=np.array([10]))
    config = EngineConfig(kv_blocks=10, host_blocks=10, prefix_caching=False)
    record = simulate(workload, SwapOnce(), config, PROFILE)
    r = record.requests
    assert (r.preemptions[0], r.recomputed_tokens[0], r.computed_tokens[0]) == (1, 0, 49)
    assert r.swap_bytes[0] == 2 * 3 * 16 * 100  # 42 tokens are 3 blocks, out and in


def test_a_shared_prefix_is_computed_once() -> None:
    """Both prompts begin with the same 4 blocks: the second request runs only its other 16 tokens."""
    workload = Workload(
        arrival_s=np.array([0.0, 1.0]), prompt_tokens=np.array([80, 80]), output_tokens=np.array([2, 2]),
        hash_ptr=np.array([0, 5, 10]), hashes=np.array([1, 2, 3, 4, 5, 1, 2, 3, 4, 6]), hash_block=16,
    )  # fmt: skip
    record = simulate(workload, None, EngineConfig(kv_blocks=20), PROFILE)
    assert record.requests.cached_tokens.tolist() == [0, 64]
    assert record.requests.computed_tokens.tolist() == [81, 17]


def test_the_view_does_not_give_away_the_future_or_the_engine() -> None:
    seen: list[EngineView] = []

    class Cheat(Lazy):
        def decide(self, view: EngineView) -> Plan:
            seen.append(view)
            assert view.oracle is None
            assert (view.running.arrival_s <= view.now_s).all()
            assert (view.waiting.arrival_s <= view.now_s).all()
            for table in (view.running, view.waiting):
                for column in table:
                    with pytest.raises(ValueError, match="read-only"):
                        column[:] = 0
                    base: Any = column
                    while base is not None:  # whatever can be reached and made writable is a copy
                        for array in (s for s in engine.state if isinstance(s, np.ndarray)):
                            assert not np.shares_memory(base, array)
                        base = base.base
            return Plan()

    workload = random_workload(2, 10)
    engine = engine_of(workload, EngineConfig(kv_blocks=60), Cheat())
    engine.run()
    assert not any("output" in name for name in seen[0].running._fields)
    # what is shown does not depend on the secret
    columns = ("arrival_s", "prompt_tokens", "max_new_tokens", "ttft_slo_s", "priority", "tenant", "hash_ptr", "hashes")
    other = Workload(
        **{name: getattr(workload, name) for name in columns},
        output_tokens=np.maximum(workload.output_tokens // 2, 1),
    )
    first = seen[0]
    seen.clear()
    engine = engine_of(other, EngineConfig(kv_blocks=60), Cheat())
    engine.step()
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first.waiting, seen[0].waiting, strict=True))


def test_a_faulty_policy_is_named_with_its_step() -> None:
    class Raises(Lazy):
        name = "raises"

        def decide(self, view: EngineView) -> Plan:
            if view.step == 4:
                raise RuntimeError("lost my way")
            return Plan()

    workload = random_workload(0, 5)
    with pytest.raises(InvalidPlanError, match="policy 'raises', step 4 raised RuntimeError: lost my way"):
        simulate(workload, Raises(), EngineConfig(jumps=False), PROFILE)

    class Nonsense(Lazy):
        name = "nonsense"

        def decide(self, view: EngineView) -> Plan:
            return Plan(grants=[(77, 5)])

    with pytest.raises(InvalidPlanError, match="policy 'nonsense', step 0: unknown request: request 77, 5 tokens"):
        simulate(workload, Nonsense(), EngineConfig(), PROFILE, strict=True)
    record = simulate(workload, Nonsense(), EngineConfig(), PROFILE)
    assert (record.requests.status == FINISHED).all()
    assert record.repairs["unknown request"] > 0
