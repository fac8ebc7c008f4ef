"""Learned LLM schedulers by name, wherever a scheduler can be named: `bundle:NAME`, `bundle:PATH`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import Bundle
from dispatchgym.agents.llm_policy import ChoicePolicy
from dispatchgym.agents.runtime import RuntimeName

BUNDLE = "bundle:"


class LearnedEngine(ChoicePolicy):
    """A bundle's network as a scheduler; each is fresh, the bundle is read once a process.

    Args:
        called: the bundle's name or path.
        fresh: choices are scored anew after every one of a step.

    Raises:
        UnknownNameError: no such bundle. BundleError: one that cannot be trusted. UsageError: one of another family.
    """

    def __init__(self, called: str, fresh: bool = False) -> None:
        loaded = _loaded(bundles.find(called).resolve())
        super().__init__(loaded.runtime, loaded.engine, f"{BUNDLE}{called}", fresh=fresh)


@lru_cache(maxsize=8)
def _loaded(folder: Path) -> Bundle:
    runtime: RuntimeName = "onnx" if bundles.ONNX in bundles.manifest_of(folder)["files"] else "numpy"
    return bundles.load(folder, runtime)
