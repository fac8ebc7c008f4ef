"""Random serving problems: traffic, an engine and its step times, drawn anew for every episode.

What is drawn, each independently unless said otherwise (U: uniform, L: log-uniform):

- step times: the roofline profile of an 8B model on an H200, its coefficients each times L(0.5, 2), then all times
  L(0.5, 4); a token of a prompt and reading KV as if texts were L(1, 12) times as long; half of the time a fixed cost
  of 0 to 30 % of a step for mixing prompts and decoding. `DrawConfig.profile` names others, for all problems.
- half of the profiles are like measured ones, where engines capture steps that only decode: those have coefficients of
  their own and run on graphs of certain sizes; the fixed cost of other steps is L(0.2, 1) of a decoding step, half of
  the time all of it beside the tokens' (no `weights_s`); and the host needs L(0.4, 6) decoding steps to launch them,
  5 to 30 % more where they are mixed, up to half of it before the device begins (half of the time none).
- engine: 8 to 64 places; steps of 64 to 2,048 tokens; a pool for U(0.25, 0.9) of the places at their mean length
  (pressed) or for all of them (roomy), evenly.
- traffic: one of the mixes below, one in four with prompts alone, as on an engine that only prefills; arrivals
  Poisson (half), gamma of deviation L(1, 3), or bursts; load L(0.5, 2.2) of what the engine could carry if every batch
  were full. One problem in eight is a batch that is all there at the start, three in four of these without bounds.
- bounds: on the first token L(6, 300) of the shortest steps plus U(1.5, 8) times the prompt's own reading, by class
  (half) or one for all, at its mean prompt; none for one draw in ten; on later tokens L(2, 12) shortest steps, or
  none (one in five); means (two thirds) or longest gaps. The shortest step is anything, evenly in the logarithm, from
  one that decodes to one that reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.profile import Decoding, Profile, load_profile
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.envs.llm.workloads.arranged import arranged
from dispatchgym.envs.llm.workloads.arrivals import burst, gamma, poisson
from dispatchgym.envs.llm.workloads.lengths import log_normal

Ints = npt.NDArray[np.int64]
HASH_TOKENS = 16
HISTORY = 256
MOST_SEQS = 64
MOST_TOKENS = 2048
"""Of a step."""

MEASURED = 0.5
"""Share of the profiles that are like measured ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """A problem: who comes, to what engine.

    Attributes:
        group: names the traffic.
        reference_s: how long all of it takes under the engine's own rule, inf where nobody has looked.
    """

    workload: Workload
    engine: EngineConfig
    profile: Profile
    group: str = "given"
    reference_s: float = float("inf")

    def referenced(self) -> Serving:
        """The same with `reference_s` measured."""
        record = simulate(self.workload, None, self.engine, self.profile, steps=False)
        return replace(self, reference_s=max(record.end_s, 1e-9))


