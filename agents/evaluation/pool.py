"""Worker processes that each hold one item at a time, so that a dead one can be named and replaced.

`concurrent.futures` breaks the whole pool when a process dies and cannot say what it was doing;
an evaluation of hours must lose the one item only.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import cast

from dispatchgym.agents.evaluation.work import Result, WorkItem, execute

# A forked child would share locks that other threads of this process hold.
_SPAWN = multiprocessing.get_context("spawn")


class _Worker:
    """A process, our end of its pipe, and the item it is busy with."""

    def __init__(self) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process: SpawnProcess = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        with _interrupts_ignored():  # Ctrl-C reaches the whole group; only the parent answers it
            self.process.start()
        theirs.close()
        self.item: WorkItem | None = None

    def give(self, item: WorkItem) -> None:
        self.item = item
        with suppress(ConnectionError):  # it died idle: `take` will say so
            self.pipe.send(item)

    def take(self) -> Result:
        """The finished item's result, or the news that the process died over it."""
        assert self.item is not None
        try:
            return cast(Result, self.pipe.recv())
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return Result(self.item.key, "crashed", message=f"the worker process {how} while it ran this item")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_items(items: Iterable[WorkItem], workers: int) -> Generator[tuple[WorkItem, Result]]:
    """Results as they come; with 0 workers in this process, one after the other.

    Leaving the iteration early stops the workers. A worker that dies gives a result with status
    'crashed' and is replaced.
    """
    if workers == 0:
        for item in items:
            yield item, execute(item)
        return
    waiting = list(items)[::-1]
    crew = [_Worker() for _ in range(min(workers, len(waiting)))]
    try:
        for worker in crew:
            worker.give(waiting.pop())
        while busy := [worker for worker in crew if worker.item is not None]:
            ready = wait([worker.pipe for worker in busy])
            for worker in (w for w in busy if w.pipe in ready):
                item = cast(WorkItem, worker.item)
                result = worker.take()
                if not worker.process.is_alive():
                    worker.stop()
                    crew.remove(worker)
                    if waiting:
                        worker = _Worker()
                        crew.append(worker)
                worker.item = None
                if waiting:
                    worker.give(waiting.pop())
                yield item, result
    finally:
        for worker in crew:
            worker.stop()


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(pipe: Connection) -> None:
    """The worker's life: an item in, a result out, until the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        pipe.send(execute(item))


def _end_with_parent() -> None:
    """Leave at once when the parent was killed: a long solve must not go on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Children started inside ignore Ctrl-C; the parent does not, afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
