"""What Prometheus sees of the extender."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dispatchgym.serving.kube.advisor import Advice
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.decisions import Decision

_LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_AGREES = {True: "true", False: "false", None: "unanswered"}


class ExtenderMetrics:
    """Counters and gauges of one extender, in a registry of their own."""

    def __init__(self, state: ClusterState) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dispatchgym_extender_requests", "Requests answered.", ["verb", "code"], registry=self.registry
        )
        self.latency = Histogram(
            "dispatchgym_extender_request_seconds",
            "From the whole request to the answer.",
            ["verb"],
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.decisions = Counter(
            "dispatchgym_extender_decisions",
            "Pods scored, by whom; and why it was not the policy.",
            ["source", "cause"],
            registry=self.registry,
        )
        self.outcomes = Counter(
            "dispatchgym_extender_outcomes",
            "Pods bound where the policy wanted (true), elsewhere (false), or without its answer (unanswered).",
            ["agrees"],
            registry=self.registry,
        )
        self.unreadable = Counter(
            "dispatchgym_extender_unreadable_objects", "Watched nodes and pods left out.", registry=self.registry
        )
        for name, help_text, size in (
            ("nodes", "Nodes known.", lambda: len(state.nodes)),
            ("pods_placed", "Pods known to hold a place, or expected to.", lambda: len(state.placed)),
            ("pods_waiting", "Pods known to wait.", lambda: len(state.waiting)),
        ):
            gauge = Gauge(f"dispatchgym_extender_{name}", help_text, registry=self.registry)
            gauge.set_function(size)

    def advised(self, advice: Advice) -> None:
        """A pod has been scored."""
        self.decisions.labels(advice.source, advice.cause).inc()

    def outcome(self, decision: Decision) -> None:
        """What became of a decision is known."""
        if decision.bound:
            self.outcomes.labels(_AGREES[decision.agrees]).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
