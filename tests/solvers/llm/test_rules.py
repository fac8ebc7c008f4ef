"""Schedulers of the batching family, step by step against arithmetic by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.batching import BatchingRule
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.record import Record
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.aggressive import Aggressive
from dispatchgym.solvers.llm.conservative import Conservative
from dispatchgym.solvers.llm.edf import EarliestDeadline
from dispatchgym.solvers.llm.fcfs_static import FcfsStatic
from dispatchgym.solvers.llm.orca import Orca
from dispatchgym.solvers.llm.sarathi import Sarathi
from dispatchgym.solvers.llm.vllm import Vllm, VllmLeastComputed
from tests.envs.llm.helpers import PROFILE


def at_once(prompts: list[int], outputs: list[int], **columns: Any) -> Workload:
    return Workload(
        arrival_s=np.zeros(len(prompts)), prompt_tokens=np.array(prompts), output_tokens=np.array(outputs), **columns
    )


def run(workload: Workload, policy: Any, **engine: Any) -> Record:
    return simulate(workload, policy, EngineConfig(**{"prefix_caching": False, "jumps": False, **engine}), PROFILE)


def pieces(record: Record) -> list[tuple[int, int]]:
    """Prompt tokens and decode tokens of each step."""
    return list(zip(record.steps.prefill_tokens.tolist(), record.steps.decode_tokens.tolist(), strict=True))


def test_vllm_reads_five_prompts_in_one_step() -> None:
    """As vLLM 0.25.1's own scheduler answered: 100 + 101 + 102 + 103 + 104 tokens within a budget of 512."""
    record = run(at_once([100, 101, 102, 103, 104], [1] * 5), Vllm(), token_budget=512)
    assert pieces(record) == [(510, 0)]


def test_vllm_cuts_the_prompt_at_the_budget_and_serves_the_running_first() -> None:
    """Budget 64: 50 + 14 of the second; then one decode, the other 36 of it, and 27 of the third; and so on."""
    record = run(at_once([50, 50, 50], [3, 2, 1]), Vllm(), token_budget=64)
    assert pieces(record) == [(64, 0), (36 + 27, 1), (23, 2)]


def test_vllm_long_prefill_threshold() -> None:
    record = run(at_once([100, 10], [1, 1]), Vllm(threshold=40), token_budget=64)
    assert pieces(record) == [(50, 0), (40, 0), (20, 0)]


def test_vllm_preempts_the_last_admitted_and_lets_nobody_in_in_that_step() -> None:
    """4 blocks of 16; prompts of 31, 31 and 10: two requests hold 2 blocks each. Their second tokens fill the blocks;
    for the third, the first request needs a block: the second is preempted, and computes its 33 tokens anew."""
    record = run(at_once([31, 31, 10], [4, 4, 1], max_new_tokens=np.array([4, 4, 1])), Vllm(), kv_blocks=4)
    assert record.requests.preemptions.tolist() == [0, 1, 0]
    assert record.requests.recomputed_tokens.tolist() == [0, 32, 0]
    assert record.steps.preemptions.tolist()[2] == 1
    assert pieces(record)[:3] == [(62, 0), (0, 2), (0, 1)]


def test_vllm_full_input_keeps_a_prompt_out_that_cannot_be_held() -> None:
    """5 blocks: the first holds 1 and will want no more; the second needs 5 in all but 4 for its first piece."""
    workload = at_once([10, 70], [3, 1])
    assert pieces(run(workload, Vllm(), kv_blocks=5, token_budget=64))[:2] == [(10, 0), (0, 1)]
    assert pieces(run(workload, Vllm(full_input=False), kv_blocks=5, token_budget=64))[0] == (64, 0)


def test_vllm_watermark_keeps_blocks_free_beside_others() -> None:
    """10 blocks, a fifth kept free: the first may take 9 of them alone, the second waits for it to end."""
    workload = at_once([140, 10], [2, 1])
    assert pieces(run(workload, Vllm(watermark=0.2), kv_blocks=10)) == [(140, 0), (0, 1), (10, 0)]
    assert pieces(run(workload, Vllm(), kv_blocks=10)) == [(150, 0), (0, 1)]


def test_vllm_priority_goes_first() -> None:
    record = run(at_once([64, 64], [1, 1], priority=np.array([5, 1])), Vllm(priority=True), token_budget=64)
    assert np.argsort(record.requests.finish_s).tolist() == [1, 0]


