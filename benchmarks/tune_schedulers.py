"""Schedulers' constants tuned for each contest on training workloads, never on a tested draw.

Every scheduler of GRIDS is tried with every point of its grid on the contest's traffic, of training seeds; the best
mean over groups of its value, in per cent of vllm's, is kept. --write puts the table where `NAME+tuned` reads it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.rows import Row, arguments, publish

from dispatchgym.agents.evaluation.llm.judge import value_of
from dispatchgym.agents.evaluation.llm.policies import serve
from dispatchgym.agents.evaluation.llm.problem import LlmProblem, Scenario, Traffic
from dispatchgym.agents.evaluation.llm.suites import CONTESTS, LARGE, SQUEEZED
from dispatchgym.agents.evaluation.llm.tuned import TABLE
from dispatchgym.agents.simulation.names import scheduler

FIRST_TRAINING_SEED = 1000
SEEDS = 3

Grid = Mapping[str, Sequence[float | int | str]]
VLLM: Grid = {"watermark": (0.0, 0.01, 0.03, 0.1), "threshold": (0, 512, 2048)}
SARATHI: Grid = {"chunk": (256, 512, 1024, 2048, 4096), "watermark": (0.01, 0.05)}
FLOW: Grid = {"batch_tokens": (1024, 2048, 4096), "slack": (0.05, 0.1, 0.3)}
LAPS: Grid = {"short_tokens": (128, 256, 1024), "piece_tokens": (1024, 2048, 8192), "window_s": (0.0, 0.006)}
SPEC: Grid = {"draft": (2, 3, 5), "batch": (16, 48)}
PAST: Grid = {"window": (20, 100), "reserve": (0.0, 0.05)}
DEADLINES: Mapping[str, Grid] = {"vllm": VLLM, "sarathi": SARATHI, "flow-prefill": FLOW, "laps": LAPS}
GRIDS: Mapping[str, Mapping[str, Grid]] = {
    "past-future": {
        "vllm": VLLM,
        "sarathi": SARATHI,
        "aggressive": {"limit": (0.7, 0.8, 0.9, 0.95, 0.99)},
        "conservative": {"limit": (0.95, 1.0), "assumed_new": (0, 512, 1024, 2048)},
        "sglang": {"conservativeness": (0.3, 0.6, 1.0)},
        "past-future": PAST,
    },
    "flow-prefill": DEADLINES,
    "laps": DEADLINES,
    "batch-llm": {
        "vllm": VLLM,
        "sarathi": SARATHI,
        "batch-llm": {"cap": (0.7, 0.8, 0.9, 0.95, 1.0)},
        "sglang": {"order": ("fcfs", "lpm", "shortest"), "conservativeness": (0.3, 1.0)},
    },
    "i-dlm": {"i-dlm-stationary": {"stride": (2, 3, 4)}},
    "exspec": {"eqspec": SPEC, "exspec": SPEC},
    "own": {**DEADLINES, "past-future": PAST},
}
"""Contest -> scheduler -> constants tried. Where what a constant is for is not scarce, it is not tuned."""

CHAT = (
    ("squeezed", Traffic("chat", "chat", SQUEEZED, 600, (("rate_per_s", 20.0),))),
    ("ample", Traffic("chat", "chat", LARGE, 600, (("rate_per_s", 30.0), ("arrival", "burst")))),
)
"""Training traffic of people's own traces."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--only", help="one contest")
    options = parser.parse_args()
    rows: list[Row] = []
    before = json.loads(TABLE.read_text())["tuned"] if TABLE.exists() else {}
    table: dict[str, dict[str, str]] = {}
    for world, grids in GRIDS.items():
        if (options.only or world) != world or (options.quick and world != "flow-prefill"):
            table[world] = before.get(world, {})
            continue
        traffics = CHAT if world == "own" else CONTESTS[world][1]()
        problems = [
            LlmProblem("tune", group, each, world, FIRST_TRAINING_SEED) for group, each in traffics if each.is_plain
        ]
        if options.quick:
            problems = [replace(problems[-1], instance=replace(problems[-1].instance, requests=100))]
        drawn = {problem: [problem.scenario(seed) for seed in range(SEEDS)] for problem in problems}
        base = {problem: worth("vllm", problem, drawn[problem]) for problem in problems}
        table[world] = {}
        for name, grid in grids.items():
            worths = {}
            for values in itertools.product(*grid.values()):
                constants = [f"{key}={value}" for key, value in zip(grid, values, strict=True)]
                spec = "+".join([name, *constants])
                shares = [100 * worth(spec, problem, drawn[problem]) / base[problem] for problem in problems]
                worths[spec] = sum(shares) / len(shares)
            table[world][name] = best = max(worths, key=worths.__getitem__)
            usual = [100 * worth(name, problem, drawn[problem]) / base[problem] for problem in problems]
            print(f"{world} {best}: {worths[best]:.1f} % of vllm, untuned {sum(usual) / len(usual):.1f} %", flush=True)
            spread = (worths[best], worths[best])
            rows.append(Row(f"{world}: {best}", worths[best], "% of vllm", spread, "untuned", sum(usual) / len(usual)))
        if options.write:
            text = {"made_by": "benchmarks/tune_schedulers.py --write", "tuned": before | table}
            TABLE.write_text(json.dumps(text, indent=1) + "\n")
    publish(rows, options.json, ["numba", "numpy"])


def worth(spec: str, problem: LlmProblem, scenarios: Sequence[Scenario]) -> float:
    """The mean value of a scheduler over the training draws."""
    run = serve(scheduler(spec), problem)
    values = [value_of(problem, run(scenario, 0), scenario) for scenario in scenarios]
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
