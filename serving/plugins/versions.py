"""Which versions of other engines the plug-ins are for. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import os

from dispatchgym.envs.api import UsageError

VLLM = ((0, 25), (0, 26))
"""From the first, below the second: its scheduler is no public interface and changes from release to release."""


SGLANG = ((0, 5, 23), (0, 5, 24))
"""The same; what its hooks are around changes from patch to patch."""


def require_vllm(version: str) -> None:
    """Refuse a vLLM whose scheduler this plug-in was not tested against.

    Raises:
        UsageError: another version.
    """
    _require("vLLM", VLLM, version, "leave --scheduler-cls away")


def require_sglang(version: str) -> None:
    """Refuse an SGLang whose queue this plug-in was not tested against.

    Raises:
        UsageError: another version.
    """
    _require("SGLang", SGLANG, version, "unset DISPATCHGYM_POLICY")


def _require(name: str, tested: tuple[tuple[int, ...], tuple[int, ...]], version: str, or_else: str) -> None:
    low, high = tested
    parts = version.split("+")[0].split(".")
    found = tuple(int(p) for p in parts[: len(low)] if p.isdigit())
    if not low <= found < high:
        least, below = (".".join(map(str, each)) for each in tested)
        raise UsageError(
            f"this dispatchgym steers {name} >={least},<{below}; {name} {version} is installed: "
            f"pip install '{name.lower()}>={least},<{below}', or {or_else}"
        )


def check() -> None:
    """vLLM's entry point, called in each of its processes: speaks up early if a policy is asked for and cannot be.

    Raises:
        UsageError: DISPATCHGYM_POLICY is set, and this vLLM is of another version.
    """
    if os.environ.get("DISPATCHGYM_POLICY"):
        require_vllm(importlib.metadata.version("vllm"))
