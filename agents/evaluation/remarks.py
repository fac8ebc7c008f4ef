"""What runs noted beside their results, gathered for summary and readers: tuned caps, hints, times of planning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dispatchgym.agents.evaluation.family import Finished
from dispatchgym.agents.evaluation.statistics import mean
from dispatchgym.agents.evaluation.table import seconds
from dispatchgym.envs.jobshop.schedule import Variant


def tuned(finished: Finished) -> list[dict[str, Any]]:
    """The constants that were tuned, one entry per policy, group and size."""
    found = {
        (item.problem.variant, item.problem.group, item.problem.instance.size, item.policy.name): result.notes["cap"]
        for item, result in finished
        if "cap" in result.notes
    }
    return [
        {"variant": variant, "group": group, "size": size, "policy": policy, "cap": cap}
        for (variant, group, size, policy), cap in found.items()
    ]


def cap_lines(found: Iterable[Mapping[str, Any]]) -> list[tuple[Variant, str]]:
    """Shop and line for each policy and shop of `tuned` entries."""
    lines: dict[tuple[str, Variant], list[str]] = {}
    for each in found:
        caps = lines.setdefault((each["policy"], each["variant"]), [])
        where = each["group"] if each["size"] in each["group"] else f"{each['group']} {each['size']}"
        caps.append(f"{where} {'no cap' if each['cap'] is None else each['cap']}")
    return [
        (variant, f"{policy} in {variant}, chosen on generated instances: {', '.join(caps)}")
        for (policy, variant), caps in lines.items()
    ]


def plannings(finished: Finished) -> list[dict[str, Any]]:
    """What planning anew cost, one entry a policy and group."""
    found: dict[tuple[Variant, str, str], list[list[float]]] = {}
    for item, result in finished:
        if "planning_s" in result.notes:
            key = (item.problem.variant, item.problem.group, item.policy.name)
            found.setdefault(key, []).append(result.notes["planning_s"])
    return [
        {
            "variant": variant,
            "group": group,
            "policy": policy,
            "plannings": mean([len(times) for times in runs]).item(),
            "mean_s": mean([s for times in runs for s in times]).item(),
            "longest_s": max(s for times in runs for s in times),
        }
        for (variant, group, policy), runs in found.items()
    ]


def hints(finished: Finished) -> list[dict[str, Any]]:
    """What solvers started from, one entry a policy and group: how good the hints were and how long they took."""
    found: dict[tuple[Variant, str, str], list[Mapping[str, Any]]] = {}
    for item, result in finished:
        if "hint_s" in result.notes:
            found.setdefault((item.problem.variant, item.problem.group, item.policy.name), []).append(result.notes)
    return [
        {
            "variant": variant,
            "group": group,
            "policy": policy,
            "mean_makespan": mean([note["hint_makespan"] for note in notes]).item(),
            "mean_s": mean([note["hint_s"] for note in notes]).item(),
            "longest_s": max(note["hint_s"] for note in notes),
        }
        for (variant, group, policy), notes in found.items()
    ]


def hint_line(each: Mapping[str, Any]) -> tuple[Variant, str]:
    """The shop, and what a solver's hint was worth and cost in one of its groups."""
    said = f"hint of makespan {each['mean_makespan']:.1f} on average after {seconds(each['mean_s'])}"
    return each["variant"], f"{each['policy']} in {each['variant']} {each['group']}: {said}"


def planning_line(each: Mapping[str, Any]) -> tuple[Variant, str]:
    """The shop, and how often and how long a policy planned in one of its groups."""
    said = (
        f"{each['plannings']:.0f} plannings a run, {seconds(each['mean_s'])} each, {seconds(each['longest_s'])} at most"
    )
    return each["variant"], f"{each['policy']} in {each['variant']} {each['group']}: {said}"
