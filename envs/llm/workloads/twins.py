"""Synthetic twins of the public traces, for those without the files and for training.

Fitted to quantiles of the lengths, their rank correlation, the rate and its unrest, and where a trace names prefixes,
how much of a prompt an earlier one holds. A twin repeats no request of its trace and has any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads import arrivals
from dispatchgym.envs.llm.workloads.arranged import arranged
from dispatchgym.envs.llm.workloads.lengths import correlated_uniforms, from_quantiles, normal_cdf

AT = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999, 1.0)
"""Where the quantiles of lengths stand."""

GAPS_AT = (0.0, 0.05, 0.25, 0.50, 0.75, 0.90, 0.95, 0.98, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Sharing:
    """How prompts begin like earlier ones, in blocks of `block` tokens.

    Args:
        root: blocks that all prompts begin with.
        deep: share of prompts that have more in common with an earlier one, for each quarter of prompt lengths.
        part: share of such a prompt's blocks in common, at the quantiles 0, 5, 10, 25, 50, 75, 100 %.
        age: how many requests ago the earlier one came: median, and deviation of its logarithm.
    """

    root: int
    deep: tuple[float, float, float, float]
    part: tuple[float, ...]
    age: tuple[float, float]
    block: int = 512


@dataclass(frozen=True, slots=True)
class Shape:
    """Moments of a published trace; lengths as quantiles at `AT` and their means."""

    requests: int
    rate_per_s: float
    prompt: tuple[int, ...]
    mean_prompt: float
    output: tuple[int, ...]
    mean_output: float
    rank_correlation: float
    arrivals: Callable[[np.random.Generator, int, float], npt.NDArray[np.float64]]
    sharing: Sharing | None = None


def _gaps(
    quantiles: tuple[float, ...],
    alike: float,
    memory: float,
    rng: np.random.Generator,
    n: int,
    rate_per_s: float,
) -> arrivals.Times:
    """Gaps with the given quantiles at `GAPS_AT` and the mean that the rate asks for, alike to those before.

    The share `alike` of the variance of the ranks' normals is a first-order autoregression that forgets in `memory`
    requests; the rest is fresh.
    """
    keep = math.exp(-1.0 / memory)
    slow = np.empty(n)
    last = float(rng.normal())
    for k, step in enumerate(math.sqrt(1.0 - keep**2) * rng.standard_normal(n)):
        slow[k] = last = keep * last + float(step)
    ranks = normal_cdf(math.sqrt(alike) * slow + math.sqrt(1.0 - alike) * rng.standard_normal(n))
    times: arrivals.Times = np.cumsum(from_quantiles(ranks, quantiles, GAPS_AT, 1.0 / rate_per_s))
    return times


_CODE_GAPS = (0.0, 0.0001, 0.0021, 0.0638, 0.104, 0.273, 0.401, 0.799, 2.205, 3.7, 9.98, 28.1, 41.4, 79.2, 217.2)

SHAPES: Mapping[str, Shape] = {
    "azure-2023-conv": Shape(
        19_366,
        5.530,
        (2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 6212, 14_050),
        1154.7,
        (7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 954, 1000),
        211.1,
        0.073,
        partial(arrivals.wandering, spread=0.26, memory_s=700.0, cv=1.1),
    ),
    "azure-2023-code": Shape(
        8_819,
        2.567,
        (3, 17, 75, 147, 578, 1469, 2745, 5186, 7302, 7436, 7437, 7437),
        2047.8,
        (6, 6, 6, 7, 9, 13, 24, 55, 90, 252, 824, 1899),
        27.9,
        -0.021,
        partial(_gaps, _CODE_GAPS, 0.17, 60.0),
    ),
    "mooncake-conversation": Shape(
        12_031,
        3.400,
        (891, 894, 901, 964, 2307, 6909, 15_366, 27_367, 39_549, 85_401, 121_301, 126_195),
        12035,
        (1, 3, 10, 24, 157, 350, 472, 597, 698, 1120, 2000, 2000),
        342.6,
        0.072,
        partial(arrivals.wandering, spread=0.1, memory_s=300.0),
        Sharing(1, (0.180, 0.385, 0.486, 0.488), (0.02, 0.15, 0.29, 0.64, 0.91, 0.99, 1.0), (440.0, 0.95)),
    ),
    "mooncake-synthetic": Shape(
        3_993,
        3.907,
        (13, 16, 22, 30, 277, 11_587, 23_175, 38_615, 48_835, 66_456, 191_373, 191_378),
        15325,
        (1, 2, 2, 4, 11, 69, 250, 389, 519, 768, 813, 893),
        149.1,
        -0.517,
        arrivals.poisson,
        Sharing(0, (0.0, 0.560, 0.494, 0.711), (0.01, 0.96, 0.97, 1.0, 1.0, 1.0, 1.0), (250.0, 1.4)),
    ),
    "sharegpt-300": Shape(
        300,
        10.296,
        (262, 264, 308, 363, 483, 733, 1109, 1458, 1747, 2764, 3998, 3998),
        857.5,
        (512, 516, 524, 531, 562, 633, 767, 770, 773, 784, 1021, 1021),
        652.5,
        0.189,
        arrivals.poisson,
    ),
    "arxiv-summarization": Shape(
        28_257,
        1.0,
        (1, 73, 749, 1242, 1986, 2730, 3370, 3702, 3813, 3933, 4012, 4054),
        2588.1,
        (5, 36, 60, 78, 115, 167, 242, 372, 736, 3270, 3845, 4056),
        291.4,
        -0.114,
        arrivals.poisson,
    ),
}
"""The rate of arxiv-summarization, which has no arrivals, is a choice."""


def twin(name: str, rng: np.random.Generator, requests: int | None = None, rate_per_s: float | None = None) -> Workload:
    """A synthetic workload of the shape of a public trace, named NAME-twin.

    Args:
        requests: how many [as the trace has]. rate_per_s: arrivals a second, over all [as the trace has].
    """
    shape = SHAPES[name]
    n = requests or shape.requests
    size = max(n, shape.requests)  # all of it is drawn: fewer requests are the first of more
    u, v = correlated_uniforms(rng, size, shape.rank_correlation)
    prompt = np.rint(from_quantiles(u, shape.prompt, AT, shape.mean_prompt)).astype(np.int64)[:n]
    output = np.rint(from_quantiles(v, shape.output, AT, shape.mean_output)).astype(np.int64)[:n]
    times = shape.arrivals(rng, size, shape.rate_per_s)
    times = (times - times[0]) * (size / (rate_per_s or shape.rate_per_s) / (times[-1] - times[0]))
    shared = _prefixes(rng, prompt, u, shape.sharing) if shape.sharing else {}
    cap = 1 << (shape.output[-1] - 1).bit_length()
    return arranged(times[:n], prompt, output, max_new_tokens=np.full(n, cap), name=f"{name}-twin", **shared)


def _prefixes(
    rng: np.random.Generator, prompt: npt.NDArray[np.int64], u: npt.NDArray[np.float64], sharing: Sharing
) -> dict[str, Any]:
    """Hashes for the whole blocks of the prompts: some continue an earlier request, which must be long enough.

    `u` holds the ranks of the prompts, and of more of the trace behind them.
    """
    own = prompt // sharing.block
    n = len(own)
    deep = (rng.random(len(u)) < np.asarray(sharing.deep)[np.minimum((4 * u).astype(np.int64), 3)])[:n]
    part = from_quantiles(rng.random(len(u)), sharing.part, (0.0, 0.05, 0.10, 0.25, 0.5, 0.75, 1.0))[:n]
    wanted = np.where(deep, np.rint(part * own), np.minimum(own, sharing.root)).astype(np.int64)
    tries = 128
    hashes: list[npt.NDArray[np.int64]] = []
    fresh = sharing.root
    for i in range(n):
        hit = int(min(wanted[i], sharing.root))
        start = np.arange(hit)
        if wanted[i] > sharing.root and i:
            median, deviation = sharing.age
            ages = np.exp(rng.normal(np.log(median), deviation, tries)).astype(np.int64) + 1
            earlier = np.maximum(i - ages, 0) if i > median else rng.integers(0, i, tries)
            long_enough = own[earlier] >= wanted[i]
            parent = int(earlier[np.argmax(long_enough)] if long_enough.any() else earlier[np.argmax(own[earlier])])
            start = hashes[parent][: wanted[i]]
        new = int(own[i]) - len(start)
        hashes.append(np.concatenate([start, np.arange(fresh, fresh + new)]))
        fresh += new
    ptr = np.concatenate([[0], np.cumsum(own)])
    return {"hash_ptr": ptr, "hashes": np.concatenate(hashes), "hash_block": sharing.block}
