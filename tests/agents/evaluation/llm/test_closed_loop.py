"""Clients that wait for their answers, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dispatchgym.agents.evaluation.family import Finished
from dispatchgym.agents.evaluation.llm import evidence_check
from dispatchgym.agents.evaluation.llm.closed_loop import closed_loop
from dispatchgym.agents.evaluation.llm.evidence import write_evidence
from dispatchgym.agents.evaluation.llm.judge import check
from dispatchgym.agents.evaluation.llm.policies import parse_policy
from dispatchgym.agents.evaluation.llm.suites import SUITES
from dispatchgym.agents.evaluation.work import WorkItem, execute
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.record import ABORTED, FINISHED, Record
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.past_future import PastFuture
from dispatchgym.solvers.llm.vllm import Vllm
from tests.envs.llm.helpers import PROFILE

STEP_S = 0.005
"""Of a handful of tokens: the fixed time and the weights'."""


def stream(outputs: list[int], ttft_slo_s: float = np.inf, tpot_slo_s: float = np.inf) -> Workload:
    n = len(outputs)
    return Workload(
        arrival_s=np.zeros(n), prompt_tokens=np.full(n, 10), output_tokens=np.array(outputs),
        max_new_tokens=np.full(n, 30), ttft_slo_s=np.full(n, ttft_slo_s), tpot_slo_s=np.full(n, tpot_slo_s),
    )  # fmt: skip


def loop(workload: Workload, clients: int, until_s: float, policy: object = None, **engine: int) -> Record:
    config = EngineConfig(**{"prefix_caching": False, **engine})  # type: ignore[arg-type]
    return closed_loop(workload, policy or Vllm(), config, PROFILE, 0, clients=clients, until_s=until_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [Vllm, PastFuture])
def test_a_client_asks_again_when_it_has_its_answer(policy: type) -> None:
    """One client; answers of 3, 1 and 2 tokens take 3, 1 and 2 steps of 5 ms. The fourth is under way at 32 ms."""
    record = loop(stream([3, 1, 2, 20, 1]), 1, 0.032, policy())
    sent, ended = record.workload.arrival_s, record.requests.finish_s
    assert sent == pytest.approx([0.0, 3 * STEP_S, 4 * STEP_S, 6 * STEP_S], abs=1e-4)
    assert ended[:3] == pytest.approx(sent[1:])
    assert record.requests.status.tolist() == [FINISHED, FINISHED, FINISHED, ABORTED]
    check(record, EngineConfig())


def test_never_more_in_the_system_than_clients() -> None:
    record = loop(stream([7, 3, 9, 4, 2] * 20), 3, 0.3)
    sent, ended = record.workload.arrival_s, record.requests.finish_s
    assert all(((sent <= t) & (ended > t)).sum() == 3 for t in sent)


def test_who_waits_too_long_is_aborted_and_the_next_is_sent() -> None:
    """One place, two clients, 12 ms to the first token: the second waits for 20 steps of the first, and is given up at
    the end of the third step."""
    record = loop(stream([20, 1, 20, 20, 20], ttft_slo_s=0.012), 2, 0.03, max_seqs=1)
    assert record.requests.status.tolist()[1] == ABORTED
    assert record.requests.finish_s[1] == pytest.approx(3 * STEP_S, abs=1e-4)
    assert record.workload.arrival_s[2] == record.requests.finish_s[1]
    assert record.requests.status[0] == ABORTED  # still there at the end, but in time
    assert record.requests.finish_s[0] == record.end_s


def test_who_is_preempted_for_too_long_is_aborted() -> None:
    """Two prompts of 10 tokens in three blocks of 16: both hold 16 tokens after seven steps, and only one goes on. The
    other would wait for 13 steps: more than 20 ms after its last token it is given up."""
    record = loop(stream([20, 20, 1, 1, 1], tpot_slo_s=0.02), 2, 0.08, kv_blocks=3)
    assert record.requests.status[1] == ABORTED
    assert 0.02 < record.requests.finish_s[1] - 7 * STEP_S < 0.02 + 2 * STEP_S


def test_the_run_ends_with_the_stream() -> None:
    """Six requests of two steps, two at a time: the third pair is under way when there is nobody to follow it."""
    record = loop(stream([2] * 6), 2, 10.0)
    assert len(record.workload) == 6
    assert record.end_s == pytest.approx(6 * STEP_S, abs=1e-3)


def test_evidence_of_clients_and_of_captured_steps_holds(tmp_path: Path) -> None:
    finished: Finished = []
    for name, group, few in (
        ("llm/past-future", "D3 60 clients", {"requests": 30, "until_s": 20.0, "clients": 10}),
        ("llm/laps", "85/s captured", {"requests": 40}),
    ):
        problem = next(each for each in SUITES[name].build() if each.group == group)
        problem = replace(problem, instance=replace(problem.instance, **few))  # type: ignore[arg-type]
        item = WorkItem(problem, parse_policy("laps"), 0)
        finished = [*finished, (item, execute(item))]
    assert [result.message for _, result in finished if result.status != "ok"] == []
    write_evidence(finished, tmp_path)
    assert list(evidence_check.problems_of(tmp_path)) == []
