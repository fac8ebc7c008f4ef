"""The Triton kernels without a GPU: interpreted against float32 references, and compiled for Hopper."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.7", reason="older interpreters do not know numpy 2.4")

KERNEL_TESTS = Path(__file__).parent / "gpu" / "test_kernels.py"


def test_interpreted_kernels_agree_with_float32() -> None:
    """In a process of its own: how Triton runs kernels is settled when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", str(KERNEL_TESTS)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
