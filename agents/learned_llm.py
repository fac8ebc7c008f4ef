"""Learned LLM schedulers by name, wherever a scheduler can be named: `bundle:NAME`, `bundle:PATH`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import BUNDLE, Bundle
from dispatchgym.agents.llm_policy import ChoicePolicy
from dispatchgym.agents.numpy_network import NumpyNetwork


class LearnedEngine(ChoicePolicy):
    """A bundle's network as a scheduler; each is fresh, the bundle is read once a process.

    Args:
        called: the bundle's name or path.
        fresh: choices are scored anew after every one of a step.

    Raises:
        UnknownNameError: no such bundle. BundleError: one that cannot be trusted. UsageError: one of another family.
    """

    def __init__(self, called: str, fresh: bool = False) -> None:
        loaded = _loaded_once(bundles.find(called).resolve())
        super().__init__(loaded.runtime, loaded.engine, f"{BUNDLE}{called}", fresh=fresh)


def load_bundle(folder: Path) -> Bundle:
    """A bundle for a `ChoicePolicy`, in the runtime that is fastest there: as one kernel, if its network allows that.

    Raises:
        BundleError: one that cannot be trusted.
    """
    loaded = bundles.load(folder, "numpy")
    if isinstance(loaded.runtime, NumpyNetwork) and loaded.runtime.stacked() is not None:
        return loaded
    return bundles.load(folder, "onnx") if bundles.ONNX in loaded.manifest["files"] else loaded


@lru_cache(maxsize=8)
def _loaded_once(folder: Path) -> Bundle:
    return load_bundle(folder)
