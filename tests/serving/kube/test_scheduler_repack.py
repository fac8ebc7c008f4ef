"""Re-packing: plans judged by hand, evictions against the API server in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispatchgym.envs.api import GraphBatch, UnknownNameError, UsageError
from dispatchgym.envs.packing.generate import priority_matters
from dispatchgym.envs.packing.instance import Nodes, PackingInstance, Pods
from dispatchgym.envs.packing.shortlist import SPECS, ShortlistConfig
from dispatchgym.envs.packing.validate import validate
from dispatchgym.serving.kube import scheduler_repack
from dispatchgym.serving.kube.convert import pod_facts
from dispatchgym.serving.kube.filters import Filters
from dispatchgym.serving.kube.scheduler import Scheduler
from dispatchgym.serving.kube.scheduler_api import KubeApi
from dispatchgym.serving.kube.scheduler_events import Recorder
from dispatchgym.serving.kube.scheduler_repack import (
    Planner,
    RepackSettings,
    blocked_by_budget,
    in_order,
    plan_by_cp_sat,
    plan_by_repair,
    planner,
)
from dispatchgym.serving.kube.scheduler_repacker import Repacker
from dispatchgym.solvers.packing import kube_scheduler
from dispatchgym.solvers.packing.plan import Plan, check_hosts, placed_by_priority
from tests.serving.kube.api_server import ApiServer
from tests.serving.kube.clusters import all_bound, node, pod, running

Json = dict[str, Any]
QUICK = RepackSettings(step_s=0.5, finish_s=10.0, retry_s=0.05)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    running = ApiServer(replaces=True).start()
    yield running
    running.stop()


def budget(name: str, least: int, **labels: str) -> Json:
    return {"metadata": {"name": name}, "spec": {"minAvailable": least, "selector": {"matchLabels": labels}}}


def repacker(
    server: ApiServer,
    scheduler: Scheduler,
    *,
    allow: bool,
    told: list[str] | None = None,
    plans: Planner | None = None,
) -> Repacker:
    api = KubeApi.connect(url=server.url)
    recorder = Recorder(api, "dispatchgym", "test")
    said = told if told is not None else []
    return Repacker(
        scheduler, Filters(scheduler.state), api, plans or plan_by_cp_sat(20.0), recorder,
        allow_evictions=allow, settings=QUICK, tell=said.extend,
    )  # fmt: skip


def fragmented(server: ApiServer, scheduler: Scheduler) -> None:
    """Two nodes of 4 CPUs with 1 CPU taken each; a pod of 4 waits. Moving one of the small ones makes room."""
    for name in ("a", "b"):
        server.create("nodes", node(name, cpu=4))
    for name, where in (("small-1", "a"), ("small-2", "b")):
        server.create("pods", pod(name, "1", owner=name.replace("-", ""), labels={"app": name}), "default")
        server.bind("default", name, {"target": {"name": where}})
    server.create("pods", pod("big", "4", owner="big"), "default")
    assert server.wait(lambda s: scheduler.is_synced and scheduler.queue.num_aside == 1)


def test_a_plan_moves_a_pod_so_that_a_large_one_fits(server: ApiServer) -> None:
    with running(server) as scheduler:
        fragmented(server, scheduler)
        told: list[str] = []
        one = repacker(server, scheduler, allow=True, told=told)
        plan = one.look()
        assert plan is not None
        assert (plan.before, plan.after, len(plan.steps)) == ((2,), (3,), 1)
        assert server.wait(all_bound)
    hosts = server.hosts()
    assert hosts["big"] not in [where for name, where in hosts.items() if name != "big"]
    assert len(server.sent("POST", "/eviction$")) == 1
    assert sorted(hosts.values()) in (["a", "a", "b"], ["a", "b", "b"])
    assert told[0] == "plan (proven best): 1 pods bound, 1 moved, 0 evicted; running priority 0: 2 -> 3"


def test_local_search_plans_too(server: ApiServer) -> None:
    with running(server) as scheduler:
        fragmented(server, scheduler)
        plan = repacker(server, scheduler, allow=True, plans=plan_by_repair(1.0)).look()
        assert plan is not None
        assert (plan.before, plan.after, plan.sure) == ((2,), (3,), "everything placed")
        assert server.wait(all_bound)


class Whims:
    """A network with a bundle around it, that likes one choice or another."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.runtime = self
        self.spec = SPECS["repack"]
        self.choices = ShortlistConfig()

    def logits(self, seen: GraphBatch) -> list[np.ndarray]:
        return [self.rng.normal(size=len(seen.action))]


def learned(monkeypatch: pytest.MonkeyPatch, network: Whims) -> Planner:
    monkeypatch.setattr(scheduler_repack.bundles, "find", Path)
    monkeypatch.setattr(scheduler_repack.bundles, "manifest_of", lambda path: {"files": {}})
    monkeypatch.setattr(scheduler_repack.bundles, "load", lambda path, runtime: network)
    return planner("bundle:whims", 1.0)


