"""Why a pod goes where it goes: who fits, what the policy and the plain rules think of them, and what would help."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dispatchgym.serving.kube.advisor import Advice, PlacementAdvisor
from dispatchgym.serving.kube.cluster_state import Placed
from dispatchgym.serving.kube.extender import priorities
from dispatchgym.serving.kube.facts import PodFacts
from dispatchgym.serving.kube.policies import PLAIN_RULES, RulePolicy

MOST_TRIALS = 200
MOST_COUNTERFACTUALS = 5


def explain(advisor: PlacementAdvisor, pod: PodFacts, limit: int = 10) -> dict[str, Any]:
    """Everything about one pod, as the cluster stands now; a running pod is looked at as if it had yet to be placed.

    Args:
        limit: most nodes in the list of those that will do.

    Returns:
        plain values: `chosen` and `runner_up`; `feasible`, best first, each with the policy's score, the priority
        that kube-scheduler would be given, and the plain rules' scores; `best_of`, the node that each rule likes
        best; `infeasible`, the filter and the reason for each other node; and `would_fit_if`.
    """
    unbound = _unbound(pod)
    advice = advisor.advise(unbound)
    rules = {}
    if advice.nodes:
        rules = advisor.compare(unbound, advice.nodes, [RulePolicy(name) for name in PLAIN_RULES])
    order = np.argsort(-advice.scores, kind="stable")
    given = priorities(advice.scores) if advice.nodes else np.zeros(0, np.int64)
    return {
        "pod": pod.title,
        "uid": pod.uid,
        "bound": pod.node or None,
        "policy": advisor.policy.name,
        "scored_by": advice.source,
        "cause": advice.cause or None,
        "policy_would_wait": advice.waits,
        "chosen": advice.best,
        "runner_up": advice.runner_up,
        "num_feasible": len(advice.nodes),
        "feasible": [
            {
                "node": advice.nodes[i],
                "score": _plain(advice.scores[i]),
                "priority": int(given[i]),
                "rules": {name: _plain(scores[i]) for name, scores in rules.items()},
            }
            for i in order[:limit].tolist()
        ],
        "best_of": {name: advice.nodes[int(np.argmax(scores))] for name, scores in rules.items()},
        "infeasible": {
            name: {"filter": failure.filter, "reason": failure.reason, "is_final": failure.is_final}
            for name, failure in advice.failed.items()
        },
        "would_fit_if": counterfactuals(advisor, unbound, advice),
    }


def counterfactuals(advisor: PlacementAdvisor, pod: PodFacts, advice: Advice) -> list[dict[str, Any]]:
    """Single pods whose leaving would make room on a node where the pod does not fit, cheapest first.

    Each says where that pod could go; None if nowhere, so that it would have to be evicted. Pods that belong where
    they are (DaemonSets, local volumes, ...) and those more urgent than this one are not considered.
    """
    state, filters = advisor.state, advisor.filters
    with state.lock:
        trials: list[tuple[Placed, str]] = [
            (one, name)
            for name, failure in advice.failed.items()
            if not failure.is_final
            for one in state.on_node(name).values()
            if not one.pod.pinned and one.pod.priority <= pod.priority and one.pod.uid != pod.uid
        ]
        trials.sort(key=lambda trial: (trial[0].pod.priority, trial[0].pod.requests.get("cpu", 0), trial[0].pod.title))
        found: list[dict[str, Any]] = []
        for one, name in trials[:MOST_TRIALS]:
            if not filters.check(pod, [name], without=[one.pod.uid]).nodes:
                continue
            others = filters.check(_unbound(one.pod), [other for other in state.names if other != name]).nodes
            found.append({"node": name, "moved": one.pod.title, "to": others[0] if others else None})
            if sum(entry["to"] is not None for entry in found) >= MOST_COUNTERFACTUALS:
                break
        found.sort(key=lambda entry: entry["to"] is None)
        return found[:MOST_COUNTERFACTUALS]


def _unbound(pod: PodFacts) -> PodFacts:
    return replace(pod, node="", nominated="")


def _plain(score: float) -> float:
    return round(float(score), 6)
