"""The HTTP servers' own server: a port that somebody else has, clients that stop in the middle."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvicorn

from dispatchgym.envs.api import UsageError
from dispatchgym.serving import http_server
from dispatchgym.serving.http_server import HttpServer, serve_and_tell


async def app(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nobody asks")


def test_a_port_that_is_taken_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = HttpServer(uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="off", log_level="critical"))
        told: list[int] = []
        with pytest.raises(UsageError, match=f"127.0.0.1, port {port}.*--port"):
            asyncio.run(asyncio.wait_for(serve_and_tell(server, told.append), 20))
        assert told == []


def test_a_connection_without_a_whole_head_ends_and_one_that_waits_for_its_answer_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", 0.05)

    async def run() -> bytes:
        asked, told, listening = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def answer(scope: object, receive: object, send: Callable[[dict[str, object]], Awaitable[None]]) -> None:
            asked.set()
            await told.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

        server = HttpServer(
            uvicorn.Config(
                answer, host="127.0.0.1", port=0, lifespan="off", log_level="critical", http=http_server.Connection
            )
        )
        serving = asyncio.create_task(serve_and_tell(server, lambda _: listening.set()))
        await listening.wait()
        whole = await asyncio.open_connection("127.0.0.1", server.port)
        whole[1].write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await asked.wait()
        for begun in (b"GET / HTTP/1.1\r\nhost:", b""):
            half = await asyncio.open_connection("127.0.0.1", server.port)
            half[1].write(begun)
            assert await half[0].read() == b""
            half[1].close()
        told.set()
        found = await whole[0].readuntil(b"ok")
        whole[1].write(b"GET")  # the next one stops there
        assert await whole[0].read() == b""
        whole[1].close()
        server.should_exit = True
        await serving
        return found

    assert asyncio.run(asyncio.wait_for(run(), 20)).startswith(b"HTTP/1.1 200 OK")
