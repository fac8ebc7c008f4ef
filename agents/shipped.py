"""What learned policies share in evaluations: the bundle read once, how it is written, and `learned` as a name."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import Bundle
from dispatchgym.agents.evaluation.family import Kind
from dispatchgym.agents.runtime import RuntimeName
from dispatchgym.envs.api import UsageError

V = TypeVar("V", bound=Hashable)
V_contra = TypeVar("V_contra", bound=Hashable, contravariant=True)
P = TypeVar("P", bound="Posed")
R = TypeVar("R", covariant=True)
P_contra = TypeVar("P_contra", bound="Posed", contravariant=True)


class Posed(Protocol):
    """A problem of some variant (world, shop)."""

    @property
    def variant(self) -> Hashable: ...


class FromBundle(Protocol[V_contra, P_contra, R]):
    """A policy of one bundle."""

    @property
    def digest(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def is_random(self) -> bool: ...
    def builder(self, variant: V_contra) -> str | None: ...
    def versions(self) -> dict[str, str | int]: ...
    def prepare(self, problem: P_contra) -> R: ...


@dataclass(frozen=True, slots=True)
class Shipped(Generic[V, P, R]):
    """For each variant the shipped bundle that was trained for it.

    Args:
        by_variant: (variant, its policy).
        suffix: what stood behind `learned`.
    """

    by_variant: tuple[tuple[V, FromBundle[V, P, R]], ...]
    suffix: str = ""

    @property
    def name(self) -> str:
        return f"learned{self.suffix}"

    @property
    def kind(self) -> Kind:
        return self.by_variant[0][1].kind

    @property
    def variants(self) -> frozenset[V]:
        return frozenset(variant for variant, _ in self.by_variant)

    @property
    def is_random(self) -> bool:
        return self.by_variant[0][1].is_random

    def builder(self, variant: V) -> str | None:
        return self._of(variant).builder(variant)

    def versions(self) -> dict[str, str | int]:
        found: dict[str, str | int] = {}
        for _, policy in self.by_variant:
            found |= policy.versions()
        return found | {"bundle": " ".join(f"{variant}:{policy.digest[:16]}" for variant, policy in self.by_variant)}

    def prepare(self, problem: P) -> R:
        return self._of(problem.variant).prepare(problem)

    def _of(self, variant: Hashable) -> FromBundle[V, P, R]:
        return next(policy for own, policy in self.by_variant if own == variant)


def written(spec: str, text: str, family: str, most: int) -> tuple[str, int]:
    """(bundle, samples) of `NAME`, `PATH` or either with `@16` behind it; 0 samples for the greedy run.

    Raises:
        UsageError: no bundle is named, or `@` is not followed by a number up to `most`.
    """
    called, _, limit = text.partition("@")
    if not called:
        names = ", ".join(bundles.shipped(family)) or "none"
        raise UsageError(f"policy {spec!r}: write bundle:NAME or bundle:PATH; shipped for {family} are {names}")
    if limit and not (limit.isdigit() and 1 <= int(limit) <= most):
        raise UsageError(f"policy {spec!r}: write a number of runs behind '@', such as @16, up to {most}")
    return called, int(limit or 0)


@lru_cache(maxsize=8)
def loaded_once(folder: Path, digest: str, runtime: RuntimeName) -> Bundle:
    """The bundle, read once a process.

    Raises:
        UsageError: it is not the one of that digest any more.
    """
    loaded = bundles.load(folder, runtime)
    if loaded.digest != digest:
        raise UsageError(f"{folder}: the bundle has changed since the evaluation began")
    return loaded
