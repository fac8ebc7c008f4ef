"""Advice on one pod: which nodes will do, what the policy thinks of each, and a plain rule when it cannot say.

The policy runs in a thread of its own. When it is late, raises or answers with something that is no number, the
advice comes from the fallback rule, least-allocated: the node with the largest share of CPU and memory free.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.convert import GPU_RESOURCES
from dispatchgym.serving.kube.facts import NodeFacts, PodFacts, Rules
from dispatchgym.serving.kube.filters import Failure, Filters
from dispatchgym.serving.kube.mirror import Mirror
from dispatchgym.serving.kube.policies import RulePolicy, ScoringPolicy

log = logging.getLogger(__name__)

Source = Literal["policy", "fallback", "none"]
Cause = Literal["", "late", "busy", "error", "not a number", "unknown nodes", "nothing fits"]


class UnknownNodes(Exception):
    """None of the nodes is in our picture of the cluster, or none has room in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Advice:
    """What to do with a pod.

    Args:
        pod: whose.
        nodes: names of those that will do.
        scores: shape (nodes,), finite, the highest is best.
        failed: why the others will not do.
        source: who scored: the policy, the fallback rule, or nobody because nothing fits.
        cause: why it was not the policy.
        waits: the policy would rather leave the pod pending for now.
        seconds: what it took.
    """

    pod: PodFacts
    nodes: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    failed: Mapping[str, Failure]
    source: Source
    cause: Cause = ""
    waits: bool = False
    seconds: float = 0.0

    @property
    def ranking(self) -> list[str]:
        """The nodes, best first; equals in the order of `nodes`."""
        return [self.nodes[i] for i in np.argsort(-self.scores, kind="stable")]

    @property
    def best(self) -> str | None:
        """The node to take, None if there is none."""
        return self.nodes[int(np.argmax(self.scores))] if self.nodes else None

    @property
    def runner_up(self) -> str | None:
        """The second best."""
        return self.ranking[1] if len(self.nodes) > 1 else None


