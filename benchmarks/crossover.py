"""Where steps of their own for prompts and decodes overtake mixed ones, in the simulator and by EB+'s closed form.

For each traffic: tokens a second of mixed steps (vllm), of exclusive ones and of EB+, which chooses; then how many
microseconds a mixed step must cost beyond its parts until exclusive ones are as fast, found by bisection of simulated
runs, beside the closed form's answer. A roofline profile has no such cost (`mixed_s` is 0); a measured one may.
Published (arXiv 2606.00516): on an H200 mixing costs more than decoding alone beyond 80 % decode tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.envs.llm.config import EngineConfig
from dispatchgym.envs.llm.policy import CompiledPolicy, Policy
from dispatchgym.envs.llm.profile import Profile, load_profile
from dispatchgym.envs.llm.simulate import simulate
from dispatchgym.envs.llm.workload import Workload
from dispatchgym.solvers.llm.crossover import Traffic, lines, refill_share, saved_s
from dispatchgym.solvers.llm.eb_plus import EbPlus
from dispatchgym.solvers.llm.vllm import Vllm

TRAFFICS = {"prefill-heavy": (1024, 128), "balanced": (512, 256), "decode-heavy": (128, 512)}
"""Mean prompt and output; outputs end with the same chance after every token, as the closed form has it."""

AT_ONCE = (64, 256)
"""Requests served at a time."""

MOST_S = 0.02
SCHEDULERS: Mapping[str, Callable[[], Policy | CompiledPolicy]] = {
    "mixed": Vllm,
    "exclusive": partial(EbPlus, mode="exclusive"),
    "eb-plus": EbPlus,
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--profile", default="h200-8b", help="name or JSON file")
    options = parser.parse_args()
    profile = load_profile(options.profile)
    rows: list[Row] = []
    seeds = 1 if options.quick else 2
    cases = [(AT_ONCE[1], "balanced")] if options.quick else itertools.product(AT_ONCE, TRAFFICS)
    for at_once, name in cases:
        prompt, output = TRAFFICS[name]
        title = f"{name}, {at_once} at once"
        drawn = [draw(prompt, output, 4 * at_once, seed) for seed in range(seeds)]
        speed = {each: Measured.of([tokens_per_s(each, w, profile, at_once) for w in drawn]) for each in SCHEDULERS}
        for each, found in speed.items():
            rows.append(Row(f"{title}: {each}", found.value, "tokens/s", found.spread, "mixed", speed["mixed"].value))
        traffic = Traffic(at_once, float(prompt), float(output))
        roots = [1e6 * root(partial(gain, w, profile, at_once)) for w in drawn]
        formula = 1e6 * root(partial(closed_form, profile, traffic))
        found = Measured.of(roots)
        rows.append(Row(f"{title}: crossover", found.value, "us a step", found.spread, "closed form", formula))
    publish(rows, options.json, ["numba", "numpy"])


def draw(prompt: int, output: int, requests: int, seed: int) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        arrival_s=np.zeros(requests),
        prompt_tokens=rng.integers(prompt // 2, 3 * prompt // 2, requests, endpoint=True).astype(np.int32),
        output_tokens=np.minimum(rng.geometric(1 / output, requests), 16 * output),
        max_new_tokens=np.full(requests, 16 * output),
    )


def tokens_per_s(name: str, workload: Workload, profile: Profile, at_once: int) -> float:
    config = EngineConfig(max_seqs=at_once, prefix_caching=False)
    record = simulate(workload, SCHEDULERS[name](), config, profile, steps=False)
    return float(workload.prompt_tokens.sum() + workload.output_tokens.sum()) / record.end_s


def gain(workload: Workload, profile: Profile, at_once: int, extra_s: float) -> float:
    """Above 0 where exclusive steps are faster."""
    dearer = replace(profile, mixed_s=extra_s)
    return tokens_per_s("exclusive", workload, dearer, at_once) - tokens_per_s("mixed", workload, dearer, at_once)


def closed_form(profile: Profile, traffic: Traffic, extra_s: float) -> float:
    line = lines(replace(profile, mixed_s=extra_s), traffic, EngineConfig().token_budget)
    return saved_s(line, refill_share(line, traffic), traffic)


def root(gain_of: Callable[[float], float]) -> float:
    """Seconds from which exclusive steps win; 0 where they always do, inf where they never do."""
    if gain_of(0.0) > 0:
        return 0.0
    if gain_of(MOST_S) <= 0:
        return float("inf")
    low, high = 0.0, MOST_S
    while high - low > 2e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if gain_of(middle) > 0 else (middle, high)
    return high


if __name__ == "__main__":
    main()
