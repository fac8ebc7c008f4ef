"""What the second scheduler counts, for Prometheus."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Waiting(Protocol):
    def __len__(self) -> int: ...
    @property
    def num_aside(self) -> int: ...


class Followed(Protocol):
    """The scheduler as its gauges see it."""

    @property
    def queue(self) -> Waiting: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def watch_restarts(self) -> int: ...


class SchedulerMetrics:
    """One set of metrics in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.attempts = Counter(
            "dispatchgym_scheduler_attempts",
            "Decisions by how they ended: scheduled, unschedulable, waits, refused.",
            ["result"],
            registry=self.registry,
        )
        self.decision_seconds = Histogram(
            "dispatchgym_scheduler_decision_seconds", "From pod to node.", buckets=_SECONDS, registry=self.registry
        )
        self.bind_seconds = Histogram(
            "dispatchgym_scheduler_bind_seconds",
            "From decision to the API server's answer, repetitions included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.unreadable = Counter(
            "dispatchgym_scheduler_unreadable_objects", "Nodes and pods left out.", registry=self.registry
        )
        self.evictions = Counter(
            "dispatchgym_scheduler_evictions",
            "Evictions of re-packing plans: done, blocked by a disruption budget, failed.",
            ["result"],
            registry=self.registry,
        )

    def follow(self, scheduler: Followed) -> None:
        """Read the gauges from this scheduler."""
        for name, text, read in (
            ("pending_pods", "Pods of ours without a node.", lambda: len(scheduler.queue)),
            ("unschedulable_pods", "Those of them that fitted nowhere.", lambda: scheduler.queue.num_aside),
            ("is_leader", "1 on the replica that decides.", lambda: int(scheduler.is_leader)),
            ("watch_restarts", "Watches and lists that failed.", lambda: scheduler.watch_restarts),
        ):
            Gauge(f"dispatchgym_scheduler_{name}", text, registry=self.registry).set_function(read)
