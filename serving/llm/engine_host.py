"""An engine of one's own: in another process, reached through a pipe that two threads keep from blocking the caller."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from dispatchgym.serving.llm.engine_loop import Recipe, engine_main
from dispatchgym.serving.llm.messages import FromEngine, ToEngine

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""For an engine to end by itself once nobody talks to it."""


class EngineHost:
    """Starts an engine, passes messages, and notices when it is gone.

    Args:
        recipe: how to build it.
        deliver: called in a thread of the host with every message, and with None when the engine has ended.
        in_thread: in a thread of this process instead of a process: for tests and notebooks. A thread that hangs
            cannot be ended.
    """

    def __init__(
        self, recipe: Recipe, deliver: Callable[[FromEngine | None], None], *, in_thread: bool = False
    ) -> None:
        own, theirs = multiprocessing.Pipe()
        self._own = own
        self._outbox: queue.SimpleQueue[ToEngine | None] = queue.SimpleQueue()
        self._runner: threading.Thread | BaseProcess
        if in_thread:
            self._runner = threading.Thread(
                target=engine_main, args=(theirs, recipe, False), name="engine", daemon=True
            )
            self._runner.start()
        else:
            context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of ours hold
            self._runner = context.Process(target=engine_main, args=(theirs, recipe, True), name="engine", daemon=True)
            self._runner.start()
            atexit.register(self.kill)  # before multiprocessing waits for it, whatever ends us
            theirs.close()  # or its end would be open here, and its death go unnoticed
        self._sender = threading.Thread(target=self._send_all, name="to the engine", daemon=True)
        self._reader = threading.Thread(target=self._read_all, args=(own, deliver), name="from the engine", daemon=True)
        self._sender.start()
        self._reader.start()

    @property
    def pid(self) -> int | None:
        """Of the engine's process."""
        return self._runner.pid if isinstance(self._runner, BaseProcess) else None

    def send(self, message: ToEngine) -> None:
        """Tell the engine; never waits."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End a process that does not answer; `deliver` hears None."""
        if isinstance(self._runner, BaseProcess):
            self._runner.kill()

    def close(self) -> None:
        """Let the engine end, and wait for it."""
        self._outbox.put(None)
        self._sender.join(PATIENCE_S)
        self._runner.join(PATIENCE_S)
        if self._runner.is_alive() and isinstance(self._runner, BaseProcess):
            log.warning("the engine does not end by itself; it is killed")
            self._runner.kill()
            self._runner.join()
        self._reader.join(PATIENCE_S)
        atexit.unregister(self.kill)

    def _send_all(self) -> None:
        with suppress(OSError):  # it is gone: whoever reads hears of it
            while (message := self._outbox.get()) is not None:
                self._own.send(message)
            # Half-closing: the engine reads its end, the reader goes on until the engine closes its own.
            _shut(self._own)

    def _read_all(self, own: Connection, deliver: Callable[[FromEngine | None], None]) -> None:
        with suppress(EOFError, OSError):
            while True:
                deliver(own.recv())
        deliver(None)
        own.close()


def _shut(connection: Connection) -> None:
    """End the writing half of a duplex pipe, which is a pair of sockets."""
    own = socket.socket(fileno=connection.fileno())
    try:
        own.shutdown(socket.SHUT_WR)
    finally:
        own.detach()
