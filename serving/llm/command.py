"""`dispatchgym serve llm`: a model behind OpenAI's interface, scheduled by any policy of the gym."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated

import tyro
import uvicorn

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.http_server import KEEP_ALIVE_S, Connection, HttpServer, serve_and_tell, spare_the_collector
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.machine_code import compile_engine
from dispatchgym.serving.llm.options import ServeLlm, check
from dispatchgym.serving.llm.service import opened

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 4096
FAREWELL_S = 2.0
"""Clients have so long to read why their answers are cut short."""


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    options: Annotated[ServeLlm, tyro.conf.FlagCreatePairsOff] = tyro.cli(
        ServeLlm, prog="dispatchgym serve llm", args=list(argv)
    )
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.compile:
        compile_engine()
        return 0
    check(options)
    return asyncio.run(serve(options))


class _Server(HttpServer):
    """Lets nothing new in once it has been told to end; what is under way goes on. Told twice, it ends at once.

    Attributes:
        drain_s: after which it ends all the same.
    """

    frontend: Frontend
    drain_s: float

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.drain_s):
                await super().shutdown(sockets)

    async def let_go(self) -> None:
        """Wait until clients that were still served when the frontend ended have been told so."""
        if self.server_state.tasks:
            log.warning("the server ends with %d requests under way; they are told so", len(self.server_state.tasks))
            await asyncio.wait(self.server_state.tasks, timeout=FAREWELL_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self.frontend.is_draining = True


async def serve(options: ServeLlm) -> int:
    """Serve until told to stop.

    Raises:
        UsageError: the model cannot be loaded, or the port is taken.
    """
    async with opened(options) as service:
        server = _Server(
            uvicorn.Config(
                service.app,
                host=options.host,
                port=options.port,
                loop="asyncio",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                http=Connection,
                timeout_keep_alive=KEEP_ALIVE_S,
                limit_concurrency=MOST_CONNECTIONS,
            )
        )
        server.frontend, server.drain_s = service.frontend, options.drain_s
        watch = asyncio.create_task(_watch(service.frontend, server, service.name))
        await serve_and_tell(server, lambda port: _tell(f"listening at http://{options.host}:{port}"))
        watch.cancel()
    await server.let_go()
    if service.frontend.failed:
        raise UsageError(service.frontend.failed)
    return 0 if server.started else 1


async def _watch(frontend: Frontend, server: HttpServer, name: str) -> None:
    """Say when the engine is ready, and end when it never will be."""
    await frontend.has_settled.wait()
    ready = frontend.ready
    if ready is not None:
        spare_the_collector()
        _tell(
            f"ready: model {name}, {ready.max_len} tokens long, {ready.kv_blocks} KV blocks of {ready.block_tokens} "
            f"tokens; {ready.scheduler} decides"
        )
    await frontend.has_failed.wait()
    server.should_exit = True


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
