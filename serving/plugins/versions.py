"""Which versions of other engines the plug-ins are for. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import os

from dispatchgym.envs.api import UsageError

VLLM = ((0, 25), (0, 26))
"""From the first, below the second: its scheduler is no public interface and changes from release to release."""


def require_vllm(version: str) -> None:
    """Refuse a vLLM whose scheduler this plug-in was not tested against.

    Raises:
        UsageError: another version.
    """
    parts = version.split("+")[0].split(".")
    found = tuple(int(p) for p in parts[:2] if p.isdigit())
    low, high = VLLM
    if not low <= found < high:
        raise UsageError(
            f"this dispatchgym steers vLLM >={low[0]}.{low[1]},<{high[0]}.{high[1]}; vLLM {version} is installed: "
            f"pip install 'vllm>={low[0]}.{low[1]},<{high[0]}.{high[1]}', or leave --scheduler-cls away"
        )


def check() -> None:
    """vLLM's entry point, called in each of its processes: speaks up early if a policy is asked for and cannot be.

    Raises:
        UsageError: DISPATCHGYM_POLICY is set, and this vLLM is of another version.
    """
    if os.environ.get("DISPATCHGYM_POLICY"):
        require_vllm(importlib.metadata.version("vllm"))
