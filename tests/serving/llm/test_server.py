"""The LLM server over HTTP: OpenAI's interface, asked by OpenAI's own client and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.llm.answers import Answers, Choice
from dispatchgym.serving.llm.forms import CompletionRequest
from dispatchgym.serving.llm.generation import TokenInfo, Usage
from dispatchgym.serving.llm.messages import Submit
from dispatchgym.serving.llm.sequences import Group, Sequence
from dispatchgym.serving.wire import RequestError, read
from tests.serving.llm.live import Live, eventually, language, letters, serving


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def http(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=60) as one:
        yield one


# --- OpenAI's client, unmodified ---


def test_a_completion(client: openai.OpenAI) -> None:
    said = client.completions.create(model="letters", prompt="hello", max_tokens=8)
    assert said.choices[0].text == letters("hello", 8)
    assert said.choices[0].finish_reason == "length"
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens, said.usage.total_tokens) == (5, 8, 13)


def test_several_prompts_and_choices_come_in_order(client: openai.OpenAI) -> None:
    said = client.completions.create(model="letters", prompt=["one", "three"], n=2, max_tokens=4)
    assert [c.index for c in said.choices] == [0, 1, 2, 3]
    assert [c.text for c in said.choices] == [letters("one", 4)] * 2 + [letters("three", 4)] * 2
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (8, 16)


def test_a_prompt_of_tokens_is_the_text_that_they_are(client: openai.OpenAI) -> None:
    said = client.completions.create(model="letters", prompt=[104, 105], max_tokens=5)
    assert said.choices[0].text == letters("hi", 5)


def test_a_streamed_completion_adds_up_to_the_whole_one(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="letters", prompt="stream", max_tokens=9, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [letters("stream", 9)] * 2
    assert reasons == ["length", "length"]
    assert usage is not None
    assert usage.completion_tokens == 18


def test_a_chat_is_put_into_the_models_own_template(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    said = client.chat.completions.create(model="letters", messages=messages, max_completion_tokens=6)
    assert said.choices[0].message.role == "assistant"
    assert said.choices[0].message.content == letters("s:be kind\nu:hi\na:", 6)


def test_a_streamed_chat_begins_with_the_role(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="letters", messages=[{"role": "user", "content": "hi"}], max_tokens=6, stream=True
    )
    chunks = list(stream)
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == letters("u:hi\na:", 6)
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it_wherever_tokens_fall(
    live: Live, client: openai.OpenAI, stream: bool
) -> None:
    whole = letters("stop", 40)
    stop = whole[11:14]  # three tokens
    made: Any = client.completions.create(
        model="letters", prompt="stop", max_tokens=40, stop=["nowhere", stop], stream=stream
    )
    chunks = list(made) if stream else [made]
    assert "".join(c.choices[0].text for c in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert eventually(live.idle)  # the rest is not generated for nobody


def test_logprobs_of_completions_and_chats(client: openai.OpenAI) -> None:
    said = client.completions.create(model="letters", prompt="p", max_tokens=3, logprobs=2)
    found = said.choices[0].logprobs
    assert found is not None
    assert found.tokens == list(letters("p", 3))
    assert found.token_logprobs == [-0.5] * 3
    assert found.top_logprobs == [{"b": -1.0, "c": -2.0}] * 3
    assert found.text_offset == [0, 1, 2]
    chat = client.chat.completions.create(
        model="letters", messages=[{"role": "user", "content": "p"}], max_tokens=2, logprobs=True, top_logprobs=1
    )
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert [(t.token, t.logprob, t.bytes) for t in content] == [(x, -0.5, [ord(x)]) for x in letters("u:p\na:", 2)]
    assert content[0].top_logprobs[0].token == "b"


def test_the_bytes_of_a_piece_of_a_character_are_not_made_up() -> None:
    answers = Answers(language(), "key", 0, "letters", chat=True, wants_logprobs=True)
    choice = Choice("", [TokenInfo(0xE2, -0.5, ()), TokenInfo(97, -0.5, ())], "length")
    told = answers.whole([choice], Usage(1))["choices"][0]["logprobs"]["content"]
    assert [each["bytes"] for each in told] == [None, [97]]


def test_an_answer_as_the_client_dumps_it_is_part_of_the_next_turn(client: openai.OpenAI) -> None:
    ask: Any = {"model": "letters", "max_tokens": 2}
    first: Any = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(messages=first, **ask).choices[0].message
    for turn in (answer, answer.model_dump(), answer.model_dump(exclude_none=True)):
        said = client.chat.completions.create(messages=[*first, turn, *first], **ask)
        assert said.choices[0].message.content == letters(f"u:hi\na:{answer.content}\nu:hi\na:", 2)


def test_models_and_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["letters"]
    assert client.models.retrieve("letters").id == "letters"
    with pytest.raises(openai.NotFoundError, match="serves the model 'letters'"):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError, match="1024 tokens that this model is served with"):
        client.completions.create(model="letters", prompt="x" * 1000, max_tokens=100)
    with pytest.raises(openai.BadRequestError, match="no tools here"):
        client.chat.completions.create(
            model="letters", messages=[{"role": "tool", "content": "5", "tool_call_id": "1"}]
        )


def test_a_repeated_prompt_is_found_in_the_prefix_cache(client: openai.OpenAI) -> None:
    prompt = "the same words again and again, " * 8  # 256 tokens: 16 blocks
    first = client.completions.create(model="letters", prompt=prompt, max_tokens=2)
    second = client.completions.create(model="letters", prompt=prompt, max_tokens=2)
    assert first.choices[0].text == second.choices[0].text
    found = [said.usage.prompt_tokens_details.cached_tokens for said in (first, second)]  # type: ignore[union-attr]
    assert found == [0, 240]  # a prompt's last block is computed anew: its output comes next


def test_the_next_turn_of_a_chat_finds_prompt_and_answer_of_the_last_one(client: openai.OpenAI, live: Live) -> None:
    messages: Any = [{"role": "user", "content": "a question that nobody has asked before"}]
    first = client.chat.completions.create(model="letters", messages=messages, max_tokens=90)
    answer = first.choices[0].message.content
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and now?"}]
    second = client.chat.completions.create(model="letters", messages=messages, max_tokens=5)
    assert first.usage is not None
    assert second.usage is not None
    cached = second.usage.prompt_tokens_details.cached_tokens  # type: ignore[union-attr]
    known = first.usage.prompt_tokens + 90 - 1  # nothing has been computed of the last token
    assert cached == known // 16 * 16 > first.usage.prompt_tokens + 64
    text = f"u:{messages[0]['content']}\na:{answer}\nu:and now?\na:"
    assert second.choices[0].message.content == letters(text, 5)
    assert eventually(live.idle)


def test_scheduling_fields_come_by_body_or_header_and_bound_the_request(
    live: Live, http: httpx.Client, client: openai.OpenAI
) -> None:
    seen = []
    before = live.frontend.submit

    def look(wanted: Any, tenant: str, columns: Any, ttft: float, tpot: float, arrived_s: float) -> Any:
        seen.append((tenant, columns["priority"], columns["session"], columns["program"], ttft, tpot))
        return before(wanted, tenant, columns, ttft, tpot, arrived_s)

    live.frontend.submit = look  # type: ignore[method-assign]
    try:
        body = {"model": "letters", "prompt": "x", "max_tokens": 1}
        fields = {
            "priority": 3,
            "ttft_slo_ms": 250,
            "tpot_slo_ms": 50,
            "tenant": "a",
            "session_id": "s",
            "program_id": "p",
        }
        http.post("/v1/completions", json={**body, **fields}).raise_for_status()
        headers = {
            "X-Priority": "3", "X-TTFT-SLO-Ms": "250", "X-TPOT-SLO-Ms": "50", "X-Tenant": "a", "X-Session-Id": "s",
            "X-Program-Id": "p",
        }  # fmt: skip
        http.post("/v1/completions", json=body, headers=headers).raise_for_status()
        client.completions.create(model="letters", prompt="x", max_tokens=1, extra_body=fields)
        http.post("/v1/completions", json=body).raise_for_status()
    finally:
        del live.frontend.submit  # type: ignore[method-assign]
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][:2] + seen[0][4:] == ("a", 3, 0.25, 0.05)
    assert seen[0][2] != seen[0][3]
    assert seen[3] == ("anybody", 0, -1, -1, float("inf"), float("inf"))


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 17}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 513}, "stop"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [260]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"seed": 2**63}, "seed"),
        ({"ttft_slo_ms": 0}, "ttft_slo_ms"),
        ({"max_tokens": 1000}, "1024"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(http: httpx.Client, change: dict[str, Any], field: str) -> None:
    body = {"model": "letters", "prompt": "x" * 30, **change}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"stop": ["x"] * 17}, "at most 16 items"),
        ({"stop": [5]}, "stop.list[str].0: Input should be a valid string"),
        ({"prompt": ["x"] * 65}, "at most 64 items"),
        ({"prompt": [-1]}, "greater than or equal to 0"),
        ({"prompt": [[]]}, "at least 1 item"),
        ({"prompt": ["a", 1]}, ".1: Input should be a valid string"),
        ({"prompt": 5, "colour": "red"}, "prompt.str: Input should be a valid string"),
    ],
)
def test_a_value_is_refused_for_what_is_wrong_with_the_kind_that_it_is(change: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestError) as error:
        read(CompletionRequest, json.dumps({"model": "letters", "prompt": "x", **change}).encode())
    assert why in str(error.value)


def test_a_header_that_is_no_number_is_refused(http: httpx.Client) -> None:
    body = {"model": "letters", "prompt": "x"}
    answer = http.post("/v1/completions", json=body, headers={"x-priority": "high"})
    assert (answer.status_code, "x-priority" in answer.text) == (400, True)


def test_chat_refuses_tools_and_pictures(http: httpx.Client) -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    for change in ({"messages": picture}, {"tools": tools}, {"response_format": {"type": "json_object"}}):
        body = {"model": "letters", "messages": [{"role": "user", "content": "x"}], **change}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert change.get("messages") is None or "0.type: Input should be 'text'" in answer.text


# --- what it tells of itself ---


def test_metrics_have_vllms_names(live: Live, http: httpx.Client) -> None:
    http.post(
        "/v1/completions", json={"model": "letters", "prompt": "m", "max_tokens": 5, "ttft_slo_ms": 8e7}
    ).raise_for_status()
    text = http.get("/metrics").text
    for name in (
        "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
        "vllm:time_to_first_token_seconds_count", "vllm:inter_token_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_sum", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
        "vllm:num_preemptions_total", "vllm:prefix_cache_hits_total",
    ):  # fmt: skip
        assert f'\n{name}{{model_name="letters"' in text, name
    assert 'vllm:request_success_total{finished_reason="length",model_name="letters"}' in text
    assert 'dispatchgym:slo_requests_total{met="true",model_name="letters"}' in text
    assert 'dispatchgym:scheduler_info{model_name="letters",scheduler="vllm",version=""} 1.0' in text


def test_status_tells_numbers_and_no_text(live: Live, http: httpx.Client) -> None:
    live.gate.is_open.clear()
    with httpx.stream(
        "POST", f"{live.url}/v1/completions", timeout=60,
        json={"model": "letters", "prompt": "secret words", "max_tokens": 3, "stream": True, "tenant": "me",
              "ttft_slo_ms": 500},
    ) as stream:  # fmt: skip
        assert eventually(lambda: len(http.get("/status").json()["sequences"]) == 1)
        said = http.get("/status")
        live.gate.is_open.set()
        stream.read()
    shown = said.json()["sequences"][0]
    assert (shown["tenant"], shown["prompt"], shown["max_new"], shown["ttft_slo_s"]) == ("me", 12, 3, 0.5)
    assert "secret" not in said.text
    assert http.get("/status").json()["attainment_over"] >= 1


def test_probes(http: httpx.Client) -> None:
    assert http.get("/healthz").text == http.get("/readyz").text == "ok"
    assert http.get("/").headers["content-type"].startswith("text/html")
    assert http.get("/nowhere").json()["error"]["type"] == "not_found_error"
    document = http.get("/openapi.json").json()
    form = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"prompt", "ttft_slo_ms", "priority"} <= set(form)
    assert json.dumps(document)


def test_bounds_are_met_by_the_first_tokens_time_and_the_mean_of_those_after_it() -> None:
    submit = Submit(1, np.zeros(3, np.int32), 5, Sampling(5), np.zeros(0, np.int64), b"", {})
    one = Sequence(submit, Group(), 0, "t", ttft_slo_s=1.0, tpot_slo_s=0.5, arrived_s=10.0)
    one.first_s, one.last_s, one.generated = 11.0, 13.0, 5  # four gaps in two seconds
    assert (one.tpot_s, one.in_time) == (0.5, True)
    one.last_s = 13.1
    assert not one.in_time
    one.generated = 1
    assert one.in_time
    one.first_s = 11.1
    assert not one.in_time
