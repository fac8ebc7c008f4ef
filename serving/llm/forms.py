"""What clients may ask: OpenAI's completions and chat completions, and what a scheduler wants to know beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from dispatchgym.serving.wire import RequestError

MOST_CHOICES = 16
MOST_STOPS = 16
_Milliseconds = Annotated[float, Field(gt=0, le=86_400_000)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Token = Annotated[StrictInt, Field(ge=0, lt=2**31)]


class _Form(BaseModel):
    """Fields that we do not know are refused: better than an answer that silently leaves them out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Form):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class SchedulingFields(_Form):
    """For the scheduler. Each may come as a header instead: X-Priority, X-TTFT-SLO-Ms, ..."""

    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = Field(None, description="smaller goes first")
    ttft_slo_ms: _Milliseconds | None = Field(None, description="bound on the time to the first token")
    tpot_slo_ms: _Milliseconds | None = Field(None, description="bound on the mean time per token after it")
    tenant: _Name | None = Field(None, description="for fairness; a key's own tenant where keys are demanded")
    session_id: _Name | None = Field(None, description="turns of a conversation share it")
    program_id: _Name | None = Field(None, description="calls of an agent program share it")
    deadline_ms: _Milliseconds | None = Field(None, description="cancelled when it takes longer")


class GenerationFields(SchedulingFields):
    """What both kinds of requests have in common."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = Field(None, description="as vLLM; 0 or -1 for all")
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(None, description="as vLLM: go on to max_tokens")
    # asked by clients, and without effect on the answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # only as they are when left out
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        """Strings that end the output."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]


class CompletionRequest(GenerationFields):
    """POST /v1/completions."""

    prompt: (
        StrictStr
        | Annotated[list[StrictStr], Field(min_length=1, max_length=64)]
        | Annotated[list[_Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[_Token], Field(min_length=1)]], Field(min_length=1, max_length=64)]
    )
    max_tokens: Annotated[int, Field(ge=1, lt=2**24)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt, as text or as tokens."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            return [[int(token) for token in given]]
        return list(given)


class TextPart(_Form):
    type: Literal["text"]
    text: str


class ChatMessage(_Form):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: str | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    # null in an answer of ours as OpenAI's client dumps it for the next turn
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates read it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": self.role, "content": text} | ({"name": self.name} if self.name else {})


class ResponseFormat(_Form):
    type: Literal["text"]


class ChatRequest(GenerationFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**24)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**24)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None


class SchedulerChange(_Form):
    """POST /admin/scheduler."""

    scheduler: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        description="a rule's name, with constants behind pluses, or bundle:NAME"
    )


FORMS = (CompletionRequest, ChatRequest, SchedulerChange)

_HEADERS: Mapping[str, str] = {
    "x-priority": "priority",
    "x-ttft-slo-ms": "ttft_slo_ms",
    "x-tpot-slo-ms": "tpot_slo_ms",
    "x-tenant": "tenant",
    "x-session-id": "session_id",
    "x-program-id": "program_id",
    "x-deadline-ms": "deadline_ms",
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request asks of the scheduler, from its body and its headers."""

    priority: int
    ttft_slo_s: float
    tpot_slo_s: float
    tenant: str | None
    session: str | None
    program: str | None
    deadline_s: float | None


def wishes_of(form: SchedulingFields, headers: Mapping[str, str]) -> Wishes:
    """The body's fields, and the headers' where the body has none.

    Raises:
        RequestError: a header that is not what it should be.
    """
    from_headers = {field: headers[name] for name, field in _HEADERS.items() if name in headers}
    try:
        second = SchedulingFields.model_validate(from_headers)
    except ValueError as error:
        wrong = next((name for name, field in _HEADERS.items() if f"\n{field}\n" in f"\n{error}"), "x-...")
        raise RequestError(f"header {wrong}: not a value that the field of that name takes") from None

    def pick(field: str) -> Any:
        own = getattr(form, field)
        return getattr(second, field) if own is None else own

    deadline_ms = pick("deadline_ms")
    return Wishes(
        priority=pick("priority") or 0,
        ttft_slo_s=_seconds(pick("ttft_slo_ms")),
        tpot_slo_s=_seconds(pick("tpot_slo_ms")),
        tenant=pick("tenant"),
        session=pick("session_id"),
        program=pick("program_id"),
        deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
    )


def _seconds(milliseconds: float | None) -> float:
    return float("inf") if milliseconds is None else milliseconds / 1e3
