"""Worker processes for runs that wait for nobody; or none, where one process is enough."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait

from dispatchgym.agents.evaluation.pool import available_cores
from dispatchgym.agents.simulation.runs import Run
from dispatchgym.envs.api import UsageError

Submit = Callable[..., Future[Run]]
"""Takes a function and its arguments, as `concurrent.futures.Executor.submit`."""


@contextmanager
def workers(processes: int) -> Iterator[Submit]:
    """What takes work, for as many processes as given; 0 for one a core, 1 for this one alone.

    When the block ends early, the workers are stopped whatever they do.
    """
    processes = processes or available_cores()
    if processes <= 1:
        yield _now
        return
    before = set(multiprocessing.active_children())
    # A forked child would share locks that other threads of this process hold.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield pool.submit
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.kill()  # nobody waits for what it is doing
        if isinstance(error, BrokenProcessPool):
            raise UsageError(
                "a worker process died, perhaps for want of memory; give fewer --processes or --requests"
            ) from error
        raise


def _begin() -> None:
    """A worker's first act: leave Ctrl-C to the parent, and end when it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _now(function: Callable[..., Run], *arguments: object) -> Future[Run]:
    done: Future[Run] = Future()
    done.set_result(function(*arguments))
    return done
