"""LLMEngine-v0: Gymnasium's checker, the batch against single environments, against simulations, rewards by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dispatchgym.agents.llm_policy import ChoicePolicy
from dispatchgym.envs.api import InvalidActionError, UsageError
from dispatchgym.envs.llm.batch import ChoicesConfig, EngineBatch, Reward, Room, best_listed
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.draws import MIXES, DrawConfig, Serving, draw
from dispatchgym.envs.llm.env import LLMEngineEnv
from dispatchgym.envs.llm.executor import SimulatedExecutor
from dispatchgym.envs.llm.graph import COLUMNS, KINDS, NUM_COLUMNS, RUN
from dispatchgym.envs.llm.metrics import slo_met
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.simulate import record_of, simulate
from dispatchgym.envs.llm.state import State
from dispatchgym.envs.llm.workload import Workload
from tests.envs.llm.helpers import PROFILE, check_ledger

NAME = "dispatchgym/LLMEngine-v0"
TINY = DrawConfig(requests=(8, 20), longest=256)


def problems(count: int, first: int = 0, config: DrawConfig = TINY) -> list[Serving]:
    return [draw(np.random.default_rng(first + k), config) for k in range(count)]


def made(**arguments: Any) -> LLMEngineEnv:
    env = gym.make(NAME, **arguments).unwrapped
    assert isinstance(env, LLMEngineEnv)
    return env


def loaded(servings: list[Serving], **arguments: Any) -> EngineBatch:
    batch = EngineBatch(len(servings), Room.of(servings), **arguments)
    for i, serving in enumerate(servings):
        batch.load(i, serving)
    return batch


class Elsewhere:
    """A backend that simulates, with the profile last named here."""

    profile = PROFILE
    facts: Mapping[str, str] = {}

    def __init__(self, model: str, device: str) -> None:
        assert (model, device) == ("mine", "auto")

    def fit(self, config: EngineConfig, workload: Workload) -> EngineConfig:
        return config

    def executor(self, state: State, workload: Workload) -> SimulatedExecutor:
        return SimulatedExecutor(state, self.profile.segments, self.profile.pause_s)


def test_gymnasium_accepts_the_environment() -> None:
    env = made()

    def sample(mask: Any = None, probability: Any = None) -> np.int64:
        """The checker samples before it resets; ours refuses illegal actions, and the first is always legal."""
        return np.int64(0)

    env.action_space.sample = sample  # type: ignore[method-assign]
    check_env(env, skip_render_check=True)


def test_the_batch_equals_as_many_single_environments() -> None:
    vector = gym.make_vec(NAME, num_envs=3, problem=TINY)
    singles = [made(problem=TINY) for _ in range(3)]
    seen, _ = vector.reset(seed=5)
    own = [env.reset(seed=5 + i)[0] for i, env in enumerate(singles)]
    rng = np.random.default_rng(0)
    ended = np.zeros(3, bool)
    for _ in range(150):
        for i in range(3):
            for name, array in own[i].items():
                assert np.array_equal(array, seen[name][i]), name
            assert singles[i].observation_space.contains(own[i])
        count = np.maximum(seen["action_mask"].sum(axis=1), 1)
        actions = rng.integers(count)
        seen, reward, over, _, _ = vector.step(actions)
        for i, env in enumerate(singles):
            if ended[i]:
                own[i], _ = env.reset()
                assert (reward[i], over[i]) == (0.0, False)
                ended[i] = False
            else:
                own[i], paid, ended[i], _, _ = env.step(actions[i])
                assert (reward[i], over[i]) == (paid, ended[i])


@pytest.mark.parametrize("caching", [True, False])
def test_the_merit_plays_the_environment_as_it_plays_a_simulation(caching: bool) -> None:
    servings = problems(14, 40, DrawConfig(requests=(30, 60), longest=512, load=(1.0, 3.0)))
    batch = loaded(servings)
    batch.begin()
    batch.finish()
    for i, serving in enumerate(servings):
        record = simulate(
            serving.workload, ChoicePolicy(stops=False), serving.engine, serving.profile, strict=not batch.repairs(i)
        )
        assert record.repairs == batch.repairs(i)
        same(record, record_of(batch.state(i), serving.workload, "", {}, decisions=0, policy_s=0.0))
        first, rest = slo_met(record)
        assert int((first & rest).sum()) == batch.met[i]


def same(one: Record, other: Record) -> None:
    for name in ("status", "first_token_s", "finish_s", "generated", "preemptions", "computed_tokens"):
        assert np.array_equal(getattr(one.requests, name), getattr(other.requests, name), equal_nan=True), name


def test_an_executor_of_its_own_runs_the_same_steps() -> None:
    serving = problems(1, 3)[0]
    Elsewhere.profile = serving.profile
    own = made(problem=serving, executor=f"{__name__}:Elsewhere", model="mine")
    other = made(problem=serving, reward=Reward())
    seen, _ = own.reset(seed=0)
    same_seen, _ = other.reset(seed=0)
    rng = np.random.default_rng(1)
    over = False
    while not over:
        for name in seen:  # without holds: a step that only decodes is asked for again sooner, not otherwise
            assert seen[name].shape == same_seen[name].shape
        action = int(rng.integers(seen["action_mask"].sum()))
        seen, _, over, _, info = own.step(action)
    assert info["metrics"]["finished"] == len(serving.workload)
    with pytest.raises(UsageError, match="module:attr"):
        made(executor="nowhere")


@pytest.mark.parametrize("seed", range(4))
def test_random_choices_keep_the_ledger_and_end(seed: int) -> None:
    servings = problems(4, 10 * seed)
    batch = loaded(servings)
    batch.begin()
    rng = np.random.default_rng(seed)
    while not batch.over.all():
        batch.step(rng.integers(np.maximum(batch.count, 1)))
        for i in np.flatnonzero(~batch.over):
            check_ledger(batch.state(i))
    for i, serving in enumerate(servings):
        assert (batch.state(i).req["generated"] == serving.workload.output_tokens).all()


def two_requests(ttft_s: float) -> Serving:
    workload = Workload(
        np.array([0.0, 0.0]), np.array([32, 16]), np.array([1, 1]), ttft_slo_s=np.full(2, ttft_s),
    )  # fmt: skip
    return Serving(workload, EngineConfig(kv_blocks=8, max_seqs=4, token_budget=64, history=256), PROFILE)


def test_rewards_by_hand() -> None:
    """Two requests of 32 and 16 tokens, one after the other: each step takes 1 ms + the larger of 4 ms and 20 us a
    token, and a ns a (query, key) pair."""
    first_s = 0.005 + 1e-9 * (32 * 33 / 2)
    second_s = 0.005 + 1e-9 * (16 * 17 / 2)
    env = made(problem=two_requests(0.006), reward=Reward(credit=1.0, crowd=2.0, recompute=0.0))
    env.reset(seed=0)
    assert [env.meaning(a) for a in range(3)] == [
        "admit request 0 with 32 tokens",
        "admit request 1 with 16 tokens",
        "wait",
    ]
    _, paid, over, _, _ = env.step(0)
    assert (paid, over) == (0.0, False)  # planned, not run
    assert env.meaning(1) == "run"
    _, paid, over, _, info = env.step(1)
    assert not over
    assert paid == pytest.approx(1.0 - 2.0 * 2 * first_s)  # in time and over at once; two were there
    assert info["elapsed_s"] == pytest.approx(first_s)
    _, paid, over, _, info = env.step(0)
    assert over
    assert info["metrics"]["attainment"] == 0.5
    assert paid == pytest.approx(-2.0 * second_s)  # too late by then


def test_no_column_tells_an_output_length() -> None:
    """The same requests with other outputs, which must stay the same until the first of them ends, look the same."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(20, 60, 12)
    seen = []
    for output in (np.full(12, 30), rng.integers(31, 60, 12)):
        workload = Workload(np.linspace(0, 0.05, 12), prompt, output, np.full(12, 64), ttft_slo_s=np.full(12, 0.05))
        batch = loaded([Serving(workload, EngineConfig(kv_blocks=64, max_seqs=12, history=256), PROFILE)])
        batch.begin()
        rows = []
        while batch.turns.state.req["generated"].max() < 30 and not batch.over[0]:
            rows.append(batch.turns.choices.row[0, : batch.count[0]].copy())
            batch.step(best_listed(batch.turns.choices, batch.count))
            if (batch.turns.state.req["generated"] >= 29).any():
                break
        seen.append(rows)
    shortest = min(map(len, seen))
    assert shortest > 5
    assert all(np.array_equal(a, b) for a, b in zip(seen[0][:shortest], seen[1][:shortest], strict=True))


