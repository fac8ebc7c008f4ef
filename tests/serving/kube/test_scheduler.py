"""The second scheduler against the API server in this process, over real HTTP and with the official client."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.kube.advisor import PlacementAdvisor
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.policies import load_policy
from dispatchgym.serving.kube.scheduler import Scheduler, SchedulerSettings
from dispatchgym.serving.kube.scheduler_advice import PolicyAdvisor
from dispatchgym.serving.kube.scheduler_api import KubeApi
from dispatchgym.serving.kube.scheduler_events import Recorder
from dispatchgym.serving.kube.scheduler_lease import Election, LeaseSettings
from tests.serving.kube.api_server import ApiServer
from tests.serving.kube.clusters import all_bound, node, pod, running

Json = dict[str, Any]


def bindings(server: ApiServer) -> list[Json]:
    return server.sent("POST", r"/binding$")


def cpu_on(server: ApiServer, name: str) -> int:
    pods = [p for p in server.all("pods") if p["spec"].get("nodeName") == name]
    return sum(int(p["spec"]["containers"][0]["resources"]["requests"]["cpu"]) for p in pods)


def events_of(server: ApiServer, name: str, reason: str) -> list[Json]:
    return [e for e in server.all("events") if e["involvedObject"]["name"] == name and e["reason"] == reason]


def test_pods_bind_where_the_policy_says(server: ApiServer) -> None:
    """Best-fit by hand: 3 CPUs to the smaller node, then 1 CPU fills it, the next goes to the other."""
    for name, cpu in (("small", 4), ("large", 8)):
        server.create("nodes", node(name, cpu, memory_gi=2 * cpu))
    api, state = KubeApi.connect(url=server.url), ClusterState()
    advisor = PlacementAdvisor(state, load_policy("best-fit"), budget_s=60.0)
    recorder = Recorder(api, "dispatchgym", "test")
    scheduler = Scheduler(api, state, PolicyAdvisor(advisor), recorder)
    recorder.start()
    scheduler.start()
    try:
        for name, cpu in (("a", "3"), ("b", "1"), ("c", "1")):
            server.create("pods", pod(name, cpu, f"{2 * int(cpu)}Gi"), "default")
            assert server.wait(all_bound, 60.0)
        assert server.hosts() == {"a": "small", "b": "small", "c": "large"}
        assert server.wait(lambda s: len(events_of(s, "c", "Scheduled")) == 1)
        assert "best-fit" in events_of(server, "c", "Scheduled")[0]["message"]
    finally:
        scheduler.stop()
        recorder.stop()
        advisor.close()


def test_other_schedulers_pods_are_left_alone_but_counted(server: ApiServer) -> None:
    server.create("nodes", node("a", cpu=4))
    server.create("pods", pod("theirs", "3", scheduler="default-scheduler"), "default")
    server.bind("default", "theirs", {"target": {"name": "a"}})
    server.create("pods", pod("waits-for-them", "1", scheduler="default-scheduler"), "default")
    with running(server):
        server.create("pods", pod("too-large", "2"), "default")
        assert server.wait(lambda s: bool(events_of(s, "too-large", "FailedScheduling")))
        server.create("pods", pod("fits", "1"), "default")
        assert server.wait(lambda s: "fits" in s.hosts())
    assert server.hosts() == {"theirs": "a", "fits": "a"}


def test_a_pod_that_fits_nowhere_is_told_why_and_bound_once_a_node_comes(server: ApiServer) -> None:
    server.create("nodes", node("a", cpu=1))
    server.create("pods", pod("big", "2"), "default")
    with running(server):
        assert server.wait(lambda s: bool(events_of(s, "big", "FailedScheduling")))
        message = events_of(server, "big", "FailedScheduling")[0]["message"]
        assert message == "0/1 nodes are available: 1 NodeResourcesFit (insufficient cpu (asks 2000, free 1000))."
        found = server.get("pods", "big", "default")
        assert found is not None
        assert found["status"]["conditions"][0]["reason"] == "Unschedulable"
        server.create("nodes", node("b", cpu=2))
        assert server.wait(all_bound)
    assert server.hosts() == {"big": "b"}
    assert len(events_of(server, "big", "FailedScheduling")) == 1


def test_urgent_pods_come_first(server: ApiServer) -> None:
    server.create("nodes", node("a", cpu=1))
    for name, priority in (("low", 1), ("high", 5), ("middle", 3)):
        server.create("pods", pod(name, priority=priority), "default")
    with running(server):
        assert server.wait(lambda s: len(s.hosts()) == 1)
    assert server.hosts() == {"high": "a"}


def test_decisions_see_bindings_under_way(server: ApiServer) -> None:
    """All answers are held back until all pods are decided: without the expected pods all would go to node a."""
    for name in ("a", "b", "c"):
        server.create("nodes", node(name, cpu=2))
    for i in range(6):
        server.create("pods", pod(f"p{i}"), "default")
    gate = threading.Barrier(4, timeout=20)  # as many as there are workers
    first = iter(range(4))

    def hold(method: str, path: str, body: Json) -> None:
        if path.endswith("/binding") and next(first, None) is not None:
            gate.wait()

    server.before.append(hold)
    with running(server):
        assert server.wait(all_bound)
    assert [cpu_on(server, name) for name in ("a", "b", "c")] == [2, 2, 2]
    assert len(bindings(server)) == 6


def test_a_cut_watch_is_resumed_and_a_compacted_one_listed_anew(server: ApiServer) -> None:
    server.create("nodes", node("a", cpu=8))
    with running(server) as scheduler:
        for i, trouble in enumerate((lambda: None, server.drop_watches, server.compact)):
            trouble()
            if trouble == server.compact:
                server.drop_watches()
            server.create("pods", pod(f"p{i}"), "default")
            assert server.wait(all_bound), i
        for reflector in scheduler._reflectors:
            server.wait(lambda s, r=reflector: r.lists == 2, 5.0)  # type: ignore[misc]
        lists = [reflector.lists for reflector in scheduler._reflectors]
    assert server.hosts() == {"p0": "a", "p1": "a", "p2": "a"}
    assert lists == [2, 2], "one list at the start, one after 410 Gone, none for the cut"
    assert len(bindings(server)) == 3


def test_what_happens_while_the_watch_is_lost_is_seen_afterwards(server: ApiServer) -> None:
    server.create("nodes", node("a", cpu=2))
    server.create("pods", pod("old", "2"), "default")
    with running(server):
        assert server.wait(all_bound)
        server.fail("GET", r"^/api/v1/(pods|nodes)$", 500, times=4)
        server.drop_watches()
        server.delete("pods", "old", "default")
        server.create("pods", pod("new", "2"), "default")
        assert server.wait(all_bound, 20)
    assert server.hosts() == {"new": "a"}


def test_an_api_server_restart_in_the_middle_loses_no_pod(server: ApiServer) -> None:
    for i in range(5):
        server.create("nodes", node(f"n{i}", cpu=10))
    with running(server):
        for i in range(25):
            server.create("pods", pod(f"p{i}"), "default")
        assert server.wait(lambda s: len(s.hosts()) >= 5)
        server.stop()
        for i in range(25, 50):
            server.create("pods", pod(f"p{i}"), "default")
        server.start()
        assert server.wait(all_bound, 30)
    assert len(server.hosts()) == 50
    assert all(cpu_on(server, f"n{i}") == 10 for i in range(5))


def test_an_answer_that_is_lost_leaves_the_pod_bound_once(server: ApiServer) -> None:
    """The binding is made, its answer is an error: the repetition meets 409, and the pod is found on the node."""
    server.create("nodes", node("a"))
    server.create("pods", pod("p"), "default")
    done = []

    def bind_and_fail(method: str, path: str, body: Json) -> None:
        if path.endswith("/binding") and not done:
            done.append(path)
            server.bind("default", "p", body)
            server.fail("POST", "/binding$", 500)

    server.before.append(bind_and_fail)
    with running(server) as scheduler:
        assert server.wait(lambda s: bool(events_of(s, "p", "Scheduled")))
        assert len(scheduler.queue) == 0
    assert server.hosts() == {"p": "a"}
    assert len(bindings(server)) == 2


def test_a_binding_conflict_puts_the_pod_back_and_the_next_try_binds_it(server: ApiServer) -> None:
    server.create("nodes", node("a"))
    server.create("pods", pod("p"), "default")
    server.fail("POST", "/binding$", 409)
    with running(server) as scheduler:
        assert server.wait(all_bound)
        refused = scheduler.metrics.attempts.labels("refused")._value.get()
    assert refused == 1
    assert server.hosts() == {"p": "a"}
    assert len(bindings(server)) == 2


def test_a_pod_bound_by_somebody_else_meanwhile_is_left_there_and_counted_there(server: ApiServer) -> None:
    for name in ("a", "b"):
        server.create("nodes", node(name, cpu=2))
    server.create("pods", pod("p", "2"), "default")
    rivals = iter(["b"])

    def be_faster(method: str, path: str, body: Json) -> None:
        if path.endswith("/binding") and (rival := next(rivals, None)):
            server.bind("default", "p", {"target": {"name": rival}})

    server.before.append(be_faster)
    with running(server):
        assert server.wait(all_bound)
        server.create("pods", pod("q", "2"), "default")
        assert server.wait(all_bound)
    assert server.hosts() == {"p": "b", "q": "a"}


def test_a_pod_deleted_meanwhile_frees_its_place(server: ApiServer) -> None:
    server.create("nodes", node("a", cpu=2))
    server.create("pods", pod("p", "2"), "default")
    doomed = iter(["p"])

    def be_deleted(method: str, path: str, body: Json) -> None:
        if path.endswith("/binding") and (name := next(doomed, None)):
            server.delete("pods", name, "default")
            server.create("pods", pod("p", "2"), "default")  # another pod of that name

    server.before.append(be_deleted)
    with running(server) as scheduler:
        assert server.wait(all_bound)
        assert server.wait(lambda s: len(scheduler.queue) == 0)
    sent = [body["metadata"]["uid"] for body in bindings(server)]
    assert len(sent) == len(set(sent)) == 2, "bindings name the uid: the old decision leaves the new pod alone"


def test_without_eyes_nothing_is_decided(server: ApiServer) -> None:
    server.create("nodes", node("a"))
    with running(server) as scheduler:
        assert server.wait(lambda s: scheduler.may_decide)
        server.fail("GET", r"^/api/v1/pods$", 500, times=1000)
        server.drop_watches()
        assert server.wait(lambda s: not scheduler.may_decide)
        scheduler.queue.add("uid-none", 0)
        assert server.wait(lambda s: scheduler.queue.pop() == "uid-none"), "the scheduler leaves it in the queue"
        scheduler.queue.remove("uid-none")
        server.create("pods", pod("p"), "default")
        server.faults.clear()
        assert server.wait(all_bound, 20)
        assert scheduler.may_decide


def test_a_gated_pod_waits_for_its_gates(server: ApiServer) -> None:
    server.create("nodes", node("a"))
    server.create("pods", pod("gated", schedulingGates=[{"name": "later"}]), "default")
    with running(server):
        server.create("pods", pod("free"), "default")
        assert server.wait(lambda s: "free" in s.hosts())
        assert "gated" not in server.hosts()
        server.update("pods", "gated", lambda p: p["spec"].pop("schedulingGates"), "default")
        assert server.wait(all_bound)


def test_an_object_that_cannot_be_read_is_counted_and_left_out(server: ApiServer) -> None:
    server.create("nodes", node("a"))
    server.create("nodes", {"metadata": {"name": "strange"}, "status": {"allocatable": {"cpu": "many"}}})
    server.create("pods", pod("odd", cpu="minus one"), "default")
    with running(server) as scheduler:
        server.create("pods", pod("p"), "default")
        assert server.wait(lambda s: "p" in s.hosts())
        assert scheduler.metrics.unreadable._value.get() == 2
    assert server.hosts() == {"p": "a"}


def test_two_replicas_bind_every_pod_once_and_the_second_takes_over(server: ApiServer) -> None:
    for i in range(4):
        server.create("nodes", node(f"n{i}", cpu=10))
    times = LeaseSettings(duration_s=1.0, renew_deadline_s=0.6, retry_s=0.1)
    elections = [Election(KubeApi.connect(url=server.url), times, name) for name in ("one", "two")]
    assert [e.try_once() for e in elections] == [True, False]
    stops = [threading.Event() for _ in elections]
    threads = [threading.Thread(target=e.run, args=(s,)) for e, s in zip(elections, stops, strict=True)]
    for thread in threads:
        thread.start()
    try:
        one, two = elections
        with (
            running(server, is_leader=lambda: one.is_leader) as first,
            running(server, is_leader=lambda: two.is_leader) as second,
        ):
            for i in range(20):
                server.create("pods", pod(f"p{i}"), "default")
            assert server.wait(all_bound)
            assert len(bindings(server)) == 20
            assert second.metrics.attempts.labels("scheduled")._value.get() == 0
            stops[0].set()  # a clean stop gives the lease back
            threads[0].join(10)
            for i in range(20, 40):
                server.create("pods", pod(f"p{i}"), "default")
            assert server.wait(all_bound)
            assert not first.is_leader
    finally:
        for stop, thread in zip(stops, threads, strict=True):
            stop.set()
            thread.join(10)
    sent = [body["metadata"]["name"] for body in bindings(server)]
    assert sorted(sent) == sorted(f"p{i}" for i in range(40)), "one binding a pod"
    assert [cpu_on(server, f"n{i}") for i in range(4)] == [10, 10, 10, 10]


def test_without_leadership_nothing_is_bound(server: ApiServer) -> None:
    server.create("nodes", node("a"))
    server.create("pods", pod("p"), "default")
    leads = threading.Event()
    with running(server, is_leader=leads.is_set) as scheduler:
        assert server.wait(lambda s: scheduler.is_synced)
        scheduler.decide("uid-2")  # even a decision made as a leader is not carried out after losing the lease
        assert not bindings(server)
        leads.set()
        assert server.wait(all_bound)


def test_the_default_schedulers_name_is_refused() -> None:
    with pytest.raises(UsageError, match="default scheduler"):
        SchedulerSettings(name="default-scheduler")
