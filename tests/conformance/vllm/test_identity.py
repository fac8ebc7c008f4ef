"""Our vllm policy in our engine against vLLM's own scheduler: the same tokens for the same requests at every step."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` runs this")

from dispatchgym.envs.llm.simulate import simulate
from tests.conformance.vllm.cases import EVERY_STEP_1_S, Case, Step, our_steps, random_case
from tests.conformance.vllm.stock import Mended, its_steps, scheduler

SEEDS = range(200)


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_and_victims_are_vllms(seed: int) -> None:
    """Where vLLM would find blocks that were never computed, it is compared without these."""
    case = random_case(seed)
    mended = scheduler(case, Mended)
    theirs = its_steps(case, mended)
    assert our_steps(case) == theirs
    assert jumped(case) == totals(theirs)
    if not mended.mended:
        assert its_steps(case, scheduler(case)) == theirs


def test_the_cases_are_hard() -> None:
    """Of the cases many preempt, hit the cache, run prompts in pieces; few differ from stock vLLM."""
    preempted = pieces = stock = 0
    for seed in SEEDS:
        case = random_case(seed)
        engine = scheduler(case, Mended)
        steps = its_steps(case, engine)
        preempted += any(step.preempted for step in steps)
        pieces += any(1 < n < case.prompt[r] for step in steps for r, n in step.tokens)
        stock += not engine.mended
    assert preempted >= 80
    assert pieces >= 100
    assert stock >= 190


def jumped(case: Case) -> list[tuple[float, int, int]]:
    """The same run with stretches of alike steps jumped over: time, tokens, preemptions of each step."""
    steps = simulate(case.workload(), case.policy(), case.engine(), EVERY_STEP_1_S).steps
    tokens = steps.prefill_tokens + steps.decode_tokens
    return list(zip(steps.start_s.tolist(), tokens.tolist(), steps.preemptions.tolist(), strict=True))


def totals(steps: list[Step]) -> list[tuple[float, int, int]]:
    return [(step.now, sum(n for _, n in step.tokens), len(step.preempted)) for step in steps]
