"""Worker processes for runs that wait for nobody; or none, where one process is enough."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from dispatchgym.agents.evaluation.pool import available_cores
from dispatchgym.agents.simulation.runs import Run
from dispatchgym.envs.api import UsageError

Submit = Callable[..., Future[Run]]
"""Takes a function and its arguments, as `concurrent.futures.Executor.submit`."""


@contextmanager
def workers(processes: int) -> Iterator[Submit]:
    """What takes work, for as many processes as given; 0 for one a core, 1 for this one alone.

    When the block ends early, work that has not begun is dropped.
    """
    processes = processes or available_cores()
    if processes <= 1:
        yield _now
        return
    # A forked child would share locks that other threads of this process hold.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool.submit
    except BrokenProcessPool as error:
        raise UsageError(
            "a worker process died, perhaps for want of memory; give fewer --processes or --requests"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _now(function: Callable[..., Run], *arguments: object) -> Future[Run]:
    done: Future[Run] = Future()
    done.set_result(function(*arguments))
    return done
