"""What comes out of the executor, judged by transformers, by arithmetic, and by other ways to run the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.executor import Batch, StepResult
from dispatchgym.envs.llm.policy import EngineView, Plan
from dispatchgym.serving.executor import torch_executor
from dispatchgym.serving.executor.sampling_params import Sampling
from tests.serving.executor.engines import Bench, all_of_it, answers, prompts
from tests.serving.executor.models import FAMILIES, VOCABULARY, model, plain_greedy, reference
from tests.serving.executor.pausing import StopAfter

ASKED = [(prompt, count) for prompt, count in zip(prompts(0, 5, 70, 33, 90), (40, 12, 30, 25), strict=True)]


def plain(family: str) -> list[list[int]]:
    return [plain_greedy(family, prompt, count) for prompt, count in ASKED]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_outputs_are_those_of_transformers(family: str) -> None:
    """In a batch of several, prompts in pieces of at most 16 tokens beside decoding requests."""
    assert answers(family, ASKED, token_budget=16) == plain(family)


@pytest.mark.parametrize(
    ("policy", "config"),
    [
        (None, {}),
        (None, {"token_budget": 7}),
        (None, {"kv_blocks": 11}),  # so few blocks that requests are preempted and computed anew
        (None, {"block_tokens": 4, "kv_blocks": 200}),
        (None, {"late": True}),
        (None, {"late": True, "kv_blocks": 11}),
        (all_of_it, {"max_seqs": 1}),
    ],
)
def test_how_a_batch_is_run_changes_nothing(policy: Any, config: dict[str, Any]) -> None:
    assert answers("qwen3", ASKED, policy, **config) == plain("qwen3")


def test_swapped_requests_go_on_where_they_were() -> None:
    """At every step another one goes to the host and comes back into other blocks."""
    swapped = set()

    def decide(view: EngineView) -> Plan:
        table = view.running
        away = [int(r) for r in table.id[table.decoding]][view.step % 3 : view.step % 3 + 1] if view.step % 2 else []
        swapped.update(away)
        rest = [(int(r), int(n)) for r, n in zip(table.id, table.left, strict=True) if int(r) not in away]
        back = [(int(r), int(n)) for r, n in zip(view.waiting.id, view.waiting.left, strict=True)]
        return Plan(grants=rest + back, preempt=[(r, "swap") for r in away])

    for late in (False, True):
        bench = Bench("qwen3", decide, late=late, host_blocks=40)
        requests = [bench.submit(prompt, count) for prompt, count in ASKED]
        bench.run()
        assert [bench.text(r) for r in requests] == plain("qwen3")
        assert len(swapped) > 1
        assert not bench.executor.cache.host_held


def test_a_paused_pass_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused after every segment or two, others decode in between, and one pause is given up for a recompute."""
    monkeypatch.setattr(torch_executor, "Pace", StopAfter)
    StopAfter.segments = 1
    bench = Bench("qwen3", lambda view: Plan())
    pauses = []
    run = bench.executor.run

    def interruptible(batch: Batch, interrupt_s: float) -> StepResult:
        result = run(batch, 1.0 if not batch.decode.any() else np.inf)
        pauses.append(result.segments_done)
        return result

    bench.executor.run = interruptible  # type: ignore[method-assign]
    first = [bench.submit(*ASKED[k]) for k in (0, 1)]

    def decide(view: EngineView) -> Plan:
        table = view.running
        if view.step % 5 == 4 and (table.group >= 0).any():
            return Plan(
                preempt=[(int(table.id[table.group >= 0][0]), "recompute")],
                grants=[(int(r), int(n)) for r, n in zip(table.id, table.left, strict=True)],
            )
        if view.step % 2 and table.decoding.any():
            return Plan(grants=[(int(r), 1) for r in table.id[table.decoding]])
        grants = [(int(r), int(n)) for r, n in zip(table.id, table.left, strict=True) if n > 1]
        grants += [(int(r), int(n)) for r, n in zip(view.waiting.id, view.waiting.left, strict=True)]
        return Plan(grants=grants)

    bench.engine.policy = type(bench.engine.policy)(decide)  # type: ignore[call-arg]
    for _ in range(12):
        bench.engine.step()
    later = [bench.submit(*ASKED[k]) for k in (2, 3)]
    StopAfter.segments = 2
    bench.run()
    assert [bench.text(r) for r in first + later] == plain("qwen3")
    assert {p for p in pauses if p is not None} == {1, 2, 3}


