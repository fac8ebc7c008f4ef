"""Worker processes: they do the work, and their death is told in one line."""

from __future__ import annotations

import os

import pytest

from dispatchgym.agents.simulation.workers import workers
from dispatchgym.envs.api import UsageError


def test_a_worker_that_dies_is_told_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"a worker process died, .* fewer --processes"), workers(2) as submit:
        submit(os._exit, 3).result()


def test_one_process_does_the_work_itself() -> None:
    with workers(1) as submit:
        assert submit(os.getpid).result() == os.getpid()
