"""Policies that a live cluster can ask: rules of solvers/packing by name, and learned bundles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.runtime import Runtime
from dispatchgym.envs.packing.batch import GraphName, PackingBatch
from dispatchgym.envs.packing.shortlist import ShortlistConfig, Shortlists, ShortName
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.packing import kube_scheduler, rules

Scores = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Actions and what each is worth, shape (A,) each; the highest is best."""

PLUG_INS: Mapping[str, kube_scheduler.Settings] = {
    "kube-scheduler": kube_scheduler.Settings(),
    "most-allocated": kube_scheduler.MOST_ALLOCATED,
    "requested-to-capacity": kube_scheduler.REQUESTED_TO_CAPACITY,
}
PLAIN_RULES = (*PLUG_INS, *(name for name in rules.RULES if name not in ("random", "ffd")))
"""Rules that `explain` shows beside a policy."""


class ScoringPolicy(Protocol):
    """What decides about nodes.

    Attributes:
        name: what answers and metrics call it.
        graph: the observation it reads.
        fragments: it needs FGD's fragmentation kept up to date.
    """

    @property
    def name(self) -> str: ...
    @property
    def graph(self) -> GraphName: ...
    @property
    def fragments(self) -> bool: ...

    def scores(self, batch: PackingBatch) -> Scores:
        """What the legal actions of environment 0 are worth; WAIT may be among them."""
        ...


@dataclass(frozen=True, slots=True)
class RulePolicy:
    """A rule of solvers/packing."""

    name: str
    graph: GraphName = "pods"

    @property
    def fragments(self) -> bool:
        return self.name == "fgd"

    def scores(self, batch: PackingBatch) -> Scores:
        if self.name in PLUG_INS:
            return kube_scheduler.scores(batch, 0, PLUG_INS[self.name])
        return rules.scores(self.name, batch)


class NetworkPolicy:
    """A network that scores a shortlist of bindings; scores are its logits, nodes that are not listed have none.

    For one cluster: it keeps the list's arrays.

    Args:
        name: see `ScoringPolicy`.
        runtime: computes the logits.
        config: how choices are listed, as it was trained.
    """

    def __init__(self, name: str, runtime: Runtime, config: ShortlistConfig) -> None:
        self.name = name
        self.runtime = runtime
        self._config = config
        self._short: ShortName = "bindings" if runtime.spec.graph == "bindings" else "repack"
        self._lists: Shortlists | None = None

    @property
    def graph(self) -> GraphName:
        return "gpus" if self._short == "bindings" else "pods"

    @property
    def fragments(self) -> bool:
        return self._config.packing(self._short).mode.fragments

    def scores(self, batch: PackingBatch) -> Scores:
        lists = self._lists
        if lists is None or lists.batch is not batch:
            lists = self._lists = Shortlists(batch, self._short, self._config)
        seen = lists.look()
        return seen.action.astype(np.int64), self.runtime.logits(seen)[0].astype(np.float64)


def load_policy(spec: str) -> ScoringPolicy:
    """`bundle:NAME`, `bundle:PATH`, or the name of a rule.

    Raises:
        UnknownNameError: no such bundle or rule; BundleError: one that cannot be trusted; UsageError: a bundle of
            another world.
    """
    if spec.startswith(bundles.BUNDLE):
        folder = bundles.find(spec.removeprefix(bundles.BUNDLE))
        has_onnx = bundles.ONNX in bundles.manifest_of(folder)["files"]
        loaded = bundles.load(folder, "onnx" if has_onnx else "numpy")
        return NetworkPolicy(spec, loaded.runtime, loaded.choices)
    known = [*PLUG_INS, *rules.RULES]
    if spec not in known:
        raise unknown_name("policy", spec, [*known, *bundles.typed("packing")])
    return RulePolicy(spec)
