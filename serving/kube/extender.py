"""The scheduler extender: kube-scheduler's questions, answered by a policy.

kube-scheduler has filtered before it asks, and it decides whether to evict; what it sends is safe to choose from. So
the policy's part is the score: the node that it prefers gets 10, the others 0 to 9 by their scores. Where the policy
has nothing to say (late, failed, dry run, a node list of none) all nodes get 0, which leaves kube-scheduler's own
choice as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dispatchgym.serving.kube.advisor import PlacementAdvisor
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.convert import GPU_RESOURCES, node_facts, pod_facts
from dispatchgym.serving.kube.decisions import Decision, Decisions
from dispatchgym.serving.kube.facts import PodFacts
from dispatchgym.serving.kube.filters import Failure
from dispatchgym.serving.kube.metrics import ExtenderMetrics
from dispatchgym.serving.kube.quantity import PayloadError
from dispatchgym.serving.kube.wire import (
    MOST_PRIORITY,
    ExtenderArgs,
    ExtenderBindingArgs,
    ExtenderPreemptionArgs,
)


class Binder(Protocol):
    """Who assigns pods to nodes; `KubeApi` is one."""

    def bind(self, pod: Any, node: str) -> None: ...


@dataclass(frozen=True, slots=True)
class ExtenderConfig:
    """What the extender does.

    Args:
        dry_run: answer as if it were not there, and only write down what it would have done.
        recheck: ask all of our filters in `filter` too. Off, `filter` refuses only what kube-scheduler cannot know:
            GPU shares by annotation. What we have seen of the cluster may be older than what kube-scheduler has, and
            a pod that is refused for that waits for the next event.
        watches: the cluster's nodes and pods are watched; if not, nodes are those of the requests.
    """

    dry_run: bool = False
    recheck: bool = False
    watches: bool = True


class Extender:
    """Answers the four verbs. `decisions` is where others find what was said."""

    def __init__(
        self,
        advisor: PlacementAdvisor,
        decisions: Decisions,
        metrics: ExtenderMetrics,
        config: ExtenderConfig | None = None,
        binder: Binder | None = None,
    ) -> None:
        self.advisor = advisor
        self.state: ClusterState = advisor.state
        self.decisions = decisions
        self.metrics = metrics
        self.config = config or ExtenderConfig()
        self.binder = binder

    def filter(self, args: ExtenderArgs) -> dict[str, Any]:
        """ExtenderFilterResult: the nodes that will do and why the others will not."""
        pod, names = self._read(args)
        failed: Mapping[str, Failure] = {}
        if not self.config.dry_run:
            known = [name for name in names if name in self.state.nodes]
            if self.config.recheck:
                failed = self.advisor.filters.check(pod, known).failed
            elif pod.gpus and not any(resource in pod.requests for resource in GPU_RESOURCES):
                failed = self.advisor.filters.gpu_share(pod, known)
        kept = [name for name in names if name not in failed]
        by_name = args.NodeNames is not None
        items = (args.Nodes.items if args.Nodes is not None else None) or []
        return {
            "Nodes": None if by_name else {"metadata": {}, "items": [n for n in items if _name(n) not in failed]},
            "NodeNames": kept if by_name else None,
            "FailedNodes": {name: str(f.reason) for name, f in failed.items() if not f.is_final},
            "FailedAndUnresolvableNodes": {name: str(f.reason) for name, f in failed.items() if f.is_final},
            "Error": "",
        }

    def prioritize(self, args: ExtenderArgs) -> list[dict[str, Any]]:
        """HostPriorityList: 0 to 10 for every node asked about."""
        pod, names = self._read(args)
        if not names:
            return []
        advice = self.advisor.score(pod, names)
        self.metrics.advised(advice)
        self.decisions.add(Decision.of(advice, self.advisor.policy.name, self.config.dry_run))
        if self.config.dry_run or advice.source != "policy":
            return [{"Host": name, "Score": 0} for name in names]
        assert advice.best is not None
        if self.config.watches:
            self.state.expect(pod, advice.best)
        return [{"Host": n, "Score": p} for n, p in zip(names, priorities(advice.scores).tolist(), strict=True)]

    def watch_over(self, pod: PodFacts) -> None:
        """Decide on a pod that waits without having been asked, to compare with where it goes; for dry runs.

        A pod with fewer than two nodes to choose from tells nothing and is left out.
        """
        advice = self.advisor.advise(pod)
        if len(advice.nodes) > 1:
            self.metrics.advised(advice)
            self.decisions.add(Decision.of(advice, self.advisor.policy.name, self.config.dry_run))

    def preempt(self, args: ExtenderPreemptionArgs) -> dict[str, Any]:
        """ExtenderPreemptionResult: the nodes where the pod will fit once the victims are gone, victims unchanged."""
        pod = pod_facts(args.Pod)
        victims: dict[str, tuple[list[str], int]] = {}
        for node, meta in (args.NodeNameToMetaVictims or {}).items():
            victims[node] = [p.UID for p in meta.Pods or []], meta.NumPDBViolations
        for node, whole in (args.NodeNameToVictims or {}).items():
            victims.setdefault(node, ([pod_facts(p).uid for p in whole.Pods or []], whole.NumPDBViolations))
        kept = {}
        for node, (uids, violations) in victims.items():
            unknown = node not in self.state.nodes or not self.config.recheck or self.config.dry_run
            if unknown or self.advisor.filters.check(pod, [node], without=uids).nodes:
                kept[node] = {"Pods": [{"UID": uid} for uid in uids], "NumPDBViolations": violations}
        return {"NodeNameToMetaVictims": kept}

    def bind(self, args: ExtenderBindingArgs) -> dict[str, Any]:
        """ExtenderBindingResult: bind the pod through the API server.

        Raises:
            PayloadError: binding is off.
        """
        if self.binder is None or self.config.dry_run:
            raise PayloadError(
                "binding is off; take bindVerb out of the scheduler's configuration, or start me with it"
            )
        meta = {"name": args.PodName, "namespace": args.PodNamespace, "uid": args.PodUID}
        self.binder.bind({"metadata": meta}, args.Node)
        return {"Error": ""}

    def _read(self, args: ExtenderArgs) -> tuple[PodFacts, list[str]]:
        """The pod, and the names of the nodes asked about. Without a watch, learns the nodes that are sent whole."""
        pod = pod_facts(args.Pod)
        if args.NodeNames is not None:
            return pod, list(dict.fromkeys(args.NodeNames))
        items = (args.Nodes.items if args.Nodes is not None else None) or []
        if not self.config.watches:
            for item in items:
                self.state.put_node(node_facts(item))
        return pod, list(dict.fromkeys(_name(item) for item in items))


def priorities(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """0 to 10 a node: 10 for the best one alone (the first of equals), 0 to 9 for the others by their scores."""
    scaled: npt.NDArray[np.int64]
    low, high = scores.min() / 2.0, scores.max() / 2.0  # halves: the range of two finite numbers may not be finite
    if high > low:
        share = ((scores / 2.0 - low) / (high - low)).clip(0.0, 1.0)
        scaled = np.floor((MOST_PRIORITY - 1) * share).astype(np.int64)
    else:
        scaled = np.full(len(scores), MOST_PRIORITY - 1, np.int64)
    scaled[int(np.argmax(scores))] = MOST_PRIORITY
    return scaled


def _name(node: Mapping[str, Any]) -> str:
    meta = node.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    if not isinstance(name, str) or not name:
        raise PayloadError("node without metadata.name")
    return name
