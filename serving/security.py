"""Who may ask the server, and how much: bearer token or client certificate, and a limit on the request's size."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dispatchgym.envs.api import UsageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/healthz", "/readyz")
"""Asked by kubelets, which have neither token nor certificate; they tell nothing."""
SHORTEST_TOKEN = 16


class Gate(Protocol):
    """Who may ask a server, and how much.

    Attributes:
        max_bytes: of a request's body.
        body_s: time a client has for sending it.
        wanted: what it wants to be shown.
    """

    @property
    def max_bytes(self) -> int: ...
    @property
    def body_s(self) -> float: ...
    @property
    def wanted(self) -> str: ...

    def allows(self, scope: Scope) -> bool:
        """The request comes from somebody who may ask."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Args:
        token_file: file with the bearer token; read at every request, so that a rotated secret counts at once.
        client_certificates: a verified client certificate will do.
        max_bytes: of a request's body.
        body_s: time a client has for sending it.
    """

    token_file: Path | None = None
    client_certificates: bool = False
    max_bytes: int = 32 * 2**20
    body_s: float = 10.0

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.body_s <= 0:
            raise UsageError(f"limits of {self.max_bytes} bytes and {self.body_s} s must be above 0")
        if self.token_file is not None and self._token() is None:
            raise UsageError(f"{self.token_file}: holds no token of {SHORTEST_TOKEN} characters or more")

    @property
    def wanted(self) -> str:
        """What it wants to be shown."""
        return "a bearer token or a client certificate"

    @property
    def is_open(self) -> bool:
        """Anybody may ask."""
        return self.token_file is None and not self.client_certificates

    def allows(self, scope: Scope) -> bool:
        """The request comes from somebody who may ask."""
        if self.is_open or scope["path"] in OPEN_PATHS:
            return True
        if self.client_certificates and scope.get("state", {}).get("client_is_verified"):
            return True
        token = self._token() if self.token_file is not None else None
        same = hmac.compare_digest(bearer(scope), token or b"")  # takes as long whatever is wrong
        return token is not None and same

    def _token(self) -> bytes | None:
        """The token; None while the file cannot be read or holds none, which refuses everybody."""
        assert self.token_file is not None
        return token_in(self.token_file)


def token_in(path: Path) -> bytes | None:
    """The token that a file holds; None while it cannot be read or its content is too short for one."""
    try:
        token = path.read_bytes().strip()
    except OSError:
        return None
    return token if len(token) >= SHORTEST_TOKEN else None


def bearer(scope: Scope) -> bytes:
    """The bearer token that a request shows, b"" if none."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, secret = given.partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else b""


def _plain_error(status: int, why: str) -> Any:
    return {"error": why}


class Guarded:
    """An application behind a gate: 401, 408 or 413 before it sees the request.

    Args:
        error: status and reason -> what the body of a refusal says.
    """

    def __init__(self, app: App, access: Gate, error: Callable[[int, str], Any] = _plain_error) -> None:
        self._app = app
        self._access = access
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._access.allows(scope):
            await self._refuse(send, 401, f"show {self._access.wanted}")
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or int(value[:20]) > self._access.max_bytes for value in lengths):
            await self._refuse(send, 413, f"a request may have {self._access.max_bytes} bytes")
            return
        if scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout(self._access.body_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    more = message.get("more_body", False) and size <= self._access.max_bytes
        except TimeoutError:
            await self._refuse(send, 408, f"the request took longer than {self._access.body_s:g} s to arrive")
            return
        if size > self._access.max_bytes:
            await self._refuse(send, 413, f"a request may have {self._access.max_bytes} bytes")
            return
        body = b"".join(chunks)
        has_read = False

        async def replay() -> Message:
            nonlocal has_read
            if has_read:
                return await receive()
            has_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _refuse(self, send: Send, status: int, why: str) -> None:
        """Answer and close: what is left of the request's body is not read."""
        body = json.dumps(self._error(status, why)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
