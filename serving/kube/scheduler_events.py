"""What a scheduler tells people about their pods: events, and the condition PodScheduled."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, Protocol

from dispatchgym.serving.kube.filters import Failure
from dispatchgym.serving.kube.scheduler_api import NOT_FOUND, ApiError, Json

log = logging.getLogger(__name__)

MOST_WAITING = 5000
"""Messages that wait to be written; more are dropped and counted: scheduling never waits for them."""
MOST_REASONS = 5


class Writer(Protocol):
    """Where messages go; `KubeApi` is one."""

    def write_event(self, event: Json) -> None: ...
    def set_condition(self, pod: Json, condition: Json) -> None: ...


def why_nowhere(failed: Mapping[str, Failure]) -> str:
    """One line: how many nodes each filter refused, with an example of its reason, the most frequent first."""
    count = Counter(failure.filter for failure in failed.values())
    example = {failure.filter: failure.reason for failure in reversed(list(failed.values()))}
    parts = [f"{number} {name} ({example[name]})" for name, number in count.most_common(MOST_REASONS)]
    return f"0/{len(failed)} nodes are available: {', '.join(parts) or 'the cluster has none'}."


class Recorder(threading.Thread):
    """Writes messages one after another, beside the scheduler.

    Attributes:
        dropped: messages lost: too many waited, or the API server refused them.

    Args:
        component: who says so.
        identity: which replica of it.
    """

    def __init__(self, writer: Writer, component: str, identity: str) -> None:
        super().__init__(name="events", daemon=True)
        self.dropped = 0
        self._writer = writer
        self._component = component
        self._identity = identity
        self._numbers = itertools.count()
        self._waiting: queue.Queue[tuple[Json, Json, Json | None] | None] = queue.Queue(MOST_WAITING)

    def tell(
        self, pod: Json, kind: Literal["Normal", "Warning"], reason: str, message: str, *, action: str = "Binding"
    ) -> None:
        """An event of the pod; a Warning also becomes its condition PodScheduled=False."""
        now = datetime.now(UTC)
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        meta = pod["metadata"]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{meta['name'][:200]}.{int(now.timestamp() * 1e6):x}{next(self._numbers) % 4096:03x}",
                "namespace": meta["namespace"],
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "action": action,
            "eventTime": stamp,
            "reportingComponent": self._component,
            "reportingInstance": self._identity[:128],
        }
        condition = None
        if kind == "Warning":
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable" if reason == "FailedScheduling" else reason,
                "message": message,
                "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        try:
            self._waiting.put_nowait((pod, event, condition))
        except queue.Full:
            self.dropped += 1

    def run(self) -> None:
        while (message := self._waiting.get()) is not None:
            pod, event, condition = message
            try:
                if condition:
                    self._writer.set_condition(pod, condition)
                self._writer.write_event(event)
            except ApiError as error:
                if error.code != NOT_FOUND:  # the pod is gone: nobody is left to tell
                    self.dropped += 1
                    log.warning("%s", error)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what waits, as far as there is time, and end the thread."""
        deadline = time.monotonic() + timeout_s
        while not self._waiting.empty() and time.monotonic() < deadline and self.is_alive():
            time.sleep(0.01)
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
                self.dropped += 1
        self._waiting.put_nowait(None)
        if self.is_alive():
            self.join(timeout_s)
