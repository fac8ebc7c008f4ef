"""What was decided and what became of it: for `explain`, the journal, and the comparison that a dry run makes."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TextIO

from dispatchgym.serving.kube.advisor import Advice, Cause, Source
from dispatchgym.serving.kube.facts import PodFacts

MOST_KEPT = 2000


def now() -> str:
    """The time, as Kubernetes writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer to `prioritize`, and its outcome.

    Args:
        time: when, UTC.
        would: the node that the policy prefers, or the fallback rule where the policy did not answer.
        runner_up: the second best, "" without.
        choices: nodes that were asked about.
        waits: the policy would rather leave the pod pending.
        bound: where the pod went, "" while that is unknown.
        agrees: it went where the policy wanted; None while unknown or where the policy did not answer.
    """

    time: str
    pod: str
    uid: str
    policy: str
    dry_run: bool
    source: Source
    cause: Cause
    would: str
    runner_up: str
    choices: int
    waits: bool
    seconds: float
    bound: str = ""
    agrees: bool | None = None

    @classmethod
    def of(cls, advice: Advice, policy: str, dry_run: bool) -> Decision:
        return cls(
            now(), advice.pod.title, advice.pod.uid, policy, dry_run, advice.source, advice.cause, advice.best or "",
            advice.runner_up or "", len(advice.nodes), advice.waits, round(advice.seconds, 6),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Agreement:
    """Decisions so far, of which the outcome is known, of which the pod went where the policy wanted.

    Args:
        decided: pods decided about, each counted once.
        bound: of these seen bound, where the policy had answered.
        agreed: of these where it wanted.
        unanswered: pods seen bound for which the policy had not answered.
        unseen: pods that went without having been seen bound.
        pending: neither yet.
    """

    decided: int
    bound: int
    agreed: int
    unanswered: int
    unseen: int
    pending: int

    @property
    def rate(self) -> float | None:
        """Share of pods that went where the policy wanted; None before the first."""
        return self.agreed / self.bound if self.bound else None


class Decisions:
    """The latest decision on each of the last MOST_KEPT pods, written to a journal once its outcome is known.

    Safe for several threads.

    Args:
        journal: gets a JSON line a pod.
        on_outcome: called with every decision whose outcome has become known.
    """

    def __init__(self, journal: TextIO | None = None, on_outcome: Callable[[Decision], None] | None = None) -> None:
        self._journal = journal
        self._on_outcome = on_outcome
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Decision] = OrderedDict()
        self._closed: OrderedDict[str, Decision] = OrderedDict()
        self._counts = Agreement(0, 0, 0, 0, 0, 0)

    def add(self, decision: Decision) -> None:
        """A pod was decided on; asked again before it is bound, the last answer counts."""
        with self._lock:
            counts = self._counts
            if decision.uid not in self._open:
                self._counts = replace(counts, decided=counts.decided + 1, pending=counts.pending + 1)
            self._open[decision.uid] = decision
            self._open.move_to_end(decision.uid)
            if len(self._open) > MOST_KEPT:
                self._close(next(iter(self._open)), "")

    def saw(self, pod: PodFacts) -> None:
        """The pod as it is now; bound for the first time, its decision is closed."""
        if pod.node:
            with self._lock:
                self._close(pod.uid, pod.node)

    def gone(self, uid: str) -> None:
        """The pod is gone."""
        with self._lock:
            self._close(uid, "")

    def close(self) -> None:
        """Write down what is still open."""
        with self._lock:
            for uid in list(self._open):
                self._close(uid, "")

    def latest(self, uid: str) -> Decision | None:
        """The last decision on a pod, if it is not too long ago."""
        with self._lock:
            return self._open.get(uid) or self._closed.get(uid)

    @property
    def agreement(self) -> Agreement:
        with self._lock:
            return self._counts

    def _close(self, uid: str, node: str) -> None:
        decision = self._open.pop(uid, None)
        if decision is None:
            return
        counts, by_policy = self._counts, decision.source == "policy"
        agrees = node == decision.would if node and by_policy else None
        decision = replace(decision, bound=node, agrees=agrees)
        self._counts = replace(
            counts,
            bound=counts.bound + (agrees is not None),
            agreed=counts.agreed + (agrees is True),
            unanswered=counts.unanswered + bool(node and not by_policy),
            unseen=counts.unseen + (not node),
            pending=counts.pending - 1,
        )
        self._closed[uid] = decision
        if len(self._closed) > MOST_KEPT:
            self._closed.popitem(last=False)
        if self._journal is not None:
            self._journal.write(json.dumps(asdict(decision)) + "\n")
            self._journal.flush()
        if self._on_outcome is not None:
            self._on_outcome(decision)
