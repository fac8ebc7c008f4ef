"""Measures a run of a packing policy from its events alone, after the independent validator has passed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dispatchgym.agents.evaluation.packing.problem import PackingAnswer, PackingProblem, Start
from dispatchgym.agents.evaluation.work import Result
from dispatchgym.envs.api import DispatchGymError, InvalidScheduleError
from dispatchgym.envs.packing.instance import WHOLE_GPU, PackingInstance
from dispatchgym.envs.packing.log import KINDS, Event
from dispatchgym.envs.packing.validate import validate
from dispatchgym.solvers.packing.plan import Plan, check_hosts, placed_by_priority

MOST_POINTS = 200
"""Of a curve over time that is kept for the report."""


def judged(timed: Result, problem: PackingProblem, answer: PackingAnswer, start: Start | None) -> Result:
    """`timed` with the answer filled in, or marked invalid."""
    instance = problem.instance
    try:
        hosts = validate(answer.events, instance)
        if answer.then is not None:
            check_hosts(instance, answer.then)
    except DispatchGymError as error:
        return replace(timed, status="invalid", message=str(error))
    plan = Plan(hosts, hosts if answer.then is None else answer.then)
    metrics = _measured(instance, answer.events, plan)
    value: float | None
    if problem.variant == "pods":
        assert start is not None, "the world 'pods' has a default run"
        metrics |= {"default_placed": list(start.placed), "outcome": outcome(instance, answer, plan, start)}
        value = None if metrics["outcome"] == "nc" else 100.0 * (tuple(metrics["placed"]) > start.placed)
    elif problem.variant == "gpus":
        metrics["fragmentation_pct"] = fragmentation_pct(instance, answer.events)
        value = metrics["gpu_allocation_pct"]
    else:
        metrics |= over_time(instance, answer.events)
        value = metrics["mean_gpu_allocation_pct"]
    try:
        _check_proof(problem, answer, start, metrics)
    except InvalidScheduleError as error:
        return replace(timed, status="invalid", message=str(error))
    return replace(
        timed,
        value=value,
        decisions=answer.decisions,
        metrics=metrics,
        events=[_row(event) for event in answer.events],
        hosts=[] if answer.then is None else sorted(map(list, answer.then.items())),
    )


def outcome(instance: PackingInstance, answer: PackingAnswer, plan: Plan, start: Start) -> str:
    """The category of 'Priority Matters' (arXiv 2511.08373).

    nc: the default scheduler placed everything, so there was nothing to do. B*: better, and proven optimal (a placement
    of all pods is). B: better. D: as good, and proven optimal. F: as good without proof, or worse.
    """
    if len(start.hosts) == instance.num_pods:
        return "nc"
    placed = placed_by_priority(instance, plan.then)
    if placed > start.placed:
        return "B*" if answer.is_proven or len(plan.then) == instance.num_pods else "B"
    return "D" if placed == start.placed and answer.is_proven else "F"


def _check_proof(problem: PackingProblem, answer: PackingAnswer, start: Start | None, metrics: dict[str, Any]) -> None:
    """A solver that starts from the default's placement cannot prove less than that."""
    if answer.is_proven and start is not None and tuple(metrics["placed"]) < start.placed:
        raise InvalidScheduleError(f"{metrics['placed']} is called optimal, but the default has {start.placed}")


def _measured(instance: PackingInstance, events: Sequence[Event], plan: Plan) -> dict[str, Any]:
    gone = [event.pod for event in events if event.kind == "depart"]
    on = list(plan.then)
    total = instance.nodes.capacity.sum(axis=0)
    used = instance.pods.request[on].sum(axis=0)
    demand = instance.pods.gpus.astype(np.int64) * instance.pods.gpu_milli
    milli = WHOLE_GPU * int(instance.nodes.gpus.sum())
    placed = np.add(placed_by_priority(instance, plan.then), placed_by_priority(instance, dict.fromkeys(gone, 0)))
    return {
        "placed": placed.tolist(),
        "pending": instance.num_pods - len(on) - len(gone),
        "moves": sum(event.kind == "move" for event in events) + len(plan.moved),
        "evictions": sum(event.kind == "evict" for event in events) + len(plan.evicted),
        **{f"{name}_pct": 100.0 * int(used[r]) / max(1, int(total[r])) for r, name in enumerate(instance.resources)},
        **({"gpu_allocation_pct": 100.0 * int(demand[on].sum()) / milli} if milli else {}),
    }


