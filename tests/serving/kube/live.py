"""The extender's server in this process, on a real socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from dispatchgym.serving.kube.advisor import PlacementAdvisor
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.decisions import Decisions
from dispatchgym.serving.kube.extender import Extender, ExtenderConfig
from dispatchgym.serving.kube.follow import Follower
from dispatchgym.serving.kube.metrics import ExtenderMetrics
from dispatchgym.serving.kube.one_packet import OnePacketHttp
from dispatchgym.serving.kube.server import build_app
from dispatchgym.serving.security import Access


def eventually(condition: Callable[[], bool], limit_s: float = 120.0) -> bool:
    """True as soon as the condition holds, False if it does not in time."""
    until = time.monotonic() + limit_s
    pause = threading.Event()
    while time.monotonic() < until:
        if condition():
            return True
        pause.wait(0.01)
    return False


@dataclass
class Live:
    extender: Extender
    port: int
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def extender(policy: Any, config: ExtenderConfig | None = None, **more: Any) -> Extender:
    """An extender of an empty cluster."""
    state = ClusterState()
    metrics = ExtenderMetrics(state)
    decisions = Decisions(more.pop("journal", None), metrics.outcome)
    return Extender(PlacementAdvisor(state, policy, budget_s=600.0), decisions, metrics, config, **more)


@contextmanager
def serving(made: Extender, access: Access | None = None, source: Any = None, **options: Any) -> Iterator[Live]:
    """`made` behind HTTP on a free port; with `source`, following that cluster."""
    follower = Follower(source, made) if source is not None else None
    app = build_app(made, access or Access(), follower)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=OnePacketHttp, loop="asyncio", log_config=None, access_log=False, **options
    )
    server = uvicorn.Server(config)
    begun = threading.Event()

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        begun.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert begun.wait(30)
    try:
        yield Live(made, server.servers[0].sockets[0].getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
