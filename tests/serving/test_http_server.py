"""The HTTP servers' own server: a port that somebody else has."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn

from dispatchgym.envs.api import UsageError
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
