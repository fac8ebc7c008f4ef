"""A local copy of one kind of objects, kept true by list and watch, whatever happens to the connection."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from dispatchgym.serving.kube.scheduler_api import GONE, ApiError, Json, Kind

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0


class Lister(Protocol):
    """Where objects come from; `KubeApi` is one."""

    def list_all(self, kind: Kind) -> tuple[list[Json], str]: ...
    def watch(self, kind: Kind, version: str, *, opened: Callable[[Any], None]) -> Iterator[Json]: ...


class Sink(Protocol):
    """Where they go; called from the reflector's thread alone, kind by kind."""

    def replace(self, kind: Kind, objects: list[Json]) -> None:
        """These are all there are."""

    def change(self, kind: Kind, event: str, thing: Json) -> None:
        """ADDED, MODIFIED or DELETED."""


class Reflector(threading.Thread):
    """Lists once, then watches. A broken watch is resumed where it stood; after 410 Gone everything is listed anew.

    Attributes:
        synced: set once the first list has arrived.
        is_watching: a stream of changes is open: what is known is as new as can be.
        lists: how often everything was listed.
        breaks: how often a list or watch failed.
    """

    def __init__(self, source: Lister, kind: Kind, sink: Sink, *, rng: random.Random | None = None) -> None:
        super().__init__(name=f"watch-{kind}", daemon=True)
        self.kind = kind
        self.synced = threading.Event()
        self.is_watching = False
        self.lists = 0
        self.breaks = 0
        self._source = source
        self._sink = sink
        self._rng = rng or random.Random()
        self._halt = threading.Event()
        self._response: Any = None

    def run(self) -> None:
        version, wait_s = "", FIRST_WAIT_S
        while not self._halt.is_set():
            try:
                if not version:
                    objects, version = self._source.list_all(self.kind)
                    self.lists += 1
                    self._sink.replace(self.kind, objects)
                    self.synced.set()
                for event in self._source.watch(self.kind, version, opened=self._keep):
                    wait_s = FIRST_WAIT_S
                    thing = event["object"]
                    if event["type"] != "BOOKMARK":
                        self._sink.change(self.kind, event["type"], thing)
                    version = thing["metadata"]["resourceVersion"]
                self.is_watching = False
            except Exception as error:  # whatever broke it, a scheduler without eyes is worse than one more try
                self.is_watching = False
                if self._halt.is_set():
                    return
                self.breaks += 1
                if isinstance(error, ApiError) and error.code == GONE:
                    log.warning("%s; listing all %s anew", error, self.kind)
                    version = ""
                elif isinstance(error, ApiError):
                    log.warning("%s; trying again in %.1f s", error, wait_s)
                else:  # what was read may be half applied: begin from a list
                    log.exception("watching %s broke; listing anew in %.1f s", self.kind, wait_s)
                    version = ""
                self._halt.wait(wait_s * self._rng.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _keep(self, response: Any) -> None:
        self._response = response
        self.is_watching = True
        if self._halt.is_set():
            self._hang_up()

    def _hang_up(self) -> None:
        with suppress(Exception):  # it may be closed, or half open, or another client's kind of response
            self._response.shutdown()

    def stop(self) -> None:
        """End the thread; an open stream is shut down."""
        self._halt.set()
        self._hang_up()
