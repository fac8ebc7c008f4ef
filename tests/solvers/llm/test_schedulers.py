"""Schedulers over the view against arithmetic by hand, and all of them on a crowded engine."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchgym.envs.api import UnknownNameError, UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.policy import Pin
from dispatchgym.envs.llm.profile import load_profile, profile_names
from dispatchgym.envs.llm.record import FINISHED
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.andes import Andes
from dispatchgym.solvers.llm.batch_llm import BatchLlm
from dispatchgym.solvers.llm.costs import decode_s, prefill_s, prefills_s
from dispatchgym.solvers.llm.exspec import EqSpec, ExSpec
from dispatchgym.solvers.llm.flow_prefill import FlowPrefill
from dispatchgym.solvers.llm.laps import Laps
from dispatchgym.solvers.llm.least_slack import LeastSlack
from dispatchgym.solvers.llm.lengths import Lengths
from dispatchgym.solvers.llm.ltr import LearningToRank
from dispatchgym.solvers.llm.mc_sf import McSf
from dispatchgym.solvers.llm.mlfq import Mlfq
from dispatchgym.solvers.llm.past_future import PastFuture
from dispatchgym.solvers.llm.peak import peak_tokens
from dispatchgym.solvers.llm.prefix_tree import flatten, prefix_tree
from dispatchgym.solvers.llm.schedulers import SCHEDULERS
from dispatchgym.solvers.llm.sglang import SGLang
from dispatchgym.solvers.llm.srtf import Srtf, Trail
from dispatchgym.solvers.llm.stationary import Stationary
from dispatchgym.solvers.llm.vtc import Vtc
from tests.envs.llm.helpers import PROFILE, random_workload
from tests.solvers.llm.helpers import decoding, ready, view

CROWDED = EngineConfig(kv_blocks=100, max_seqs=16, token_budget=256, max_spec=3, host_blocks=50)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_serves_everyone_on_a_crowded_engine(name: str) -> None:
    workload = random_workload(0, 40, rate=100.0)
    policy = SCHEDULERS[name]()
    assert policy.name == name
    record = simulate(workload, policy, CROWDED, PROFILE, seed=1)
    assert (record.requests.status == FINISHED).all()
    again = simulate(workload, SCHEDULERS[name](), CROWDED, PROFILE, seed=1)
    assert np.array_equal(record.requests.finish_s, again.requests.finish_s)
    # shared prefixes are not given back by preempting one holder: the only thing that plans may get wrong
    assert set(record.repairs) <= {"no free blocks"}
    assert sum(record.repairs.values()) <= 0.02 * record.decisions


def test_an_unknown_scheduler_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sarathi'"):
        SCHEDULERS["sarathy"]


# --- the peak ---


def peak_by_stepping(held: list[int], left: list[int]) -> int:
    """Largest total over the steps of a batch in which everyone puts out a token a step, and then lets go."""
    return max(sum(h + t for h, b in zip(held, left, strict=True) if b >= t) for t in range(max(left) + 1))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=8))
def test_peak_is_what_stepping_gives(batch: list[tuple[int, int]]) -> None:
    held, left = [h for h, _ in batch], [b for _, b in batch]
    assert peak_tokens(np.array(held), np.array(left)) == peak_by_stepping(held, left)


def test_past_future_admits_below_the_predicted_peak() -> None:
    """Every past output was 10 tokens. Two running hold 20 + 5 and 20 + 1, so 5 and 9 are to come; the newcomer brings
    20, and 10 to come. Peak with it: 20 + 10, 41 + 2 * 9, 66 + 3 * 5: 81 tokens."""
    batch = [decoding(20, 5, max_new_tokens=10), decoding(20, 1, max_new_tokens=10)]
    past = {"history": np.full(1000, 10, np.int32), "finished": 1000}
    for blocks, comes in ((6, True), (5, False)):  # 96 and 80 tokens
        policy = ready(PastFuture(reserve=0.0))
        seen = view(batch, [{"prompt_tokens": 20, "max_new_tokens": 10}], kv_blocks=blocks, **past)
        grants = dict(policy.decide(seen).grants)
        assert grants[0] == grants[1] == 1
        # whoever has put out 5 of at most 10 is drawn between: the draw is at most 5, so 81 is an upper bound, and
        # the two waiting tokens of each draw make it at least 20 + 20 + 20 + ... > 80 only for blocks = 5
        assert (100 in grants) == comes or blocks == 5


def test_past_future_draws_from_what_is_longer_than_what_is_out() -> None:
    policy = ready(PastFuture(window=4))
    seen = view([decoding(5, 30, max_new_tokens=50), decoding(5, 45, max_new_tokens=50)])
    past = np.array([10, 20, 40, 44])
    draws = np.array([policy._conditional(past, seen) for _ in range(4000)])
    # out 30: knots 30, 40, 44, 50, evenly chosen intervals of means 35, 42, 47; out 45: between 45 and 50
    assert draws[:, 0].mean() == pytest.approx((35 + 42 + 47) / 3 - 30, abs=0.3)
    assert draws[:, 1].mean() == pytest.approx(2.5, abs=0.1)
    assert draws.min() >= 0
    assert draws[:, 0].max() <= 20


def test_past_future_starts_with_half_a_memory_of_the_longest() -> None:
    policy = ready(PastFuture(window=10))
    seen = view([], [{"max_new_tokens": 77}], history=np.array([3, 1, 2], np.int32), finished=3)
    assert policy._past(seen).tolist() == [1, 2, 3, 77, 77, 77, 77, 77]
    seen = view([], [{"max_new_tokens": 77}], history=np.arange(8, dtype=np.int32), finished=8)
    assert policy._past(seen).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 77, 77]


def test_mc_sf_takes_the_shortest_first_while_the_peak_fits() -> None:
    """Shortest outputs first: 2, 5, 9 for prompts of 16; a request's last block may hold but one token."""
    waiting = [{"prompt_tokens": 16, "max_new_tokens": 50}] * 3
    policy = ready(McSf())
    for blocks, expected in ((3, [101]), (4, [101, 102]), (5, [101, 102]), (6, [101, 102, 100])):
        # Before its last token, 101 alone holds 17 tokens in 2 blocks; with 102 both hold 17 in 4 blocks, then 102
        # holds 20; with 100 all three hold 17 in 6 blocks, then two hold 20 in 4.
        plan = policy.decide(view([], waiting, kv_blocks=blocks, outputs=[9, 2, 5]))
        assert [r for r, _ in plan.grants] == expected