@dataclass(frozen=True, slots=True)
class DrawConfig:
    """Sizes of random problems.

    Args:
        requests: of a problem, at least and at most.
        longest: tokens of a prompt and of an output, at most. Prompts up to three quarters of it, outputs a quarter.
        load: range of the arrival rate, as a share of what the engine could carry.
        prefill_only: share of problems whose requests all end with their first token.
        offline: share of problems whose requests are all there at the start.
        mixes: kinds of traffic, names in MIXES.
        profile: step times, a profile's name or JSON file, and with them rates and bounds; None for random ones.
    """

    requests: tuple[int, int] = (80, 200)
    longest: int = 1024
    load: tuple[float, float] = (0.5, 2.2)
    prefill_only: float = 0.25
    offline: float = 0.125
    mixes: tuple[str, ...] = ("chat", "code", "classes", "short-long", "uniform", "prefixes", "tenants")
    profile: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.requests[0] <= self.requests[1] or self.longest < 64:
            raise UsageError(f"llm.draw: requests {self.requests} must rise from 1, longest {self.longest} be >= 64")
        if not 0 < self.load[0] <= self.load[1]:
            raise UsageError(f"llm.draw.load is {self.load}; it must rise from above 0")
        for name in self.mixes or ("",):
            if name not in MIXES:
                raise UsageError(f"llm.draw.mixes: {name!r} is not one of {', '.join(MIXES)}")
        if self.profile is not None:
            load_profile(self.profile)


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Lengths and what else requests have, before arrivals and bounds."""

    prompt: Ints
    output: Ints
    most: Ints
    of: Ints  # class
    columns: dict[str, Any]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _chat(rng: np.random.Generator, n: int, longest: int) -> _Traffic:
    prompt = log_normal(rng, n, longest * _log_uniform(rng, 0.03, 0.3), rng.uniform(0.4, 1.2), 4, 3 * longest // 4)
    output = log_normal(rng, n, longest * _log_uniform(rng, 0.01, 0.08), rng.uniform(0.4, 1.2), 1, longest // 4)
    return _Traffic(prompt, output, np.full(n, longest // 4), np.zeros(n, np.int64), {})


def _code(rng: np.random.Generator, n: int, longest: int) -> _Traffic:
    """Long prompts, few words, rarely many."""
    prompt = log_normal(rng, n, 0.35 * longest, 0.7, 4, 3 * longest // 4)
    output = log_normal(rng, n, rng.uniform(6.0, 20.0), 0.9, 1, longest // 8)
    return _Traffic(prompt, output, np.full(n, longest // 8), np.zeros(n, np.int64), {})


def _classes(rng: np.random.Generator, n: int, longest: int) -> _Traffic:
    """Three or four classes from short to long prompts, with bounds of their own, some more important."""
    kinds = int(rng.integers(2, 5))
    of = rng.choice(kinds, n, p=rng.dirichlet(np.linspace(3.0, 0.7, kinds)))
    middle = longest * 0.02 * (0.6 * longest / (0.02 * longest)) ** (np.arange(kinds) / max(1, kinds - 1))
    spread = np.exp(rng.normal(0.0, 0.6, n))
    prompt = np.clip(np.rint(middle[of] * spread), 4, 3 * longest // 4).astype(np.int64)
    output = log_normal(rng, n, longest * _log_uniform(rng, 0.01, 0.06), 0.8, 1, longest // 4)
    rank = rng.permutation(kinds)[of] if rng.random() < 0.4 else np.zeros(n, np.int64)
    return _Traffic(prompt, output, np.full(n, longest // 4), of, {"priority": rank})


def _short_long(rng: np.random.Generator, n: int, longest: int) -> _Traffic:
    of = (rng.random(n) >= rng.uniform(0.5, 0.92)).astype(np.int64)
    short = log_normal(rng, n, longest / 64, 0.7, 4, longest // 16)
    long = log_normal(rng, n, 0.35 * longest, 0.7, longest // 16, 3 * longest // 4)
    output = log_normal(rng, n, longest * _log_uniform(rng, 0.005, 0.05), 0.8, 1, longest // 4)
    return _Traffic(np.where(of == 1, long, short), output, np.full(n, longest // 4), of, {})


def _uniform(rng: np.random.Generator, n: int, longest: int) -> _Traffic:
    """Past-Future's: decode-heavy, balanced or prefill-heavy."""
    kinds = (((1, 16), (8, 16)), ((12, 16), (12, 16)), ((8, 16), (1, 16)))
    (a, b), (c, d) = kinds[int(rng.integers(3))]
    unit = longest // 40
    prompt, output = rng.integers(a * unit, b * unit + 1, n), rng.integers(c * unit, d * unit + 1, n)
    return _Traffic(prompt, output, np.full(n, d * unit), np.zeros(n, np.int64), {})


