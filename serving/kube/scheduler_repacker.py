"""When to re-pack: looks at the cluster from time to time and has better plans printed, or carried out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from dispatchgym.serving.kube.facts import PodFacts
from dispatchgym.serving.kube.filters import Filters
from dispatchgym.serving.kube.scheduler import Scheduler
from dispatchgym.serving.kube.scheduler_api import ApiError, Json
from dispatchgym.serving.kube.scheduler_events import Recorder
from dispatchgym.serving.kube.scheduler_repack import (
    Evictor,
    Execution,
    Planner,
    RepackPlan,
    RepackSettings,
    blocked_by_budget,
    make_plan,
)

log = logging.getLogger(__name__)


class Budgeted(Evictor, Protocol):
    """Who knows disruption budgets and evicts; `KubeApi` is one."""

    def budgets(self) -> list[Json]: ...


class Repacker(threading.Thread):
    """Plans while pods of ours fit nowhere, one plan at a time.

    Attributes:
        latest: the last plan that was better than the cluster as it stood.

    Args:
        every_s: from one look to the next.
        allow_evictions: carry plans out; without it they are only told.
        tell: gets the lines of every new plan.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        filters: Filters,
        api: Budgeted,
        planner: Planner,
        recorder: Recorder,
        *,
        every_s: float = 60.0,
        allow_evictions: bool = False,
        settings: RepackSettings | None = None,
        tell: Callable[[list[str]], None] = lambda lines: None,
    ) -> None:
        super().__init__(name="repack", daemon=True)
        self.latest: RepackPlan | None = None
        self._scheduler = scheduler
        self._filters = filters
        self._api = api
        self._planner = planner
        self._recorder = recorder
        self._every_s = every_s
        self._allow_evictions = allow_evictions
        self._settings = settings or RepackSettings()
        self._tell = tell
        self._halt = threading.Event()

    def plan(self) -> RepackPlan | None:
        """A plan for the cluster as it stands, None if there is nothing to plan for.

        Raises:
            ApiError: the API server does not answer.
        """
        try:
            budgets = self._api.budgets()
        except ApiError as error:
            if error.code != 403:
                raise
            log.warning("%s; the plan does not know disruption budgets, the Eviction API still holds them", error)
            budgets = []
        return make_plan(
            self._scheduler.state, self._filters, self._planner, fixed=self._fixed(blocked_by_budget(budgets))
        )

    def _fixed(self, blocked: Callable[[PodFacts], str]) -> Callable[[PodFacts], str]:
        name, state = self._scheduler.settings.name, self._scheduler.state

        def why(pod: PodFacts) -> str:
            if pod.scheduler != name:
                return "another scheduler's"
            if not pod.node and pod.uid in state.placed:
                return "its binding is under way"
            return blocked(pod)

        return why

    def look(self) -> RepackPlan | None:
        """Make a plan, tell it, and carry it out if that is allowed; None if there is none that is better."""
        plan = self.plan()
        if plan is None or not plan.is_better:
            return None
        if plan != self.latest:
            self.latest = plan
            self._tell(plan.lines())
        if self._allow_evictions:
            self.carry_out(plan)
        return plan

    def carry_out(self, plan: RepackPlan) -> Execution:
        """Evict, and keep the nodes for the plan's pods until they are bound."""
        scheduler = self._scheduler
        execution = Execution(
            plan, self._api, scheduler.state, self._filters,
            raw=scheduler.raw, settings=self._settings, may_act=lambda: scheduler.is_leader,
            wake=scheduler.queue.wake, metrics=scheduler.metrics,
            told=lambda pod, text: self._recorder.tell(pod, "Normal", "Repacked", text, action="Evicting"),
        )  # fmt: skip
        scheduler.steering = execution
        try:
            execution.run(self._halt)
        finally:
            scheduler.steering = None
            scheduler.queue.wake()
        return execution

    def run(self) -> None:
        while not self._halt.wait(self._every_s):
            if not self._scheduler.is_leader or not self._scheduler.is_synced or not self._scheduler.queue.num_aside:
                continue
            try:
                self.look()
            except ApiError as error:
                log.warning("no plan: %s", error)
            except Exception:  # plans are extra: scheduling goes on without them
                log.exception("no plan")

    def stop(self) -> None:
        """End after the step at hand."""
        self._halt.set()
