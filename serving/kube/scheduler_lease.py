"""Leader election by a Lease: of several schedulers, one at a time decides.

The rules are those of Kubernetes' own components: the holder renews every `retry_s`; it stops acting once it could
not renew for `renew_deadline_s`; others take over when the lease has not changed for `duration_s` by their own
clock, so that clocks need not agree. On a clean stop the lease is given back, and the next one starts at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import Protocol

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.kube.scheduler_api import ApiError, Json

log = logging.getLogger(__name__)


class Leases(Protocol):
    """Where leases live; `KubeApi` is one."""

    def read_lease(self, namespace: str, name: str) -> Json | None: ...
    def write_lease(self, namespace: str, lease: Json) -> Json: ...


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Which lease, and how patiently; the times are Kubernetes' defaults, in seconds."""

    namespace: str = "kube-system"
    name: str = "dispatchgym"
    duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.renew_deadline_s < self.duration_s:
            raise UsageError(
                f"lease times must rise from retry ({self.retry_s}) over renew deadline ({self.renew_deadline_s}) "
                f"to duration ({self.duration_s})"
            )


class Election:
    """One candidate.

    Args:
        identity: unlike that of every other candidate.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        leases: Leases,
        settings: LeaseSettings,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.identity = identity
        self._leases = leases
        self._clock = clock
        self._seen: object = None  # the record last read
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def is_leader(self) -> bool:
        """This candidate may act: its last renewal is younger than the renew deadline."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < self.settings.renew_deadline_s

    def try_once(self) -> bool:
        """Take or renew the lease if that is due to us; whether it is ours now."""
        asked_at = self._clock()
        try:
            lease = self._leases.read_lease(self.settings.namespace, self.settings.name)
            ours = self._write(lease, asked_at)
        except ApiError as error:
            log.warning("lease: %s", error)
            return False
        if ours:
            self._renewed_at = asked_at
        else:
            self._renewed_at = None
        return ours

    def _write(self, lease: Json | None, asked_at: float) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = (lease or {}).get("spec", {})
        holder = old.get("holderIdentity") or ""
        record = holder, old.get("renewTime"), old.get("leaseTransitions")
        if record != self._seen:
            self._seen, self._seen_at = record, asked_at
        patience = float(old.get("leaseDurationSeconds") or self.settings.duration_s)
        if holder not in ("", self.identity) and asked_at - self._seen_at < patience:
            return False
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self.settings.duration_s)),
            "acquireTime": old.get("acquireTime") if holder == self.identity else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (lease is not None and holder != self.identity),
        }
        meta = (lease or {}).get("metadata") or {"name": self.settings.name, "namespace": self.settings.namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
        self._leases.write_lease(self.settings.namespace, body)
        return True

    def release(self) -> None:
        """Give the lease back, if it is ours, so that the next candidate need not wait."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = self._leases.read_lease(self.settings.namespace, self.settings.name)
            if lease and lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"].update(holderIdentity="", leaseDurationSeconds=1)
                self._leases.write_lease(self.settings.namespace, lease)
        except ApiError as error:
            log.warning("lease: %s; others wait %s s for it to run out", error, self.settings.duration_s)

    def run(self, stop: Event) -> None:
        """Stand for election until `stop`, then release."""
        while not stop.is_set():
            was = self.is_leader
            self.try_once()
            if self.is_leader != was:
                log.info("%s %s", self.identity, "leads" if self.is_leader else "follows")
            stop.wait(self.settings.retry_s)
        self.release()
