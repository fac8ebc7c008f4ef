"""What the schedulers' papers claim, beside what the same comparison gives here; and the mean over all contests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dispatchgym.agents.evaluation.family import Finished
from dispatchgym.agents.evaluation.llm.problem import WORLDS

RESAMPLES = 1000

Values = Mapping[str, Mapping[str, Mapping[str, Mapping[int, float]]]]
"""World -> group -> policy -> seed -> value, the more the better."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A ratio that a paper states.

    Args:
        world: the contest. ours, base: policies whose values are compared. published: the paper's ratio.
        why: where and why ours differs.
        at_most: the greatest of the groups counts, as papers say "up to"; else their mean.
    """

    world: str
    ours: str
    base: str
    published: str
    why: str
    at_most: bool = False


CLAIMS = (
    Claim(
        "past-future", "past-future+tuned", "conservative+assumed_new=12000", "2 to 3 at heavy load",
        "The artifact's conservative server reserves 12,000 output tokens for requests that may put out 4,096; against "
        "that, with its clients that wait, the published ratio comes out. Where requests come on regardless it grows "
        "with the load.",
        at_most=True,
    ),
    Claim(
        "past-future", "past-future+tuned", "conservative", "2 to 3 at heavy load",
        "Against a reservation of what each request may put out the gain with clients that wait is far smaller, and a "
        "tuned reservation has none to make.",
        at_most=True,
    ),
    Claim(
        "past-future", "past-future+tuned", "aggressive", "2 to 3 at heavy load",
        "Not reproduced, with clients that wait and late requests aborted either: computing a request anew costs this "
        "engine some 0.1 s of the 1.5 s allowed, so that evictions hurt far less than in its runs.",
        at_most=True,
    ),
    Claim(
        "flow-prefill", "flow-prefill", "vllm", "up to 5.6 (maximum goodput, against DistServe)",
        "Ours is goodput at the greatest of four rates on one engine, not the greatest rate that 90 % survive, which "
        "`simulate` searches and which lies further apart; the shares of the classes are our choice.",
        at_most=True,
    ),
    Claim(
        "flow-prefill", "flow-prefill", "flow-prefill+preempt=false", "none stated for interrupting alone",
        "Most of the goodput comes from the order; interrupting is for the last per cent of requests in time.",
        at_most=True,
    ),
    Claim(
        "laps", "laps", "sglang", "1.2 (requests a second at the SLO, one instance)",
        "Beyond the knee first come, first served loses nearly all short prompts, so the ratio is greater than at the "
        "paper's operating point, which `simulate` searches; any order that spares short prompts gains as much.",
        at_most=True,
    ),
    Claim(
        "batch-llm", "batch-llm", "vllm", "1.3 to 10.8 (first version: 1.1 to 2)",
        "Our baseline shares prefixes by an LRU cache as today's vLLM does; the fused prefix kernel is not modelled.",
    ),
    Claim(
        "i-dlm", "i-dlm-stationary", "i-dlm-stationary+steps=1", "1.11 to 1.21 at 32 requests",
        "Follows from the 1 ms that preparing a batch anew is given here; a check of the mechanism, not of the gain.",
        at_most=True,
    ),
    Claim(
        "exspec", "exspec+batch=8", "exspec+batch=1", "up to 3",
        "A batch of 8 costs this engine hardly more than one request.",
    ),
    Claim(
        "exspec", "exspec", "eqspec", "grouping removes most of a 40 % realignment share",
        "Full groups of equal length are rare when accepted tokens scatter lengths and prompts differ, in a window of "
        "256 as in one of 48.",
    ),
    Claim(
        "exspec", "eqspec", "orca+max_running=16", "none stated: drafting against plain decoding of as large a batch",
        "Drafting pays at equal batches; an engine that holds all requests at once needs no drafts here.",
    ),
)  # fmt: skip


def values_of(finished: Finished) -> Values:
    """The values of an evaluation; those of which less is better are left out."""
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for item, result in finished:
        problem = item.problem
        if result.value is not None and problem.metric.startswith("goodput"):
            groups = found.setdefault(problem.variant, {})
            groups.setdefault(problem.group, {}).setdefault(item.policy.name, {})[item.seed] = float(result.value)
    return found


def claim_lines(values: Values) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """(world, sentence) of each claim whose policies ran, and the same as plain values."""
    lines, plain = [], []
    for claim in CLAIMS:
        groups = values.get(claim.world, {})
        ratios = {
            group: _mean(of[claim.ours]) / _mean(of[claim.base])
            for group, of in groups.items()
            if claim.ours in of and claim.base in of and _mean(of[claim.base]) > 0
        }
        if not ratios:
            continue
        mean = sum(ratios.values()) / len(ratios)
        most = max(ratios, key=ratios.__getitem__)
        ours = f"{ratios[most]:.2f} ({most}; mean {mean:.2f})" if claim.at_most and len(ratios) > 1 else f"{mean:.2f}"
        lines.append(
            (claim.world, f"{claim.ours} / {claim.base}: {ours} here, published {claim.published}. {claim.why[:-1]}")
        )
        plain.append(
            {"world": claim.world, "ours": claim.ours, "base": claim.base, "ratios": ratios,
             "published": claim.published, "why": claim.why}
        )  # fmt: skip
    return lines, plain


def means_over_contests(values: Values) -> list[dict[str, Any]]:
    """For each policy that ran in every contest its geometric mean ratio to the first policy, with a 95 % interval.

    A contest's ratio is the mean over its groups; the interval comes from drawing the seeds of each group anew, the
    same for both policies: None where no group has two.
    """
    worlds = [world for world in WORLDS if world in values]
    if len(worlds) < 2:
        return []
    everywhere = [set(of) for world in worlds for of in values[world].values()]
    policies = [p for p in next(iter(values[worlds[0]].values())) if all(p in each for each in everywhere)]
    if not policies:
        return []
    base = policies[0]
    rng = np.random.default_rng(0)
    draws = {
        (world, group): rng.integers(len(of[base]), size=(RESAMPLES, len(of[base])))
        for world in worlds
        for group, of in values[world].items()
    }
    found = []
    for policy in policies[1:]:
        logs, drawn = 0.0, np.zeros(RESAMPLES)
        for world in worlds:
            ratios, resampled = [], np.zeros(RESAMPLES)
            for group, of in values[world].items():
                mine, theirs = _in_order(of[policy]), _in_order(of[base])
                pick = draws[world, group] % min(len(mine), len(theirs))
                ratios.append(mine.mean() / max(theirs.mean(), 1e-12))
                resampled += mine[pick].mean(axis=1) / np.maximum(theirs[pick].mean(axis=1), 1e-12)
            logs += math.log(max(sum(ratios) / len(ratios), 1e-12)) / len(worlds)
            drawn += np.log(np.maximum(resampled / len(ratios), 1e-12)) / len(worlds)
        interval = np.percentile(100 * (np.exp(drawn) - 1), [2.5, 97.5]).tolist()
        repeated = any(pick.shape[1] > 1 for pick in draws.values())
        found.append(
            {"policy": policy, "base": base, "worlds": len(worlds), "mean_pct": 100 * (math.exp(logs) - 1),
             "interval": interval if repeated else None}
        )  # fmt: skip
    return sorted(found, key=lambda row: -row["mean_pct"])


def mean_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence a policy."""
    return [
        f"Mean over {row['worlds']} contests: {row['policy']} {row['mean_pct']:+.1f} % of {row['base']} "
        + ("[{:+.1f}, {:+.1f}]".format(*row["interval"]) if row["interval"] else "(--seeds 2 and more: an interval)")
        for row in rows
    ]


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)


def _in_order(values: Mapping[int, float]) -> Any:
    return np.array([values[seed] for seed in sorted(values)])