def test_more_requests_than_choices_are_shortlisted() -> None:
    n = 200
    workload = Workload(
        np.zeros(n), np.arange(10, 10 + n), np.full(n, 2), ttft_slo_s=np.linspace(0.02, 2.0, n)[::-1].copy()
    )
    batch = loaded(
        [Serving(workload, EngineConfig(kv_blocks=4000, history=256), PROFILE)], config=ChoicesConfig(most=32)
    )
    batch.begin()
    assert batch.count[0] == 27  # 30 requests at most, of which 4 places are kept for those who run; and WAIT
    who = batch.turns.choices.who[0, :26]
    assert {0, n - 1} <= set(who.tolist())  # the queue's head, which is the shortest, and the most urgent
    merit = batch.turns.choices.row[0, :27, COLUMNS["merit"]]
    assert np.isfinite(merit).all()
    assert len(set(merit.tolist())) > 10


def test_every_mix_is_drawn_and_fits_the_room() -> None:
    for name in MIXES:
        for seed in range(10):
            serving = draw(np.random.default_rng(seed), DrawConfig(requests=(5, 60), longest=512, mixes=(name,)))
            made(problem=DrawConfig(requests=(5, 60), longest=512)).reset(options={"problem": serving})
            longest = serving.workload.prompt_tokens + serving.workload.max_new_tokens
            assert longest.max() <= serving.engine.kv_blocks * serving.engine.block_tokens


def test_errors_name_the_way_out() -> None:
    env = made(problem=TINY)
    with pytest.raises(InvalidActionError, match="reset"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match="legal are 0 to"):
        env.step(63)
    with pytest.raises(UsageError, match="problem"):
        env.reset(options={"instance": 1})
    with pytest.raises(UsageError, match="go with executor='torch'"):
        made(problem=TINY, model="random:1b")
    with pytest.raises(UsageError, match="table of"):
        EngineBatch(1, Room.of(problems(1)), ChoicesConfig(merit=((1.0,),)))
    small = EngineBatch(1, Room.of(problems(1)))
    with pytest.raises(UsageError, match="room"):
        small.load(0, draw(np.random.default_rng(0), DrawConfig(requests=(60, 60), longest=512)))
    assert KINDS[RUN] == "run"
    assert NUM_COLUMNS == 52
