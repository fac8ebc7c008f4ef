"""Learned policies by name, for evaluations: `bundle:NAME`, `bundle:PATH`, `bundle:NAME@128`, `learned`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dispatchgym.agents import bundle as bundles
from dispatchgym.agents.bundle import Bundle
from dispatchgym.agents.evaluation.family import Kind
from dispatchgym.agents.evaluation.policies import Answer, Run, number
from dispatchgym.agents.evaluation.problem import Problem
from dispatchgym.agents.greedy_run import play_greedily
from dispatchgym.agents.lookahead import DEFAULT_WEIGHT, require_columns
from dispatchgym.agents.runtime import RuntimeName
from dispatchgym.agents.shipped import Shipped, loaded_once, written
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.jobshop.batch import ShopConfig
from dispatchgym.envs.jobshop.graph import PILOT
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Variant

SAMPLES_AT_ONCE = 128
"""Runs that share one batch."""

MOST_SAMPLES = 100_000


@dataclass(frozen=True, slots=True)
class LearnedPolicy:
    """A bundle's network, greedy or the best of many sampled runs.

    Best-of-many is not for the interrupting shop: keeping the best run there means having seen the shutdowns.

    Args:
        called: the bundle's name or path as given.
        folder: where it lies.
        digest: of its manifest: two bundles at one path are two policies.
        trained_for: the variant it was trained for.
        builder_name: of the classic shop, part of what was trained.
        samples: 0 for the greedy run.
        temperature: of the samples.
        runtime: of the greedy run.
        ahead: weight of the look-ahead, 0 for none.
    """

    called: str
    folder: Path
    digest: str
    trained_for: Variant
    builder_name: str
    samples: int = 0
    temperature: float = 1.0
    runtime: RuntimeName = "onnx"
    ahead: float = 0.0

    @property
    def name(self) -> str:
        weight = "" if self.ahead == DEFAULT_WEIGHT else f"{self.ahead:g}"
        ahead = f"+lookahead{weight}" if self.ahead else ""
        heat = "" if self.temperature == 1.0 else f"+temperature{self.temperature:g}"
        return f"bundle:{self.called}" + (f"@{self.samples}{heat}" if self.samples else "") + ahead

    @property
    def kind(self) -> Kind:
        return "search" if self.samples else "learned"

    @property
    def variants(self) -> frozenset[Variant]:
        if self.trained_for == "jssp":
            return frozenset(("jssp",))
        blocking: frozenset[Variant] = frozenset(("bws", "bns", "isbjssp"))
        return blocking - {"isbjssp"} if self.samples else blocking

    @property
    def is_random(self) -> bool:
        return self.samples > 0

    def builder(self, variant: Variant) -> str | None:
        return self.builder_name

    def versions(self) -> dict[str, str | int]:
        libraries = ("numba", "numpy", "torch" if self.samples else "onnxruntime")
        return {**{name: metadata.version(name) for name in libraries}, "bundle": self.digest[:16]}

    def prepare(self, problem: Problem) -> Run:
        loaded = loaded_once(self.folder, self.digest, "torch" if self.samples else self.runtime)
        shop = loaded.shop
        if shop.is_blocking:
            shop = ShopConfig(problem.variant, on_interrupt=problem.on_interrupt)

        def run(scenario: Scenario | None, seed: int) -> Answer:
            if self.samples:
                return self._best_of_many(loaded, problem, shop, seed)
            over = play_greedily(loaded.runtime, problem.instance, shop, scenario, self.ahead)
            return Answer(over.schedule(0), decisions=int(over.shop.decisions[0]))

        return run

    def _best_of_many(self, loaded: Bundle, problem: Problem, shop: ShopConfig, seed: int) -> Answer:
        """In batches, by torch, which only this needs, on a GPU if there is one."""
        import torch

        from dispatchgym.agents.playing import play
        from dispatchgym.agents.shop_runs import ShopRuns
        from dispatchgym.agents.torch_network import TorchNetwork

        assert isinstance(loaded.runtime, TorchNetwork)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = loaded.runtime.network.to(device)
        torch.set_num_threads(1)
        best, decisions = None, 0
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for begin in range(0, self.samples, SAMPLES_AT_ONCE):
                count = min(SAMPLES_AT_ONCE, self.samples - begin)
                graph = PILOT.graph if self.ahead else network.spec.graph
                runs = ShopRuns.of([problem.instance], shop, graph, count, device=device)
                found = play(network, runs, self.temperature, self.ahead)
                decisions += int(runs.decisions.sum())
                if best is None or found.min() < best.makespan:
                    best = runs.schedule(int(found.argmin()))
        return Answer(best, decisions=decisions)


def parse_bundle(spec: str, delta: float = 0.0) -> LearnedPolicy:
    """`bundle:NAME` or `bundle:PATH`, greedy; `@128` for the best of 128 runs, `+temperature0.7` for their spread.

    `+lookahead` behind either, or `+lookahead8` with a weight, for look-ahead.

    Raises:
        UnknownNameError: no such bundle; BundleError: one that cannot be trusted; UsageError: a wrong option.
    """
    head, *options = spec.partition(":")[2].split("+")
    called, samples = written(spec, head, "jobshop", MOST_SAMPLES)
    temperature, ahead = 1.0, 0.0
    for option in options:
        if option.startswith("lookahead"):
            weight = option.removeprefix("lookahead")
            ahead = number(spec, option, weight, 0.01, 1e6) if weight else DEFAULT_WEIGHT
        elif option.startswith("temperature") and samples:
            temperature = number(spec, option, option.removeprefix("temperature"), 0.01, 10.0)
        else:
            known = "lookahead, lookahead8, and behind @128 temperature0.7"
            raise UsageError(f"policy {spec!r}: {option!r} is not an option of a bundle; known: {known}")
    folder = bundles.find(called).resolve()
    loaded = bundles.load(folder, "numpy")
    if ahead:
        require_columns(loaded.runtime.spec)
    return LearnedPolicy(
        called,
        folder,
        loaded.digest,
        loaded.shop.variant,
        loaded.shop.builder_name,
        samples,
        temperature,
        "onnx" if bundles.ONNX in loaded.manifest["files"] else "numpy",
        ahead,
    )


def parse_learned(spec: str, delta: float = 0.0) -> Shipped[Variant, Problem, Run]:
    """`learned`: the shipped bundle that was trained for the suite's shop, with the options of `bundle:NAME`.

    Raises:
        UsageError: a wrong option.
    """
    suffix = spec[len("learned") :]
    if suffix and suffix[0] not in "@+":
        raise UsageError(f"policy {spec!r}: write learned, learned@128 or learned+lookahead")
    policies = [parse_bundle(f"bundle:{name}{suffix}") for name in bundles.shipped("jobshop")]
    own: dict[Variant, LearnedPolicy] = {}
    for policy in policies:
        for variant in policy.variants:
            if variant not in own or policy.trained_for == variant:
                own[variant] = policy
    return Shipped(tuple(sorted(own.items())), suffix)
