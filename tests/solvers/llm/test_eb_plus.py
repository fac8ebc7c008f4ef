"""EB+'s closed form against arithmetic by hand and against stepping, and its phases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.crossover import Lines, Traffic, lines, most_requests, refill_share, saved_s
from dispatchgym.solvers.llm.eb_plus import EbPlus
from tests.envs.llm.helpers import PROFILE
from tests.solvers.llm.helpers import decoding, ready, view

LINES = Lines(2.0, 0.01, 1.0, 0.1, 1.5, 0.02)
TRAFFIC = Traffic(10, 100.0, 10.0)


def test_seconds_saved_by_hand() -> None:
    """Half of 10 end: a cycle is 2 s + 0.01 * 500 to read, 6.93 decode steps and 0.1 * 5 * 10, for 5 * 110 tokens. A
    mixed step runs 10 * 110 / 11 = 100 tokens in 1.5 + 0.02 * 100 seconds."""
    own = (2 + 0.01 * 500 + 10 * math.log(2) + 0.1 * 5 * 10) / 550
    assert saved_s(LINES, 0.5, TRAFFIC) == pytest.approx(3.5 / 100 - own)
    assert saved_s(LINES, 0.5, TRAFFIC) > 0 > saved_s(replace(LINES, mixed_s=1.4), 0.5, TRAFFIC)


def test_share_by_hand() -> None:
    """At one half the left side is 1 - ln 2; -ln(1 - p) = 0.1 then wants prompt steps of 3.07 decode steps."""
    ends = 1 - math.exp(-0.1)
    line = replace(LINES, prompt_s=(1 - math.log(2)) / 0.1, decode_s=1.0)
    assert refill_share(line, Traffic(10, 100.0, 1 / ends)) == pytest.approx(0.5, abs=1e-6)


def test_share_is_the_best_of_all_cycles() -> None:
    """No other share of 1,000 requests gives more tokens a second, when cycles are added up step by step."""
    traffic, line = Traffic(1000, 100.0, 50.0), Lines(20.0, 0.001, 1.0, 0.0, 0.0, 0.0)

    def tokens_per_s(share: float) -> float:
        left, seconds = 1000.0, line.prompt_s + line.prompt_token_s * 1000 * share * 100
        while left > 1000 * (1 - share):
            left *= 1 - 1 / 50
            seconds += line.decode_s
        return (1000 - left) / seconds

    shares = np.linspace(0.02, 0.98, 97)
    best = shares[np.argmax([tokens_per_s(share) for share in shares])]
    assert refill_share(line, traffic) == pytest.approx(best, abs=0.03)


def test_requests_that_fit_by_hand() -> None:
    """Half of them end between two readings: each holds 100 + 10 * ln 2 on average; ln(1 / 0.01) * 10^2 / 100 spare."""
    spare, each = math.log(100) * 100 / 100, 100 + 10 * math.log(2)
    assert most_requests(0.5, TRAFFIC, 1000, 0.01) == int((1000 - spare) / each) == 9


def test_lines_of_a_profile_by_hand() -> None:
    """200 requests of 100 + 100 tokens: every step reads 198 prompt tokens and decodes 198, each before 150 others.
    8,192 tokens at 20 us: the device reads in proportion. 200 decodes are in the weights' shadow: 4 ms."""
    line = lines(PROFILE, Traffic(200, 100.0, 100.0), 8192)
    assert (line.prompt_s, line.prompt_token_s) == (pytest.approx(0.001), pytest.approx(2e-5 + 1e-9 * 101 / 2))
    assert (line.decode_s, line.decode_token_s) == (pytest.approx(0.005), pytest.approx(150 * 3e-8))
    rest = 0.5 * (1e-9 * 101 / 2 + 150 * 3e-8)
    tokens = 200 * 200 / 101
    assert line.mixed_s + line.mixed_token_s * tokens == pytest.approx(0.001 + 2e-5 * tokens + rest * tokens)


def test_where_prompts_are_rare_most_steps_decode_alone() -> None:
    """20 requests of 400 + 99 tokens: a prompt comes every five steps, and 19.8 decode in each."""
    line = lines(PROFILE, Traffic(20, 400.0, 99.0), 8192)
    attention = 19.8 * 449.5 * 3e-8
    with_prompt = 0.001 + 2e-5 * 419.8 + 1e-9 * 400 * 401 / 2 + attention
    alone = 0.005 + round(20 * 449.5) * 3e-8
    assert line.mixed_s + line.mixed_token_s * 99.8 == pytest.approx(0.2 * with_prompt + 0.8 * alone, rel=1e-3)


def test_prompts_wait_for_a_share_of_places_and_then_come_alone() -> None:
    policy = ready(EbPlus(mode="exclusive"))
    policy.share, policy.most = 0.5, 4
    batch = [decoding(16, 2) for _ in range(3)]
    waiting = [{"prompt_tokens": 20}] * 3
    policy._refilling = False
    plan = policy.decide(view(batch, waiting))  # one place of four: decode on
    assert [r for r, _ in plan.grants] == [0, 1, 2]
    plan = policy.decide(view(batch[:2], waiting))  # two places: read two prompts
    assert plan.grants == [(100, 20), (101, 20)]
    full = [*batch[:2], decoding(20, 1), decoding(20, 1)]
    plan = policy.decide(view(full, waiting[2:]))
    assert [r for r, _ in plan.grants] == [0, 1, 2, 3]


def test_auto_takes_what_is_faster() -> None:
    """Where mixing costs nothing it is faster; where a mixed step takes 20 ms more, steps of their own are."""
    rng = np.random.default_rng(0)
    workload = Workload(
        arrival_s=np.zeros(300), prompt_tokens=rng.integers(50, 150, 300), output_tokens=rng.geometric(0.02, 300),
        max_new_tokens=np.full(300, 2000),
    )  # fmt: skip
    config = EngineConfig(kv_blocks=2000, max_seqs=32, prefix_caching=False)
    for extra, best in ((0.0, "mixed"), (0.02, "exclusive")):
        profile = replace(PROFILE, mixed_s=extra)
        took = {
            mode: simulate(workload, EbPlus(mode=mode), config, profile).end_s  # type: ignore[arg-type]
            for mode in ("mixed", "exclusive", "auto")
        }
        assert min(took, key=took.__getitem__) in (best, "auto")
        assert took["auto"] <= 1.05 * took[best]
        assert took[best] < 0.98 * took["mixed" if best == "exclusive" else "exclusive"]


def test_modes_and_risks_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="mode 'both'"):
        EbPlus(mode="both")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="risk"):
        EbPlus(risk=0.0)
