"""HTTP answers that leave in one piece.

uvicorn writes the head of an answer and its body one after the other. Where the kernel gathers small packets (Nagle)
and the client delays its acknowledgement, the second waits for about 40 ms: a scheduler that asks twice a pod then
places a tenth of the pods it could. So what is written in one turn of the event loop is sent at its end, at once, and
the socket is told not to gather.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from dispatchgym.serving.http_server import Connection


class OnePacketTransport:
    """A transport that joins what is written before the event loop goes on; everything else is the inner one's."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._pending: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, data: bytes) -> None:
        if not self._pending:
            self._loop.call_soon(self.flush)
        self._pending.append(data)

    def flush(self) -> None:
        """Send what is pending."""
        if self._pending:
            data, self._pending = b"".join(self._pending), []
            if not self._inner.is_closing():
                self._inner.write(data)

    def close(self) -> None:
        self.flush()
        self._inner.close()


class OnePacketHttp(Connection):
    """uvicorn's HTTP/1.1 with such a transport, which also tells applications whether the client was verified.

    `scope["state"]["client_is_verified"]`: it has shown a certificate of the authority that the server trusts.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        own = transport.get_extra_info("socket")
        if own is not None and own.family in (socket.AF_INET, socket.AF_INET6):
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, "client_is_verified": bool(transport.get_extra_info("peercert"))}
        super().connection_made(cast(asyncio.Transport, OnePacketTransport(transport, self.loop)))