def test_least_computed_victim() -> None:
    """48, 16 and 32 tokens fill 6 of 7 blocks, and each then needs one more. The first has it; the second finds none:
    it has the fewest tokens and gives up its own, where vLLM would take the third's."""
    workload = at_once([48, 16, 32], [3, 3, 3], max_new_tokens=np.array([3, 3, 3]))
    assert run(workload, VllmLeastComputed(), kv_blocks=7).requests.preemptions.tolist() == [0, 1, 0]
    assert run(workload, Vllm(), kv_blocks=7).requests.preemptions.tolist() == [0, 0, 1]


def test_sarathi_fills_up_to_the_chunk_beside_the_decodes() -> None:
    """Chunk 32: the first prompt takes 20, the second 12 and then 31 beside one decode, and so on."""
    record = run(at_once([20, 60], [4, 1]), Sarathi(chunk=32, watermark=0.0))
    assert pieces(record) == [(32, 0), (31, 1), (17, 1), (0, 1)]


def test_sarathi_chunks_shrink_along_the_prompt() -> None:
    """From 64 to 16 in three stages of 64 tokens: 64, then 40 with 64 and with 104 read, then 16s."""
    record = run(at_once([200], [1]), Sarathi(chunk=64, watermark=0.0, last_chunk=16, stages=3, stage_tokens=64))
    assert [n for n, _ in pieces(record)] == [64, 40, 40, 16, 16, 16, 8]
    with pytest.raises(UsageError, match="last_tokens <= step_tokens"):
        Sarathi(chunk=64, stages=3)


def test_orca_runs_prompts_whole() -> None:
    """Budget 64: 50 and then 40 would need 90: the second waits for the next step. Sarathi would have cut it."""
    record = run(at_once([50, 40], [2, 1]), Orca(), token_budget=64)
    assert pieces(record) == [(50, 0), (40, 1)]


def test_orca_never_preempts() -> None:
    record = run(at_once([31, 31], [20, 20]), Orca(), kv_blocks=6)  # 96 tokens; two worst cases are 102
    assert record.requests.preemptions.sum() == 0
    assert record.steps.running.max() == 1
    assert run(at_once([31, 31], [17, 17]), Orca(), kv_blocks=6).steps.running.max() == 2  # exactly 96


def test_a_static_batch_runs_to_its_end() -> None:
    record = run(at_once([10, 10, 10], [1, 3, 1]), FcfsStatic(max_running=2))
    assert pieces(record) == [(20, 0), (0, 1), (0, 1), (10, 0)]


def test_conservative_counts_the_worst_case() -> None:
    """Pool of 160 tokens, limit 0.95: 152. Two requests of 20 + 60 count 160; of 20 + 56, 152."""
    for most, together in ((60, 1), (56, 2)):
        workload = at_once([20, 20], [5, 5], max_new_tokens=np.array([most, most]))
        assert run(workload, Conservative(), kv_blocks=10).steps.running.max() == together
    workload = at_once([20, 20], [5, 5], max_new_tokens=np.array([60, 60]))
    assert run(workload, Conservative(assumed_new=56), kv_blocks=10).steps.running.max() == 2


def test_aggressive_looks_at_what_is_held_now() -> None:
    """Pool of 160 tokens, limit 0.5: a request comes in while less than 80 tokens are known."""
    for prompt, together in ((79, 2), (80, 1)):
        workload = at_once([prompt, 20], [1, 5])
        assert run(workload, Aggressive(limit=0.5), kv_blocks=10).steps.running[0] == together


def test_rounds_of_admission() -> None:
    """The others come in steps 0 and 4; the round after that of step 0 is at step 10."""
    workload = Workload(
        arrival_s=np.array([0.0, 0.001, 0.02]), prompt_tokens=np.array([8, 8, 8]), output_tokens=np.array([20, 20, 1])
    )
    for jumps in (True, False):
        record = run(workload, Aggressive(every=10), jumps=jumps)
        assert np.flatnonzero(record.steps.prefill_tokens).tolist() == [0, 10]
        assert record.steps.prefill_tokens[10] == 16


def test_edf_takes_the_earliest_deadline() -> None:
    slo = np.array([np.inf, 3.0, 2.0, 3.0])
    record = run(at_once([64] * 4, [1] * 4, ttft_slo_s=slo), EarliestDeadline(), token_budget=64)
    assert np.argsort(record.requests.finish_s).tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("wrong", [{"mode": "mixd"}, {"limit": 1.5}, {"piece_tokens": -1}, {"every": 0}])
def test_rules_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        BatchingRule(**wrong)