def test_a_paused_prompt_with_logprobs_ends_while_tokens_of_others_are_on_their_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_executor, "Pace", StopAfter)
    StopAfter.segments = 1
    bench = Bench("qwen3", all_of_it, late=True)
    run = bench.executor.run
    bench.executor.run = lambda batch, _: run(batch, np.inf if batch.decode.any() else 1.0)  # type: ignore[method-assign]
    first = bench.submit(*ASKED[0])
    while not bench.engine.state.req["generated"][first]:
        bench.engine.step()
    second = bench.submit(*ASKED[1], logprobs=0)

    def in_turns(view: EngineView) -> Plan:
        table = view.running
        whose = table.decoding if view.step % 2 else ~table.decoding
        waiting = [(int(r), int(n)) for r, n in zip(view.waiting.id, view.waiting.left, strict=True)]
        return Plan(
            grants=waiting or [(int(r), int(n)) for r, n in zip(table.id[whose], table.left[whose], strict=True)]
        )

    bench.engine.policy = type(bench.engine.policy)(in_turns)  # type: ignore[call-arg]
    bench.run()
    assert [bench.text(r) for r in (first, second)] == plain("qwen3")[:2]
    assert len(bench.executor.outputs(second).logprobs) == ASKED[1][1]


def test_a_prefix_found_is_a_prefix_computed() -> None:
    """Requests that share 48 tokens, named by hashes, against the same without hashes."""
    common = prompts(1, 48)[0]
    texts = [np.concatenate([common, tail]) for tail in prompts(2, 9, 20, 1)]
    bench = Bench("llama")
    requests = []
    for k, text in enumerate(texts):
        requests.append(bench.submit(text, 15, hashes=np.array([7, 8, 9] + [100 + k] * (len(text) // 16 - 3))))
        bench.engine.step()
    bench.run()
    assert bench.engine.state.req["cached"][requests].tolist() == [0, 48, 48]
    assert [bench.text(r) for r in requests] == [plain_greedy("llama", text, 15) for text in texts]


def test_where_blocks_lie_changes_nothing() -> None:
    """The same requests after a long run of others that leaves the free blocks in another order."""
    bench = Bench("qwen3", kv_blocks=40)
    for prompt, count in zip(prompts(5, *range(3, 90, 7)), range(30, 4, -2), strict=True):
        bench.submit(prompt, count)
    bench.run()
    requests = [bench.submit(prompt, count) for prompt, count in ASKED]
    bench.run()
    assert [bench.text(r) for r in requests] == plain("qwen3")


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7, "seed": 5}, {"temperature": 1.1, "top_k": 8, "seed": -1}]
)
def test_drafts_change_nothing_but_the_steps(sampling: dict[str, Any]) -> None:
    """Each request verifies drafts of 3 of its own; a text that repeats itself takes fewer steps."""

    def drafting(view: EngineView) -> Plan:
        table = view.running
        grants = [(int(r), 4 if d else int(n)) for r, n, d in zip(table.id, table.left, table.decoding, strict=True)]
        return Plan(grants=grants + [(int(r), int(n)) for r, n in zip(view.waiting.id, view.waiting.left, strict=True)])

    texts = []
    for policy, extra in ((all_of_it, {}), (drafting, {"max_spec": 3}), (drafting, {"max_spec": 3, "late": True})):
        bench = Bench("qwen2", policy, **extra)
        requests = [bench.submit(prompt, count, **sampling) for prompt, count in [*ASKED, (ASKED[0][0], 200)]]
        bench.run()
        texts.append([bench.text(r) for r in requests])
    assert texts[0] == texts[1] == texts[2]
    accepted = int(bench.engine.state.req["accepted"].sum())
    assert accepted > 0
    assert int(bench.engine.state.req["drafted"].sum()) > accepted


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("drafts", [0, 3])
def test_a_stop_token_ends_the_output_and_belongs_to_it(late: bool, drafts: int) -> None:
    prompt = ASKED[0][0]
    whole = plain_greedy("qwen3", prompt, 40)
    stop = next(token for k, token in enumerate(whole) if k >= 7 and token not in whole[:k])
    end = whole.index(stop) + 1

    def decide(view: EngineView) -> Plan:
        tables = (view.running, view.waiting)
        return Plan(
            grants=[
                (int(r), int(n) + drafts * int(d))
                for t in tables
                for r, n, d in zip(t.id, t.left, t.decoding, strict=True)
            ]
        )

    bench = Bench("qwen3", decide, late=late, max_spec=drafts)
    stopped, ignoring = bench.submit(prompt, 40, stop=(stop,)), bench.submit(prompt, 40)
    bench.run()
    assert bench.text(stopped) == whole[:end]
    assert bench.text(ignoring) == whole
    assert int(bench.engine.state.req["generated"][stopped]) == end
    assert bench.engine.state.eng["free"][0] == 64


@pytest.mark.parametrize(("verified", "logprobs"), [(4, -1), (1, 0)])
def test_a_stop_token_that_comes_late_is_the_last_whatever_is_read_at_once(verified: int, logprobs: int) -> None:
    """Every other step is plain and read late; the next verifies drafts, or has a neighbour with log-probabilities."""
    prompt = ASKED[0][0]
    whole = plain_greedy("qwen3", prompt, 40)
    stops = [token for k, token in enumerate(whole) if token not in whole[:k]]

    def decide(view: EngineView) -> Plan:
        if view.waiting.id.size:
            return all_of_it(view)
        odd = view.step % 2
        grants = [(int(r), verified if odd else 1) for r in view.running.id if odd or r != neighbour]
        return Plan(grants=grants or [(neighbour, 1)])

    bench = Bench("qwen3", decide, late=True, max_spec=3)
    neighbour = bench.submit(*ASKED[2], logprobs=logprobs) if logprobs >= 0 else -1
    requests = [bench.submit(prompt, 40, stop=(stop,)) for stop in stops[:6]]
    bench.run()
    assert [bench.text(r) for r in requests] == [whole[: whole.index(stop) + 1] for stop in stops[:6]]
    assert bench.engine.state.req["generated"][requests].tolist() == [whole.index(stop) + 1 for stop in stops[:6]]


def test_the_models_own_end_of_text_can_be_ignored() -> None:
    prompt = ASKED[2][0]
    whole = plain_greedy("llama", prompt, 20)
    bench = Bench("llama")
    loaded = bench.executor.model
    bench.executor.model = replace(loaded, spec=replace(loaded.spec, stop=(whole[4],)))
    first, second = bench.submit(prompt, 20), bench.submit(prompt, 20, ignore_eos=True)
    bench.run()
    assert bench.text(first) == whole[: whole.index(whole[4]) + 1]
    assert bench.text(second) == whole


def test_a_draw_depends_on_nothing_but_its_own_request() -> None:
    prompt = ASKED[1][0]
    alone = Bench("qwen2")
    request = alone.submit(prompt, 30, temperature=0.9, top_p=0.95, seed=11)
    alone.run()
    crowd = Bench("qwen2", token_budget=19, late=True)
    others = [crowd.submit(p, n, temperature=1.3, seed=k) for k, (p, n) in enumerate(ASKED)]
    same = crowd.submit(prompt, 30, temperature=0.9, top_p=0.95, seed=11)
    crowd.run()
    assert crowd.text(same) == alone.text(request)
    assert crowd.text(others[1]) != alone.text(request)[:12]


def test_a_temperature_of_almost_nothing_takes_the_likeliest() -> None:
    bench = Bench("qwen3")
    requests = [bench.submit(*ASKED[0], temperature=t, top_p=p) for t in (1e-5, 1e-38, 1e-42) for p in (1.0, 0.9)]
    bench.run()
    assert [bench.text(r) for r in requests] == 6 * plain("qwen3")[:1]


def test_logprobs_are_those_of_transformers() -> None:
    prompt = ASKED[0][0]
    bench = Bench("llama", late=True)
    request = bench.submit(prompt, 6, logprobs=3, temperature=1.0, seed=2)
    bench.submit(prompt, 9)
    bench.run()
    text = bench.text(request)
    with torch.inference_mode():
        ids = torch.tensor([[*prompt.tolist(), *text]])
        every = reference("llama")(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    found = bench.executor.outputs(request).logprobs
    assert len(found) == 6
    for k, (own, top) in enumerate(found):
        assert own == pytest.approx(float(every[k, text[k]]), abs=1e-4)
        assert [token for token, _ in top] == every[k].topk(3).indices.tolist()
        assert [value for _, value in top] == pytest.approx(every[k].topk(3).values.tolist(), abs=1e-4)


def test_what_cannot_be_is_refused() -> None:
    bench = Bench(max_len=128)
    sampling = Sampling(max_new=100)
    with pytest.raises(UsageError, match=r"request 3: 40 \+ 100 tokens; .* reads up to 128"):
        bench.executor.add(3, prompts(0, 40)[0], sampling)
    with pytest.raises(UsageError, match="token 300 is not in the vocabulary of 300"):
        bench.executor.add(3, np.array([1, VOCABULARY], np.int32), sampling)
    with pytest.raises(UsageError, match="the prompt is empty"):
        bench.executor.add(3, np.zeros(0, np.int32), sampling)
    bench.executor.add(3, prompts(0, 4)[0], sampling)
    with pytest.raises(UsageError, match="request 3 is there already"):
        bench.executor.add(3, prompts(0, 4)[0], sampling)
    with pytest.raises(UsageError, match="request 5 is not known"):
        bench.executor.outputs(5)
    bench.engine.submit(10, 10)
    with pytest.raises(UsageError, match="request 0 is not known to the executor; add it before it is scheduled"):
        bench.engine.step()


def test_a_cache_that_does_not_fit_says_what_to_change() -> None:
    with pytest.raises(UsageError, match=r"do not fit on cpu: lower kv_blocks, or gpu_memory_fraction"):
        torch_executor.TorchExecutor(model("llama"), kv_blocks=2**40, max_seqs=1, max_len=64)
    with pytest.raises(UsageError, match=r"cannot be had: lower host_blocks"):
        torch_executor.TorchExecutor(model("llama"), kv_blocks=4, host_blocks=2**40, max_seqs=1, max_len=64)
