"""Worker processes: they do the work, and their death is told in one line."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from dispatchgym.agents.simulation.workers import workers
from dispatchgym.envs.api import UsageError


def test_a_worker_that_dies_is_told_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"a worker process died, .* fewer --processes"), workers(2) as submit:
        submit(os._exit, 3).result()


def test_one_process_does_the_work_itself() -> None:
    with workers(1) as submit:
        assert submit(os.getpid).result() == os.getpid()


def interrupted() -> None:
    with workers(2) as submit:
        submit(os.getpid).result()
        submit(time.sleep, 600)
        raise KeyboardInterrupt


def test_an_interrupt_stops_the_workers_whatever_they_do() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for child in multiprocessing.active_children():
        child.join(timeout=60)
    assert not multiprocessing.active_children()
