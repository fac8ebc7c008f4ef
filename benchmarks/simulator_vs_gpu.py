"""The papers' contests on a real model and on its profile: the same requests, both tables, how alike they are.

Of each contest one traffic, cut to so many requests that a run takes seconds. Real time is the sum of the steps;
nobody waits for arrivals. A row is a scheduler's value on the model beside the simulator's; after each contest
Kendall's tau of the two rankings, and the ratio that the paper's claim is about, both ways. Extra costs that a contest
tells the simulator (`terms`) hold there alone. Without a GPU, and with --quick, a tiny model runs a few requests on the
CPU; give it a profile of that (`calibrate`), or the two sides have nothing to do with each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from harness.rows import Measured, Row, arguments, publish

from dispatchgym.agents.evaluation.llm.policies import parse_policy
from dispatchgym.agents.evaluation.llm.problem import LlmProblem
from dispatchgym.agents.evaluation.llm.published import CLAIMS
from dispatchgym.agents.evaluation.llm.suites import CONTESTS
from dispatchgym.agents.evaluation.work import WorkItem, execute
from dispatchgym.envs.llm.backends import SIMULATOR, RunsOn
from dispatchgym.serving.executor.fidelity import kendall_tau

WARM = 8
"""Requests that run before anything is counted."""

UNITS = {"goodput_tps": "tokens/s", "goodput_rps": "requests/s"}


@dataclass(frozen=True)
class Cut:
    """What is left of a contest.

    Args:
        group: its traffic. requests: so many. rate_scale: they come so many times as fast. policies: who runs.
    """

    group: str
    requests: int
    policies: str
    rate_scale: float = 1.0


CUTS = {
    "past-future": Cut("D1 1.2/s", 28, "conservative,past-future+tuned,aggressive,vllm", 10.0),
    "flow-prefill": Cut("12/s", 150, "vllm,flow-prefill,edf,least-slack,sarathi"),
    "laps": Cut("100/s", 400, "sglang,laps,edf,least-slack,sarathi"),
    "batch-llm": Cut("scarce KV", 120, "vllm,batch-llm,sglang,sarathi"),
    "i-dlm": Cut("32 at a time", 32, "i-dlm-stationary+steps=1,i-dlm-stationary,vllm"),
    "exspec": Cut("480 prompts", 96, "eqspec,exspec,eqspec+batch=8,vllm"),
}


def values(contest: str, policy: str, problem: LlmProblem, seeds: int) -> tuple[list[float], float]:
    """The contest's value of every seed, and the seconds that all of it took.

    Raises:
        RuntimeError: a run failed.
    """
    found, wall_s = [], 0.0
    for seed in range(seeds):
        result = execute(WorkItem(problem, parse_policy(policy), seed))
        if result.value is None:
            raise RuntimeError(f"{contest} {policy}: {result.message}")
        found.append(result.value)
        wall_s += result.wall_s
    return found, wall_s


def contest_rows(contest: str, cut: Cut, runs_on: RunsOn, options: argparse.Namespace, most: int) -> list[Row]:
    """Both tables of a contest, tau, and the ratios of its claims."""
    traffic = dict(CONTESTS[contest][1]())[cut.group]
    traffic = replace(
        traffic, requests=min(cut.requests, most), rate_scale=cut.rate_scale, profile=options.profile or traffic.profile
    )
    simulated = LlmProblem(f"llm/{contest}", cut.group, traffic, contest, runs_on=SIMULATOR)
    real = replace(simulated, runs_on=runs_on)
    policies = cut.policies.split(",")
    few = replace(real, instance=replace(traffic, requests=min(WARM, traffic.requests or WARM)))
    values(contest, policies[0], few, 1)  # first steps say more about caches than about steps
    rows: list[Row] = []
    sides: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for policy in policies:
        (there, wall_s), (here, _) = (values(contest, policy, each, options.seeds) for each in (real, simulated))
        on_model, expected = Measured.of(there), float(np.median(here))
        sides[0][policy], sides[1][policy] = on_model.value, expected
        rows.append(
            Row(
                f"{contest} {cut.group}, {policy}", on_model.value, UNITS[real.metric], on_model.spread, "simulator",
                expected, bar=f"{wall_s:.1f} s",
            )
        )  # fmt: skip
    tau = kendall_tau(*([side[policy] for policy in sides[0]] for side in sides))
    if tau == tau:  # or one of the sides does not tell them apart
        rows.append(Row(f"{contest} {cut.group}, Kendall tau of {len(sides[0])} schedulers", tau, "", (tau, tau)))
    for claim in CLAIMS:
        if claim.world == contest and claim.ours in sides[0] and claim.base in sides[0]:
            ratios = [side[claim.ours] / side[claim.base] if side[claim.base] else np.inf for side in sides]
            name = f"{contest} {cut.group}, {claim.ours} over {claim.base}"
            bar = f"published {claim.published}"
            rows.append(Row(name, ratios[0], "", (ratios[0],) * 2, "simulator", ratios[1], bar=bar))
    return rows


def show(rows: Sequence[Row]) -> None:
    """One line a row."""
    for row in rows:
        beside = f"{row.peer_value:12,.3f} {row.peer}" if row.peer_value is not None else ""
        print(f"  {row.name:58} {row.value:12,.3f} {row.unit:11} {beside}  {row.bar}", flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="random:8b", help="as for evaluate [%(default)s]")
    parser.add_argument("--profile", default="", help="step times; default: the contests' own, h200-8b")
    parser.add_argument("--contests", default=",".join(CUTS), help="[%(default)s]")
    parser.add_argument("--seeds", type=int, default=1, help="draws of each traffic [%(default)s]")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.quick
    if not on_gpu:
        torch.set_num_threads(1)
        options.model = "random:tiny"
        options.contests = "flow-prefill,batch-llm"
    runs_on = RunsOn("torch", options.model, "cuda" if on_gpu else "cpu")
    rows: list[Row] = []
    for contest in options.contests.split(","):
        found = contest_rows(contest, CUTS[contest], runs_on, options, 1000 if on_gpu else 5)
        show(found)
        rows += found
    print(", ".join(f"{name} {value}" for name, value in runs_on.backend().facts.items()))
    publish(rows, options.json, ["torch", "numba", "numpy"])


if __name__ == "__main__":
    main()
