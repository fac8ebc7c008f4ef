"""Time to proof of the exact solver on classics whose optimum is known: classic, blocking with and without swaps.

Each line says what was proven and at what cost; CPU seconds count all threads and are what to compare, since
wall seconds on a busy machine say little. The exit code is 1 if an optimum is not reached or not proven.
"""

from __future__ import annotations

import sys

from harness.rows import Measured, Row, arguments, publish

from dispatchgym.envs.jobshop import library
from dispatchgym.envs.jobshop.schedule import Variant
from dispatchgym.solvers.jobshop.cp_sat import solve

BARS: list[tuple[str, Variant]] = [
    ("ft06", "jssp"),
    ("ft10", "jssp"),
    *((f"la0{k}", variant) for variant in ("bws", "bns") for k in range(1, 6)),
    ("la17", "bws"),
    ("la18", "bws"),
    ("la20", "bns"),
]
QUICK: list[tuple[str, Variant]] = [
    ("ft06", "jssp"),
    ("ft10", "jssp"),
    ("la01", "bws"),
    ("la03", "bws"),
    ("la01", "bns"),
]
LIMIT_S = 240.0


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--workers", type=int, default=2, help="search threads (default 2)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each problem (default 3; quick 1)")
    options = parser.parse_args()
    problems = QUICK if options.quick else BARS
    seeds = 1 if options.quick else options.seeds

    print(
        f"{'':12} {'status':9} {'value':>6} {'known':>6} {'bound':>6} {'wall s':>8} {'CPU s':>8} {'det. s':>8}  solver"
    )
    rows, missed = [], 0
    for name, variant in problems:
        known = library.best_known(name, variant)
        assert known is not None
        assert known.kind == "optimum"
        runs = []
        for seed in range(seeds):
            s = solve(library.load(name), variant=variant, time_limit=LIMIT_S, workers=options.workers, seed=seed)
            print(
                f"{name:6} {variant:5} {s.status:9} {s.objective or 0:6} {known.value:6} {s.bound:6} {s.wall_s:8.1f} "
                f"{s.cpu_s:8.1f} {s.deterministic_s:8.1f}  {s.version}, {s.workers} workers, seed {seed}",
                flush=True,
            )
            runs.append(s)
        proven = sum((s.status, s.objective) == ("optimal", known.value) for s in runs)
        missed += seeds - proven
        cpu = Measured.of([s.cpu_s for s in runs])
        bar = f"{known.value} proven in {proven} of {seeds} runs, {options.workers} workers"
        rows.append(Row(f"{name} {variant}", cpu.value, "CPU s", cpu.spread, bar=bar))
    publish(rows, options.json, ("ortools",))
    if missed:
        print(f"{missed} of {len(problems) * seeds} runs did not prove the known optimum in {LIMIT_S:g} s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
