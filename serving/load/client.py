"""One request to an OpenAI-compatible server, streamed, with the time of everything that comes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.load.prompts import LETTERS, WORDS, Ruler, ruler_from

PROBES = (24, 96)
"""Pieces of the prompts that a server's way of counting is measured with."""


@dataclass(slots=True)
class Outcome:
    """What became of a request. Times are seconds since the run's start, nan where there are none.

    Attributes:
        due_s: when it was to be sent; sent_s: when it was.
        token_s: when text came, one entry an event.
        status: HTTP status; 0 where the connection failed.
        error: why there is no whole answer; "" if there is.
        prompt_tokens, completion_tokens, cached_tokens: as the server counts; -1 where it does not say.
    """

    due_s: float
    sent_s: float = math.nan
    end_s: float = math.nan
    token_s: list[float] = field(default_factory=list)
    status: int = 0
    error: str = ""
    prompt_tokens: int = -1
    completion_tokens: int = -1
    cached_tokens: int = -1

    @property
    def is_whole(self) -> bool:
        """All of it came."""
        return self.status == 200 and not self.error


def secret_in(path: Path) -> str:
    """The key or token that a file holds.

    Raises:
        UsageError: it cannot be read, or holds something else; nothing of it is quoted.
    """
    try:
        found = secret(path.read_bytes().decode("ascii", "replace"), str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if not found:
        raise UsageError(f"{path}: holds no key or token")
    return found


def secret(text: str, where: str) -> str:
    """A key or token as a header takes it; "" if the text holds none.

    Raises:
        UsageError: it is more than one word, or not of ASCII; nothing of it is quoted.
    """
    words = text.split()
    if len(words) > 1 or not all(word.isascii() and word.isprintable() for word in words):
        raise UsageError(f"{where}: must hold one key or token of ASCII characters, and nothing else")
    return "".join(words)


def reason(error: Exception) -> str:
    """Why a request failed, in the server's own words where it gave some."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}: {error.response.text[:300]}"
    return f"{type(error).__name__}: {error}"


class Target:
    """An OpenAI-compatible server.

    Args:
        url: with or without /v1 at its end.
        model: "" for the first that it lists.
        api_key: shown as a bearer token; "" for none.
        timeout_s: without a byte, after which a request counts as failed.
    """

    def __init__(self, url: str, *, model: str = "", api_key: str = "", timeout_s: float = 600.0) -> None:
        base = url.rstrip("/")
        self.base = base if base.endswith("/v1") else f"{base}/v1"
        self.model = model
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # No bound on connections: one that waits for another request's would come late, and hide it.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.http = httpx.AsyncClient(headers=headers, limits=limits, timeout=httpx.Timeout(timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def find_model(self) -> str:
        """The name to ask for.

        Raises:
            UsageError: the server does not answer as OpenAI's does.
        """
        if not self.model:
            try:
                answer = await self.http.get(f"{self.base}/models")
                answer.raise_for_status()
                self.model = str(answer.json()["data"][0]["id"])
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                raise UsageError(f"{self.base}/models: no list of models: {reason(error)}") from None
        return self.model

    async def measure(self) -> Ruler:
        """How the server counts the tokens of words and of letters; the ruler is of whichever comes closer to one each.

        Raises:
            UsageError: it gives no usage, or refuses.
        """
        rulers = []
        for pieces in (WORDS, LETTERS):
            points = []
            for count in PROBES:
                text = "".join(pieces[k % len(pieces)] for k in range(count))
                points.append((count, await self._count(text)))
            rulers.append(ruler_from(pieces, *points))
        return min(rulers, key=lambda ruler: abs(math.log(max(ruler.per_piece, 1e-3))))

    async def _count(self, text: str) -> int:
        body = {"model": self.model, "prompt": text, "max_tokens": 1, "temperature": 0}
        try:
            answer = await self.http.post(f"{self.base}/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["prompt_tokens"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"{self.base}/completions: how it counts tokens cannot be measured: {reason(error)}; "
                "--prompts ids needs no measuring"
            ) from None

    async def stream(
        self,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        outcome: Outcome,
        now_s: Callable[[], float],
        *,
        chat: bool,
    ) -> None:
        """Send a request and note in `outcome` what comes; failures are noted too."""
        outcome.sent_s = now_s()
        path = "/chat/completions" if chat else "/completions"
        try:
            async with self.http.stream("POST", self.base + path, json=body, headers=dict(headers)) as answer:
                outcome.status = answer.status_code
                if answer.status_code != 200:
                    outcome.error = (await answer.aread()).decode(errors="replace")[:300]
                else:
                    await self._listen(answer, outcome, now_s)
        except httpx.HTTPError as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.end_s = now_s()

    async def _listen(self, answer: httpx.Response, outcome: Outcome, now_s: Callable[[], float]) -> None:
        is_done = False
        async for line in answer.aiter_lines():
            if not line.startswith("data:"):
                continue
            said = line[5:].strip()
            if said == "[DONE]":
                is_done = True
                break
            try:
                event = json.loads(said)
            except ValueError:
                outcome.error = "an event that is no JSON"
                return
            if event.get("error"):
                outcome.error = str(event["error"])[:300]
                return
            if any(has_content(choice) for choice in event.get("choices") or ()):
                outcome.token_s.append(now_s())
            usage = event.get("usage")
            if usage:
                outcome.prompt_tokens = usage.get("prompt_tokens", -1)
                outcome.completion_tokens = usage.get("completion_tokens", -1)
                details = usage.get("prompt_tokens_details") or {}
                outcome.cached_tokens = details.get("cached_tokens") or 0
        if not is_done:
            outcome.error = "the stream ended early"


def has_content(choice: Mapping[str, Any]) -> bool:
    """A choice of an event that brings output, not only a role."""
    if "delta" in choice:
        return bool((choice["delta"] or {}).get("content")) or choice.get("finish_reason") is not None
    return bool(choice.get("text")) or choice.get("finish_reason") is not None
