"""`compiled`: numba.njit with an on-disk cache that notices a change in *any* kernel file.

Numba invalidates a cached function when its own file changes, but not when a function it calls
in another file does. The cache folder is therefore named after the content of every kernel file of
the same world (job shop, packing, ...); no kernel calls one of another world.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba

config: Any = numba.config

P = ParamSpec("P")
R = TypeVar("R")

_MARKS = (b"@compiled", b"@fused", b"@inlined")


@cache
def _cache_folder(family: str) -> str:
    """A per-user folder for exactly these kernels of one world ("": of all), as ~/.cache/dispatchgym/numba-1f3a"""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(numba.__version__.encode())
    for folder in ("envs", "solvers", "agents"):
        for file in sorted((package / folder / family).rglob("*.py")):
            text = file.read_bytes()
            if any(mark in text for mark in _MARKS):
                digest.update(text)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "dispatchgym" / f"numba-{digest.hexdigest()[:16]}")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile on first call; later processes load the machine code from the cache.

    Kernels allocate nothing: without numba's run-time memory manager they count no references, which
    would cost more than the arithmetic when thirty arrays travel in one tuple. They let other Python
    threads run meanwhile.
    """
    return _cached(function)


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """As `compiled`, for sums whose last bit does not matter: a product and what it is added to are rounded once."""
    return _cached(function, fastmath={"contract"})


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile into the callers: passing a tuple of thirty arrays costs more than most of our functions do."""
    return _njit(function, forceinline=True)


def _cached(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    _, layer, world, *_ = (*function.__module__.split("."), "", "")
    family = world if layer in ("envs", "solvers") else ""
    before, config.CACHE_DIR = config.CACHE_DIR, config.CACHE_DIR or _cache_folder(family)
    try:
        return _njit(function, cache=True, nogil=True, **options)
    finally:
        config.CACHE_DIR = before


def _njit(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    njit: Any = numba.njit
    result: Callable[P, R] = njit(error_model="numpy", _nrt=False, **options)(function)
    return result
