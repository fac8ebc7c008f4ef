"""What every test may ask for: the public data sets where they are present, and a GPU where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# The same examples on every machine and in every run, and no verdict that depends on how busy the machine is.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def public_data() -> Path:
    """The folder that DISPATCHGYM_DATA names; without it the test is skipped."""
    named = os.environ.get("DISPATCHGYM_DATA")
    if not named:
        pytest.skip("DISPATCHGYM_DATA is not set: the public data sets are not on this machine")
    folder = Path(named)
    assert folder.is_dir(), f"DISPATCHGYM_DATA={named} is not a folder"
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests on a machine without a CUDA device; torch is only imported if there are any."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