def _prefixes(rng: np.random.Generator, n: int, longest: int) -> _Traffic:
    """Groups that share the beginnings of their prompts, as programs or conversations do."""
    size = _log_uniform(rng, 2.0, 16.0)
    groups = max(1, round(n / size))
    of = rng.integers(0, groups, n)
    shared = rng.integers(longest // 32, longest // 2, groups) // HASH_TOKENS
    tail = log_normal(rng, n, longest / 40, 0.8, 4, longest // 4)
    prompt = shared[of] * HASH_TOKENS + tail
    output = log_normal(rng, n, longest * _log_uniform(rng, 0.01, 0.06), 0.8, 1, longest // 4)
    count = shared[of]
    base = np.concatenate([[0], np.cumsum(shared)[:-1]])
    hashes = np.concatenate([base[of[i]] + np.arange(count[i]) for i in range(n)])
    named = {"session" if rng.random() < 0.5 else "program": of} if rng.random() < 0.8 else {}
    ptr = np.concatenate([[0], np.cumsum(count)])
    shown = {"hash_ptr": ptr, "hashes": hashes, "hash_block": HASH_TOKENS, **named}
    return _Traffic(prompt, output, np.full(n, longest // 4), np.zeros(n, np.int64), shown)


def _tenants(rng: np.random.Generator, n: int, longest: int) -> _Traffic:
    tenants = int(rng.integers(2, 6))
    share = _log_uniform(rng, 1.0, 4.0) ** -np.arange(tenants, dtype=np.float64)
    of = rng.choice(tenants, n, p=share / share.sum())
    middle = longest * np.exp(rng.uniform(np.log(0.03), np.log(0.3), tenants))
    prompt = np.clip(np.rint(middle[of] * np.exp(rng.normal(0, 0.7, n))), 4, 3 * longest // 4).astype(np.int64)
    output = log_normal(rng, n, longest * _log_uniform(rng, 0.01, 0.06), 0.8, 1, longest // 4)
    return _Traffic(prompt, output, np.full(n, longest // 4), np.zeros(n, np.int64), {"tenant": of})


MIXES: dict[str, Callable[[np.random.Generator, int, int], _Traffic]] = {
    "chat": _chat,
    "code": _code,
    "classes": _classes,
    "short-long": _short_long,
    "uniform": _uniform,
    "prefixes": _prefixes,
    "tenants": _tenants,
}


def draw(rng: np.random.Generator, config: DrawConfig | None = None) -> Serving:
    """A random problem; see the top of the file."""
    c = config or DrawConfig()
    n = int(rng.integers(c.requests[0], c.requests[1] + 1))
    mix = c.mixes[int(rng.integers(len(c.mixes)))]
    traffic = MIXES[mix](rng, n, c.longest)
    if rng.random() < c.prefill_only:
        traffic = replace(traffic, output=np.ones(n, np.int64), most=np.ones(n, np.int64))
    profile = draw_profile(rng) if c.profile is None else load_profile(c.profile)
    engine = _engine(rng, traffic, c.longest)
    offline = rng.random() < c.offline
    times = np.zeros(n) if offline else _arrivals(rng, traffic, profile, engine, n, c.load)
    decode = profile.plain_decoding
    shortest = decode.base_s + max(decode.weights_s, decode.token_s)
    reads = max(profile.base_s + profile.weights_s, profile.host_s)
    unit = _log_uniform(rng, min(shortest, reads), max(shortest, reads))
    bounds, kind = _bounds(rng, traffic, profile, unit)
    if offline and rng.random() < 0.75:
        bounds = {}
    workload = arranged(
        times, traffic.prompt, traffic.output, max_new_tokens=np.maximum(traffic.most, traffic.output),
        slo_kind=kind, class_id=traffic.of, class_names=tuple(f"class {k}" for k in range(int(traffic.of.max()) + 1)),
        name=mix, **bounds, **traffic.columns,
    )  # fmt: skip
    return Serving(workload, engine, profile, mix)


def draw_profile(rng: np.random.Generator) -> Profile:
    """Step times about those of an 8B model on an H200, by roofline or like measured ones."""
    base = load_profile("h200-8b")
    scale = np.exp(rng.uniform(np.log(0.5), np.log(2.0), 5))
    whole = _log_uniform(rng, 0.5, 4.0)
    longer = _log_uniform(rng, 1.0, 12.0)  # texts are short here, so that episodes are
    mixed = rng.uniform(0.0, 0.3) * base.weights_s if rng.random() < 0.5 else 0.0
    drawn = replace(
        base, name="drawn", base_s=base.base_s * scale[0] * whole, weights_s=base.weights_s * scale[1] * whole,
        token_s=base.token_s * scale[2] * whole * longer,
        pair_s=base.pair_s * scale[3] * whole * longer**2,
        context_s=base.context_s * scale[4] * whole * longer, mixed_s=mixed * whole,
        row_s=rng.uniform(0.0, 2e-5) * whole, graph_sizes=(),
    )  # fmt: skip
    return _captured(rng, drawn) if rng.random() < MEASURED else drawn


def _captured(rng: np.random.Generator, profile: Profile) -> Profile:
    """As if measured: steps that only decode are captured, and the host launches the others."""
    p, sizes = profile, load_profile("h200-8b").graph_sizes
    step = p.base_s + p.weights_s
    fixed = _log_uniform(rng, 0.2, 1.0) * step
    host = _log_uniform(rng, 0.4, 6.0) * step
    scale = np.exp(rng.uniform(np.log(0.5), np.log(2.0), 2))
    decoding = Decoding(
        p.base_s, p.weights_s, rng.uniform(0.3, 1.0) * p.token_s, p.row_s * scale[0], p.context_s * scale[1],
        spread_s=rng.uniform(0.0, 1e-3) * step,
    )  # fmt: skip
    base, weights = (fixed, 0.0) if rng.random() < 0.5 else (p.base_s, max(fixed - p.base_s, 0.0))
    return replace(
        p, base_s=base, weights_s=weights, host_s=host, host_mixed_s=rng.uniform(0.05, 0.3) * host,
        lead_s=rng.uniform(0.0, 0.5) * host if rng.random() < 0.5 else 0.0, decoding=decoding,
        graph_sizes=tuple(size for size in sizes if size <= MOST_SEQS),
    )  # fmt: skip


def _engine(rng: np.random.Generator, traffic: _Traffic, longest: int) -> EngineConfig:
    places = round(_log_uniform(rng, 8, MOST_SEQS))
    mean = float((traffic.prompt + traffic.output).mean())
    most = int((traffic.prompt + np.maximum(traffic.most, traffic.output)).max())
    pressed = rng.random() < 0.5
    tokens = mean * places * (rng.uniform(0.25, 0.9) if pressed else rng.uniform(1.2, 2.0))
    blocks = min(max(int(tokens), most + 32) // 16 + 2, pool_blocks(longest))
    budget = 2 ** int(rng.integers(6, MOST_TOKENS.bit_length()))
    return EngineConfig(kv_blocks=blocks, max_seqs=places, token_budget=budget, history=HISTORY, max_preemptions=20)


def pool_blocks(longest: int) -> int:
    """Blocks of the largest pool."""
    return 40 * longest // 16


def largest_engine(longest: int) -> EngineConfig:
    """At least as large as any that is drawn."""
    return EngineConfig(kv_blocks=pool_blocks(longest), max_seqs=MOST_SEQS, token_budget=MOST_TOKENS, history=HISTORY)


def _arrivals(
    rng: np.random.Generator, traffic: _Traffic, profile: Profile, engine: EngineConfig, n: int,
    load: tuple[float, float],
) -> npt.NDArray[np.float64]:  # fmt: skip
    total = float((traffic.prompt + traffic.output).mean())
    batch = max(1.0, min(engine.max_seqs, engine.kv_blocks * engine.block_tokens / total))
    decode = profile.plain_decoding
    step = decode.base_s + decode.weights_s + batch * (decode.row_s + decode.context_s * total)
    own = float(traffic.output.mean()) * step / batch + float(traffic.prompt.mean()) * profile.token_s
    rate = _log_uniform(rng, *load) / own
    way = rng.random()
    if way < 0.5:
        return poisson(rng, n, rate)
    if way < 0.8:
        return gamma(rng, n, rate, cv=_log_uniform(rng, 1.0, 3.0))
    span = n / rate
    return burst(rng, n, rate, ratio=_log_uniform(rng, 2.0, 12.0), burst_s=0.05 * span, calm_s=0.2 * span)


def _bounds(
    rng: np.random.Generator, traffic: _Traffic, profile: Profile, unit: float
) -> tuple[dict[str, Any], Literal["max", "mean"]]:
    n, classes = len(traffic.prompt), int(traffic.of.max()) + 1
    by_class = rng.random() < 0.5
    ttft, tpot = np.full(classes, np.inf), np.full(classes, np.inf)
    times = _log_uniform(rng, 6.0, 300.0)
    share, later = rng.uniform(1.5, 8.0), _log_uniform(rng, 2.0, 12.0)
    for k in range(classes):
        mine = traffic.of == k if by_class else np.ones(n, np.bool_)
        own = float(traffic.prompt[mine].mean()) * profile.token_s if mine.any() else 0.0
        ttft[k] = times * unit * (_log_uniform(rng, 0.5, 2.0) if by_class else 1.0) + share * own
        tpot[k] = later * unit * (_log_uniform(rng, 0.7, 1.5) if by_class else 1.0)
    bounds: dict[str, Any] = {}
    if rng.random() >= 0.1:
        bounds["ttft_slo_s"] = ttft[traffic.of]
    if rng.random() >= 0.2:
        bounds["tpot_slo_s"] = tpot[traffic.of]
    return bounds, "mean" if rng.random() < 2 / 3 else "max"