def total_latency(order: tuple[int, ...], prompts: list[int], outputs: list[int], pool: int) -> int:
    """Rounds until each request ends, summed: a fixed order, each let in as soon as the batch can never outgrow the
    pool; a request holds prompt + tokens so far, and puts out one token a round."""
    queue, running, now, total = list(order), {}, 0, 0
    while queue or running:
        while queue:
            held = [prompts[r] + done for r, done in running.items()] + [prompts[queue[0]]]
            left = [outputs[r] - done for r, done in running.items()] + [outputs[queue[0]]]
            if peak_by_stepping(held, left) > pool:
                break
            running[queue.pop(0)] = 0
        now += 1
        for r in list(running):
            running[r] += 1
            if running[r] == outputs[r]:
                total += now
                del running[r]
    return total


def test_shortest_first_is_near_the_best_order() -> None:
    """MC-SF's claim on its synthetic setting: within 1.05 of the best; here the best over all orders of 6 requests."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(10):
        prompts, outputs = rng.integers(1, 6, 6).tolist(), rng.integers(1, 12, 6).tolist()
        best = min(total_latency(order, prompts, outputs, 24) for order in itertools.permutations(range(6)))
        shortest = tuple(np.argsort(outputs, kind="stable").tolist())
        ratios.append(total_latency(shortest, prompts, outputs, 24) / best)
    assert np.mean(ratios) < 1.05


# --- lengths ---


def test_guesses_of_lengths() -> None:
    seen = view([decoding(5, 30, max_new_tokens=100)], [{}, {}], outputs=[40, 10, 90])
    assert [g.tolist() for g in Lengths("oracle").guess(seen)] == [[40], [10, 90]]
    noisy = Lengths("noisy", 0.5)
    noisy.reset(3)
    first = noisy.guess(seen)
    assert [g.tolist() for g in noisy.guess(seen)] == [g.tolist() for g in first]
    ids = np.arange(20_000)
    logs = np.log(noisy._factor(ids))
    assert abs(logs.mean()) < 0.02
    assert logs.std() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(UsageError, match="'orcale' is not one of"):
        Lengths("orcale")  # type: ignore[arg-type]


# --- SGLang ---


def test_sglang_ratio_falls_and_rises() -> None:
    policy = ready(SGLang())
    assert policy.ratio == 0.7
    batch = [decoding(20, 5)]
    for _ in range(300):
        policy.decide(view(batch))
    assert policy.ratio == pytest.approx(0.7 - 300 * (0.7 - 0.098) / 600)
    for _ in range(400):
        policy.decide(view(batch))
    assert policy.ratio == pytest.approx(0.098)
    # 3 decode and fill their blocks, none is free: the fewest outputs go first, until 20 tokens for each are free
    full = [decoding(17, 16), decoding(41, 8), decoding(25, 8)]
    plan = policy.decide(view(full, free_blocks=0, kv_blocks=7))
    assert plan.preempt == [(1, "recompute")]  # 8 outputs like request 2, but the longer prompt; 48 tokens >= 2 * 20
    assert policy.ratio == pytest.approx((16 + 8 + 20 * 2) / (200 + 1))
    assert [r for r, _ in plan.grants] == [0, 2]


def test_sglang_admits_beside_the_expected_rest() -> None:
    """640 tokens are free, 0.7 * 95 expected of the running: 573.5 are left, 100 + 100 each for new ones."""
    waiting = [{"prompt_tokens": 100}] * 4
    plan = ready(SGLang()).decide(view([decoding(20, 5)], waiting, free_blocks=40))
    assert plan.grants == [(100, 100), (101, 100)]  # prompts alone: no decode in this step


def test_sglang_longest_prefix_first() -> None:
    waiting = [{"prompt_tokens": 100}, {"prompt_tokens": 100, "cached_tokens": 64}]
    plan = ready(SGLang("lpm")).decide(view([], waiting, hashes={100: [], 101: []}))
    assert plan.grants == [(101, 36), (100, 100)]


# --- deadlines ---


def test_expected_times() -> None:
    assert prefill_s(PROFILE, 1000, 600) == pytest.approx(
        0.001 + 600 * 2e-5 + 600 * 601 / 2 * 1e-9 + 0.001 + 400 * 2e-5 + (400 * 600 + 400 * 401 / 2) * 1e-9 + 600 * 3e-8
    )
    assert decode_s(PROFILE, 4, 1000) == pytest.approx(0.005 + 1000 * 3e-8)
    tokens = np.random.default_rng(0).integers(0, 5000, 300)
    profiles = [load_profile(name) for name in profile_names()]
    assert {profile.captured is None for profile in profiles} == {True, False}
    for profile in profiles:
        assert prefills_s(profile, tokens, 512).tolist() == [prefill_s(profile, n, 512) for n in tokens.tolist()]


def test_flow_prefill_puts_the_feasible_first() -> None:
    """At 10 s: deadlines 12, 11 and 10.001 s. The last cannot be met: it sinks below, and so does a later hopeless one
    less: among the hopeless the later deadline goes first."""
    waiting = [
        {"arrival_s": 2.0, "ttft_slo_s": 10.0},
        {"arrival_s": 1.0, "ttft_slo_s": 10.0},
        {"arrival_s": 0.001, "ttft_slo_s": 10.0},
        {"arrival_s": 0.0, "ttft_slo_s": 5.0},
    ]
    policy = ready(FlowPrefill())
    _, priority = policy.priorities(view([], waiting, now_s=10.0))
    assert np.argsort(-priority).tolist() == [1, 0, 2, 3]
    assert priority.tolist() == pytest.approx([1 / 12, 1 / 11, -1 / 10.001, -1 / 5])


def test_flow_prefill_batches_while_the_head_keeps_its_slack() -> None:
    """Head: 1,000 tokens, 250 ms bound, 60 ms left: after reading n tokens at 20 us each, 25 ms must be left."""
    head = {"prompt_tokens": 1000, "arrival_s": 9.81, "ttft_slo_s": 0.25}
    others = [{"prompt_tokens": n, "arrival_s": 9.9, "ttft_slo_s": 1.0} for n in (300, 2000, 200, 400)]
    plan = ready(FlowPrefill()).decide(view([decoding(5, 5)], [head, *others], now_s=10.0))
    # 1,300: 27 ms. 3,300: too many. 1,500: 32 ms leaves 28. 1,900: 41 ms leaves 19: stop
    assert [r for r, _ in plan.grants] == [100, 101, 103]
    assert plan.interruptible


def test_flow_prefill_leaves_a_long_prompt_for_an_urgent_short_one() -> None:
    """The long prompt takes about 0.4 s of an 8 s bound; the short one, 1 ms later, has 50 ms: it interrupts."""
    workload = Workload(
        arrival_s=np.array([0.0, 0.001]), prompt_tokens=np.array([8000, 100]), output_tokens=np.array([1, 1]),
        ttft_slo_s=np.array([8.0, 0.05]),
    )  # fmt: skip
    config = EngineConfig(kv_blocks=1000)
    met = simulate(workload, FlowPrefill(), config, PROFILE)
    late = simulate(workload, FlowPrefill(preempt=False), config, PROFILE)
    assert met.ttft_s[1] < 0.05 < late.ttft_s[1]
    assert met.requests.finish_s[0] == pytest.approx(met.busy_s)


def test_least_slack_counts_the_prompt() -> None:
    """Deadlines at 1.0 and 0.9 s; the first needs 0.2 s for its 10,000 tokens, the second 5 ms; the third is lost."""
    waiting = [
        {"prompt_tokens": 8000, "ttft_slo_s": 1.0},
        {"prompt_tokens": 100, "ttft_slo_s": 0.9},
        {"prompt_tokens": 100, "ttft_slo_s": 0.001},
    ]
    plan = ready(LeastSlack()).decide(view([], waiting, token_budget=16_384, kv_blocks=2000))
    assert [r for r, _ in plan.grants] == [100, 101, 102]


def test_laps_lets_short_prompts_gather_for_the_window() -> None:
    policy = ready(Laps(window_s=0.006))
    short = [{"prompt_tokens": 200, "queued_s": 1.0}, {"prompt_tokens": 20, "queued_s": 1.002}]
    plan = policy.decide(view([], short, now_s=1.003))
    assert plan.grants == ()
    assert plan.wait_until_s == pytest.approx(1.006)
    plan = policy.decide(view([], short, now_s=1.006))
    assert sorted(plan.grants) == [(100, 200), (101, 20)]
    assert policy.depth == 2  # a partial batch: its size is the new depth
    plan = policy.decide(view([], short, now_s=1.003))  # two are there: full, after 3 ms
    assert len(plan.grants) == 2
    assert (policy.depth, policy.window_s) == (4, pytest.approx(0.003))


def test_laps_never_mixes_short_and_long() -> None:
    policy = ready(Laps(window_s=0.006))
    both = [{"prompt_tokens": 5000, "queued_s": 1.0}, {"prompt_tokens": 20, "queued_s": 1.0}]
    assert policy.decide(view([decoding(5, 5)], both, now_s=1.001)).grants == [(100, 2048)]
    assert policy.decide(view([decoding(5, 5)], both, now_s=1.007)).grants == [(101, 20)]
    urgent = [{"prompt_tokens": 20, "queued_s": 1.0, "arrival_s": 1.0, "ttft_slo_s": 0.02}]
    assert ready(Laps()).decide(view([], urgent, now_s=1.0)).grants == [(100, 20)]  # 15 ms of slack: at once


def test_laps_keeps_to_one_bucket_where_all_are_padded_to_the_longest() -> None:
    lengths = (20, 200, 30, 17)  # three of up to 32 tokens
    short = [{"prompt_tokens": n, "queued_s": 1.0} for n in lengths]
    assert ready(Laps(one_bucket=True)).decide(view([], short, now_s=2.0)).grants == [(100, 20), (102, 30), (103, 17)]
    assert [r for r, _ in ready(Laps()).decide(view([], short, now_s=2.0)).grants] == [100, 102, 103, 101]


# --- by rank ---


def test_srtf_preempts_for_the_shorter() -> None:
    """8 blocks; one runs with 6 of them and 500 to go; the newcomer needs 4 and 5 tokens: only one can stay."""
    batch = [decoding(80, 10, max_new_tokens=510)]
    new = [{"prompt_tokens": 50, "max_new_tokens": 5}]
    plan = ready(Srtf()).decide(view(batch, new, kv_blocks=8, outputs=[510, 5]))
    assert (plan.preempt, plan.grants) == ([(0, "recompute")], [(100, 50)])
    plan = ready(Srtf()).decide(view(batch, new, kv_blocks=8, outputs=[12, 5]))
    assert (plan.preempt, plan.grants) == ([], [(0, 1)])
    plan = ready(Srtf()).decide(view(batch, new, kv_blocks=20, outputs=[510, 5]))
    assert (plan.preempt, plan.grants) == ([], [(0, 1), (100, 50)])


def test_trail_spares_whoever_is_past_its_share() -> None:
    new = [{"prompt_tokens": 50, "max_new_tokens": 5}]
    for out, preempted in ((79, [(0, "recompute")]), (81, [])):
        batch = [decoding(20, out)]
        plan = ready(Trail(sigma=0.0)).decide(view(batch, new, kv_blocks=8, outputs=[100, 5]))
        assert plan.preempt == preempted


def test_ltr_raises_the_starved() -> None:
    new = [{"prompt_tokens": 50, "arrival_s": 0.0}, {"prompt_tokens": 50, "arrival_s": 11.0}]
    seen = view([], new, kv_blocks=4, now_s=11.5, outputs=[90, 10])
    assert [r for r, _ in ready(LearningToRank(sigma=0.0)).decide(seen).grants] == [100]
    assert [r for r, _ in ready(LearningToRank(sigma=0.0, starved_s=20.0)).decide(seen).grants] == [101]


def test_mlfq_levels() -> None:
    """Reading 16 tokens takes 5 ms: the first queue, whose quantum is 10 ms. 1,000 tokens take 21 ms: the third, 40 ms.
    35 ms of service belong there too; so does, after 5 s of service and 4 s without, who has 1,000 tokens to read."""
    policy = ready(Mlfq())
    rows: list[dict[str, Any]] = [
        {"arrival_s": 9.0, "run_s": 9.0},
        {"prompt_tokens": 1000, "arrival_s": 9.0, "run_s": 9.0},
        {"service_s": 0.035, "arrival_s": 9.0, "run_s": 9.0},
        {"prompt_tokens": 1000, "service_s": 5.0, "arrival_s": 1.0, "run_s": 6.0},
    ]
    seen = view([], rows, now_s=10.0)
    assert policy._level(seen.waiting).tolist() == [0, 2, 2, 9]
    policy.decide(seen)
    assert policy._level(seen.waiting).tolist() == [0, 2, 2, 2]


def test_mlfq_preempts_from_a_lower_queue_only_and_only_what_the_host_can_hold() -> None:
    """A pool of 4 blocks: the running one, in a low queue, fills it. A newcomer takes its place if the host has room,
    and does not if the running one is in its own queue."""
    for service_s, host_free, preempted in ((1.0, 4, [0]), (1.0, 3, []), (0.0, 4, [])):
        running = [decoding(50, 5, service_s=service_s, arrival_s=1.0)]
        plan = ready(Mlfq()).decide(view(running, [{"arrival_s": 0.5}], kv_blocks=4, host_free=host_free, now_s=2.0))
        assert [r for r, _ in plan.preempt] == preempted


def test_andes_serves_whose_reader_misses_most() -> None:
    """Both started at 0 with a token expected every 0.1 s after 1 s. At 5 s, 2 s ahead: 61 are read. The first has 80
    out and can wait; the second has 10."""
    bounds = {"ttft_slo_s": 1.0, "tpot_slo_s": 0.1}
    batch = [decoding(100, 80, **bounds), decoding(100, 10, **bounds)]
    seen = view(batch, now_s=5.0)
    assert Andes().value(seen, seen.running).tolist() == pytest.approx([0.0, 51 / 61 / 110])


# --- fairness, prefixes, speculation ---


def test_vtc_takes_from_the_tenant_with_less_service() -> None:
    policy = ready(Vtc())
    waiting = [{"prompt_tokens": 100, "tenant": 0}] * 2 + [{"prompt_tokens": 30, "tenant": 1}] * 3
    plan = policy.decide(view([], waiting))
    # counters 0, 0 -> 100, 0 -> 100, 30 -> 100, 60 -> 100, 90 -> 200, 90
    assert [r for r, _ in plan.grants] == [100, 102, 103, 104, 101]
    assert policy.counter == {0: 200.0, 1: 90.0}
    batch = [decoding(100, 3, id=100, tenant=0), decoding(30, 2, id=102, tenant=1)]
    policy.decide(view(batch, step=3))  # the others are gone: they put out a token a step, 3 each
    assert policy.counter == {0: 200 + 2 * (3 + 3), 1: 90 + 2 * (2 + 3 + 3)}
    policy.decide(view(batch, [{"tenant": 7}], step=3, free_seqs=0))
    assert policy.counter[7] == 106.0  # lifted to the least of those present


def test_batch_llm_lifts_what_gains() -> None:
    """A = 2 blocks; below it B = 3 blocks with requests 0, 1, 2, and C = 1 block with 3, 4. Lifting B saves
    (3 - 1) * 3 - 2 = 4 > 0; lifting C would save (2 - 1) * 1 - 2 < 0. So groups AB and A."""
    a, b, c = [1, 2], [3, 4, 5], [6]
    texts = {0: (*a, *b, 10), 1: (*a, *b, 11), 2: (*a, *b, 12), 3: (*a, *c, 13), 4: (*a, *c, 14), 5: (99,)}
    groups = {tuple(sorted(r)): text for text, r in flatten(prefix_tree(texts))}
    assert groups == {(0, 1, 2): (1, 2, 3, 4, 5), (3, 4): (1, 2, 6), (5,): (99,)}
    # blocks computed: 5 + 3 and 3 + 2 and 1 instead of 6 * 3 + 4 * 2 + 1
    shared = sum(len(text) * (len(r) - 1) for r, text in groups.items())
    assert shared / sum(len(t) for t in texts.values()) == (5 * 2 + 3 * 1) / 27


def test_batch_llm_orders_groups_by_decode_to_prompt() -> None:
    waiting = [{"prompt_tokens": 64}] * 4
    hashes = {100: [1, 2, 3, 4], 101: [7, 8, 9, 10], 102: [1, 2, 3, 5], 103: [7, 8, 9, 11]}
    policy = ready(BatchLlm("oracle"))
    plan = policy.decide(view([], waiting, outputs=[5, 50, 5, 40], hashes=hashes))
    assert [r for r, _ in plan.grants] == [101, 103, 100, 102]


def test_batch_llm_keeps_a_prefix_when_others_come() -> None:
    """Requests 100 and 101 share 3 blocks; 100 has read them. 102 comes with a text of its own, 103 with theirs."""
    hashes = {100: [1, 2, 3, 4], 101: [1, 2, 3, 5], 102: [7, 8, 9, 6], 103: [1, 2, 3, 8]}
    policy = ready(BatchLlm("oracle"))
    rows = [{"prompt_tokens": 64}] * 4
    policy.decide(view([], rows[:2], outputs=[5, 5], hashes=hashes))
    batch = [decoding(64, 1, id=100)]
    come = [{**row, "id": 101 + k} for k, row in enumerate(rows[1:])]
    full: dict[str, Any] = {"free_seqs": 0, "hashes": hashes}
    assert policy.decide(view(batch, come[:1], outputs=[5, 5], **full)).pins == [Pin(100, 48)]
    assert policy.decide(view(batch, come[:2], outputs=[5, 5, 5], **full)).pins == []
    both = [*batch, decoding(64, 1, id=101)]
    assert policy.decide(view(both, come[1:], outputs=[5, 5, 5, 5], **full)).pins == []
    assert policy.decide(view(both, come[1:2], outputs=[5, 5, 5], **full)).pins == [Pin(100, 0)]


def test_stationary_holds_the_batch_while_nobody_waits() -> None:
    policy = ready(Stationary(stride=4), config=EngineConfig(max_spec=3))
    batch = [decoding(16, 2), decoding(16, 98)]
    plan = policy.decide(view(batch))
    assert plan.grants == [(0, 4), (1, 2)]
    assert plan.hold_steps > 1000
    assert plan.hold_through == {"finish"}
    assert policy.decide(view(batch, [{}], free_seqs=0)).hold_steps == 1


def test_exspec_groups_equal_lengths() -> None:
    batch = [decoding(16, n) for n in (5, 3, 5, 4, 3, 3)]
    config = EngineConfig(max_spec=5)
    policy = ready(ExSpec(batch=3), config=config)
    assert policy.decide(view(batch)).grants == [(1, 6), (4, 6), (5, 6)]
    assert ready(ExSpec(batch=4), config=config).decide(view(batch)).grants == [(0, 6), (1, 6), (2, 6), (3, 6)]
    assert ready(EqSpec(batch=3), config=config).decide(view(batch)).grants == [(0, 6), (1, 6), (2, 6)]
    assert (policy.grouped, policy.fallbacks) == (1, 0)