def test_a_learned_policy_plans_too(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its taste: making room for the large pod has no alternative."""
    with running(server) as scheduler:
        fragmented(server, scheduler)
        plan = repacker(server, scheduler, allow=True, plans=learned(monkeypatch, Whims(0))).look()
        assert plan is not None
        assert (plan.before, plan.after, len(plan.steps), plan.sure) == ((2,), (3,), 1, "bundle:whims")
        assert server.wait(all_bound)


def test_plans_of_any_policy_are_valid_and_never_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    better = 0
    for seed in range(12):
        hand = priority_matters(6, 4, 3, 0.95, seed)
        now = validate(kube_scheduler.rollout(hand, seed=seed).log.events(), hand)
        plan, _ = learned(monkeypatch, Whims(seed))(hand, now)
        check_hosts(hand, plan.then)
        assert plan.now == now
        before, after = placed_by_priority(hand, now), placed_by_priority(hand, plan.then)
        assert after > before or plan.then == now
        better += after > before
        steps = in_order(hand, plan)
        assert sorted(p for p, _, _ in steps) == sorted([*plan.moved, *plan.evicted])
    assert better, "not one plan was better: nothing was tested"


def test_a_bundle_that_does_not_move_pods_and_an_unknown_planner_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    binds = Whims(0)
    binds.spec = SPECS["bindings"]
    with pytest.raises(UsageError, match="moves pods"):
        learned(monkeypatch, binds)
    with pytest.raises(UnknownNameError, match="did you mean 'cp-sat'"):
        planner("cpsat", 1.0)


def test_without_leave_a_plan_is_only_told(server: ApiServer) -> None:
    with running(server) as scheduler:
        fragmented(server, scheduler)
        told: list[str] = []
        one = repacker(server, scheduler, allow=False, told=told)
        assert one.look() is not None
        assert one.look() is not None
    assert not server.sent("POST", "/eviction$")
    assert sum(line.startswith("plan") for line in told) == 1, "the same plan is told once"


def test_a_budget_that_allows_nothing_keeps_the_planner_away(server: ApiServer) -> None:
    with running(server) as scheduler:
        fragmented(server, scheduler)
        server.create("poddisruptionbudgets", budget("keep-1", 1, app="small-1"), "default")
        plan = repacker(server, scheduler, allow=True).look()
        assert plan is not None
        assert [step.pod.name for step in plan.steps] == ["small-2"]
        assert server.wait(all_bound)
    assert server.hosts()["small-1"] == "a"


def test_a_budget_that_closes_after_planning_stops_the_eviction_and_drops_the_plan(server: ApiServer) -> None:
    with running(server) as scheduler:
        fragmented(server, scheduler)
        one = repacker(server, scheduler, allow=True)
        plan = one.plan()
        assert plan is not None
        app = plan.steps[0].pod.name
        server.create("poddisruptionbudgets", budget("late", 1, app=app), "default")
        before = server.hosts()
        execution = one.carry_out(plan)
        assert (execution.outcome, execution.evicted) == ("dropped", 0)
        assert server.hosts() == before
        assert scheduler.steering is None
        assert len(server.sent("POST", "/eviction$")) >= 2, "it was tried again until its time was over"
        assert scheduler.metrics.evictions.labels("blocked")._value.get() >= 2
        server.delete("poddisruptionbudgets", "late", "default")
        again = one.look()
        assert again is not None
        assert server.wait(all_bound), "the next plan is carried out"


def test_two_pods_of_one_budget_go_one_after_the_other(server: ApiServer) -> None:
    """Both small pods must leave node a for the big one; the budget lets one of them be away at a time."""
    for name, cpu in (("a", 4), ("b", 2)):
        server.create("nodes", node(name, cpu=cpu))
    with running(server) as scheduler:
        for i in range(2):
            server.create("pods", pod(f"small-{i}", "1", owner="small", labels={"app": "small"}), "default")
            server.bind("default", f"small-{i}", {"target": {"name": "a"}})
        server.create("poddisruptionbudgets", budget("one-at-a-time", 1, app="small"), "default")
        server.create("pods", pod("big", "4"), "default")
        assert server.wait(lambda s: scheduler.is_synced and scheduler.queue.num_aside == 1)
        fewest = [2]

        def watch(method: str, path: str, body: Json) -> None:
            bound = sum(name.startswith("small") for name in server.hosts())
            fewest.append(bound)

        server.before.append(watch)
        assert repacker(server, scheduler, allow=True).look() is not None
        assert server.wait(all_bound)
    assert server.hosts()["big"] == "a"
    assert sorted(server.hosts().values()) == ["a", "b", "b"]
    assert min(fewest) == 1


def test_an_urgent_pod_displaces_a_lesser_one_which_then_waits(server: ApiServer) -> None:
    server.create("nodes", node("a", cpu=2))
    with running(server) as scheduler:
        server.create("pods", pod("low", "2", priority=1, owner="low"), "default")
        assert server.wait(all_bound)
        server.create("pods", pod("high", "2", priority=9, owner="high"), "default")
        assert server.wait(lambda s: scheduler.queue.num_aside == 1)
        plan = repacker(server, scheduler, allow=True).look()
        assert plan is not None
        assert (plan.priorities, plan.before, plan.after) == ((9, 1), (0, 1), (1, 0))
        assert server.wait(lambda s: "high" in s.hosts())
    assert list(server.hosts()) == ["high"]
    assert len(server.all("pods")) == 2, "the evicted pod's successor waits: no pod is lost"


def test_pods_that_nobody_would_create_again_or_of_another_scheduler_are_never_evicted(server: ApiServer) -> None:
    for name in ("a", "b"):
        server.create("nodes", node(name, cpu=4))
    with running(server) as scheduler:
        server.create("pods", pod("bare", "1"), "default")
        server.bind("default", "bare", {"target": {"name": "a"}})
        server.create("pods", pod("theirs", "1", owner="theirs", scheduler="default-scheduler"), "default")
        server.bind("default", "theirs", {"target": {"name": "b"}})
        server.create("pods", pod("big", "4"), "default")
        assert server.wait(lambda s: scheduler.is_synced and scheduler.queue.num_aside == 1)
        assert repacker(server, scheduler, allow=True).look() is None
    assert not server.sent("POST", "/eviction$")


def test_a_pod_that_has_moved_since_planning_drops_the_rest(server: ApiServer) -> None:
    with running(server) as scheduler:
        fragmented(server, scheduler)
        one = repacker(server, scheduler, allow=True)
        plan = one.plan()
        assert plan is not None
        gone = plan.steps[0].pod
        server.delete("pods", gone.name, "default")
        assert server.wait(lambda s: gone.uid not in scheduler.state.placed)
        execution = one.carry_out(plan)
        assert execution.evicted == 0
        assert server.wait(lambda s: len(s.hosts()) >= 2)
    assert not server.sent("POST", "/eviction$")


def test_losing_the_lease_ends_a_plan(server: ApiServer) -> None:
    leads = threading.Event()
    leads.set()
    with running(server, is_leader=leads.is_set) as scheduler:
        fragmented(server, scheduler)
        one = repacker(server, scheduler, allow=True)
        plan = one.plan()
        assert plan is not None
        leads.clear()
        assert one.carry_out(plan).evicted == 0
    assert not server.sent("POST", "/eviction$")


def instance(capacity: list[int], request: list[int], priority: list[int] | None = None) -> PackingInstance:
    nodes = Nodes(np.array([[c, 100] for c in capacity]))
    pods = Pods(np.array([[r, 1] for r in request]), np.array(priority or [0] * len(request)))
    return PackingInstance("hand", nodes, pods)


def test_evictions_are_ordered_so_that_targets_have_room() -> None:
    """Pod 1 must leave node 1 before pod 0 can come; node 2 has room for pod 1."""
    plan = Plan({0: 0, 1: 1}, {0: 1, 1: 2})
    assert in_order(instance([4, 4, 4], [4, 4]), plan) == [(1, 2, False), (0, 1, False)]


def test_pods_that_change_places_are_marked() -> None:
    plan = Plan({0: 0, 1: 1}, {0: 1, 1: 0})
    assert in_order(instance([4, 4], [3, 4]), plan) == [(1, 0, True), (0, 1, False)]


def test_a_pod_goes_for_good_only_when_a_move_needs_its_place() -> None:
    """Pod 2 moves into room; then the lesser pod 0 goes, and pod 1 takes its node."""
    plan = Plan({0: 0, 1: 1, 2: 2}, {1: 0, 2: 3})
    found = in_order(instance([4, 4, 4, 4], [4, 4, 4], [0, 5, 5]), plan)
    assert found == [(2, 3, False), (0, None, False), (1, 0, False)]


@pytest.mark.parametrize(
    ("version", "selector", "blocks"),
    [
        ("policy/v1", {"matchLabels": {"app": "x"}}, True),
        ("policy/v1", {"matchLabels": {"app": "y"}}, False),
        ("policy/v1", {"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "z"]}]}, True),
        ("policy/v1", {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ("policy/v1", {}, True),  # every pod of the namespace
        ("policy/v1beta1", {}, False),  # none, in that version
    ],
)
def test_which_pods_a_budget_covers(version: str, selector: Json, blocks: bool) -> None:
    one = {
        "apiVersion": version,
        "metadata": {"name": "b", "namespace": "default"},
        "spec": {"selector": selector},
        "status": {"disruptionsAllowed": 0},
    }
    thing = pod("p", labels={"app": "x"}, nodeName="a")
    thing["metadata"] |= {"namespace": "default", "uid": "u"}
    assert bool(blocked_by_budget([one])(pod_facts(thing))) == blocks
    open_one = {**one, "status": {"disruptionsAllowed": 1}}
    assert not blocked_by_budget([open_one])(pod_facts(thing))
