"""What an engine that fills its own steps is told, against arithmetic by hand. The engine itself: tests/conformance."""

from __future__ import annotations

import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.policy import Plan
from dispatchgym.serving.plugins.steering import steer
from dispatchgym.serving.plugins.versions import require_vllm
from tests.solvers.llm.helpers import decoding, view


def test_decodes_then_a_piece_that_the_budget_cuts() -> None:
    """Two decodes and 30 of a prompt of 100: 32 tokens, of which vLLM gives the prompt what is left."""
    v = view([decoding(20, 3), decoding(40, 2)], [{"prompt_tokens": 100}])
    told = steer(Plan(grants=[(100, 30), (1, 1), (0, 1)]), v)
    assert told.running == (1, 0)
    assert told.waiting == (100,)
    assert (told.budget, told.piece, told.exact) == (32, 0, True)


def test_equal_pieces_are_a_bound_and_unequal_ones_cannot_be() -> None:
    v = view([], [{"prompt_tokens": 100}, {"prompt_tokens": 100}, {"prompt_tokens": 8}])
    told = steer(Plan(grants=[(100, 40), (101, 40), (102, 8)]), v)
    assert (told.budget, told.piece, told.exact) == (88, 40, True)
    assert not steer(Plan(grants=[(100, 40), (101, 50), (102, 8)]), v).exact


def test_a_running_request_without_a_block_preempts_the_plans_victims_first() -> None:
    """Full blocks of 16 and no free one: request 0 takes those of 1, the listed victim, not of 2, the last admitted."""
    full = decoding(17, 16)  # 32 tokens held: the next needs a third block
    v = view([full, full, full], kv_blocks=6)
    told = steer(Plan(grants=[(0, 1), (2, 1)], victims=[1]), v)
    assert told.preempt == (1,)
    assert told.running == (0, 2)
    told = steer(Plan(grants=[(0, 1), (1, 1), (2, 1)]), v)
    assert told.preempt == (2,)
    assert told.running == (0, 1)


def test_a_victim_that_was_granted_gives_its_tokens_back() -> None:
    full = decoding(17, 16)
    told = steer(Plan(grants=[(1, 1), (0, 1)], victims=[1]), view([full, full], kv_blocks=5))
    assert told.preempt == (1,)
    assert told.running == (0,)
    assert told.budget == 1


def test_nonsense_is_left_out() -> None:
    v = view([decoding(20, 3)], [{"prompt_tokens": 10}])
    told = steer(Plan(grants=[(7, 1), (0, -1), (0, 5), (0, 1), (100, 10)], preempt=[(100, "recompute")]), v)
    assert told.running == (0,)
    assert told.waiting == (100,)
    assert told.budget == 11


def test_vllm_versions() -> None:
    require_vllm("0.25.1")
    with pytest.raises(UsageError, match=r"vLLM >=0\.25,<0\.26; vLLM 0\.33\.0 is installed"):
        require_vllm("0.33.0")
