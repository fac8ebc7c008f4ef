"""OpenAI's answers, whole and in chunks, and its errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dispatchgym.envs.api import DispatchGymError
from dispatchgym.serving.llm.generation import DeadlineError, Piece, TokenInfo, Usage
from dispatchgym.serving.llm.sequences import BusyError, EngineLostError, UnavailableError
from dispatchgym.serving.llm.texts import REPLACED, Language
from dispatchgym.serving.wire import RequestError, write

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; as OpenAI does."""

_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 408: "timeout_error",
    413: "invalid_request_error", 429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error",
}  # fmt: skip


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """The body of an answer that is a refusal."""
    return {
        "error": {"message": message, "type": _KINDS.get(status, "invalid_request_error"), "param": None, "code": code}
    }


def status_of(error: DispatchGymError) -> tuple[int, str | None]:
    """HTTP status and code of an error."""
    if isinstance(error, RequestError):
        return 400, None
    if isinstance(error, BusyError):
        return 429, "rate_limit_exceeded"
    if isinstance(error, DeadlineError):
        return 408, "deadline_exceeded"
    if isinstance(error, EngineLostError):
        return 503, "engine_lost"
    if isinstance(error, UnavailableError):
        return 503, "unavailable"
    return 500, None


def retry_after(error: DispatchGymError) -> dict[str, str]:
    """The header that says when to come again."""
    if isinstance(error, BusyError):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    return {"retry-after": "1"} if isinstance(error, EngineLostError | UnavailableError) else {}


@dataclass(slots=True)
class Choice:
    """One sequence as it has come so far."""

    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    reason: str = ""

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.reason = piece.reason


class Answers:
    """Makes the answers of one request.

    Args:
        chat: of a chat completion.
        wants_logprobs: show them.
    """

    def __init__(
        self, language: Language, key: str, created: int, model: str, *, chat: bool, wants_logprobs: bool
    ) -> None:
        self._language = language
        self._chat = chat
        self._wants_logprobs = wants_logprobs
        self._offsets: dict[int, int] = {}
        kind = "chat.completion" if chat else "text_completion"
        self._head = {"id": key, "object": kind, "created": created, "model": model}

    def whole(self, choices: Iterable[Choice], usage: Usage) -> dict[str, Any]:
        """The answer at once."""
        return {
            **self._head,
            "choices": [
                {
                    "index": index,
                    **(
                        {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
                        if self._chat
                        else {"text": choice.text}
                    ),
                    "logprobs": self._logprobs(index, choice.tokens),
                    "finish_reason": choice.reason,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage.plain(),
        }

    def opening(self, index: int) -> bytes:
        """The first chunk of a chat's choice, which says who speaks."""
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def chunk(self, piece: Piece) -> bytes:
        """A piece as an event."""
        content = {"delta": {"content": piece.text}} if self._chat else {"text": piece.text}
        return self._chunk(
            [
                {
                    "index": piece.index,
                    **content,
                    "logprobs": self._logprobs(piece.index, piece.tokens),
                    "finish_reason": piece.reason or None,
                }
            ]
        )

    def closing(self, usage: Usage) -> bytes:
        """The chunk with the usage."""
        return self._chunk([], usage)

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        head = dict(self._head)
        if self._chat:
            head["object"] = "chat.completion.chunk"
        said = {**head, "choices": choices} | ({"usage": usage.plain()} if usage is not None else {})
        return event(said)

    def _logprobs(self, index: int, tokens: Iterable[TokenInfo]) -> dict[str, Any] | None:
        tokens = list(tokens)
        if not self._wants_logprobs:
            return None
        if self._chat:
            return {
                "content": [
                    {
                        **self._token(info.token, info.logprob),
                        "top_logprobs": [self._token(token, value) for token, value in info.top],
                    }
                    for info in tokens
                ],
                "refusal": None,
            }
        pieces = [self._language.piece(info.token) for info in tokens]
        offsets = []
        for piece in pieces:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(piece)
        return {
            "tokens": pieces,
            "token_logprobs": [_finite(info.logprob) for info in tokens],
            "top_logprobs": [
                {self._language.piece(token): _finite(value) for token, value in info.top} for info in tokens
            ],
            "text_offset": offsets,
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._language.piece(token)
        bytes_ = None if REPLACED in text else list(text.encode())  # a piece of a character: its bytes are not known
        return {"token": text, "logprob": _finite(logprob), "bytes": bytes_}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB) if logprob == logprob else LEAST_LOGPROB


def event(said: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + write(said) + b"\n\n"
