"""Re-packing: a plan for many pods at once, carried out as evictions that their controllers answer with new pods.

Only pods of this scheduler that a controller would create again are moved; a pod is evicted when the node kept for
its successor has room, except where pods must change places. Evictions go through the Eviction API, which refuses
those that a disruption budget forbids; they are tried again until the budget allows them, and after a while the rest
of the plan is dropped. While a plan is carried out, the nodes it keeps are for its pods alone, and other pods wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from dispatchgym.agents import bundle as bundles
from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.batch import PackingBatch
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import Shortlists
from dispatchgym.envs.packing.validate import validate
from dispatchgym.envs.registry import unknown_name
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.facts import PodFacts, Requirement, Selector
from dispatchgym.serving.kube.filters import Filters
from dispatchgym.serving.kube.instance import packing_instance
from dispatchgym.serving.kube.scheduler_api import NOT_FOUND, TOO_MANY_REQUESTS, ApiError, Json
from dispatchgym.serving.kube.scheduler_metrics import SchedulerMetrics
from dispatchgym.solvers.packing import cp_sat
from dispatchgym.solvers.packing.plan import Hosts, Plan, placed_by_priority
from dispatchgym.solvers.packing.repair import repair

log = logging.getLogger(__name__)


class Planner(Protocol):
    """Where everything should run; `planner` makes one by name."""

    def __call__(self, instance: PackingInstance, now: Hosts) -> tuple[Plan, str]:
        """The plan, valid and never worse than `now`, and how sure it is, for people."""
        ...


def plan_by_cp_sat(time_limit_s: float = 10.0, workers: int = 1) -> Planner:
    """The solver's best within the limit; see `solvers.packing.cp_sat`."""

    def plan(instance: PackingInstance, now: Hosts) -> tuple[Plan, str]:
        solution = cp_sat.solve(instance, now, time_limit=time_limit_s, workers=workers)
        return solution.plan, "proven best" if solution.is_placing_proven else "best found"

    return plan


def plan_by_repair(time_limit_s: float = 0.05) -> Planner:
    """Local search for milliseconds; see `solvers.packing.repair`."""

    def plan(instance: PackingInstance, now: Hosts) -> tuple[Plan, str]:
        found = repair(instance, now, time_limit=time_limit_s)
        return found.plan, "everything placed" if found.is_all_placed else "best found"

    return plan


def plan_by_bundle(spec: str) -> Planner:
    """A learned policy that may move and evict, from the placement that is; kept only if it is better.

    Raises:
        UnknownNameError, BundleError: no such bundle, or one that cannot be trusted.
        UsageError: one that does not move pods.
    """
    folder = bundles.find(spec.removeprefix("bundle:"))
    loaded = bundles.load(folder, "onnx" if bundles.ONNX in bundles.manifest_of(folder)["files"] else "numpy")
    if loaded.runtime.spec.graph != "repack":
        raise UsageError(f"planner {spec!r} sees {loaded.runtime.spec.graph!r}; one that moves pods sees 'repack'")

    def plan(instance: PackingInstance, now: Hosts) -> tuple[Plan, str]:
        order = [*now, *(p for p in range(instance.num_pods) if p not in now)]
        arrival = np.array([0] * len(now) + [1] * (len(order) - len(now)), np.int64)
        arriving = replace(instance, pods=instance.pods.take(order, arrival=arrival))
        batch = PackingBatch.of([arriving], loaded.choices.packing("repack"))
        batch.reset()
        for _ in now:  # whatever their order, these pods fit where they are
            pod = order[int(batch.cluster.env["hand"][0])]
            batch.step(np.array([now[pod] * batch.capacity.gpus]))
        lists = Shortlists(batch, "repack", loaded.choices)
        lists.begin()
        while not batch.over[0]:
            seen = lists.observe()
            lists.step(np.array([seen.action[loaded.runtime.logits(seen)[0].argmax()]]))
        hosts = {order[p]: node for p, node in validate(batch.log(0).events(), arriving).items()}
        is_better = placed_by_priority(instance, hosts) > placed_by_priority(instance, now)
        return Plan(now, hosts if is_better else now), spec

    return plan


