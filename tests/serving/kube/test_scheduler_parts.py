"""The second scheduler's queue, lease and messages, on a clock that the test sets."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.kube.filters import Failure
from dispatchgym.serving.kube.scheduler_api import CONFLICT, ApiError
from dispatchgym.serving.kube.scheduler_events import why_nowhere
from dispatchgym.serving.kube.scheduler_lease import Election, LeaseSettings
from dispatchgym.serving.kube.scheduler_queue import PodQueue

Json = dict[str, Any]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> PodQueue:
    return PodQueue(clock)


def test_the_queue_gives_urgent_pods_first_and_equals_in_order(queue: PodQueue) -> None:
    for uid, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        queue.add(uid, priority)
    assert [queue.pop() for _ in range(5)] == ["b", "d", "a", "c", None]


def test_a_pod_that_was_handed_out_is_not_handed_out_again(queue: PodQueue) -> None:
    queue.add("a", 0)
    assert queue.pop() == "a"
    queue.add("a", 0)  # its MODIFIED event
    assert queue.pop() is None
    assert len(queue) == 1


def test_failures_back_off_1_2_4_8_10_10_seconds(queue: PodQueue, clock: Clock) -> None:
    """kube-scheduler: 1 s, doubled after each failure, 10 s at most."""
    queue.add("a", 0)
    for pause in (1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
        assert queue.pop() == "a"
        queue.retry("a", set_aside=False)
        clock.now += pause - 0.01
        assert queue.pop() is None
        clock.now += 0.02


def test_a_pod_set_aside_waits_for_a_change_and_its_back_off(queue: PodQueue, clock: Clock) -> None:
    queue.add("a", 0)
    queue.pop()
    queue.retry("a", set_aside=True)
    clock.now += 200
    assert (queue.pop(), queue.num_aside) == (None, 1)
    queue.wake()
    assert (queue.pop(), queue.num_aside) == ("a", 0)
    queue.retry("a", set_aside=True)
    queue.wake()
    assert queue.pop() is None, "the second failure pauses for 2 s even if something has changed"
    clock.now += 2.01
    assert queue.pop() == "a"


def test_a_pod_set_aside_is_tried_again_after_five_minutes_anyway(queue: PodQueue, clock: Clock) -> None:
    queue.add("a", 0)
    queue.pop()
    queue.retry("a", set_aside=True)
    clock.now += 300.01
    assert queue.pop() == "a"


def test_a_change_during_the_decision_counts(queue: PodQueue, clock: Clock) -> None:
    """The decision may not have seen it: the pod goes to the back-off, not aside."""
    queue.add("a", 0)
    queue.pop()
    queue.wake()
    queue.retry("a", set_aside=True)
    assert queue.num_aside == 0
    clock.now += 1.01
    assert queue.pop() == "a"


def test_a_removed_pod_never_comes_back(queue: PodQueue, clock: Clock) -> None:
    for uid in ("a", "b"):
        queue.add(uid, 0)
    queue.pop()
    queue.retry("a", set_aside=False)
    for uid in ("a", "b"):
        queue.remove(uid)
    queue.retry("a", set_aside=True)
    clock.now += 1000
    assert (queue.pop(), len(queue)) == (None, 0)


class Leases:
    """One lease, with the API server's rule about resource versions; `down` refuses everything."""

    def __init__(self) -> None:
        self.lease: Json | None = None
        self.down = False
        self.version = 0

    def read_lease(self, namespace: str, name: str) -> Json | None:
        if self.down:
            raise ApiError("down")
        return copy.deepcopy(self.lease)

    def write_lease(self, namespace: str, lease: Json) -> Json:
        if self.down:
            raise ApiError("down")
        known = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if lease["metadata"].get("resourceVersion") != known:
            raise ApiError("conflict", CONFLICT)
        self.version += 1
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return self.lease

    @property
    def holder(self) -> str:
        assert self.lease is not None
        return str(self.lease["spec"]["holderIdentity"])


def candidates(clock: Clock) -> tuple[Leases, Election, Election]:
    leases = Leases()
    return leases, *(Election(leases, LeaseSettings(), name, clock=clock) for name in ("one", "two"))  # type: ignore[return-value]


def test_the_second_candidate_waits_while_the_first_renews(clock: Clock) -> None:
    leases, one, two = candidates(clock)
    for _ in range(20):
        assert one.try_once()
        assert not two.try_once()
        clock.now += 2
    assert (leases.holder, one.is_leader, two.is_leader) == ("one", True, False)


def test_a_dead_leaders_lease_is_taken_after_its_duration_and_not_before(clock: Clock) -> None:
    leases, one, two = candidates(clock)
    one.try_once()
    assert not two.try_once()  # sees the lease now
    clock.now += 14.9
    assert not two.try_once()
    assert not one.is_leader, "it stopped acting 10 s after its last renewal, before anybody could take over"
    clock.now += 0.2
    assert two.try_once()
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 1
    assert not one.try_once()


def test_a_leader_that_cannot_renew_stops_at_the_deadline(clock: Clock) -> None:
    leases, one, _ = candidates(clock)
    one.try_once()
    leases.down = True
    clock.now += 9.9
    assert not one.try_once()
    assert one.is_leader
    clock.now += 0.2
    assert not one.is_leader
    leases.down = False
    assert one.try_once()
    assert one.is_leader


def test_a_released_lease_is_taken_at_once(clock: Clock) -> None:
    leases, one, two = candidates(clock)
    one.try_once()
    two.try_once()
    one.release()
    assert not one.is_leader
    assert two.try_once()
    assert leases.holder == "two"
    one.release()
    assert leases.holder == "two", "nobody gives back what is not theirs"


def test_of_two_that_write_at_once_one_wins(clock: Clock) -> None:
    leases, one, two = candidates(clock)
    read = leases.read_lease
    leases.read_lease = lambda namespace, name: None  # type: ignore[method-assign]
    assert [one.try_once(), two.try_once()] == [True, False]
    leases.read_lease = read  # type: ignore[method-assign]
    assert leases.holder == "one"


def test_lease_times_out_of_order_are_refused() -> None:
    with pytest.raises(UsageError, match="must rise"):
        LeaseSettings(duration_s=5, renew_deadline_s=10)


def test_why_nowhere_counts_the_filters() -> None:
    short, taint = Failure("NodeResourcesFit", "insufficient cpu"), Failure("TaintToleration", "taint a")
    assert why_nowhere({"x": taint, "y": short, "z": short}) == (
        "0/3 nodes are available: 2 NodeResourcesFit (insufficient cpu), 1 TaintToleration (taint a)."
    )
    assert why_nowhere({}) == "0/0 nodes are available: the cluster has none."
