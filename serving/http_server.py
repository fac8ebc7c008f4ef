"""uvicorn as our commands run it, and what they have in common."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dispatchgym.envs.api import UsageError

KEEP_ALIVE_S = 75
"""Of connections that nobody uses. Longer than clients keep theirs (httpx 5 s, which is also uvicorn's own; aiohttp
15 s): who sends a request into a connection that the server is just closing never gets an answer."""


HEAD_S = 30
"""A client has so long for the head of a request, and for beginning with its first: who stops there holds one of the
connections that others want."""


class Connection(H11Protocol):
    """A connection that ends where the head of a request does not come; what comes behind the head is `Guarded`'s."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_is_there()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head_is_there()

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class HttpServer(uvicorn.Server):
    """uvicorn that ends without passing the signal on, so that what is open is written down."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def port(self) -> int:
        """The one it listens on; once it has started."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


async def serve_and_tell(server: HttpServer, tell: Callable[[int], None]) -> None:
    """Serve until told to stop; `tell` gets the port as soon as it listens.

    Raises:
        UsageError: it cannot listen there.
    """

    async def announce() -> None:
        while not server.started:
            await asyncio.sleep(0.05)
        tell(server.port)

    told = asyncio.create_task(announce())
    try:
        await server.serve()
    except (SystemExit, OverflowError):  # how uvicorn ends when it is refused the port, having logged why
        where = f"{server.config.host}, port {server.config.port}"
        raise UsageError(f"cannot listen at {where}; give another --port, or 0 for any free one") from None
    finally:
        told.cancel()


def spare_the_collector() -> None:
    """Take what has been loaded so far out of the garbage collector's rounds.

    Compilers and libraries leave about a million objects behind; a full round over them stops the process for a tenth
    of a second and more, in the middle of somebody's request.
    """
    gc.collect()
    gc.freeze()


def is_local(host: str) -> bool:
    """Only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