def over_time(instance: PackingInstance, events: Sequence[Event]) -> dict[str, Any]:
    """GPU allocation and pods waiting between the first and the last arrival.

    Returns:
        mean_gpu_allocation_pct, pending_hours (of all pods together), mean_wait_s (of all pods; who was not bound until
        the last arrival has waited until then), and `curve`, (seconds, per cent allocated) pairs.
    """
    pods = instance.pods
    first, last = int(pods.arrival[0]), int(pods.arrival[-1])
    milli = max(1, WHOLE_GPU * int(instance.nodes.gpus.sum()))
    demand = pods.gpus.astype(np.int64) * pods.gpu_milli
    used, now, area = 0, first, 0
    points = [(0, 0.0)]
    since = {p: int(arrival) for p, arrival in enumerate(pods.arrival)}  # who waits, and since when
    waited = 0
    for event in events:
        area += used * (min(event.time, last) - min(now, last))
        now = event.time
        if event.kind == "bind":
            used += int(demand[event.pod])
            waited += max(0, min(event.time, last) - since.pop(event.pod))
        elif event.kind in ("evict", "depart"):
            used -= int(demand[event.pod])
            if event.kind == "evict":
                since[event.pod] = min(event.time, last)
        if event.time <= last:
            points.append((event.time - first, 100.0 * used / milli))
    area += used * max(0, last - now)
    waited += sum(last - moment for moment in since.values())
    every = max(1, len(points) // MOST_POINTS)
    return {
        "mean_gpu_allocation_pct": 100.0 * area / (milli * max(1, last - first)),
        "pending_hours": waited / 3600.0,
        "mean_wait_s": waited / len(pods),
        "curve": points[::every],
    }


def fragmentation_pct(instance: PackingInstance, events: Sequence[Event]) -> float:
    """Expected fragments (FGD's F, Weng et al., USENIX ATC 2023) in per cent of the cluster's GPUs, by their formula.

    For a typical pod that cannot run on a node, all that is free there; for one that can, what is free on GPUs too full
    for it; a pod without GPUs makes a fragment of all.
    """
    nodes, pods, typical = instance.nodes, instance.pods, instance.typical
    width = max(1, int(nodes.gpus.max()))
    free = np.where(np.arange(width) < nodes.gpus[:, None], WHOLE_GPU, 0)
    cpu = nodes.capacity[:, 0].copy()
    where: dict[int, Event] = {}
    for event in events:
        for kept, sign in ((where.pop(event.pod, None), 1), (event if event.kind in ("bind", "move") else None, -1)):
            if kept is not None:
                free[kept.node, list(kept.slots)] += sign * int(pods.gpu_milli[event.pod])
                cpu[kept.node] += sign * int(pods.request[event.pod, 0])
        if event.kind in ("bind", "move"):
            where[event.pod] = event
    total = free.sum(axis=1)
    expected = 0.0
    for m in range(len(typical.cpu)):
        need, milli, models = int(typical.gpus[m]), int(typical.gpu_milli[m]), typical.models[m]
        fits = free >= milli
        allowed = np.array([not models or model in models for model in nodes.models])
        can = (need > 0) & (fits.sum(axis=1) >= need) & (cpu >= typical.cpu[m]) & allowed
        lost = np.where(can, np.where(fits, 0, free).sum(axis=1), total)
        expected += float(typical.share[m]) * float(lost.sum())
    return 100.0 * expected / max(1, WHOLE_GPU * int(nodes.gpus.sum()))


def _row(event: Event) -> list[int]:
    slots = sum(1 << g for g in event.slots)
    return [event.time, KINDS.index(event.kind), event.pod, event.node, slots, event.cause]