class PlacementAdvisor:
    """Asks a policy about pods of one cluster. Safe for several threads; `close()` ends its thread.

    Attributes:
        decisions: of each source, how many.
        causes: why the policy did not answer, how often each.

    Args:
        state: the cluster.
        policy: who scores.
        budget_s: how long it may take from being asked; later answers are not waited for. None for as long as it takes,
            in the caller's own thread, which must then be one alone: that saves two changes of threads a pod.
    """

    def __init__(self, state: ClusterState, policy: ScoringPolicy, *, budget_s: float | None = 0.05) -> None:
        self.state = state
        self.policy = policy
        self.budget_s = budget_s
        self.filters = Filters(state)
        self.decisions: Counter[Source] = Counter()
        self.causes: Counter[Cause] = Counter()
        self._mirror = Mirror(state, policy.graph, policy.fragments)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._running: Future[tuple[npt.NDArray[np.float64], bool]] | None = None

    def advise(self, pod: PodFacts, names: Sequence[str] | None = None) -> Advice:
        """Filter the nodes (default all) and score those that are left."""
        begin = time.perf_counter()
        feasible = self.filters.check(pod, names)
        return self._score(pod, feasible.nodes, feasible.failed, begin)

    def score(self, pod: PodFacts, names: Sequence[str]) -> Advice:
        """Score nodes that somebody else has filtered."""
        return self._score(pod, tuple(names), {}, time.perf_counter())

    def compare(
        self, pod: PodFacts, names: Sequence[str], policies: Sequence[ScoringPolicy], limit_s: float = 300.0
    ) -> dict[str, npt.NDArray[np.float64]]:
        """What each of several policies thinks of the nodes, shape (nodes,), without a budget.

        Those that need what this advisor's policy does not (FGD's fragmentation, another graph) are left out.
        """
        able = [p for p in policies if p.graph == self.policy.graph or isinstance(p, RulePolicy)]
        able = [p for p in able if self.policy.fragments or not p.fragments]
        asked = {p.name: self._thread.submit(self._ask, pod, tuple(names), p) for p in able}
        found = {}
        for name, answer in asked.items():
            with suppress(UnknownNodes):
                found[name] = answer.result(limit_s)[0]
        return found

    def warm_up(self, policies: Sequence[ScoringPolicy] = ()) -> None:
        """Ask the policy, and others, once without a budget: what they compile or load, they do now."""
        state = ClusterState()
        state.put_node(NodeFacts("warm-up", {}, (), False, {"cpu": 2, "memory": 2**30, GPU_RESOURCES[0]: 1}, 9, 1))
        pod = PodFacts("warm-up", "default", "warm-up", "", 0, {"cpu": 1}, {}, Rules((), None, ()))
        state.put_pod(replace(pod, uid="runs", node="warm-up"))
        own = PlacementAdvisor(state, self.policy, budget_s=self.budget_s)
        own.compare(pod, ("warm-up",), (self.policy, *policies))
        own.close()

    def close(self) -> None:
        """End the policy's thread as soon as it is free."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _score(self, pod: PodFacts, nodes: tuple[str, ...], failed: Mapping[str, Failure], begin: float) -> Advice:
        source: Source = "policy"
        cause: Cause = ""
        waits = False
        scores = np.zeros(len(nodes))
        if not nodes:
            source, cause = "none", "nothing fits"
        elif self._running is not None and not self._running.done():
            cause = "busy"  # still with a pod that was given up as late
        else:
            try:
                if self.budget_s is None:
                    scores, waits = self._ask(pod, nodes)
                else:
                    self._running = self._thread.submit(self._ask, pod, nodes)
                    left = self.budget_s - (time.perf_counter() - begin)
                    scores, waits = self._running.result(max(left, 0.0))
                if np.isnan(scores).any():
                    cause = "not a number"
            except Late:
                cause = "late"
            except UnknownNodes:
                cause = "unknown nodes"
            except Exception:  # a policy that fails must not take the scheduler with it: counted, logged, replaced
                log.exception("policy %s failed on pod %s", self.policy.name, pod.title)
                cause = "error"
        if cause and source == "policy":
            source, waits = "fallback", False
            scores = least_allocated(self.state, pod, nodes)
        self.decisions[source] += 1
        if cause:
            self.causes[cause] += 1
        return Advice(pod, nodes, scores, failed, source, cause, waits, time.perf_counter() - begin)

    def _ask(
        self, pod: PodFacts, nodes: tuple[str, ...], policy: ScoringPolicy | None = None
    ) -> tuple[npt.NDArray[np.float64], bool]:
        """Scores of the nodes, NaN if one of the policy's is no number; and whether WAIT is better than all."""
        batch = self._mirror.ask(pod, nodes)
        if batch is None:
            raise UnknownNodes
        with np.errstate(all="ignore"):
            actions, values = (policy or self.policy).scores(batch)
        if not np.isfinite(values).all():
            return np.full(len(nodes), np.nan), False
        binds = actions != batch.wait_action
        best = np.full(batch.capacity.nodes, -np.inf)
        np.maximum.at(best, actions[binds] // batch.capacity.gpus, values[binds])
        scores = best[self._mirror.rows_of(nodes)]
        # A node that the policy was not offered, for our picture of it is out of date, comes last.
        scores[np.isneginf(scores)] = values[binds].min() - 1.0
        return scores, bool(values.max() > best.max())


def least_allocated(state: ClusterState, pod: PodFacts, nodes: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean share of CPU and memory that stays free with the pod, 0 to 100, shape (nodes,); unknown nodes 0."""
    with state.lock:
        request = state.request(pod)[:2]
        scores = np.zeros(len(nodes))
        for i, name in enumerate(nodes):
            if name not in state.nodes:
                continue
            allocatable = state.nodes[name].allocatable
            total = np.array([max(allocatable.get(r, 0), 1) for r in ("cpu", "memory")])
            left = (state.free[state.rows[name], :2] - request) / total
            scores[i] = 50.0 * float(left.clip(0.0, 1.0).sum())
        return scores