def planner(name: str, time_limit_s: float) -> Planner:
    """`cp-sat`, `repair`, or `bundle:NAME`, which knows no time limit.

    Raises:
        UnknownNameError: none of these.
    """
    if name.startswith("bundle:"):
        return plan_by_bundle(name)
    timed: dict[str, Callable[[float], Planner]] = {"cp-sat": plan_by_cp_sat, "repair": plan_by_repair}
    if name not in timed:
        raise unknown_name("planner", name, (*timed, "bundle:NAME"))
    return timed[name](time_limit_s)


@dataclass(frozen=True, slots=True)
class Step:
    """One eviction.

    Args:
        source: where the pod runs.
        target: the node kept for its successor, "" if there is none: it makes room for others.
        swaps: the target has room only when a later step is done; pods change places.
    """

    pod: PodFacts
    source: str
    target: str = ""
    swaps: bool = False


@dataclass(frozen=True, slots=True)
class RepackPlan:
    """What to do, in order.

    Args:
        steps: evictions.
        binds: waiting pods and the nodes kept for them.
        before, after: pods that run, one entry a priority, highest first.
        priorities: these priorities.
        sure: how sure the planner is, for people.
    """

    steps: tuple[Step, ...]
    binds: tuple[tuple[PodFacts, str], ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    priorities: tuple[int, ...]
    sure: str

    @property
    def is_better(self) -> bool:
        """More urgent pods run afterwards."""
        return self.after > self.before

    def lines(self) -> list[str]:
        """The plan for people."""
        moved = sum(bool(step.target) for step in self.steps)
        gone = len(self.steps) - moved
        tiers = zip(self.priorities, self.before, self.after, strict=True)
        running = ", ".join(f"priority {p}: {before} -> {after}" for p, before, after in tiers)
        head = f"plan ({self.sure}): {len(self.binds)} pods bound, {moved} moved, {gone} evicted; running {running}"
        evictions = [
            f"  evict {step.pod.title} from {step.source}"
            + (f", its successor goes to {step.target}" if step.target else ", which waits")
            + (" (they change places)" if step.swaps else "")
            for step in self.steps
        ]
        return [head, *evictions, *(f"  bind {pod.title} to {node}" for pod, node in self.binds)]


def make_plan(
    state: ClusterState, filters: Filters, planner: Planner, *, fixed: Callable[[PodFacts], str] = lambda pod: ""
) -> RepackPlan | None:
    """The planner's answer for the cluster as it stands; None if there is nothing to plan for.

    Args:
        fixed: why a pod must be left alone, "" if it need not.
    """
    with state.lock:
        live = packing_instance(state, filters, fixed=fixed)
    if live is None:
        return None
    plan, sure = planner(live.instance, live.hosts)
    return RepackPlan(
        steps=tuple(
            Step(live.pods[p], live.nodes[plan.now[p]], live.nodes[to] if to is not None else "", swaps)
            for p, to, swaps in in_order(live.instance, plan)
        ),
        binds=tuple((live.pods[p], live.nodes[plan.then[p]]) for p in plan.bound),
        before=placed_by_priority(live.instance, plan.now),
        after=placed_by_priority(live.instance, plan.then),
        priorities=tuple(live.instance.tiers.tolist()),
        sure=sure,
    )


def in_order(instance: PackingInstance, plan: Plan) -> list[tuple[int, int | None, bool]]:
    """Evictions as (pod, target or None, must change places), such that targets have room as often as possible.

    Moves that have room come first; then a pod that goes for good, lowest priority first; then, where pods wait for
    each other in a circle, the move that frees most.
    """
    free = instance.nodes.capacity.copy()
    room = instance.nodes.max_pods.astype(np.int64)
    for p, n in plan.now.items():
        free[n] -= instance.pods.request[p]
        room[n] -= 1
    moves, goers = list(plan.moved), sorted(plan.evicted, key=lambda p: int(instance.pods.priority[p]))
    found: list[tuple[int, int | None, bool]] = []
    while moves or goers:
        fits = [p for p in moves if room[plan.then[p]] > 0 and (instance.pods.request[p] <= free[plan.then[p]]).all()]
        if fits or not goers:
            p = fits[0] if fits else max(moves, key=lambda p: int(instance.pods.request[p].sum()))
            moves.remove(p)
            target = plan.then[p]
            found.append((p, target, not fits))
            free[target] -= instance.pods.request[p]
            room[target] -= 1
        else:
            p = goers.pop(0)
            found.append((p, None, False))
        free[plan.now[p]] += instance.pods.request[p]
        room[plan.now[p]] += 1
    return found


def blocked_by_budget(budgets: Iterable[Json]) -> Callable[[PodFacts], str]:
    """Why a running pod's disruption budgets forbid to evict it now, "" if they do not."""
    closed = []
    for budget in budgets:
        if int(budget.get("status", {}).get("disruptionsAllowed") or 0) == 0:
            chosen = budget.get("spec", {}).get("selector")
            legacy = str(budget.get("apiVersion", "")).endswith("v1beta1") and not chosen
            if chosen is not None and not legacy:
                closed.append((budget["metadata"]["namespace"], _selector(chosen), budget["metadata"]["name"]))

    def ask(pod: PodFacts) -> str:
        for namespace, selector, name in closed:
            if pod.node and namespace == pod.namespace and selector.holds(pod.labels):
                return f"disruption budget {name} allows no disruption now"
        return ""

    return ask


def _selector(chosen: Json) -> Selector:
    labels = [Requirement(key, "In", (value,)) for key, value in (chosen.get("matchLabels") or {}).items()]
    return Selector(
        (
            *labels,
            *(
                Requirement(one["key"], one["operator"], tuple(one.get("values") or ()))
                for one in chosen.get("matchExpressions") or ()
            ),
        )
    )


@dataclass(frozen=True, slots=True)
class RepackSettings:
    """How patiently a plan is carried out, in seconds.

    Args:
        step_s: how long one eviction may wait for its disruption budget, or for room at its target, before the rest of
            the plan is dropped.
        finish_s: how long the plan's nodes are kept for its pods after the last eviction.
        retry_s: between two tries.
    """

    step_s: float = 60.0
    finish_s: float = 120.0
    retry_s: float = 1.0

    def __post_init__(self) -> None:
        if min(self.step_s, self.finish_s, self.retry_s) <= 0:
            raise UsageError(f"times of re-packing must be positive, got {self}")


class Evictor(Protocol):
    """Who evicts; `KubeApi` is one."""

    def evict(self, pod: Json) -> None: ...


Outcome = Literal["done", "dropped", "unfinished"]


class Execution:
    """One plan under way; the scheduler asks it about every pod (`scheduler.Steering`), `run` does the evictions.

    Attributes:
        evicted: steps done.
        outcome: "done"; "dropped" if some evictions were given up; "unfinished" if a pod of the plan never came or
            never fitted.
    """

    def __init__(
        self,
        plan: RepackPlan,
        api: Evictor,
        state: ClusterState,
        filters: Filters,
        *,
        raw: Callable[[str], Json | None],
        settings: RepackSettings | None = None,
        may_act: Callable[[], bool] = lambda: True,
        wake: Callable[[], None] = lambda: None,
        told: Callable[[Json, str], None] = lambda pod, message: None,
        metrics: SchedulerMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.settings = settings or RepackSettings()
        self.evicted = 0
        self.outcome: Outcome = "unfinished"
        self._api = api
        self._state = state
        self._filters = filters
        self._raw = raw
        self._may_act = may_act
        self._wake = wake
        self._told = told
        self._metrics = metrics
        self._clock = clock
        self._changed = threading.Condition()
        self._kept: dict[str, str] = {pod.uid: node for pod, node in plan.binds}  # uid -> node
        self._successors: defaultdict[tuple[str, str], list[str]] = defaultdict(list)  # owner -> nodes
        self._is_over = False

    # --- what the scheduler asks ---

    def target(self, pod: PodFacts) -> str | None:
        with self._changed:
            if self._is_over:
                return None
            waiting = self._successors.get((pod.namespace, pod.owner))
            if pod.uid not in self._kept and pod.owner and waiting:
                self._kept[pod.uid] = waiting.pop(0)
            return self._kept.get(pod.uid)

    def bound(self, pod: PodFacts, node: str) -> None:
        with self._changed:
            self._kept.pop(pod.uid, None)
            self._changed.notify_all()

    # --- doing it ---

    def run(self, stop: threading.Event) -> Outcome:
        """Carry the plan out; returns when its pods are bound, or when it is given up."""
        whole = True
        try:
            for step in self.plan.steps:
                if not self._evict(step, stop):
                    whole = False
                    self._keep_for_successors_alone()
                    break
            self._wake()
            settled = self._settled(stop)
            self.outcome = "dropped" if not whole else "done" if settled else "unfinished"
        finally:
            with self._changed:
                self._is_over = True
            self._wake()
        log.info("plan %s: %d of %d evictions", self.outcome, self.evicted, len(self.plan.steps))
        return self.outcome

    def _keep_for_successors_alone(self) -> None:
        """Whoever waited for room that will not come is the policy's again."""
        with self._changed:
            for pod, _ in self.plan.binds:
                self._kept.pop(pod.uid, None)

    def _evict(self, step: Step, stop: threading.Event) -> bool:
        deadline = self._clock() + self.settings.step_s
        why = "it is no longer where the plan found it"
        while self._may_act() and not stop.is_set():
            with self._state.lock:
                here = self._state.placed.get(step.pod.uid)
            raw = self._raw(step.pod.uid)
            if here is None or here.node != step.source or raw is None:
                break
            if step.target and not step.swaps and not self._has_room(step):
                why = f"{step.target} has no room for it"
            else:
                try:
                    self._api.evict(raw)
                except ApiError as error:
                    why = str(error)
                    if error.code == NOT_FOUND:
                        break
                    self._count("blocked" if error.code == TOO_MANY_REQUESTS else "failed")
                else:
                    self._count("done")
                    self.evicted += 1
                    if step.target:
                        with self._changed:
                            self._successors[step.pod.namespace, step.pod.owner].append(step.target)
                    where = f"its successor is meant for {step.target}" if step.target else "for more urgent pods"
                    self._told(raw, f"Evicted from {step.source} by a re-packing plan; {where}")
                    self._wake()
                    return True
            if self._clock() >= deadline:
                break
            stop.wait(self.settings.retry_s)
        log.warning("plan: %s is not evicted, the rest is dropped: %s", step.pod.title, why)
        return False

    def _has_room(self, step: Step) -> bool:
        moved = replace(step.pod, node="")  # a bound pod would only do on its own node
        return bool(self._filters.check(moved, [step.target], without=[step.pod.uid]).nodes)

    def _settled(self, stop: threading.Event) -> bool:
        """Wait until every kept node has its pod."""
        deadline = self._clock() + self.settings.finish_s
        with self._changed:
            while (self._kept or any(self._successors.values())) and not stop.is_set() and self._may_act():
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._changed.wait(min(left, self.settings.retry_s))
        return not stop.is_set()

    def _count(self, result: str) -> None:
        if self._metrics:
            self._metrics.evictions.labels(result).inc()
