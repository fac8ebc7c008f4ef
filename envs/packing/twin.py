"""A synthetic twin of the openb cluster, for those without its lists and for training.

Fitted to moments of the published lists (`openb`): the mix of nodes, how many pods ask for which kind of GPU,
quantiles of their requests, and the mean CPU and GPU share of every kind, which are met up to rounding. What a twin
is not told are the request classes themselves: each seed draws its own, of the published number and about the
published popularity. So a policy trained on twins has not seen the pods it is tested on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.packing import openb
from dispatchgym.envs.packing.instance import Nodes, PackingInstance, Pods, Workload

NODES = (
    # how many, milli-CPU, memory MiB, GPUs, model
    (549, 96_000, 393_216, 8, "G2"),
    (387, 104_000, 524_288, 2, "T4"),
    (107, 16_000, 122_880, 2, "P100"),
    (39, 128_000, 786_432, 8, "G3"),
    (28, 32_000, 131_072, 4, "V100M16"),
    (22, 64_000, 262_144, 2, "P100"),
    (21, 96_000, 786_432, 8, "V100M32"),
    (19, 8_000, 32_768, 1, "V100M16"),
    (17, 96_000, 393_216, 4, "T4"),
    (9, 48_000, 376_832, 4, "V100M32"),
    (7, 64_000, 262_144, 8, "V100M16"),
    (3, 8_000, 61_440, 1, "P100"),
    (2, 8_000, 61_440, 2, "P100"),
    (2, 128_000, 1_048_576, 1, "A10"),
    (1, 82_000, 344_064, 8, "V100M16"),
)
"""The GPU nodes of the published list."""

_AT = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Kind:
    """Pods that ask for the same number of GPUs.

    Args:
        pods: how many of the published list. classes: different (CPU, share) requests among them.
        gpus: GPUs asked for; `shared` means a part of one.
        cpu: milli-CPU at the quantiles 0, 5, 25, 50, 75, 95, 100 %. mean_cpu: their mean.
        memory: MiB per milli-CPU at the same quantiles.
    """

    pods: int
    classes: int
    gpus: int
    cpu: tuple[float, ...]
    mean_cpu: float
    memory: tuple[float, ...]
    shared: bool = False


KINDS = (
    Kind(1088, 10, 0, (8000, 8000, 12500, 12500, 32000, 32000, 32000), 17645, (1.0, 1.5, 1.5, 3.8, 4.6, 4.6, 7.8)),
    Kind(3078, 39, 1, (1000, 3152, 3152, 4000, 8000, 11908, 12000), 6025, (1.0, 1.8, 1.8, 3.8, 4.0, 5.7, 7.6), True),
    Kind(3911, 29, 1, (1000, 3152, 9810, 11400, 12000, 18708, 24200), 11078, (0.0, 1.8, 2.0, 4.2, 4.4, 6.3, 8.2)),
    Kind(16, 5, 2, (6000, 6000, 16200, 16200, 17400, 30200, 30200), 16925, (2.5, 2.5, 4.1, 4.1, 5.3, 10.9, 10.9)),
    Kind(15, 3, 4, (32000, 32000, 32200, 32200, 32200, 60200, 60200), 37760, (4.1, 4.1, 4.1, 4.1, 4.1, 5.3, 5.3)),
    Kind(44, 5, 8, (64000, 64000, 64200, 88000, 88000, 120000, 120200), 80273, (3.7, 3.7, 3.7, 4.1, 4.1, 6.0, 6.1)),
)
SHARES = (50.0, 220.0, 460.0, 470.0, 810.0, 810.0, 810.0)
MEAN_SHARE = 562.6


@dataclass(frozen=True, slots=True)
class Mix:
    """How a list of pods differs from the published one; the defaults change nothing.

    Args:
        cpu_only: times as many pods without GPU.
        shared: share of the pods with one GPU that ask for a part of it; None for the published one.
        several: times as many pods with several GPUs.
        bound: share of the pods with one GPU that run on some models only.
    """

    cpu_only: float = 1.0
    shared: float | None = None
    several: float = 1.0
    bound: float = 0.0

    def counts(self, scale: float) -> list[int]:
        """Pods of each of `KINDS`."""
        pods = [float(kind.pods) for kind in KINDS]
        if self.shared is not None:
            one = pods[1] + pods[2]
            pods[1:3] = self.shared * one, (1.0 - self.shared) * one
        times = (self.cpu_only, 1.0, 1.0, *(self.several for _ in KINDS[3:]))
        return [max(1, round(count * factor * scale)) for count, factor in zip(pods, times, strict=True)]


AS_PUBLISHED = Mix()
MOST_MODELS = 3
"""Models that a bound pod may run on, at most."""
BOUND_WORKLOADS = 6


def nodes(scale: float = 1.0) -> Nodes:
    """The published mix of nodes; `scale` 0.1 gives about a tenth of each kind, at least one."""
    rows = [row for count, *row in NODES for _ in range(max(1, round(count * scale)))]
    cpu, memory, gpus, models = zip(*rows, strict=True)
    return Nodes(
        np.column_stack([cpu, memory]),
        max_pods=np.full(len(rows), openb.MAX_PODS),
        gpus=np.array(gpus),
        models=models,
    )


def pods(seed: int, scale: float = 1.0, mix: Mix = AS_PUBLISHED) -> tuple[Pods, tuple[Workload, ...]]:
    """A list of pods as `openb.read_pods` gives it, drawn anew for every seed.

    Lifetimes are log-normal about the published median and quartiles (540 s; 167 s and 1,972 s).
    """
    rng = np.random.default_rng(seed)
    request, gpus, milli = [], [], []
    for kind, count in zip(KINDS, mix.counts(scale), strict=True):
        popularity = 1.0 / np.arange(1.0, kind.classes + 1.0)
        of = rng.choice(kind.classes, count, p=popularity / popularity.sum())
        cpu = _scaled(_drawn(rng, kind.cpu, kind.classes), of, kind.mean_cpu)
        memory = cpu * _drawn(rng, kind.memory, kind.classes)
        share = np.full(kind.classes, 1000.0 if kind.gpus else 0.0)
        if kind.shared:
            share = np.clip(_scaled(_drawn(rng, SHARES, kind.classes), of, MEAN_SHARE), 10, 990)
        request.append(np.column_stack([np.round(cpu, -2), np.round(memory)])[of])
        milli.append(np.round(share, -1)[of])
        gpus.append(np.full(count, kind.gpus))
    order = rng.permutation(sum(map(len, gpus)))
    lifetime = np.exp(rng.normal(np.log(540.0), 1.8, len(order)))
    asked = np.concatenate(gpus)[order]
    workload, workloads = _bound(rng, asked, mix.bound) if mix.bound else (np.zeros(0, np.int64), ())
    return Pods(
        np.concatenate(request).astype(np.int64)[order],
        gpus=asked,
        gpu_milli=np.concatenate(milli).astype(np.int32)[order],
        workload=workload,
        lifetime=np.maximum(1, lifetime).astype(np.int64),
    ), (Workload("any model"), *workloads)


def _bound(
    rng: np.random.Generator, gpus: npt.NDArray[np.int64], share: float
) -> tuple[npt.NDArray[np.int64], tuple[Workload, ...]]:
    """Workload of each pod, 0 for any model, and those that are bound to models, drawn by the GPUs there are."""
    owned: dict[str, int] = {}
    for count, _, _, per_node, model in NODES:
        owned[model] = owned.get(model, 0) + count * per_node
    models, weight = list(owned), np.array(list(owned.values()), np.float64)
    workloads = []
    for _ in range(BOUND_WORKLOADS):
        chosen = rng.choice(models, int(rng.integers(1, MOST_MODELS, endpoint=True)), False, weight / weight.sum())
        workloads.append(Workload("|".join(sorted(chosen)), models=tuple(sorted(chosen.tolist()))))
    is_bound = (gpus == 1) & (rng.random(len(gpus)) < share)  # several GPUs in one node are rare enough
    return np.where(is_bound, rng.integers(1, BOUND_WORKLOADS, len(gpus), endpoint=True), 0), tuple(workloads)


def creation_times(seed: int, count: int) -> npt.NDArray[np.int64]:
    """When `count` pods were created, seconds since the first: a Poisson process, one in six minutes as published."""
    gaps = np.random.default_rng([seed, count]).exponential(350.0, count)
    gaps[0] = 0.0
    return np.round(np.cumsum(gaps)).astype(np.int64)


def load(seed: int = 0, ratio: float = openb.RATIO, scale: float = 1.0, mix: Mix = AS_PUBLISHED) -> PackingInstance:
    """A twin under the arrival protocol of the published experiment; see `openb.arrivals`."""
    listed, workloads = pods(seed, scale, mix)
    return openb.arrivals(nodes(scale), listed, workloads, seed, ratio, f"openb-twin-{scale:g}-seed{seed}")


def _drawn(rng: np.random.Generator, quantiles: tuple[float, ...], count: int) -> npt.NDArray[np.float64]:
    """`count` values, spread evenly over the distribution with a random offset, in random order."""
    at = (rng.permutation(count) + rng.random()) / count
    return np.interp(at, _AT, quantiles)


def _scaled(value: npt.NDArray[np.float64], of: npt.NDArray[np.int64], mean: float) -> npt.NDArray[np.float64]:
    """Values of the classes, scaled so that the pods `of` these classes have this mean."""
    scaled: npt.NDArray[np.float64] = value * (mean / value[of].mean())
    return scaled
