"""The LLM server over HTTP: OpenAI's interface, asked by OpenAI's own client and by hand."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.serving.llm.live import Live, letters, serving


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_a_completion(client: openai.OpenAI) -> None:
    said = client.completions.create(model="letters", prompt="hello", max_tokens=8)
    assert said.choices[0].text == letters("hello", 8)
    assert said.choices[0].finish_reason == "length"
    assert (said.usage.prompt_tokens, said.usage.completion_tokens, said.usage.total_tokens) == (5, 8, 13)
