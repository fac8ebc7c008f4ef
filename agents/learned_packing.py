"""Learned packing policies by name, for evaluations: `bundle:NAME`, `bundle:PATH`, `bundle:NAME@16`, `learned`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import Bundle
from dispatchgym.agents.evaluation.family import Kind
from dispatchgym.agents.evaluation.packing.problem import PackingAnswer, PackingProblem, Run, Start, World
from dispatchgym.agents.runtime import RuntimeName
from dispatchgym.agents.shipped import Shipped, loaded_once, written
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import Shortlists, ShortName

MOST_SAMPLES = 10_000

WORLDS: dict[ShortName, frozenset[World]] = {
    "repack": frozenset(("pods",)),
    "bindings": frozenset(("gpus", "lifetimes")),
}
"""Graph -> worlds that its policies play in."""


@dataclass(frozen=True, slots=True)
class LearnedPacking:
    """A bundle's network, which decides as pods arrive; greedy, or the best of many sampled runs.

    Args:
        called: the bundle's name or path as given.
        folder: where it lies.
        digest: of its manifest: two bundles at one path are two policies.
        graph: what it sees.
        samples: 0 for the greedy run.
        runtime: that computes its logits.
    """

    called: str
    folder: Path
    digest: str
    graph: ShortName
    samples: int = 0
    runtime: RuntimeName = "onnx"

    @property
    def name(self) -> str:
        return f"bundle:{self.called}" + (f"@{self.samples}" if self.samples else "")

    @property
    def kind(self) -> Kind:
        return "search" if self.samples else "learned"

    @property
    def variants(self) -> frozenset[World]:
        return WORLDS[self.graph]

    @property
    def is_random(self) -> bool:
        return self.samples > 0

    def builder(self, variant: World) -> str | None:
        return None

    def versions(self) -> dict[str, str | int]:
        libraries = {name: metadata.version(name) for name in ("numba", "numpy", "onnxruntime")}
        return {**libraries, "bundle": self.digest[:16]}

    def prepare(self, problem: PackingProblem) -> Run:
        loaded = loaded_once(self.folder, self.digest, self.runtime)

        def run(start: Start | None, seed: int) -> PackingAnswer:
            best = play(loaded, problem.instance)
            decisions = int(best.batch.cluster.env["decisions"][0])
            rng = np.random.default_rng(seed)
            for _ in range(self.samples - 1):
                other = play(loaded, problem.instance, rng)
                decisions += int(other.batch.cluster.env["decisions"][0])
                if other.loss[0] < best.loss[0]:
                    best = other
            return PackingAnswer(best.batch.log(0).events(), decisions=decisions)

        return run


def play(loaded: Bundle, instance: PackingInstance, rng: np.random.Generator | None = None) -> Shortlists:
    """The environment, over; by the network's favourites, or by draws from its probabilities."""
    graph = cast(ShortName, loaded.runtime.spec.graph)
    lists = Shortlists.of([instance], graph, loaded.choices)
    lists.begin()
    action = np.empty(1, np.int64)
    while not lists.batch.over[0]:
        seen = lists.observe()
        logits = loaded.runtime.logits(seen)[0]
        if rng is not None:
            logits = logits + rng.gumbel(size=len(logits))
        action[0] = seen.action[logits.argmax()]
        lists.step(action)
    return lists


def parse_bundle(spec: str) -> LearnedPacking:
    """`bundle:NAME` or `bundle:PATH`, greedy; `@16` for the best of 16 runs, all but the first of them sampled.

    Raises:
        UnknownNameError: no such bundle; BundleError: one that cannot be trusted; UsageError: a wrong option, or a
            bundle of another family.
    """
    called, samples = written(spec, spec.partition(":")[2], "packing", MOST_SAMPLES)
    folder = bundles.find(called).resolve()
    loaded = bundles.load(folder, "numpy")
    _ = loaded.choices  # raises for a bundle of another family
    graph = cast(ShortName, loaded.runtime.spec.graph)
    runtime: RuntimeName = "onnx" if bundles.ONNX in loaded.manifest["files"] else "numpy"
    return LearnedPacking(called, folder, loaded.digest, graph, samples, runtime)


def parse_learned(spec: str) -> Shipped[World, PackingProblem, Run]:
    """`learned`: the shipped bundle that was trained for the suite's world, with the options of `bundle:NAME`.

    Raises:
        UsageError: a wrong option, or no bundle is shipped.
    """
    suffix = spec[len("learned") :]
    if suffix and suffix[0] != "@":
        raise UsageError(f"policy {spec!r}: write learned or learned@16, and +repair50ms behind either")
    policies = [parse_bundle(f"bundle:{name}{suffix}") for name in bundles.shipped("packing")]
    if not policies:
        raise UsageError("no bundle for packing comes with this package; write bundle:PATH")
    return Shipped(tuple((world, policy) for policy in policies for world in sorted(policy.variants)), suffix)
